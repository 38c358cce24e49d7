"""Deletions and moves among what names the entity from elsewhere: no two wait for each other.

Each of these was a deadlock. Whoever registers an entity, has a message sent to it later or tells
it of something holds rows of it without its dispatch state.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from claims import endings
from claims.models import ConsumerClaim
from dispatch import deliveries, firing, shared_states
from dispatch.models import Entity, Registration, SharedState, Timer
from tests.races.conftest import Line, assert_every_wake_is_right, both_orders
from tests.support import Api, Claim, come_due

pytestmark = pytest.mark.postgres

E1, E2, E3, NEW = "/agent/e1", "/agent/e2", "/agent/e3", "/agent/new"


@pytest.fixture
def api(alice: Api) -> Api:
    """Three entities on r1."""
    alice.register()
    for url in (E1, E2, E3):
        alice.make_entity(url)
    return alice


def watch(api: Api, subscriber: str, source: str) -> Any:
    body = {"subscriberUrl": subscriber, "sourceUrl": source, "condition": {"on": "change"}}
    return api.post("/_electric/wake", body)


def schedule(api: Api, owner: str, target: str, name: str = "a") -> None:
    body = {"scheduleType": "future_send", "payload": 1, "fireAt": "2100-01-01"}
    path = f"/_electric/entities{owner}/schedules/{name}"
    assert api("PUT", path, {**body, "targetUrl": target}).status == 200


def deletes(api: Api, url: str) -> Callable[[], Any]:
    return lambda: api("DELETE", f"/_electric/entities{url}")


def makes(api: Api, **facts: Any) -> Callable[[], Any]:
    policy = {"targets": [{"type": "runner", "runnerId": "r1"}]}
    return lambda: api("PUT", f"/_electric/entities{NEW}", {"dispatch_policy": policy, **facts})


def id_of(url: str) -> int:
    return Entity.objects.get(url=url).pk


def answer(call: "Future[Any]") -> int:
    status: int = call.result(timeout=30).status
    return status


@both_orders("made", "deleted")
def test_a_child_is_made_for_a_parent_that_waited_for_it(
    order: tuple[str, ...], api: Api, line: Line
):
    assert watch(api, E1, NEW).status == 204
    answers = line.meet(
        "registrations",
        order,
        made=makes(api, wake={"subscriberUrl": E1, "condition": "runFinished"}),
        deleted=deletes(api, E1),
    )
    assert answers["deleted"].status == 204
    assert answers["made"].status == (201 if order[0] == "made" else 404)
    assert not Registration.objects.exists()


@both_orders("made", "deleted")
def test_a_child_has_a_parent_or_is_not_made(order: tuple[str, ...], api: Api, line: Line):
    answers = line.meet("entity e1", order, made=makes(api, parent=E1), deleted=deletes(api, E1))
    assert answers["deleted"].status == 204
    assert answers["made"].status == (201 if order[0] == "made" else 404)


@both_orders("made", "watched")
def test_a_child_is_made_as_its_parent_registers_for_it(
    order: tuple[str, ...], api: Api, line: Line
):
    answers = line.meet(
        "entity e1",
        order,
        made=makes(api, parent=E1, wake={"subscriberUrl": E2, "condition": "runFinished"}),
        watched=lambda: watch(api, E1, NEW),
    )
    assert (answers["made"].status, answers["watched"].status) == (201, 204)
    assert Registration.objects.count() == 2


def test_a_watcher_that_is_told_twice_at_once_is_deleted(api: Api, line: Line):
    # What is written twice in a transaction has its references checked at the commit.
    assert watch(api, E1, NEW).status == 204
    line.hold("tail")
    made = line.join(makes(api, initialMessage="hi"))
    deleted = line.join(deletes(api, E1))
    line.let_go("tail")
    assert (answer(made), answer(deleted)) == (201, 204)
    assert not Registration.objects.exists()
    assert_every_wake_is_right()


def test_a_watcher_of_what_a_schedule_sends_is_deleted(api: Api, line: Line):
    schedule(api, E2, E2)
    assert watch(api, E1, E2).status == 204
    come_due()
    line.hold("tail")
    fired = line.join(firing.fire_due)
    deleted = line.join(deletes(api, E1))
    line.let_go("tail")
    assert fired.result(timeout=30) == 1
    assert answer(deleted) == 204


def test_one_of_two_that_watch_each_other_is_deleted_as_the_other_is_told(api: Api, line: Line):
    assert watch(api, E2, E1).status == 204
    assert watch(api, E1, E2).status == 204
    api.send(E2)
    told = id_of(E1)
    answers = line.meet(
        "registrations of e2",
        ("deleted", "told"),
        deleted=deletes(api, E2),
        told=lambda: deliveries.deliver(told),
    )
    assert answers["deleted"].status == 204
    assert answers["told"] == 1
    assert_every_wake_is_right()


def test_two_that_watch_each_other_are_told_at_once(api: Api, line: Line):
    for subscriber, source in ((E1, E2), (E2, E1)):
        assert watch(api, subscriber, source).status == 204
    for url in (E1, E2):
        api.send(url)
    first, second = id_of(E1), id_of(E2)
    answers = line.meet(
        "deliveries",
        ("first", "second"),
        first=lambda: deliveries.deliver(first),
        second=lambda: deliveries.deliver(second),
    )
    assert answers == {"first": 1, "second": 1}
    assert_every_wake_is_right()


def test_two_with_schedules_for_each_other_are_deleted(api: Api, line: Line):
    schedule(api, E1, E2)
    schedule(api, E2, E1)
    answers = line.meet(
        "timers of e1", ("first", "second"), first=deletes(api, E1), second=deletes(api, E2)
    )
    assert [each.status for each in answers.values()] == [204, 204]
    assert not Timer.objects.exists()


@pytest.fixture
def handler(api: Api) -> Claim:
    """It works on e1, whose schedule "a" sends to e3."""
    schedule(api, E1, E3)
    api.send(E1)
    return api.claim()


def manifest(key: str, value: Any = None) -> Any:
    event = {"type": "manifest", "key": key, "headers": {"operation": "delete"}}
    if value is not None:
        event |= {"value": value, "headers": {"operation": "upsert"}}
    return event


TO_E3 = {
    "kind": "schedule",
    "scheduleType": "future_send",
    "payload": 1,
    "fireAt": "2100-01-01",
    "targetUrl": E3,
}


@both_orders("appended", "deleted")
def test_a_schedule_takes_anothers_place_as_the_target_of_both_is_deleted(
    order: tuple[str, ...], handler: Claim, line: Line
):
    token = handler.mint()
    events = manifest("schedule:a"), manifest("schedule:b", TO_E3)
    answers = line.meet(
        "timers",
        order,
        appended=lambda: handler.append(*events, token=token),
        deleted=deletes(handler.api, E3),
    )
    assert answers["deleted"].status == 204
    assert answers["appended"].status in (200, 204)
    (left,) = Timer.objects.all()
    assert (left.schedule, left.target) == ("b", None)


def test_a_handler_waits_for_a_child_that_one_registers_for_who_is_deleted(
    handler: Claim, line: Line
):
    token, api = handler.mint(), handler.api
    child = {"kind": "child", "entity_url": NEW, "wake": {"on": "change"}}
    events = manifest("schedule:a"), manifest("k", child)
    answers = line.meet(
        "timers",
        ("appended", "deleted", "watched"),
        appended=lambda: handler.append(*events, token=token),
        deleted=deletes(api, E3),
        watched=lambda: watch(api, E3, NEW),
    )
    assert answers["deleted"].status == 204
    assert answers["appended"].status in (200, 204)
    assert answers["watched"].status == 404


def test_a_shared_state_is_put_as_another_puts_it_and_is_deleted(
    api: Api, line: Line, monkeypatch: pytest.MonkeyPatch
):
    locking, looks = shared_states._locking, itertools.count()

    def look() -> Any:
        """Look it up, the second time once what another call made is gone again."""
        if next(looks) == 1:
            line.watcher.execute("DELETE FROM dispatch_sharedstate")
        return locking()

    monkeypatch.setattr(shared_states, "_locking", look)
    line.hold("shared name")
    put = line.join(lambda: api("PUT", "/_electric/shared-state/s1", Electric_Owner_Entity=E1))
    line.held["shared name"].commit()
    assert answer(put) == 201
    assert SharedState.objects.filter(name="s1").count() == 1


def test_a_kill_is_answered_though_what_it_waited_for_cannot_be_dropped(api: Api, line: Line):
    """Its registrations go when one of them is due."""
    assert watch(api, E1, E2).status == 204
    line.hold("registrations of e1")
    killed = line.join(lambda: api.signal(E1, "SIGKILL"))
    line.watcher.execute(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    assert killed.result(timeout=30)["new_state"] == "killed"
    assert Registration.objects.exists()


@both_orders("runner", "entity")
def test_a_runner_is_deleted_as_what_it_once_claimed_is(
    order: tuple[str, ...], api: Api, line: Line
):
    api.register("r0")
    api.send(E1)
    assert api.claim().done().status == 200
    policy = {"targets": [{"type": "runner", "runnerId": "r0"}]}
    moved = api("PATCH", f"/_electric/entities{E1}", {"dispatch_policy": policy})
    assert moved.status == 200
    assert watch(api, E1, E2).status == 204
    answers = line.meet(
        "registrations",
        order,
        runner=lambda: api("DELETE", "/_electric/runners/r1"),
        entity=deletes(api, E1),
    )
    assert [each.status for each in answers.values()] == [204, 204]


@both_orders("taken_back", "appended")
def test_a_claim_is_taken_back_to_another_runner_as_one_waits_no_more_and_sends_instead(
    order: tuple[str, ...], handler: Claim, line: Line
):
    api = handler.api
    api.register("r0")
    api.send(E3, key="m1", mode="queued")
    held = api.claim()
    taken = {"type": "inbox", "key": "m1", "value": {"status": "processed"}}
    taken["headers"] = {"operation": "update"}
    assert held.append(taken, token=held.mint()).status == 204
    token = handler.mint()
    wait = manifest("k", {"kind": "child", "entity_url": E3, "wake": {"on": "change"}})
    assert handler.append(wait, token=token).status == 204
    claim = ConsumerClaim.objects.get(entity__url=E3)
    answers = line.meet(
        "registrations",
        order,
        taken_back=lambda: endings.take_back(claim, "r0"),
        appended=lambda: handler.append(manifest("k"), manifest("schedule:b", TO_E3), token=token),
    )
    assert answers["taken_back"].next_wake.runner_id == "r0"
    assert answers["appended"].status == 204
    assert_every_wake_is_right()
