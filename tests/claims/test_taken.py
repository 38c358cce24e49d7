"""What a claim took from the queue: done with when it is released or acked, else waiting again."""

import pytest

from claims import endings, lifecycle
from claims.models import ConsumerClaim, DeadLetter
from dispatch import wakes
from dispatch.models import DispatchState, Entity, QueuedMessage, TakenMessage
from tests.factories import TakenMessageFactory
from tests.support import end_delay, lapse

URL = "/agent/e1"
KEYS = ["m1", "m2", "m3"]


def expire(claim):
    lapse(claim)
    assert lifecycle.expire(ConsumerClaim.objects.active().get()) is not None


def take_back(claim):
    assert endings.take_back(ConsumerClaim.objects.active().get()) is not None


def delete_runner(claim):
    assert claim.api("DELETE", "/_electric/runners/r1").status == 204


ENDS_BADLY = {
    "failed": lambda claim: claim.fail(),
    "expired": expire,
    "taken back": take_back,
    "runner deleted": delete_runner,
}


def taken(claim, key):
    """The handler says that it takes this message."""
    return update(claim, key, {"status": "processed"})


def update(claim, key, value):
    event = {"type": "inbox", "key": key, "value": value, "headers": {"operation": "update"}}
    return claim.append(event, token=claim.mint())


def queue():
    return list(QueuedMessage.objects.order_by("position", "offset").values_list("key", flat=True))


def said(claim, key):
    """The statuses that the stream gives a message, in order."""
    events = claim.api.get(f"{URL}/main?offset=-1").body
    return [e["value"]["status"] for e in events if e["key"] == key and "status" in e["value"]]


@pytest.fixture
def claim(alice):
    """The second claim of /agent/e1: three queued messages lie behind the cursor."""
    alice.register()
    alice.make_entity()
    for key in KEYS:
        alice.send(key=key, mode="queued")
    first = alice.claim()
    taken(first, "m1")
    assert first.done(first.tail).body["next_wake"]
    second = alice.claim()
    taken(second, "m2")
    assert queue() == ["m3"]
    return second


@pytest.mark.parametrize("end", ENDS_BADLY.values(), ids=ENDS_BADLY)
def test_it_waits_again_in_its_place(claim, end):
    end(claim)
    assert (queue(), TakenMessage.objects.count()) == (["m2", "m3"], 0)
    assert said(claim, "m2") == ["pending", "processed", "pending"]
    assert said(claim, "m1") == ["pending", "processed"]
    assert DispatchState.objects.get().pending


def test_it_alone_is_work(claim):
    taken(claim, "m3")
    claim.fail()
    assert queue() == ["m2", "m3"]
    end_delay()
    assert wakes.retry_due(limit=1) == 1
    again = claim.api.claim()
    taken(again, "m2")
    taken(again, "m3")
    assert not again.done(again.tail).body["next_wake"]
    assert not DispatchState.objects.get().pending


def test_it_is_done_with_when_the_claim_is_released(claim):
    claim.done(claim.tail)
    assert (queue(), TakenMessage.objects.count()) == (["m3"], 0)
    assert said(claim, "m2") == ["pending", "processed"]


def test_what_a_heartbeat_acks_is_done_with(claim):
    ack = {"path": claim.body["streamPath"], "offset": claim.tail}
    assert claim.heartbeat(acks=[ack]).status == 200
    assert not TakenMessage.objects.exists()
    taken(claim, "m3")
    claim.fail()
    assert (queue(), TakenMessage.objects.count()) == (["m3"], 0)
    assert said(claim, "m2") == ["pending", "processed"]


def test_what_lies_past_the_ack_of_a_heartbeat_is_not_done_with(claim):
    claim.api.send(key="m4", mode="queued")
    taken(claim, "m4")
    ack = {"path": claim.body["streamPath"], "offset": claim.tail}
    assert claim.heartbeat(acks=[ack]).status == 200
    assert list(TakenMessage.objects.values_list("key", flat=True)) == ["m4"]


def test_a_claim_that_fails_gives_nothing_back_of_what_another_took(claim):
    claim.done(claim.tail)
    next_one = claim.api.claim()
    TakenMessageFactory.create(entity=Entity.objects.get(), key="m1", epoch=1)
    taken(next_one, "m3")
    next_one.fail()
    assert (queue(), TakenMessage.objects.count()) == (["m3"], 0)


