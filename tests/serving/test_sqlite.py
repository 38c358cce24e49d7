"""What a server does to a SQLite file, and what others may do to it."""

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from core.sqlite import Connection
from tests.serving.conftest import Held, long_poll, make_idle, tail
from tests.support import Server, Servers, wait_until

pytestmark = pytest.mark.sqlite

COLUMNS = "PRAGMA table_info(dispatch_registration)"


def test_the_write_ahead_log_outlives_a_request(server: Server):
    """Each request that takes it up anew and removes it at its end syncs the disk four times."""
    server.client().register()
    assert Path(f"{server.database.path}-wal").exists()


def test_a_lock_that_another_process_holds_stops_only_what_writes(
    servers: Servers, hold: Callable[..., Held]
):
    server = servers.lend(PULLWAKE_LOCK_TIMEOUT_MS=1_500)
    alice = make_idle(server.client())
    held = hold(server, long_poll(tail(alice)))
    with server.database.locked("any"):
        began = time.monotonic()
        sending = hold(server, "/_electric/entities/agent/e1/send", b'{"payload": "lost"}')
        for path in ("/livez", "/readyz", "/_electric/runners/r1", "/agent/e1/main", "/livez"):
            assert alice.get(path).status == 200
        assert time.monotonic() - began < 1
        status, headers, body = sending.answer()
        assert (status, headers["Retry-After"]) == (503, "1"), body
        waits = hold(server, "/_electric/entities/agent/e1/send", b'{"payload": "kept"}')
        assert alice.get("/livez").status == 200
    assert waits.answer()[0] == 200
    assert len(held.answer()[2]) == 1


def test_a_file_that_took_the_place_of_the_served_one_is_left_alone(mortal: Server):
    """It would be written to, and nothing that was acknowledged is in it."""
    alice = mortal.client()
    alice.register()
    path = Path(str(mortal.database.path))
    served = path.with_name("served")
    for is_there in (True, False):
        os.rename(path, served)
        if is_there:
            shutil.copy(served, path)
        for address in ("/livez", "/readyz", "/_electric/runners/r1"):
            answer = alice.get(address)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert "file was removed or replaced" in answer.body["error"]["message"]
        assert path.exists() is is_there
        os.rename(served, path)
        for address in ("/livez", "/readyz", "/_electric/runners/r1"):
            assert alice.get(address).status == 200


def test_a_file_is_ready_that_another_process_locks_and_not_one_that_takes_no_writes(
    tmp_path: Path,
):
    path = tmp_path / "file"
    with closing(sqlite3.connect(path)) as other:
        other.executescript("PRAGMA journal_mode = WAL; CREATE TABLE django_migrations (x)")
        with closing(Connection(path, timeout=0, isolation_level=None)) as ours:
            ours.require_writable()
            other.execute("BEGIN IMMEDIATE")
            ours.require_writable()
        with (
            closing(Connection(f"file:{path}?mode=ro", uri=True, timeout=0)) as ours,
            pytest.raises(sqlite3.OperationalError, match="readonly"),
        ):
            ours.require_writable()


def test_what_is_due_all_the_time_does_not_keep_requests_waiting(server: Server):
    """With more ticks in a second than a second is enough for, nothing else was ever answered."""
    alice = server.client()
    alice.register()
    alice.make_entity()
    each_second = {"scheduleType": "cron", "expression": "* * * * * *", "payload": 1}
    schedule = "/_electric/entities/agent/e1/schedules/s1"
    assert alice("PUT", schedule, each_second).status == 200
    columns = [name for _, name, *_ in server.database.execute(COLUMNS) if name != "id"]
    others = ", ".join("n" if name == "identity" else name for name in columns)
    thousand = f"""
        WITH RECURSIVE others (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM others WHERE n < 1000)
        INSERT INTO dispatch_registration ({", ".join(columns)})
        SELECT {others} FROM dispatch_registration, others
    """  # noqa: S608
    server.database.execute(thousand)
    events = "SELECT count(*) FROM dispatch_streamevent"
    wait_until(lambda: server.database.execute(events) > [(500,)])
    for _ in range(20):
        assert alice.get("/_electric/health").status == 200
