"""A read that is held tells nothing more to a reader who has lost the right to it."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest

from tests.serving.conftest import Held, make_idle
from tests.serving.test_metrics import figures
from tests.support import Claim, Database, HttpApi, Server, wait_until

TYPE = {"name": "agent", "description": "works"}
ENTITY = "/_electric/entities/agent/e1"


def share(api: HttpApi, *principals: str) -> None:
    """Register the type of the entities, and let these principals alone manage it besides."""
    grants = [
        {"subject_kind": "principal", "subject_value": each, "permission": "manage"}
        for each in principals
    ]
    answer = api.post("/_electric/entity-types", {**TYPE, "permission_grants": grants})
    assert answer.status in (200, 201), answer


class Reader:
    """Who reads a stream by what it has been given, and waits for more."""

    def __init__(
        self, server: Server, hold: Callable[..., Held], path: str, mode: str, **headers: str
    ) -> None:
        self.api = server.client("user:bob")
        self.path, self.headers = path, headers
        query = f"{path}?offset=now&live={mode}"
        self.held = hold(server, query, **{"Electric_Principal": "user:bob", **headers})
        self.sse = self.held.connection.getresponse() if mode == "sse" else None
        metric = f'pullwake_held_reads{{mode="{mode}"}}'
        wait_until(lambda: figures(self.api).get(metric) == 1)

    def hears(self, word: str) -> bool:
        """Whether the word comes before the end of the answer."""
        response = self.sse or self.held.connection.getresponse()
        return any(word in line.decode() for line in response)

    def told(self) -> str:
        """What it is told; a refusal is that of a request that came now."""
        response = self.sse or self.held.connection.getresponse()
        body = response.read().decode()
        if response.status not in (200, 204):
            now = self.api.get(self.path, **self.headers)
            assert (response.status, body) == (now.status, now.content.decode())
        return body


@pytest.fixture(params=["long-poll", "sse"])
def read(
    request: pytest.FixtureRequest, mortal: Server, hold: Callable[..., Held]
) -> Callable[..., Reader]:
    """Hold a read of Bob's in each of the modes: ``read(path)``."""
    return lambda path, **headers: Reader(mortal, hold, path, request.param, **headers)


@pytest.fixture
def owner(mortal: Server) -> HttpApi:
    """Alice, with an entity on a runner of hers."""
    api = mortal.client()
    share(api, "user:bob")
    return make_idle(api)


def test_who_may_still_read_is_told(read: Any, owner: HttpApi):
    reader = read("/agent/e1/main")
    owner.send(payload="news")
    assert reader.hears("news")


@pytest.mark.parametrize("which", ["claim", "write"])
def test_the_token_of_an_active_claim_tells(which: str, read: Any, owner: HttpApi):
    reader = read("/agent/e1/main", Electric_Claim_Token=token_of(claimed(owner), which))
    owner.send(payload="news")
    assert reader.hears("news")


def claimed(api: HttpApi) -> Claim:
    api.send()
    return api.claim()


def token_of(claim: Claim, which: str) -> str:
    return str(claim.mint() if which == "write" else claim.body["claimToken"])


def finish(claim: Claim, database: Database) -> None:
    assert claim.done().status == 200


def fail(claim: Claim, database: Database) -> None:
    assert claim.fail().status == 200


def expire(claim: Claim, database: Database) -> None:
    database.execute("UPDATE claims_consumerclaim SET lease_expires_at = claimed_at")
    key = sha256(b"/agent/e1").hexdigest()[:16]
    claim.api.claim(event={"subscription_id": f"runner:r1:{key}"})
    assert claim.heartbeat().status == 409


def take_back(claim: Claim, database: Database) -> None:
    assert claim.api("DELETE", "/_electric/runners/r1").status == 204


@pytest.mark.parametrize("end", [finish, fail, expire, take_back])
@pytest.mark.parametrize("which", ["claim", "write"])
def test_the_token_of_a_claim_that_ended_tells_nothing(
    which: str, end: Any, read: Any, owner: HttpApi, database: Database
):
    claim = claimed(owner)
    reader = read("/agent/e1/main", Electric_Claim_Token=token_of(claim, which))
    end(claim, database)
    owner.send(payload="news")
    assert "news" not in reader.told()


def test_a_write_token_that_was_replaced_tells_nothing(read: Any, owner: HttpApi):
    claim = claimed(owner)
    reader = read("/agent/e1/main", Electric_Claim_Token=claim.mint())
    claim.mint()
    owner.send(payload="news")
    assert "news" not in reader.told()


@pytest.mark.parametrize("path", ["/agent/e1/main", "/_electric/shared-state/s1"])
def test_a_grant_that_was_withdrawn_tells_nothing(path: str, read: Any, owner: HttpApi):
    shared = owner.share()
    reader = read(path)
    share(owner)
    owner.send(payload="news")
    assert owner.post(shared, {"type": "x", "key": "news", "value": {}}).status == 204
    assert "news" not in reader.told()


def test_the_owner_of_a_former_runner_is_told_nothing(read: Any, owner: HttpApi, mortal: Server):
    mortal.client("user:bob").register("bobs")
    policy = {"targets": [{"type": "runner", "runnerId": "bobs"}]}
    assert mortal.client("user:bob")("PATCH", ENTITY, {"dispatch_policy": policy}).status == 200
    share(owner)
    reader = read("/agent/e1/main")
    policy["targets"][0]["runnerId"] = "r1"
    assert owner("PATCH", ENTITY, {"dispatch_policy": policy}).status == 200
    owner.send(payload="news")
    assert "news" not in reader.told()


def test_another_claim_above_tells_until_it_ends(read: Any, owner: HttpApi, mortal: Server):
    """A runner's owner reads what its claimed entity's creator may, for as long as the claim is."""
    bob = mortal.client("user:bob")
    bob.register("bobs")
    policy = {"targets": [{"type": "runner", "runnerId": "bobs"}]}
    owner.make_entity("/agent/child", parent="/agent/e1")
    assert bob("PATCH", ENTITY, {"dispatch_policy": policy}).status == 200
    share(owner)
    owner.send()
    claim = bob.claim("bobs")
    reader = read("/agent/child/main")
    assert claim.done().status == 200
    owner.send("/agent/child", payload="news")
    assert "news" not in reader.told()


@pytest.mark.parametrize("path", ["/agent/e1/main", "/_electric/shared-state/s1"])
def test_what_another_made_anew_is_not_told(path: str, start_server: Any, hold: Any):
    server = start_server(PULLWAKE_LONG_POLL_MS=2000)
    alice, bob = server.client(), server.client("user:bob")
    bob.make_entity(runner_id=None)
    bob.share()
    reader = Reader(server, hold, path, "long-poll")
    assert bob("DELETE", ENTITY).status == 204
    make_idle(alice)
    shared = alice.share()
    alice.send(payload="news")
    assert alice.post(shared, {"type": "x", "key": "news", "value": {}}).status == 204
    assert reader.told() == ""
