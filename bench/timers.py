"""Timers: how late they fire when many are due in one minute, and that each fires once.

    python -m bench.timers [--timers 60000] [--seconds 60] [--servers 1] [--workers 2]

Each is a message for an entity of its own, which it wakes. PostgreSQL runs with fsync on. Late is
from the time that a timer is due to when another session sees that it is gone.
"""

import argparse
import json
import sys
import time
from contextlib import ExitStack
from typing import Any

from bench import seed
from bench.__main__ import RESULTS, percentile
from bench.client import BenchError
from bench.lines import RUNNER, RUNNERS
from bench.machine import Database, Server, conditions, migrated_database

AHEAD_S = 5.0
"""Seconds until the first is due."""
LOOK_EVERY_S = 0.1
PATIENCE_S = 120.0
"""Seconds after the last is due."""

_TIMERS = """
    INSERT INTO dispatch_timer
        (target_id, target_url, key, message, txid, schedule, entry, near_only, error, due_at)
    SELECT id, url, 'bench-' || id, '{"payload":"hi","sender":"' || created_by || '","key":"bench-'
           || id || '","mode":"immediate","principal":"' || created_by || '"}',
           gen_random_uuid(), '', '', false, '',
           now() + %(ahead)s * interval '1 second' + random() * %(seconds)s * interval '1 second'
    FROM dispatch_entity
"""
_DUE = "SELECT extract(epoch FROM due_at)::float8 FROM dispatch_timer"
_OLDEST = """
    SELECT extract(epoch FROM min(due_at))::float8 FROM dispatch_timer WHERE failed_at IS NULL
"""


def watch(database: Database, due: list[float]) -> list[float]:
    """How late each fired, in seconds, at the most: another session sees all gone that were due
    before. One that is late makes those after it late.
    """
    late: list[float] = []
    waiting = sorted(due)
    give_up = waiting[-1] + PATIENCE_S
    with database.connect() as connection:
        while len(late) < len(waiting):
            time.sleep(LOOK_EVERY_S)
            row: Any = connection.execute(_OLDEST).fetchone()
            seen = time.time()
            while len(late) < len(waiting) and (row[0] is None or waiting[len(late)] < row[0]):
                late.append(seen - waiting[len(late)])
            if seen > give_up:
                raise BenchError(f"{len(due) - len(late)} timers did not fire")
    return late


def main() -> int:
    """Measure; print the result and store it."""
    parser = argparse.ArgumentParser(prog="bench.timers", description=__doc__.splitlines()[0])
    parser.add_argument("--timers", type=int, default=60_000)
    parser.add_argument("--seconds", type=float, default=60, help="in which they are due (60)")
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="of each (2)")
    options = parser.parse_args()
    with migrated_database() as database, ExitStack() as stack:
        with database.connect() as connection:
            connection.execute("ALTER SYSTEM SET fsync = on")
            connection.execute("SELECT pg_reload_conf()")
            seed.runners(connection, RUNNER, RUNNERS)
            seed.entities(
                connection, "t-", options.timers, "idle", runner=RUNNER, runners=RUNNERS, events=1
            )
            connection.execute("UPDATE dispatch_streamevent SET work = false")
            seed.settle(connection)
        servers = [
            stack.enter_context(Server(database, options.workers)) for _ in range(options.servers)
        ]
        with database.connect() as connection:
            connection.execute(_TIMERS, {"ahead": AHEAD_S, "seconds": options.seconds})
            rows: Any = connection.execute(_DUE).fetchall()
            due = [when for (when,) in rows]
            (fsync,) = connection.execute("SHOW fsync").fetchone() or ("",)
        used = sum(each.cpu() for each in servers), database.cpu()
        late = watch(database, due)
        server_cpu = sum(each.cpu() for each in servers) - used[0]
        database_cpu = database.cpu() - used[1]
        with database.connect() as connection:
            ((messages, wakes, left),) = connection.execute(
                "SELECT (SELECT count(*) FROM dispatch_streamevent WHERE message_key IS NOT NULL),"
                " (SELECT count(*) FROM dispatch_wake WHERE status = 'outstanding'),"
                " (SELECT count(*) FROM dispatch_timer)"
            ).fetchall()
        for each in servers:
            each.refuse_complaints()
    if (messages, wakes, left) != (options.timers, options.timers, 0):
        raise BenchError(f"{messages} messages, {wakes} wakes, {left} timers left")
    found = {
        **{f"p{share}_ms": round(percentile(late, share / 100)) for share in (50, 95, 99)},
        "most_ms": round(max(late) * 1000),
        "server_cpu_ms": round(server_cpu / options.timers * 1000, 2),
        "database_cpu_ms": round(database_cpu / options.timers * 1000, 2),
    }
    facts = {"conditions": {**conditions(), **vars(options), "fsync": fsync}, "timers": found}
    print(json.dumps(found, indent=1))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"timers-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"kept as {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
