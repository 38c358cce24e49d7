"""The admin in process: who may log in, and a world with something in every list."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client

from claims.models import ConsumerClaim
from core.principals import Principal
from dispatch.models import Entity, Wake
from runners import tokens
from runners.models import AccessToken, Runner, RunnerLiveness
from tests.support import PAST, Api, Claim


def person(name: str, **facts: Any) -> Client:
    """Somebody who is logged in."""
    group = facts.pop("group", None)
    user = User.objects.create_user(name, is_staff=True, **facts)
    if group is not None:
        user.groups.add(Group.objects.get(name=group))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def people(db: None) -> dict[str, Client]:
    """One of each: nobody may log in, but has no role."""
    return {
        "stranger": Client(),
        "nobody": person("nobody"),
        "viewer": person("viewer", group="viewers"),
        "operator": person("operator", group="operators"),
        "superuser": person("superuser", is_superuser=True),
    }


@pytest.fixture
def operator(people: dict[str, Client]) -> Client:
    """An operator's browser."""
    return people["operator"]


@dataclass
class World:
    """A runner with a released, a failed and an orphaned claim, a wake, and a token."""

    api: Api
    released: Claim
    failed: Claim
    orphaned: Claim
    token: AccessToken

    def row(self, claim: Claim) -> ConsumerClaim:
        return ConsumerClaim.objects.get(consumer_id=claim.body["consumerId"])

    def paths(self) -> dict[str, str]:
        """Every page, by name."""
        found = {
            f"{label} list": f"/admin/{label.replace('.', '/')}/"
            for label in (
                "runners.runner",
                "runners.accesstoken",
                "claims.consumerclaim",
                "dispatch.entity",
                "dispatch.dispatchstate",
                "dispatch.wake",
                "dispatch.entitytype",
                "admin.logentry",
            )
        }
        found["overview"] = "/admin/"
        found["runner"] = "/admin/runners/runner/r1/change/"
        found["claim"] = f"/admin/claims/consumerclaim/{self.row(self.orphaned).pk}/change/"
        found["ended claim"] = f"/admin/claims/consumerclaim/{self.row(self.failed).pk}/change/"
        found["entity"] = f"/admin/dispatch/entity/{Entity.objects.get(url='/agent/e3').pk}/change/"
        found["wake"] = f"/admin/dispatch/wake/{Wake.objects.outstanding()[0].pk}/change/"
        found["entity type"] = "/admin/dispatch/entitytype/agent/change/"
        found["token"] = f"/admin/runners/accesstoken/{self.token.pk}/change/"
        found["issue"] = "/admin/runners/accesstoken/issue/"
        return found


@pytest.fixture
def world(alice: Api) -> World:
    """Something in every list."""
    alice.post("/_electric/entity-types", {"name": "agent", "description": "Works"})
    alice.register("r1", max_concurrent_claims=10)
    alice.register("r2")
    for url in ("/agent/e1", "/agent/e2", "/agent/e3", "/agent/e4"):
        alice.make_entity(url)
        alice.send(url)
    released, failed, orphaned = (alice.claim() for _ in range(3))
    released.heartbeat()
    released.done()
    failed.fail("no such tool")
    token, _ = tokens.issue(Principal("user", "alice"), label="laptop")
    kill("r1")
    return World(alice, released, failed, orphaned, token)


def kill(runner_id: str) -> None:
    """Let the runner have been seen, and have fallen silent."""
    RunnerLiveness.objects.filter(pk=runner_id).update(
        last_seen_at=PAST, lease_expires_at=PAST, diagnostics={"status": "streaming"}
    )


@pytest.fixture
def entity() -> Callable[[str], Entity]:
    """An entity by its URL."""
    return lambda url: Entity.objects.select_related("dispatch_state").get(url=url)


@pytest.fixture
def runner(world: World) -> Runner:
    """The world's runner."""
    return Runner.objects.get(pk="r1")
