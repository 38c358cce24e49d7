"""A reader of a feed misses nothing, whatever the order in which transactions end."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import psycopg
import pytest
from django.db import connection, connections, transaction

from claims import reports
from dispatch import entities, wakes
from runners.models import RunnerLiveness
from tests.api.test_feeds import ENTITIES, RUNNERS, Follower
from tests.support import PAST, Api

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


def alone(call: Callable[[], Any]) -> Any:
    """In a thread, which leaves no connection behind."""
    try:
        return call()
    finally:
        connections.close_all()


def elsewhere() -> dict[str, Any]:
    """Where another database of the same server is."""
    facts = connection.get_connection_params()
    address = {name: facts[name] for name in ("host", "port", "user", "password")}
    return {**address, "dbname": "postgres"}


def test_a_change_that_commits_later_is_not_passed_over(alice: Api):
    """The second to begin ends first: a reader waits for the first, and then has both."""
    alice.register()
    alice.make_entity("/agent/e1")
    alice.make_entity("/agent/e2")
    feed = Follower(alice)
    feed.look()
    with ThreadPoolExecutor(1) as other, transaction.atomic():
        state = entities.lock(entities.find("agent", "e1"))
        state.failures = 7
        wakes.save(state)
        other.submit(alone, lambda: alice.send("/agent/e2")).result()
        assert other.submit(alone, partial(feed.look, now=True)).result() == []
    assert sorted(feed.look()) == [("upsert", "/agent/e1"), ("upsert", "/agent/e2")]
    assert feed.rows["/agent/e1"]["failures"] == 7
    assert feed.rows["/agent/e2"]["pending"] is True


def test_what_is_under_way_in_another_database_holds_nobody_back(alice: Api):
    """Transactions are numbered for all databases of a server."""
    feed = Follower(alice)
    feed.look()
    with psycopg.connect(**elsewhere()) as other:
        other.execute("SELECT pg_current_xact_id()")
        alice.register()
        alice.make_entity("/agent/e1")
        assert feed.look() == [("upsert", "/agent/e1")]


BUSY_CONNECTIONS = 8
BUSY = """
DO $$ BEGIN
    LOOP
        PERFORM pg_current_xact_id();
        PERFORM pg_sleep(0.005);
        COMMIT;
    END LOOP;
END $$
"""


def test_what_has_just_ended_in_another_database_holds_nobody_back(alice: Api):
    """Whoever has written reads what was written, however busy the other databases are."""
    alice.register()
    feed = Follower(alice)
    feed.look()
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(BUSY_CONNECTIONS))
        for _ in range(BUSY_CONNECTIONS):
            other = stack.enter_context(psycopg.connect(**elsewhere(), autocommit=True))
            threads.submit(other.execute, BUSY)
            stack.callback(other.cancel)
        late = []
        for number in range(100):
            alice.make_entity(f"/agent/e{number}")
            if feed.look(now=True) != [("upsert", f"/agent/e{number}")]:
                late.append(number)
    assert late == []


def test_what_runners_became_is_told_once_by_however_many_reapers(alice: Api):
    """Those whose rounds meet share them."""
    for number in range(50):
        alice.register(f"r{number}")
    RunnerLiveness.objects.update(last_seen_at=PAST, lease_expires_at=PAST)
    begin = threading.Barrier(4)

    def tell() -> int:
        begin.wait()
        return reports.tell_health(limit=100)

    with ThreadPoolExecutor(4) as threads:
        told = [threads.submit(alone, tell) for _ in range(4)]
        assert sum(each.result() for each in told) == 50
    assert reports.tell_health(limit=100) == 0
    feed = Follower(alice, RUNNERS)
    feed.look()
    assert {row["liveness_status"] for row in feed.rows.values()} == {"expired"}


URLS = [f"/agent/e{number}" for number in range(8)]


def write(seed: str) -> None:
    """Whatever comes to mind, and whether or not it is possible."""
    pick, api = random.Random(seed), Api("user:alice")
    for _ in range(25):
        entity = f"/_electric/entities{pick.choice(URLS)}"
        target = {"type": "runner", "runnerId": pick.choice(["r1", "r2"])}
        policy = {"dispatch_policy": {"targets": [target]}}
        calls: list[tuple[str, str, Any]] = [
            ("PUT", entity, {**policy, "tags": {"a": "1"}}),
            ("PUT", entity, policy),
            ("POST", f"{entity}/send", {"payload": 1}),
            ("POST", f"{entity}/tags/a", {"value": str(pick.random())}),
            ("POST", f"/_electric/runners/{target['runnerId']}/claim", {}),
            ("POST", f"{entity}/signal", {"signal": "SIGSTOP"}),
            ("PATCH", entity, policy),
            ("DELETE", entity, None),
        ]
        api(*pick.choice(calls))


@pytest.mark.parametrize("seed", range(3))
def test_replaying_from_any_offset_gives_the_rows_as_they_are(alice: Api, seed: int):
    """Writers in threads; readers that began at whatever offsets were seen meanwhile."""
    alice.register()
    alice.register("r2")
    offsets: list[tuple[str, dict[str, Any]]] = []

    def read() -> None:
        feed = Follower(Api("user:alice"))
        for _ in range(40):
            feed.look(now=True)
            offsets.append((feed.offset, dict(feed.rows)))

    with ThreadPoolExecutor(5) as threads:
        jobs = [threads.submit(alone, partial(write, f"{seed}.{n}")) for n in range(4)]
        jobs.append(threads.submit(alone, read))
        for job in jobs:
            job.result()
    whole = Follower(alice)
    whole.look()
    listed = alice.get("/_electric/entities").body
    assert {each["url"]: each["status"] for each in listed} == {
        key: row["status"] for key, row in whole.rows.items()
    }
    assert {each["url"]: each["tags"] for each in listed} == {
        key: row["tags"] for key, row in whole.rows.items()
    }
    for offset, rows in offsets:
        feed = Follower(alice)
        feed.offset, feed.rows = offset, rows
        feed.look()
        missed = {key: row for key, row in whole.rows.items() if feed.rows.pop(key, None) != row}
        assert (missed, feed.rows) == ({}, {}), (offset, rows)
    assert alice.get(f"{ENTITIES}?offset={whole.offset}").body == []
