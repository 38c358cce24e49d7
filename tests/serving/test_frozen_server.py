"""A server that is frozen in the middle of a transaction: it costs its own requests alone."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.serving.conftest import Held
from tests.support import Claim, Database, Server, wait_until

pytestmark = pytest.mark.postgres

IDLE_MS = 1_000
"""For how long a session may be idle in a transaction."""


def idle_in_transaction(database: Database) -> bool:
    found = database.execute(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND state = 'idle in transaction' AND query LIKE 'UPDATE%%'"
    )
    return bool(found)


def waking(database: Database) -> bool:
    """Whether a session is where it wakes an entity, in a transaction that is not over."""
    found = database.execute(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND state <> 'idle' AND query LIKE 'INSERT INTO \"dispatch_wake\"%%'"
    )
    return bool(found)


def freeze(server: Server, database: Database, what: str, send: Callable[[], Held]) -> Held:
    """Stop the server's processes while one of its transactions is at this row, and holds it."""
    with database.hold(f"SELECT FROM {what} FOR UPDATE"):
        held = send()
        wait_until(database.waiting)
        assert server.process is not None
        os.killpg(server.process.pid, signal.SIGSTOP)
    wait_until(lambda: idle_in_transaction(database))
    return held


def callback(claim: Claim) -> str:
    return f"/_electric/wake-callbacks/{claim.body['consumerId']}"


@pytest.fixture
def pair(start_server: Callable[..., Server]) -> list[Server]:
    return [start_server(PULLWAKE_IDLE_TRANSACTION_TIMEOUT_MS=IDLE_MS) for _ in range(2)]


def test_other_entities_are_served_and_its_own_soon_again(
    pair: list[Server], database: Database, hold: Callable[..., Held]
):
    frozen, healthy = pair
    api = healthy.client()
    api.register()
    for name in ("e1", "e2"):
        api.make_entity(f"/agent/{name}", initialMessage="hi")
    event = api.wakes()[0]
    claim = api.claim("r1", event)
    path, done = callback(claim), b'{"epoch": 1, "done": true}'
    token = claim.body["claimToken"]

    def send() -> Held:
        return hold(frozen, path, done, Electric_Claim_Token=token)

    answered = freeze(frozen, database, "claims_consumerclaim", send)
    for _ in range(5):
        began = time.monotonic()
        other = api.claim("r1", api.wakes()[0])
        assert other.done().status == 200
        api.send("/agent/e2")
        assert time.monotonic() - began < IDLE_MS / 1000
    # Whoever waits for the frozen one's entity gets it once that session is ended.
    began = time.monotonic()
    assert claim.done().body["entity_cleared"] is True
    assert time.monotonic() - began < 3 * IDLE_MS / 1000
    assert frozen.process is not None
    os.killpg(frozen.process.pid, signal.SIGCONT)
    status, headers, body = answered.answer()
    assert (status, body["error"]["code"]) == (503, "SERVICE_UNAVAILABLE")
    assert int(headers["Retry-After"]) >= 1
    wait_until(lambda: frozen.client().get("/readyz").status == 200)


def test_a_send_of_a_server_that_was_frozen_for_a_moment_is_done_once(
    start_server: Callable[..., Server], database: Database, hold: Callable[..., Held]
):
    """The database ends the session that has the runner's wake stream; the call began lately."""
    server = start_server(PULLWAKE_IDLE_TRANSACTION_TIMEOUT_MS=6 * IDLE_MS)
    api = server.client()
    api.register()
    api.make_entity()
    assert server.process is not None
    with database.hold("LOCK TABLE dispatch_wake IN SHARE MODE"):
        sent = hold(server, "/_electric/entities/agent/e1/send", b'{"payload": "hi"}')
        wait_until(lambda: database.waiting() and waking(database))
        os.killpg(server.process.pid, signal.SIGSTOP)
    wait_until(lambda: not waking(database))
    os.killpg(server.process.pid, signal.SIGCONT)
    status, _, body = sent.answer()
    assert status == 200, body
    assert len(api.wakes()) == 1
    assert [each["type"] for each in api.events()].count("inbox") == 1


def test_a_lock_that_is_not_given_in_time_is_503_and_the_reaper_goes_round_it(
    start_server: Callable[..., Server], database: Database
):
    server = start_server(PULLWAKE_LOCK_TIMEOUT_MS=300, PULLWAKE_REAPER_INTERVAL_MS=100)
    api = server.client()
    claims = []
    for name in ("r1", "r2"):
        api.register(name, claim_lease_ms=1000)
        api.make_entity(f"/agent/{name}", name, initialMessage="hi")
        claims.append(api.claim(name))
    # Whose tail is held cannot be woken again; the other can.
    with database.hold("SELECT FROM runners_wakestream WHERE runner_id = 'r1' FOR UPDATE"):
        wait_until(lambda: api.wakes("r2"))
        assert api.wakes("r1") == []
    wait_until(lambda: api.wakes("r1"))


def test_a_busy_entity_is_503_with_retry_after(
    start_server: Callable[..., Server], database: Database
):
    server = start_server(PULLWAKE_LOCK_TIMEOUT_MS=200)
    api = server.client()
    api.register()
    api.make_entity()
    with database.hold("SELECT FROM dispatch_dispatchstate FOR UPDATE"):
        answer = api.post("/_electric/entities/agent/e1/send", {"payload": 1})
        assert (answer.status, answer.error) == (503, "SERVICE_UNAVAILABLE")
        assert int(answer.headers["Retry-After"]) >= 1
    api.send()


def test_a_statement_that_takes_too_long_is_503(
    start_server: Callable[..., Server], database: Database
):
    server = start_server(PULLWAKE_LOCK_TIMEOUT_MS=0, PULLWAKE_STATEMENT_TIMEOUT_MS=200)
    api = server.client()
    api.register()
    with database.hold("LOCK TABLE runners_runnerliveness IN ACCESS EXCLUSIVE MODE"):
        assert api.post("/_electric/runners/r1/heartbeat", {}).status == 503
    assert api.post("/_electric/runners/r1/heartbeat", {}).status == 200
