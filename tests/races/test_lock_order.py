"""Every verb locks in one order, so no two can wait for each other.

The order is runner, dispatch state, entity, shared state, claim, timers, registrations, deliveries,
wake, tail of the wake stream, and is read off the SQL that each verb sends. What is locked with
SKIP LOCKED is not waited for, whatever is held.
"""

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from claims import endings, lifecycle
from claims.models import ConsumerClaim
from dispatch import due, firing, wakes
from dispatch.models import DispatchState
from tests.support import Api, age_wakes, come_due, end_delay, lapse

pytestmark = pytest.mark.postgres

ORDER = (
    "runners_runner",
    "dispatch_dispatchstate",
    "dispatch_entity",
    "dispatch_sharedstate",
    "claims_consumerclaim",
    "dispatch_timer",
    "dispatch_registration",
    "dispatch_delivery",
    "dispatch_wake",
    "runners_wakestream",
)
_LOCKING = re.compile(
    r'UPDATE "(?P<updated>\w+)"'
    r'|DELETE FROM "(?P<deleted>\w+)"'
    r'|SELECT .*\(SELECT .*? FROM "(?P<within>\w+)".* FOR NO KEY UPDATE\)'
    r'|SELECT .*? FROM "(?P<selected>\w+)".*'
    r' FOR (?:(?:NO KEY )?UPDATE|SHARE)(?: OF "(?P<of>\w+)")?',
    re.DOTALL,
)
VERBS: dict[str, Callable[[Api], object]] = {}


def verb(call: Callable[[Api], object]) -> Callable[[Api], object]:
    """A call to be watched; what it returns, if it can be called, is what is watched instead."""
    VERBS[call.__name__] = call
    return call


def locked(sql: str) -> str | None:
    """The table that a statement locks existing rows of."""
    match = _LOCKING.match(sql)
    return match and match[match.lastgroup or 0]


def transactions(call: Callable[[], object]) -> list[list[str]]:
    """The statements of each transaction of a call that lock rows of the tables in `ORDER`."""
    with CaptureQueriesContext(connection) as captured:
        call()
    found: list[list[str]] = [[]]
    for query in captured.captured_queries:
        if query["sql"] in ("BEGIN", "COMMIT", "ROLLBACK"):
            found.append([])
        elif locked(query["sql"]) in ORDER:
            found[-1].append(query["sql"])
    return [statements for statements in found if statements]


def waits_against_the_order(statements: list[str]) -> list[str]:
    """Those that may wait for a row while they hold one that comes after it in `ORDER`."""
    held: list[int] = []
    found = []
    for sql in statements:
        rank = ORDER.index(locked(sql) or "")
        waits = not sql.endswith("SKIP LOCKED")
        if waits and rank not in held and rank < max(held, default=0):
            found.append(sql)
        held.append(rank)
    return found


@pytest.fixture
def busy(alice: Api) -> Api:
    """Runner r1 of limit 2 holds e1, with new work, and e2; e3 waits for it, e4 for r0."""
    alice.register("r0")
    alice.register(max_concurrent_claims=2)
    for number in (1, 2, 3):
        alice.make_entity(f"/agent/e{number}")
        alice.send(f"/agent/e{number}")
    alice.make_entity("/agent/e4", "r0")
    alice.send("/agent/e4")
    alice.claims = [alice.claim(), alice.claim()]  # type: ignore[attr-defined]
    alice.send("/agent/e1")
    return alice


def held(api: Api) -> Any:
    """The claim on e1."""
    return api.claims[0]  # type: ignore[attr-defined]


def move(api: Api, number: int, runner_id: str) -> None:
    policy = {"targets": [{"type": "runner", "runnerId": runner_id}]}
    answer = api("PATCH", f"/_electric/entities/agent/e{number}", {"dispatch_policy": policy})
    assert answer.status == 200


def watched(api: Api, subscriber: str, source: str) -> None:
    body = {"subscriberUrl": f"/agent/{subscriber}", "sourceUrl": f"/agent/{source}"}
    ok(api.post("/_electric/wake", {**body, "condition": {"on": "change"}}))


def ok(answer: Any) -> None:
    assert answer.status in (200, 201, 204), answer


@verb
def claim(api: Api):
    api.register(max_concurrent_claims=3)
    return api.claim


@verb
def claim_over_a_lapsed_one(api: Api):
    key = DispatchState.objects.get(entity__url="/agent/e1").entity.subscription_key
    lapse(held(api))
    return lambda: ok(api.try_claim(event={"subscription_id": f"runner:r1:{key}"}))


@verb
def send(api: Api):
    api.make_entity("/agent/e5")
    return lambda: api.send("/agent/e5")


@verb
def create(api: Api):
    return lambda: api.make_entity("/agent/e5", initialMessage="hi")


@verb
def done(api: Api):
    return lambda: ok(held(api).done())


@verb
def done_of_an_entity_that_moved_to_an_earlier_runner(api: Api):
    move(api, 1, "r0")
    return lambda: ok(held(api).done())