@pytest.mark.parametrize("end", ["SIGKILL", "deletion"])
def test_it_ends_with_its_entity(claim, end):
    if end == "SIGKILL":
        claim.api.signal(URL, end)
        assert said(claim, "m2") == ["pending", "processed"]
    else:
        assert claim.api("DELETE", f"/_electric/entities{URL}").status == 204
    assert not TakenMessage.objects.exists()


def test_it_is_given_up_with_the_rest(claim):
    assert claim.call({"failed": True, "give_up": True}).status == 200
    assert [each.offset for each in DeadLetter.objects.order_by("offset")] == [3, 4]
    assert (queue(), TakenMessage.objects.count()) == ([], 0)
    assert said(claim, "m2")[-1] == "cancelled"
    assert not DispatchState.objects.get().pending


@pytest.mark.parametrize("how", ["DELETE", "cancelled"])
def test_it_does_not_come_back_once_it_was_withdrawn(claim, how):
    path = f"/_electric/entities{URL}/inbox/m2"
    if how == "DELETE":
        assert claim.api("DELETE", path).status == 200
    else:
        assert claim.api("PATCH", path, {"status": how}).status == 200
    claim.fail()
    assert (queue(), TakenMessage.objects.count()) == (["m3"], 0)


def test_it_waits_once_when_it_was_queued_again_meanwhile(claim):
    path = f"/_electric/entities{URL}/inbox/m2"
    assert claim.api("PATCH", path, {"status": "pending", "position": "9"}).status == 200
    claim.fail()
    assert (queue(), TakenMessage.objects.count()) == (["m3", "m2"], 0)


def test_what_its_sender_called_processed_stays_so(claim):
    path = f"/_electric/entities{URL}/inbox/m3"
    assert claim.api("PATCH", path, {"status": "processed"}).status == 200
    claim.fail()
    assert queue() == ["m2"]


@pytest.mark.parametrize(
    "edit", [{"mode": "steer"}, {"mode": "immediate"}, {"status": "processed"}], ids=str
)
def test_it_is_what_its_sender_made_of_it_meanwhile(claim, edit):
    # As a row of the queue it would be work for ever: a handler takes no other modes from there.
    path = f"/_electric/entities{URL}/inbox/m2"
    assert claim.api("PATCH", path, edit).status == 200
    claim.fail()
    assert (queue(), TakenMessage.objects.count()) == (["m3"], 0)
    assert said(claim, "m2")[-1] == "processed"


@pytest.mark.parametrize("end", ["done", "fail"])
def test_its_handler_may_let_it_wait_again(claim, end):
    assert update(claim, "m2", {"status": "pending"}).status == 204
    assert (queue(), TakenMessage.objects.count()) == (["m2", "m3"], 0)
    getattr(claim, end)()
    assert queue() == ["m2", "m3"]
    end_delay()  # which a done has, too: it achieved nothing
    assert wakes.retry_due(limit=1) == 1
    again = claim.api.claim()
    taken(again, "m2")
    taken(again, "m3")
    assert not again.done(again.tail).body["next_wake"]
    assert said(claim, "m2") == ["pending", "processed", "pending", "processed"]


def test_its_handler_may_let_it_wait_elsewhere(claim):
    change = {"status": "pending", "mode": "queued", "position": "9"}
    assert update(claim, "m2", change).status == 204
    assert queue() == ["m3", "m2"]


def test_one_of_two_that_it_took_wakes_it_at_once(claim):
    taken(claim, "m3")
    assert update(claim, "m3", {"status": "pending"}).status == 204
    assert claim.done(claim.tail).body["next_wake"]
    assert (queue(), TakenMessage.objects.count()) == (["m3"], 0)


def test_what_an_earlier_claim_took_is_not_the_handlers_to_put_back(claim):
    assert update(claim, "m1", {"status": "pending"}).status == 204
    assert queue() == ["m3"]


def test_it_is_held_back_again_if_it_was_when_the_handler_took_it(claim):
    # The handler had read the queue before its sender held the message back.
    path = f"/_electric/entities{URL}/inbox/m3"
    assert claim.api("PATCH", path, {"mode": "paused"}).status == 200
    taken(claim, "m3")
    assert claim.api("PATCH", f"/_electric/entities{URL}/inbox/m2", {"payload": 2}).status == 200
    claim.fail()
    assert queue() == ["m2", "m3"]
    assert QueuedMessage.objects.get(key="m3").held
    end_delay()
    assert wakes.retry_due(limit=1) == 1
    again = claim.api.claim()
    taken(again, "m2")
    assert not again.done(again.tail).body["next_wake"]
