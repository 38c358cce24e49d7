"""What becomes of a claim whose done meets trouble: five ways to release, on real servers.

A to E as the project's issue 2 names them; then a whole wake through three servers, every call on
another one.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import DatabaseError, connection

from dispatch.models import Wake
from tests.support import Api, Balancer, Claim, Database, Server, Servers

pytestmark = pytest.mark.postgres


def woken(api: Api) -> Claim:
    """A claim on an entity, for one message."""
    api.register()
    api.make_entity()
    api.send()
    return api.claim()


def through(claim: Claim, api: Api) -> Claim:
    """The same claim, called back about through another server."""
    return Claim(api, claim.body, claim.tail)


# --- A: the server dies between mint and done -------------------------------------------------


def test_it_releases_on_another_server_than_the_one_that_was_killed(
    start_server: Callable[..., Server],
):
    doomed, other = start_server(), start_server()
    claim = woken(doomed.client())
    token = claim.mint()
    doomed.kill()
    elsewhere = through(claim, other.client())
    assert elsewhere.append({"type": "line"}, token=token).status == 204
    assert elsewhere.done().body == {"ok": True, "next_wake": False, "entity_cleared": True}
    assert other.client().status() == "idle"
    assert elsewhere.append({"type": "line"}, token=token).status == 401


def test_it_releases_after_the_server_was_killed_and_restarted(mortal: Server):
    claim = woken(mortal.client())
    token = claim.mint()
    mortal.kill()
    mortal.start()
    assert mortal.client().status() == "running"
    assert claim.append({"type": "line"}, token=token).status == 204
    assert claim.done().body == {"ok": True, "next_wake": False, "entity_cleared": True}
    assert mortal.client().status() == "idle"


# --- B: a newer wake has taken over -----------------------------------------------------------


def test_it_changes_nothing_of_the_newer_claim_for_a_late_done(
    database: Database, start_server: Callable[..., Server]
):
    # No reaper: the newer claim itself meets the lapsed one.
    server = start_server(PULLWAKE_REAPER_INTERVAL_MS=3_600_000)
    api = server.client()
    late = woken(api)
    (subscription,) = database.execute(
        "SELECT 'runner:r1:' || subscription_key FROM dispatch_entity"
    )
    database.execute(
        "UPDATE claims_consumerclaim SET lease_expires_at = claimed_at - interval '1 second'"
    )
    newer = api.claim(event={"subscription_id": subscription[0]})
    token = newer.mint()
    before = everything(database)
    for answer in (late.done(), late.done(late.tail), late.fail(), late.heartbeat()):
        assert answer.error == "FENCED"
    assert everything(database) == before
    assert api.status() == "running"
    assert newer.append({"type": "line"}, token=token).status == 204
    assert newer.done().body == {"ok": True, "next_wake": False, "entity_cleared": True}


# --- C: a statement of done fails -------------------------------------------------------------


def everything(database: Database | None = None) -> list[tuple[Any, ...]]:
    """Every column of every row that a done writes; of the test's own database without one."""
    tables = ("claims_consumerclaim", "dispatch_dispatchstate", "dispatch_wake")
    statements = [
        f"SELECT to_jsonb(t) FROM {name} t ORDER BY to_jsonb(t)::text"  # noqa: S608  from above
        for name in (*tables, "runners_wakestream")
    ]
    if database is not None:
        return [row for sql in statements for row in database.execute(sql)]
    rows = []
    with connection.cursor() as cursor:
        for sql in statements:
            cursor.execute(sql)
            rows += cursor.fetchall()
    return rows


