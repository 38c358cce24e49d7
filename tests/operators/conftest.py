"""The admin in process: who may log in, and a world with something in every list."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.db.models.functions import Now
from django.test import Client
from pytest_django import DjangoDbBlocker

from claims.models import ConsumerClaim, DeadLetter
from dispatch.models import Entity, SharedState, Timer, Wake
from runners.models import AccessToken, Runner
from tests.factories import (
    AccessTokenFactory,
    DeadLetterFactory,
    EntityTypeFactory,
    RunnerFactory,
    SharedStateFactory,
    TimerFactory,
    WakeFactory,
    handle,
)
from tests.standing import Ages, standing
from tests.support import Api, Claim


def person(name: str, **facts: Any) -> Client:
    """Somebody who is logged in."""
    group = facts.pop("group", None)
    user = User.objects.create_user(name, is_staff=True, **facts)
    if group is not None:
        user.groups.add(Group.objects.get(name=group))
    client = Client()
    client.force_login(user)
    return client


def make_people() -> dict[str, Client]:
    """One of each: nobody may log in, but has no role."""
    return {
        "stranger": Client(),
        "nobody": person("nobody"),
        "viewer": person("viewer", group="viewers"),
        "operator": person("operator", group="operators"),
        "superuser": person("superuser", is_superuser=True),
    }


@pytest.fixture(scope="module")
def standing_people(
    django_db_setup: None, django_db_blocker: DjangoDbBlocker
) -> Iterator[dict[str, Client]]:
    """Those of a module's tests."""
    with standing(django_db_blocker, make_people) as people:
        yield people


@pytest.fixture
def people(standing_people: dict[str, Client], db: None) -> dict[str, Client]:
    """`make_people`'s, each with a browser of the test's own."""
    browsers = {name: Client() for name in standing_people}
    for name, browser in browsers.items():
        browser.cookies = copy.deepcopy(standing_people[name].cookies)
    return browsers


@pytest.fixture
def operator(people: dict[str, Client]) -> Client:
    """An operator's browser."""
    return people["operator"]


@dataclass
class World:
    """A runner with claims released, failed and orphaned, a wake, a dead letter, and a token."""

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
                "claims.deadletter",
                "dispatch.entity",
                "dispatch.dispatchstate",
                "dispatch.wake",
                "dispatch.timer",
                "dispatch.sharedstate",
                "dispatch.entitytype",
                "admin.logentry",
            )
        }
        found["overview"] = "/admin/"
        found["runner"] = "/admin/runners/runner/r1/change/"
        found["claim"] = f"/admin/claims/consumerclaim/{self.row(self.orphaned).pk}/change/"
        found["ended claim"] = f"/admin/claims/consumerclaim/{self.row(self.failed).pk}/change/"
        found["dead letter"] = f"/admin/claims/deadletter/{DeadLetter.objects.get().pk}/change/"
        found["entity"] = f"/admin/dispatch/entity/{Entity.objects.get(url='/agent/e3').pk}/change/"
        found["wake"] = f"/admin/dispatch/wake/{Wake.objects.outstanding()[0].pk}/change/"
        found["timer"] = f"/admin/dispatch/timer/{Timer.objects.failed()[0].pk}/change/"
        found["shared state"] = (
            f"/admin/dispatch/sharedstate/{SharedState.objects.get().pk}/change/"
        )
        found["entity type"] = "/admin/dispatch/entitytype/agent/change/"
        found["token"] = f"/admin/runners/accesstoken/{self.token.pk}/change/"
        found["issue"] = "/admin/runners/accesstoken/issue/"
        return found


def make_world(alice: Api) -> World:
    """Something in every list."""
    EntityTypeFactory.create(name="agent")
    r1 = RunnerFactory.create(id="r1", max_concurrent_claims=10, silent=True)
    RunnerFactory.create(id="r2")
    held = {"last_heartbeat_at": Now()}
    released = handle(alice, entity__url="/agent/e1", entity__runner=r1, released=True, **held)
    failed = handle(alice, entity__url="/agent/e2", entity__runner=r1, failed=True)
    orphaned = handle(alice, entity__url="/agent/e3", entity__runner=r1)
    WakeFactory.create(entity__url="/agent/e4", entity__runner=r1)
    DeadLetterFactory.create(entity=Entity.objects.get(url="/agent/e1"))
    e4 = Entity.objects.get(url="/agent/e4")
    for state in ({}, {"due": True}, {"late": True}, {"failed": True}, {"scheduled": True}):
        TimerFactory.create(target=e4, **state)
    SharedStateFactory.create(name="debate-/moderator/x", link__entity=e4)
    token = AccessTokenFactory.create(label="laptop")
    return World(alice, released, failed, orphaned, token)


@pytest.fixture(scope="module")
def standing_world(
    standing_people: object, django_db_blocker: DjangoDbBlocker
) -> Iterator[tuple[World, Ages]]:
    """That of a module's tests, and how it stays new."""
    with standing(django_db_blocker, lambda: (make_world(Api("user:alice")), Ages())) as world:
        yield world


@pytest.fixture
def world(standing_world: tuple[World, Ages], db: None) -> World:
    """`make_world`'s, as if it had just been made; what the test does to it is undone."""
    world, ages = standing_world
    ages.renew()
    return replace(world, token=copy.copy(world.token))


@pytest.fixture
def entity() -> Callable[[str], Entity]:
    """An entity by its URL."""
    return lambda url: Entity.objects.select_related("dispatch_state").get(url=url)


@pytest.fixture
def runner(world: World) -> Runner:
    """The world's runner."""
    return Runner.objects.get(pk="r1")
