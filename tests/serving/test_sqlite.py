"""What a server does to a SQLite file."""

from pathlib import Path

import pytest

from tests.support import Server, wait_until

pytestmark = pytest.mark.sqlite

COLUMNS = "PRAGMA table_info(dispatch_registration)"


def test_the_write_ahead_log_outlives_a_request(server: Server):
    """Each request that takes it up anew and removes it at its end syncs the disk four times."""
    server.client().register()
    assert Path(f"{server.database.path}-wal").exists()


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