@verb
def done_of_an_entity_that_is_to_stop(api: Api):
    api.signal("/agent/e1", "SIGTERM")
    return lambda: ok(held(api).done())


@verb
def done_of_an_entity_that_is_to_stop_and_heeded_it(api: Api):
    api.signal("/agent/e1", "SIGTERM")
    key = api.events("/agent/e1")[-1]["key"]
    heeded = {"type": "signal", "key": key, "value": {"status": "handled"}}
    token = held(api).mint()
    ok(held(api).append({**heeded, "headers": {"operation": "update"}}, token=token))
    return lambda: ok(held(api).done())


@verb
def fail(api: Api):
    return lambda: ok(held(api).fail())


@verb
def give_up(api: Api):
    return lambda: ok(held(api).call({"failed": True, "give_up": True}))


@verb
def give_up_what_is_waited_for(api: Api):
    watched(api, "e2", "e1")
    api.send("/agent/e1", mode="queued")
    body = {"subscriberUrl": "/agent/e2", "sourceUrl": "/agent/e1", "condition": "runFinished"}
    ok(api.post("/_electric/wake", body))
    tail = api.events("/agent/e1")[-1]["headers"]["offset"]
    acks = [{"path": "/agent/e1/main", "offset": tail}]
    return lambda: ok(held(api).call({"failed": True, "give_up": True, "acks": acks}))


@verb
def watch_a_shared_state(api: Api):
    api.share("s1", "/agent/e1")
    body = {"subscriberUrl": "/agent/e2", "sourceUrl": "/_electric/shared-state/s1"}
    return lambda: ok(api.post("/_electric/wake", {**body, "condition": {"on": "change"}}))


@verb
def mint(api: Api):
    return held(api).mint


@verb
def renew_with_acks(api: Api):
    ack = {"path": "/agent/e1/main", "offset": held(api).tail}
    return lambda: ok(held(api).heartbeat(acks=[ack]))


@verb
def append(api: Api):
    token = held(api).mint()
    return lambda: ok(held(api).append({"type": "line"}, token=token))


@verb
def expire(api: Api):
    lapse(held(api))
    return lambda: lifecycle.expire(ConsumerClaim.objects.lapsed().get())


@verb
def take_back_to_another_runner(api: Api):
    take_from_the_queue(api)
    claim = ConsumerClaim.objects.get(entity__url="/agent/e1")
    return lambda: endings.take_back(claim, "r0")


def take_from_the_queue(api: Api) -> None:
    """The holder of e1 takes a queued message, which waits there again if the claim ends badly."""
    api.send("/agent/e1", key="m1", mode="queued")
    taken = {"type": "inbox", "key": "m1", "value": {"status": "processed"}}
    taken["headers"] = {"operation": "update"}
    ok(held(api).append(taken, token=held(api).mint()))


@verb
def kill(api: Api):
    return lambda: api.signal("/agent/e1", "SIGKILL")


@verb
def kill_of_an_entity_that_waits(api: Api):
    return lambda: api.signal("/agent/e3", "SIGKILL")


@verb
def stop(api: Api):
    return lambda: api.signal("/agent/e3", "SIGTERM")


@verb
def pause_and_resume(api: Api):
    api.signal("/agent/e3", "SIGSTOP")
    return lambda: api.signal("/agent/e3", "SIGCONT")


@verb
def tag(api: Api):
    return lambda: ok(api.post("/_electric/entities/agent/e1/tags/a", {"value": "b"}))


@verb
def delete_runner(api: Api):
    move(api, 2, "r0")
    return lambda: ok(api("DELETE", "/_electric/runners/r1"))


@verb
def delete_entity(api: Api):
    return lambda: ok(api("DELETE", "/_electric/entities/agent/e1"))


@verb
def delete_entity_that_waits(api: Api):
    return lambda: ok(api("DELETE", "/_electric/entities/agent/e3"))


@verb
def delete_entity_with_a_shared_state(api: Api):
    api.share("s1", "/agent/e1")
    api.share("s2", "/agent/e1")
    api.share("s1", "/agent/e2")
    for number in (1, 2):
        watch_shared(api, number)
    return lambda: ok(api("DELETE", "/_electric/entities/agent/e1"))


def watch_shared(api: Api, number: int = 1) -> None:
    body = {
        "subscriberUrl": "/agent/e3",
        "sourceUrl": f"/_electric/shared-state/s{number}",
        "condition": {"on": "change"},
    }
    assert api.post("/_electric/wake", body).status == 204


@verb
def make_a_shared_state(api: Api):
    return lambda: api.share("s1", "/agent/e1")


@verb
def share_a_shared_state(api: Api):
    api.share("s1", "/agent/e1")
    return lambda: api.share("s1", "/agent/e2")


@verb
def append_to_a_shared_state(api: Api):
    path = api.share("s1", "/agent/e1")
    watch_shared(api)
    return lambda: ok(api.post(path, {"type": "line"}))


@verb
def edit_a_message(api: Api):
    api.send("/agent/e1", key="m1", mode="queued")
    return lambda: ok(api("PATCH", "/_electric/entities/agent/e1/inbox/m1", {"mode": "immediate"}))


