"""Registering, moving and deleting runners against claims and each other, in both orders."""

import pytest

from dispatch.models import DispatchState
from runners.models import Runner
from tests.races.conftest import Line, assert_every_wake_is_right, both_orders
from tests.support import Answer, Api

pytestmark = pytest.mark.postgres


def registration(api: Api, **facts: object) -> Answer:
    return api.post("/_electric/runners", {"id": "r1", "label": "r1", **facts})


def deletion(api: Api, runner_id: str = "r1") -> Answer:
    return api("DELETE", f"/_electric/runners/{runner_id}")


def move(api: Api, runner_id: str) -> Answer:
    policy = {"targets": [{"type": "runner", "runnerId": runner_id}]}
    return api("PATCH", "/_electric/entities/agent/e1", {"dispatch_policy": policy})


@pytest.fixture
def woken(alice: Api) -> Api:
    """Runner r1, and an entity that waits for it with a message."""
    alice.register()
    alice.make_entity()
    alice.send()
    return alice


def test_it_registers_one_runner_for_two_first_registrations(alice: Api, line: Line):
    answers = line.meet(
        "runner id",
        ("first", "second"),
        first=lambda: registration(alice, kind="ci"),
        second=lambda: registration(alice, max_concurrent_claims=3),
    )
    assert [each.status for each in answers.values()] == [201, 201]
    runner = alice.get("/_electric/runners/r1").body
    assert (runner["kind"], runner["max_concurrent_claims"]) == ("ci", 3)


def test_it_gives_an_id_to_one_of_two_owners(alice: Api, line: Line):
    answers = line.meet(
        "runner id",
        ("first", "second"),
        first=lambda: registration(alice),
        second=lambda: registration(Api("user:bob")),
    )
    assert sorted(each.status for each in answers.values()) == [201, 403]
    assert Runner.objects.count() == 1


@both_orders("register", "delete")
def test_it_registers_before_or_after_a_deletion(order: tuple[str, ...], woken: Api, line: Line):
    answers = line.meet(
        "runner", order, register=lambda: registration(woken), delete=lambda: deletion(woken)
    )
    assert answers["register"].status == 201
    assert answers["delete"].status == 204
    assert Runner.objects.count() == (1 if order[0] == "delete" else 0)
    assert DispatchState.objects.get().runner is None
    assert_every_wake_is_right()


@both_orders("delete", "claim")
def test_it_deletes_a_runner_before_or_after_its_claim(
    order: tuple[str, ...], woken: Api, line: Line
):
    answers = line.meet("state", order, delete=lambda: deletion(woken), claim=woken.try_claim)
    assert answers["delete"].status == 204
    if order[0] == "delete":
        assert answers["claim"].status == 204
    else:
        assert answers["claim"].status == 200
    assert woken.status() == "idle"
    assert DispatchState.objects.get().pending
    assert_every_wake_is_right()


@both_orders("delete", "done")
def test_it_deletes_a_runner_before_or_after_its_done(
    order: tuple[str, ...], woken: Api, line: Line
):
    claim = woken.claim()
    answers = line.meet("state", order, delete=lambda: deletion(woken), done=claim.done)
    assert answers["delete"].status == 204
    if order[0] == "delete":
        assert answers["done"].error == "FENCED"
    else:
        assert answers["done"].body["entity_cleared"] is True
    assert DispatchState.objects.get().pending is (order[0] == "delete")
    assert_every_wake_is_right()


@both_orders("delete", "send")
def test_it_keeps_the_work_of_a_deleted_runner(order: tuple[str, ...], woken: Api, line: Line):
    woken.claim().done()
    answers = line.meet("state", order, delete=lambda: deletion(woken), send=woken.send)
    assert answers["delete"].status == 204
    state = DispatchState.objects.get()
    assert state.pending
    assert state.runner is None
    assert_every_wake_is_right()


@both_orders("patch", "delete")
def test_it_moves_an_entity_to_a_runner_only_before_its_deletion(
    order: tuple[str, ...], woken: Api, line: Line
):
    woken.register("r2")
    answers = line.meet(
        "runner",
        order,
        patch=lambda: move(woken, "r2"),
        delete=lambda: deletion(woken, "r2"),
    )
    assert answers["delete"].status == 204
    if order[0] == "patch":
        assert answers["patch"].status == 200
        assert DispatchState.objects.get().runner is None
    else:
        assert answers["patch"].error == "NOT_FOUND"
        assert len(woken.wakes("r1")) == 1
    assert_every_wake_is_right()


@both_orders("patch", "delete")
def test_it_moves_an_entity_away_before_or_after_its_runner_is_deleted(
    order: tuple[str, ...], woken: Api, line: Line
):
    woken.register("r2")
    answers = line.meet(
        "state", order, patch=lambda: move(woken, "r2"), delete=lambda: deletion(woken)
    )
    assert (answers["patch"].status, answers["delete"].status) == (200, 204)
    assert [wake["generation"] for wake in woken.wakes("r2")] == [2]
    assert_every_wake_is_right()


def test_it_frees_an_entity_that_was_claimed_and_moved_while_its_runner_was_being_deleted(
    woken: Api, line: Line
):
    woken.register("r2")
    line.hold("state")
    claim = line.join(woken.claim)
    move_ = line.join(lambda: move(woken, "r2"))
    delete = line.join(lambda: deletion(woken))
    line.let_go("state")
    assert (move_.result(timeout=30).status, delete.result(timeout=30).status) == (200, 204)
    assert claim.result(timeout=30).heartbeat().error == "FENCED"
    assert [wake["generation"] for wake in woken.wakes("r2")] == [2]
    assert_every_wake_is_right()