class FailingAt:
    """Fails the n-th statement, counted from 1; `reached` says whether there was one."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.seen = 0

    @property
    def reached(self) -> bool:
        return self.seen >= self.number

    def __call__(self, execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        self.seen += 1
        if self.seen == self.number:
            raise DatabaseError("injected")
        return execute(sql, *args)


@pytest.fixture
def committing_alice(transactional_db: None) -> Api:
    """The API in process, with transactions that commit."""
    return Api("user:alice")


@pytest.mark.parametrize("limit", [None, 1], ids=["no claim limit", "at the claim limit"])
@pytest.mark.parametrize("work_left", [False, True], ids=["no work left", "work left"])
def test_it_changes_nothing_when_any_statement_of_done_fails(
    work_left: bool, limit: int | None, committing_alice: Api
):
    api = committing_alice
    api.register(max_concurrent_claims=limit)
    for url in ("/agent/e1", "/agent/e2"):
        api.make_entity(url)
        api.send(url)
    claim = api.claim()
    if work_left:
        api.send()
    before = everything()
    for number in itertools.count(1):
        failing = FailingAt(number)
        with connection.execute_wrapper(failing):
            answer = claim.done()
        if not failing.reached:
            break
        assert answer.status == 500
        assert answer.error == "INTERNAL_SERVER_ERROR"
        assert everything() == before
    assert number > 3
    assert answer.body == {"ok": True, "next_wake": work_left, "entity_cleared": True}
    assert claim.done().body == {"ok": True, "next_wake": False, "entity_cleared": False}
    assert Wake.objects.outstanding().count() == (2 if work_left else 1)


def test_it_releases_on_the_retry_after_the_database_refused_the_next_wake(
    mortal: Server, database: Database
):
    api = mortal.client()
    claim = woken(api)
    api.send()
    before = everything(database)
    database.execute("ALTER TABLE dispatch_wake ADD CONSTRAINT refused CHECK (false) NOT VALID")
    answer = claim.done()
    assert answer.status == 500
    assert answer.error == "INTERNAL_SERVER_ERROR"
    assert everything(database) == before
    database.execute("ALTER TABLE dispatch_wake DROP CONSTRAINT refused")
    assert claim.done().body == {"ok": True, "next_wake": True, "entity_cleared": True}


def test_it_releases_on_the_retry_after_its_connection_was_killed_half_way(
    mortal: Server, database: Database
):
    """The backend dies at COMMIT, when all the statements have succeeded."""
    api = mortal.client()
    claim = woken(api)
    api.send()
    before = everything(database)
    database.execute(
        "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
    )
    database.execute(
        "CREATE CONSTRAINT TRIGGER die AFTER UPDATE ON claims_consumerclaim "
        "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die()"
    )
    answer = claim.done()
    assert answer.status == 503
    assert answer.error == "SERVICE_UNAVAILABLE"
    assert answer.headers["Retry-After"] == "1"
    assert everything(database) == before
    database.execute("DROP TRIGGER die ON claims_consumerclaim")
    assert claim.done().body == {"ok": True, "next_wake": True, "entity_cleared": True}


def test_it_answers_200_to_the_retry_of_a_done_whose_answer_was_lost(mortal: Server):
    claim = woken(mortal.client())
    claim.done()
    mortal.kill()
    mortal.start()
    for _ in range(2):
        answer = claim.done()
        assert answer.status == 200
        assert answer.body == {"ok": True, "next_wake": False, "entity_cleared": False}


# --- D: no write token was ever minted --------------------------------------------------------


def test_it_releases_a_claim_that_never_minted_a_write_token(server: Server):
    claim = woken(server.client())
    assert claim.done().body == {"ok": True, "next_wake": False, "entity_cleared": True}
    assert server.client().status() == "idle"


# --- E: a stale epoch -------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 2], ids=["older", "newer"])
def test_it_fences_a_done_of_another_epoch(epoch: int, server: Server):
    claim = woken(server.client())
    token = claim.mint()
    before = everything(server.database)
    assert claim.call({"done": True, "epoch": epoch}).error == "FENCED"
    assert everything(server.database) == before
    assert server.client().status() == "running"
    assert claim.append({"type": "line"}, token=token).status == 204
    assert claim.done().body["entity_cleared"] is True


# --- One wake through three servers -----------------------------------------------------------


@pytest.fixture
def balancer(servers: Servers) -> Iterator[Balancer]:
    """One address for three servers; each request goes to the next."""
    balancer = Balancer(*servers.lend_some(3))
    yield balancer
    balancer.close()


def test_it_carries_a_wake_through_three_servers_every_call_on_another_one(balancer: Balancer):
    api = balancer.client()
    api.register()
    api.make_entity()
    api.send(payload="first")
    (event,) = api.wakes()
    claim = api.claim(event=event)
    assert claim.body["callback"].startswith(f"{balancer.url}/_electric/wake-callbacks/")
    former, token = claim.mint(), claim.mint()
    assert claim.append({"type": "line"}, token=former).status == 401
    assert claim.append({"type": "line", "n": 1}, token=token).status == 204
    assert claim.heartbeat().body["next_wake"] is False
    api.send(payload="second")
    assert claim.done().body == {"ok": True, "next_wake": True, "entity_cleared": True}
    assert claim.done().body == {"ok": True, "next_wake": False, "entity_cleared": False}
    assert claim.heartbeat().error == "FENCED"
    (event,) = api.wakes()
    assert event["generation"] == 2
    again = api.claim(event=event)
    assert again.done().body == {"ok": True, "next_wake": False, "entity_cleared": True}
    assert api.status() == "idle"
    assert [each["type"] for each in api.events()] == ["entity_created", "inbox", "line", "inbox"]
    # It was what it claims to be: no two calls in a row on one server, and each had its share.
    servers = [server for server, _, _ in balancer.served]
    assert all(one is not next_ for one, next_ in itertools.pairwise(servers))
    assert len(set(servers)) == 3