@verb
def register(api: Api):
    return api.register


@verb
def enable(api: Api):
    return lambda: ok(api.post("/_electric/runners/r1/enable"))


@verb
def patch(api: Api):
    return lambda: move(api, 3, "r0")


@verb
def watch(api: Api):
    return lambda: watched(api, "e2", "e1")


@verb
def unwatch(api: Api):
    watched(api, "e2", "e1")
    body = {"subscriberUrl": "/agent/e2", "sourceUrl": "/agent/e1"}
    return lambda: ok(api.post("/_electric/wake/unregister", body))


@verb
def create_watched(api: Api):
    condition = {"subscriberUrl": "/agent/e1", "condition": "runFinished"}
    return lambda: api.make_entity("/agent/e5", initialMessage="hi", wake=condition)


@verb
def deliver(api: Api):
    watched(api, "e3", "e4")
    api.send("/agent/e4")
    return due.run


def scheduled(api: Api, name: str, target: str) -> Any:
    body = {"scheduleType": "future_send", "payload": 1, "fireAt": "2100-01-01"}
    path = f"/_electric/entities/agent/{name}/schedules/s1"
    return api("PUT", path, {**body, "targetUrl": f"/agent/{target}"})


@verb
def fire(api: Api):
    ok(scheduled(api, "e3", "e4"))
    ok(scheduled(api, "e4", "e1"))
    api.send("/agent/e3", afterMs=60_000)
    come_due()
    return firing.fire_due


@verb
def set_a_schedule(api: Api):
    ok(scheduled(api, "e3", "e4"))
    return lambda: ok(scheduled(api, "e3", "e4"))


@verb
def delay_a_send(api: Api):
    return lambda: api.send("/agent/e3", afterMs=60_000)


@verb
def kill_of_one_with_a_schedule(api: Api):
    ok(scheduled(api, "e1", "e4"))
    return lambda: api.signal("/agent/e1", "SIGKILL")


@verb
def stop_of_one_with_a_schedule(api: Api):
    ok(scheduled(api, "e3", "e4"))
    return lambda: api.signal("/agent/e3", "SIGTERM")


@verb
def delete_entity_with_timers(api: Api):
    ok(scheduled(api, "e1", "e4"))
    ok(scheduled(api, "e4", "e1"))
    return lambda: ok(api("DELETE", "/_electric/entities/agent/e1"))


def of_one_that_watches_and_is_watched(call: Callable[[Api], object]) -> None:
    """The same call, where all entities watch each other."""

    def among_watchers(api: Api) -> object:
        prepared = call(api)
        names = [f"e{number}" for number in (1, 2, 3, 4)]
        for subscriber, source in itertools.permutations(names, 2):
            watched(api, subscriber, source)
        return prepared

    VERBS[f"{call.__name__}_of_one_that_watches_and_is_watched"] = among_watchers


for each in list(VERBS.values()):
    of_one_that_watches_and_is_watched(each)


@verb
def reemit_stale(api: Api):
    age_wakes()
    return lambda: wakes.reemit_stale(limit=10)


@verb
def retry_due(api: Api):
    held(api).fail()
    end_delay()
    return lambda: wakes.retry_due(limit=10)


@pytest.mark.parametrize("name", VERBS)
def test_it_locks_in_the_one_order(name: str, busy: Api):
    call = VERBS[name](busy)
    assert callable(call)
    found = transactions(call)
    assert found
    assert [waits_against_the_order(statements) for statements in found] == [[]] * len(found)


def test_it_notices_a_wait_against_the_order():
    state = 'SELECT "cursor" FROM "dispatch_dispatchstate" FOR UPDATE'
    claim = 'UPDATE "claims_consumerclaim" SET "status" = 1'
    skipping = f"{state} SKIP LOCKED"
    assert waits_against_the_order([state, claim, state]) == []
    assert waits_against_the_order([claim, skipping, state]) == []
    assert waits_against_the_order([claim, state]) == [state]


@pytest.mark.parametrize(
    ("sql", "table"),
    [
        ('SELECT "a"."x" FROM "a" WHERE 1 FOR UPDATE', "a"),
        ('SELECT "a"."x" FROM "a" JOIN "b" ON 1 FOR NO KEY UPDATE OF "a" SKIP LOCKED', "a"),
        ('SELECT "a"."x" FROM "a" WHERE 1 FOR SHARE', "a"),
        ('SELECT "b"."x" FROM "b" WHERE y IN (SELECT U0."x" FROM "a" U0 FOR NO KEY UPDATE)', "a"),
        ('SELECT "a"."x" FROM "a" WHERE 1', None),
        ('UPDATE "a" SET "x" = 1', "a"),
        ('DELETE FROM "a" WHERE 1', "a"),
        ('INSERT INTO "a" VALUES (1)', None),
    ],
)
def test_it_knows_a_lock_when_it_sees_one(sql: str, table: str | None):
    assert locked(sql) == table
