"""PgBouncer in transaction mode before the database: sessions are anyone's, and servers know it."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.proxies import pgbouncer
from tests.serving.conftest import Held, long_poll, make_idle, tail
from tests.support import Database, Server, free_port, wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.proxy, pytest.mark.slow]


@pytest.fixture
def pooled(database: Database) -> Iterator[str]:
    """The database's address at a PgBouncer."""
    with pgbouncer(database) as url:
        yield url


@pytest.fixture
def start_pooled(database: Database, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers behind a PgBouncer, by their database's address there."""
    servers: list[Server] = []

    def start(pooled: str) -> Server:
        log = tmp_path / f"server-{len(servers)}.log"
        servers.append(Server(pooled, log, {"PULLWAKE_LISTEN_URL": database.url}, forked=True))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_without_an_address_to_listen_at_it_does_not_start_and_says_why(pooled: str):
    done = Database(pooled).manage("serve", PORT=str(free_port()))
    assert done.returncode == 1
    assert "pullwake.E001" in done.stderr
    assert "Set PULLWAKE_LISTEN_URL to the database's own address" in done.stderr
    assert "Traceback" not in done.stderr


def test_nor_where_that_is_the_proxys_too_or_the_proxy_lets_options_pass(database: Database):
    with pgbouncer(
        database, **{"[pgbouncer]": "[pgbouncer]\nignore_startup_parameters = options"}
    ) as pooled:
        for env in ({}, {"PULLWAKE_LISTEN_URL": pooled}):
            done = Database(pooled).manage("serve", PORT=str(free_port()), **env)
            assert done.returncode == 1
            assert "pullwake.E001" in done.stderr
            migrated = Database(pooled).manage("migrate", **env)
            assert (migrated.returncode, "pullwake.E001" in migrated.stderr) == (1, True)


def test_sessions_without_limits_are_warned_of(
    database: Database, start_pooled: Callable[..., Server]
):
    with pgbouncer(database, **{"SET lock_timeout = 4000; ": ""}) as pooled:
        server = start_pooled(pooled)
        said = server.log.read_text()
    assert "pullwake.W002" in said
    assert "have no lock_timeout" in said
    assert "have no statement_timeout" not in said


def test_it_serves_wakes_at_once_and_waits_no_longer_for_locks_than_the_proxy_says(
    start_pooled: Callable[..., Server],
    pooled: str,
    database: Database,
    hold: Callable[..., Held],
):
    server = start_pooled(pooled)
    api = make_idle(server.client())
    poll = hold(server, long_poll(tail(api)))
    tail(api)
    api.send()
    assert len(poll.answer()[2]) == 1
    assert "pullwake_listener_up 1.0" in api.get("/metrics").content.decode()
    with database.hold("SELECT FROM dispatch_dispatchstate FOR UPDATE"):
        answer = api.post("/_electric/entities/agent/e1/send", {"payload": 1})
        assert (answer.status, answer.error) == (503, "SERVICE_UNAVAILABLE")
    assert "pullwake.W002" not in server.log.read_text()


ROUNDS = 3


def test_any_number_starts_and_restarts_under_load(
    start_pooled: Callable[..., Server], pooled: str, database: Database
):
    """A lock that was the session's stayed behind, and later starts hung without a word."""
    serving, *others = (start_pooled(pooled) for _ in range(3))
    api = make_idle(serving.client())
    over, worked = threading.Event(), []

    def work() -> None:
        mine = serving.client()
        while not over.is_set():
            mine.send()
            assert mine.claim().done().body["entity_cleared"] is True
            worked.append(1)

    def restart(server: Server) -> None:
        for _ in range(ROUNDS):
            before = len(worked)
            server.stop()
            server.start()
            wait_until(lambda before=before: len(worked) > before)
            started.append(1)

    started: list[int] = []
    threads = [threading.Thread(target=restart, args=(server,)) for server in others]
    working = threading.Thread(target=work)
    for thread in (working, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    working.join()
    assert len(started) == ROUNDS * len(others)
    assert api.status() == "idle"
    left = database.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    assert left == [(0,)]
