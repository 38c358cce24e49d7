"""The ends of a claim against each other and against what is new, in both orders."""

import pytest

from claims import reaper
from claims.models import ConsumerClaim
from dispatch.models import subscription_key
from tests.races.conftest import Line, assert_every_wake_is_right, both_orders
from tests.support import Api, Claim, lapse

pytestmark = pytest.mark.postgres

EVENT = {"subscription_id": f"runner:r1:{subscription_key('/agent/e1')}"}


@pytest.fixture
def claim(alice: Api) -> Claim:
    """A claim of r1 on an entity, for one message."""
    alice.register()
    alice.make_entity()
    alice.send()
    return alice.claim()


def statuses() -> list[str]:
    return list(ConsumerClaim.objects.order_by("pk").values_list("status", flat=True))


def test_it_releases_once_for_two_dones(claim: Claim, line: Line):
    answers = line.meet("state", ("first", "second"), first=claim.done, second=claim.done)
    assert [each.status for each in answers.values()] == [200, 200]
    assert answers["first"].body["entity_cleared"] is True
    assert answers["second"].body == {"ok": True, "next_wake": False, "entity_cleared": False}
    assert_every_wake_is_right()


def test_it_makes_one_wake_of_two_dones_with_work_left(alice: Api, claim: Claim, line: Line):
    alice.send()
    answers = line.meet("claim", ("first", "second"), first=claim.done, second=claim.done)
    assert [each.body["next_wake"] for each in answers.values()] == [True, False]
    assert len(alice.wakes()) == 1
    assert_every_wake_is_right()


@both_orders("done", "fail")
def test_it_takes_the_first_of_done_and_failed(order: tuple[str, ...], claim: Claim, line: Line):
    answers = line.meet("state", order, done=claim.done, fail=claim.fail)
    assert answers[order[0]].status == 200
    assert answers[order[1]].error == "FENCED"
    assert statuses() == ["released" if order[0] == "done" else "failed"]


@both_orders("done", "reap")
def test_it_releases_or_expires_a_lapsed_claim(
    order: tuple[str, ...], alice: Api, claim: Claim, line: Line
):
    lapse(claim)
    answers = line.meet("claim", order, done=claim.done, reap=reaper.reap)
    if order[0] == "done":
        assert answers["done"].body["entity_cleared"] is True
        assert answers["reap"].expired == 0
        assert statuses() == ["released"]
        assert alice.wakes() == []
    else:
        assert answers["reap"].expired == 1
        assert answers["done"].error == "FENCED"
        assert statuses() == ["expired"]
        assert [wake["generation"] for wake in alice.wakes()] == [2]
    assert_every_wake_is_right()


@both_orders("heartbeat", "reap")
def test_it_renews_or_expires_a_lapsed_claim(
    order: tuple[str, ...], alice: Api, claim: Claim, line: Line
):
    lapse(claim)
    answers = line.meet("claim", order, heartbeat=claim.heartbeat, reap=reaper.reap)
    if order[0] == "heartbeat":
        assert answers["heartbeat"].status == 200
        assert answers["reap"].expired == 0
        assert alice.status() == "running"
    else:
        assert answers["heartbeat"].error == "FENCED"
        assert answers["reap"].expired == 1
        assert alice.status() == "idle"
    assert_every_wake_is_right()


@both_orders("heartbeat", "claim")
def test_it_renews_a_lapsed_claim_or_hands_its_entity_on(
    order: tuple[str, ...], alice: Api, claim: Claim, line: Line
):
    lapse(claim)
    answers = line.meet(
        "claim",
        order,
        heartbeat=claim.heartbeat,
        claim=lambda: alice.try_claim(event=EVENT),
    )
    if order[0] == "heartbeat":
        assert answers["heartbeat"].status == 200
        assert answers["claim"].error == "ALREADY_CLAIMED"
    else:
        assert answers["heartbeat"].error == "FENCED"
        assert answers["claim"].body["epoch"] == 2
    assert_every_wake_is_right()


@both_orders("done", "claim")
def test_it_releases_a_lapsed_claim_or_hands_its_entity_on(
    order: tuple[str, ...], alice: Api, claim: Claim, line: Line
):
    lapse(claim)
    answers = line.meet("state", order, done=claim.done, claim=lambda: alice.try_claim(event=EVENT))
    if order[0] == "done":
        assert answers["done"].body["entity_cleared"] is True
        assert answers["claim"].error == "NO_PENDING_WORK"
    else:
        assert answers["done"].error == "FENCED"
        assert answers["claim"].body["epoch"] == 2
    assert_every_wake_is_right()


