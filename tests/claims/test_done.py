"""The callback done: the claim released, the entity freed, the next wake made."""

import pytest

from claims.models import ConsumerClaim
from dispatch.models import DispatchState, Wake


def offset(number):
    return f"0000000000000000_{number:016d}"


def state():
    return DispatchState.objects.get(entity__url="/agent/e1")


def test_it_frees_the_entity(claim):
    token = claim.mint()
    assert claim.done(claim.tail).body == {"ok": True, "next_wake": False, "entity_cleared": True}
    assert claim.api.status() == "idle"
    assert claim.append({"n": 1}, token=token).status == 401
    row = ConsumerClaim.objects.get()
    assert (row.status, row.write_token_hash) == ("released", "")
    assert claim.api.wakes() == []


def test_it_frees_the_entity_of_a_claim_that_never_minted(claim):
    assert claim.done().body["entity_cleared"] is True
    assert claim.api.status() == "idle"


@pytest.mark.parametrize("acks", [None, []])
def test_without_acks_it_acknowledges_what_the_claim_delivered(claim, acks):
    body = {"done": True} if acks is None else {"done": True, "acks": acks}
    assert claim.call(body).body == {"ok": True, "next_wake": False, "entity_cleared": True}
    assert state().cursor == 2


def test_without_acks_it_does_not_acknowledge_what_came_after(claim):
    claim.api.send()
    assert claim.done().body == {"ok": True, "next_wake": True, "entity_cleared": True}
    assert state().cursor == 2


def test_without_acks_it_does_not_take_back_what_a_heartbeat_acked(claim):
    claim.api.send()
    claim.heartbeat(acks=[{"path": "/agent/e1/main", "offset": offset(3)}])
    assert claim.done().body["next_wake"] is False
    assert state().cursor == 3


def test_messages_that_came_during_the_claim_wake_once(claim):
    seen = claim.api("HEAD", "/runners/r1/wake").headers["Stream-Next-Offset"]
    for _ in range(3):
        claim.api.send()
    assert claim.api.wakes(offset=seen) == []
    assert claim.done(claim.tail).body["next_wake"] is True
    (wake,) = claim.api.wakes()
    assert wake["generation"] == claim.epoch + 1
    assert claim.api.claim().done().body["next_wake"] is False
    assert claim.api.wakes() == []


def test_a_message_that_the_done_acked_does_not_wake(claim):
    claim.api.send()
    assert claim.done(offset(3)).body == {"ok": True, "next_wake": False, "entity_cleared": True}
    assert claim.api.wakes() == []


def test_an_ack_short_of_a_message_wakes_again(claim):
    claim.api.send()
    assert claim.done(offset(2)).body["next_wake"] is True
    assert claim.api.claim().epoch == 2


@pytest.mark.parametrize("acked", [offset(1), f"{offset(1)}_1"])
def test_one_that_leaves_the_first_work_counts_as_failed(claim, acked):
    claim.api.send()
    answer = claim.done(acked)
    assert answer.body == {"ok": True, "next_wake": False, "entity_cleared": True}
    assert (state().failures, state().cursor, claim.api.wakes()) == (1, 1, [])
    assert claim.done(acked).body["entity_cleared"] is False
    claim.api.send()
    assert len(claim.api.wakes()) == 1


@pytest.mark.parametrize("acked", [(), (offset(3),)])
def test_a_queued_message_that_no_handler_takes_counts_as_failed(claim, acked):
    claim.api.send(mode="queued")
    claim.done(offset(3))
    answer = claim.api.claim().done(*acked)
    assert answer.body == {"ok": True, "next_wake": False, "entity_cleared": True}
    assert (state().failures, state().retry_at > state().last_released_at) == (1, True)
    assert claim.api.wakes() == []


def test_one_that_leaves_later_work_does_not_count_as_failed(claim):
    claim.api.send()
    claim.heartbeat(acks=[{"path": "/agent/e1/main", "offset": offset(2)}])
    assert claim.done(f"{offset(2)}_1").body["next_wake"] is True
    assert state().failures == 0


def test_the_same_done_again_changes_nothing(claim):
    claim.api.send()
    claim.done()
    before = [list(model.objects.values()) for model in (ConsumerClaim, DispatchState, Wake)]
    for _ in range(2):
        again = claim.done()
        assert again.status == 200
        assert again.body == {"ok": True, "next_wake": False, "entity_cleared": False}
    after = [list(model.objects.values()) for model in (ConsumerClaim, DispatchState, Wake)]
    assert after == before


def test_the_same_done_again_leaves_a_newer_claim_alone(claim):
    claim.api.send()
    claim.done()
    newer = claim.api.claim()
    token = newer.mint()
    assert claim.done().body["entity_cleared"] is False
    assert newer.append({"n": 1}, token=token).status == 204
    assert claim.api.status() == "running"


def test_a_done_of_a_replaced_claim_leaves_the_newer_one_alone(claim):
    claim.fail()
    claim.api.send()
    newer = claim.api.claim()
    token = newer.mint()
    assert claim.done(offset(3)).error == "FENCED"
    assert (state().cursor, claim.api.status()) == (1, "running")
    assert newer.append({"n": 1}, token=token).status == 204


def test_appends_under_the_claim_are_not_work(claim):
    token = claim.mint()
    for n in range(3):
        claim.append({"n": n}, token=token)
    assert claim.done().body["next_wake"] is False


def test_it_resets_the_delay_after_failures(claim):
    delays = []
    for _ in range(2):
        claim.fail()
        delays.append(state().failures)
        claim.api.send()
        claim = claim.api.claim()
    claim.done()
    assert (delays, state().failures, state().retry_at) == ([1, 2], 0, None)
