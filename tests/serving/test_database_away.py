"""A database that is away, slow or short of connections: 503 with Retry-After, and back again."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.serving.conftest import Held, long_poll, make_idle, tail
from tests.support import Database, Server, wait_until

pytestmark = pytest.mark.postgres


@contextmanager
def away(database: Database) -> Iterator[None]:
    """The database takes no connections, and has ended those it had."""
    server, _, name = database.url.rpartition("/")
    with psycopg.connect(f"{server}/postgres", autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )
            yield
        finally:
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


READS = [
    "/runners/r1/wake?offset=-1",
    long_poll("-1"),
    "/runners/r1/wake?offset=-1&live=sse",
    "/agent/e1/main",
    "/_electric/runners/r1/health",
    "/readyz",
]


def test_it_answers_503_while_the_database_is_away_and_recovers_soon(
    start_server: Callable[..., Server], hold: Callable[..., Held]
):
    server = start_server(PULLWAKE_STUCK_S=1)
    api = make_idle(server.client())
    waiting = hold(server, long_poll(tail(api)))
    tail(api)
    with away(server.database):
        # Twice, for longer than the pauses between attempts to connect may grow.
        for _ in range(2):
            claim = hold(server, "/_electric/runners/r1/claim", b"{}")
            for request in (claim, *[hold(server, path) for path in READS]):
                status, headers, body = request.answer()
                assert status == 503
                assert int(headers["Retry-After"]) >= 1
                assert body["error"]["code"] == "SERVICE_UNAVAILABLE"
        # For longer than it may be stuck: another process would find the database no more.
        assert api.get("/livez").status == 200
        assert api.get("/_electric/health").status == 200
    began = time.monotonic()
    wait_until(lambda: api.get("/readyz").status == 200)
    assert time.monotonic() - began < 3.5
    # Whoever waited all the time gets what is sent now.
    api.send()
    status, _, body = waiting.answer()
    assert (status, len(body)) == (200, 1)
    assert api.claim().done().body["entity_cleared"] is True


@contextmanager
def frozen(database: Database) -> Iterator[None]:
    """What is connected to the database is answered no more, nor told so; new connections are."""
    backends = database.execute(
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    for (pid,) in backends:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for (pid,) in backends:
            os.kill(pid, signal.SIGCONT)


def test_it_gives_up_connections_on_which_the_database_does_not_answer(
    start_server: Callable[..., Server], database: Database
):
    server = start_server(PULLWAKE_STATEMENT_TIMEOUT_MS=500, PULLWAKE_DB_POOL=4, WEB_CONCURRENCY=1)
    api = make_idle(server.client())
    with frozen(database):
        answer = api.get("/_electric/runners/r1")
        assert (answer.status, answer.error) == (503, "SERVICE_UNAVAILABLE")
        wait_until(lambda: api.get("/_electric/runners/r1").status == 200)
        api.send()
        assert api.claim().done().body["entity_cleared"] is True


def test_it_replaces_its_whole_pool_where_one_connection_was_lost(
    start_server: Callable[..., Server], database: Database, hold: Callable[..., Held]
):
    """Else each of the others is found out by a request of its own."""
    server = start_server(PULLWAKE_DB_POOL=4, PULLWAKE_STATEMENT_TIMEOUT_MS=0)
    api = make_idle(server.client())
    with database.hold("LOCK TABLE dispatch_streamevent IN EXCLUSIVE MODE"):
        sends = [
            hold(server, "/_electric/entities/agent/e1/send", b'{"payload": 1}') for _ in range(3)
        ]
        wait_until(lambda: database.waiting() == 3)
    assert [send.answer()[0] for send in sends] == [200] * 3
    database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    wait_until(lambda: api.get("/agent/e1/main").status == 503)
    wait_until(lambda: "all that wait in the pool are replaced" in server.log.read_text())
    assert {api.get("/agent/e1/main").status for _ in range(8)} == {200}


def test_livez_tells_that_the_database_answers_others_alone(
    start_server: Callable[..., Server], database: Database
):
    """Without a limit to statements nothing ends the wait, and the pool stays dry."""
    server = start_server(PULLWAKE_STATEMENT_TIMEOUT_MS=0, PULLWAKE_DB_POOL=1, PULLWAKE_STUCK_S=1)
    api = server.client()
    assert api.get("/livez").status == 200
    with frozen(database):
        answer = wait_until(lambda: api.get("/livez").status == 503 and api.get("/livez"))
        assert (answer.error, answer.headers["Retry-After"]) == ("SERVICE_UNAVAILABLE", "1")
        assert "has not answered this process" in answer.body["error"]["message"]
    wait_until(lambda: api.get("/livez").status == 200)


def test_it_answers_503_when_its_pool_is_dry(
    start_server: Callable[..., Server], database: Database, hold: Callable[..., Held]
):
    server = start_server(PULLWAKE_DB_POOL=2)
    api = make_idle(server.client())
    with database.hold("LOCK TABLE dispatch_streamevent IN EXCLUSIVE MODE"):
        sends = [
            hold(server, "/_electric/entities/agent/e1/send", b'{"payload": 1}') for _ in range(2)
        ]
        wait_until(lambda: database.waiting() == 2)
        answer = api.get("/runners/r1/wake?offset=-1")
        assert answer.status == 503
        assert answer.error == "SERVICE_UNAVAILABLE"
        assert int(answer.headers["Retry-After"]) >= 1
        # What needs no connection needs no pool.
        assert api.get("/livez").status == 200
    assert [send.answer()[0] for send in sends] == [200, 200]
    assert len(api.wakes()) == 1


def test_it_keeps_its_connections_from_readers_that_do_not_read(
    start_server: Callable[..., Server], hold: Callable[..., Held]
):
    """Its pool has one, and each of three is told more than sockets take."""
    server = start_server(PULLWAKE_DB_POOL=1)
    api = make_idle(server.client())
    api.send()
    claim = api.claim()
    token = claim.mint()
    for _ in range(16):
        claim.append("x" * 1_000_000, token=token)
    for query in ("&live=sse", "&live=long-poll", ""):
        hold(server, f"/agent/e1/main?offset=-1{query}")
    for _ in range(10):
        assert api.post("/_electric/runners/r1/heartbeat", {}).status == 200