def test_it_expires_a_claim_once_for_two_reapers(alice: Api, claim: Claim, line: Line):
    lapse(claim)
    answers = line.meet("claim", ("first", "second"), first=reaper.reap, second=reaper.reap)
    assert [each.expired for each in answers.values()] == [1, 0]
    assert len(alice.wakes()) == 1
    assert_every_wake_is_right()


@both_orders("send", "done")
def test_it_wakes_once_for_a_message_that_meets_a_done(
    order: tuple[str, ...], alice: Api, claim: Claim, line: Line
):
    answers = line.meet("state", order, send=alice.send, done=claim.done)
    # The done acks what was delivered, and the message is news to it in either order.
    assert answers["done"].body["next_wake"] is (order[0] == "send")
    assert [wake["generation"] for wake in alice.wakes()] == [2]
    assert_every_wake_is_right()


@both_orders("send", "reap")
def test_it_wakes_once_for_a_message_that_meets_an_expiry(
    order: tuple[str, ...], alice: Api, claim: Claim, line: Line
):
    lapse(claim)
    if order[0] == "send":
        # A reaper passes an entity by that somebody has in hand, and comes back.
        answers = line.meet("state", order, send=alice.send, reap=reaper.reap)
        assert answers["reap"].expired == 0
        assert reaper.reap().expired == 1
    else:
        answers = line.meet("claim", order, reap=reaper.reap, send=alice.send)
        assert answers["reap"].expired == 1
    assert [wake["generation"] for wake in alice.wakes()] == [2]
    assert_every_wake_is_right()


@both_orders("kill", "done")
def test_it_kills_or_releases(order: tuple[str, ...], alice: Api, claim: Claim, line: Line):
    alice.send()
    answers = line.meet(
        "state", order, kill=lambda: alice.signal("/agent/e1", "SIGKILL"), done=claim.done
    )
    if order[0] == "kill":
        assert answers["done"].error == "FENCED"
        assert statuses() == ["fenced"]
    else:
        assert answers["done"].body == {"ok": True, "next_wake": True, "entity_cleared": True}
        assert statuses() == ["released"]
    assert alice.status() == "killed"
    assert alice.wakes() == []
    assert_every_wake_is_right()


@both_orders("stop", "done")
def test_it_stops_once_the_claim_has_ended(
    order: tuple[str, ...], alice: Api, claim: Claim, line: Line
):
    alice.send()
    answers = line.meet(
        "state", order, stop=lambda: alice.signal("/agent/e1", "SIGTERM"), done=claim.done
    )
    assert answers["done"].body["entity_cleared"] is True
    assert answers["stop"]["new_state"] == ("stopping" if order[0] == "stop" else "stopped")
    assert alice.status() == "stopped"
    assert alice.wakes() == []
    assert_every_wake_is_right()


@both_orders("delete", "done")
def test_it_deletes_an_entity_before_or_after_its_done(
    order: tuple[str, ...], alice: Api, claim: Claim, line: Line
):
    alice.send()
    answers = line.meet(
        "state",
        order,
        delete=lambda: alice("DELETE", "/_electric/entities/agent/e1"),
        done=claim.done,
    )
    assert answers["delete"].status == 204
    if order[0] == "delete":
        assert answers["done"].error == "FENCED"
        assert statuses() == ["fenced"]
    else:
        assert answers["done"].status == 200
        assert statuses() == ["released"]
    assert alice.wakes() == []


@both_orders("delete", "append")
def test_it_appends_to_an_entity_only_before_its_deletion(
    order: tuple[str, ...], alice: Api, claim: Claim, line: Line
):
    token = claim.mint()
    answers = line.meet(
        "state",
        order,
        delete=lambda: alice("DELETE", "/_electric/entities/agent/e1"),
        append=lambda: claim.append({"type": "line"}, token=token),
    )
    assert answers["delete"].status == 204
    assert answers["append"].status == (401 if order[0] == "delete" else 204)


@both_orders("done", "append")
def test_it_appends_only_before_the_done(order: tuple[str, ...], claim: Claim, line: Line):
    token = claim.mint()
    answers = line.meet(
        "state", order, done=claim.done, append=lambda: claim.append({"type": "x"}, token=token)
    )
    assert answers["done"].body == {"ok": True, "next_wake": False, "entity_cleared": True}
    assert answers["append"].status == (401 if order[0] == "done" else 204)
