"""Claims against each other and against sends, in both orders."""

import pytest

from claims import endings
from claims.models import ConsumerClaim
from tests.races.conftest import Line, assert_every_wake_is_right, both_orders
from tests.support import Api

pytestmark = pytest.mark.postgres


@pytest.fixture
def woken(alice: Api) -> Api:
    """Runner r1, and an entity that waits for it with a message."""
    alice.register()
    alice.make_entity()
    alice.send()
    return alice


def test_it_gives_a_wake_to_one_of_two_claims_for_it(woken: Api, line: Line):
    (event,) = woken.wakes()
    answers = line.meet(
        "state",
        ("first", "second"),
        first=lambda: woken.try_claim(event=event),
        second=lambda: woken.try_claim(event=event),
    )
    assert answers["first"].status == 200
    assert answers["second"].error == "ALREADY_CLAIMED"
    assert_every_wake_is_right()


def test_it_gives_the_oldest_wake_to_one_of_two_and_the_next_to_the_other(woken: Api, line: Line):
    woken.make_entity("/agent/e2")
    woken.send("/agent/e2")
    answers = line.meet("state", ("first", "second"), first=woken.try_claim, second=woken.try_claim)
    claimed = [answers[name].body["entity"]["url"] for name in ("first", "second")]
    assert claimed == ["/agent/e1", "/agent/e2"]
    assert_every_wake_is_right()


def test_it_lets_go_of_the_oldest_that_it_lost_before_it_waits_for_the_next(woken: Api, line: Line):
    woken.make_entity("/agent/e2")
    woken.send("/agent/e2")
    line.hold("state of e1")
    line.hold("state of e2")
    first = line.join(woken.claim)
    second = line.join(woken.claim)
    line.let_go("state of e1")
    assert first.result(timeout=30).body["entity"]["url"] == "/agent/e1"
    line.settle()
    assert line.join(woken.send).done(), "whoever waits for e2 holds e1"
    line.let_go("state of e2")
    assert second.result(timeout=30).body["entity"]["url"] == "/agent/e2"
    assert_every_wake_is_right()


def test_it_has_nothing_for_the_second_of_two_who_ask_for_the_only_wake(woken: Api, line: Line):
    answers = line.meet("state", ("first", "second"), first=woken.try_claim, second=woken.try_claim)
    assert [answers[name].status for name in ("first", "second")] == [200, 204]
    assert_every_wake_is_right()


@both_orders("claim", "send")
def test_it_wakes_again_for_a_message_that_its_claim_did_not_deliver(
    order: tuple[str, ...], woken: Api, line: Line
):
    answers = line.meet("state", order, claim=woken.claim, send=woken.send)
    assert_every_wake_is_right()
    delivered_both = order[0] == "send"
    done = answers["claim"].done()
    assert done.body == {"ok": True, "next_wake": not delivered_both, "entity_cleared": True}
    assert_every_wake_is_right()


@both_orders("claim", "send")
def test_it_claims_an_idle_entity_only_after_a_send(order: tuple[str, ...], woken: Api, line: Line):
    (event,) = woken.wakes()
    woken.claim().done()
    answers = line.meet("state", order, claim=lambda: woken.try_claim(event=event), send=woken.send)
    if order[0] == "send":
        assert answers["claim"].status == 200
    else:
        assert answers["claim"].error == "NO_PENDING_WORK"
        assert len(woken.wakes()) == 1
    assert_every_wake_is_right()


def test_it_makes_one_wake_of_two_sends(woken: Api, line: Line):
    woken.claim().done()
    line.meet("state", ("first", "second"), first=woken.send, second=woken.send)
    assert len(woken.wakes()) == 1
    assert woken.claim().epoch == 2
    assert_every_wake_is_right()


@both_orders("claim", "patch")
def test_it_claims_for_the_runner_that_the_entity_has(
    order: tuple[str, ...], woken: Api, line: Line
):
    woken.register("r2")
    policy = {"targets": [{"type": "runner", "runnerId": "r2"}]}
    answers = line.meet(
        "state",
        order,
        claim=woken.try_claim,
        patch=lambda: woken("PATCH", "/_electric/entities/agent/e1", {"dispatch_policy": policy}),
    )
    assert answers["patch"].status == 200
    if order[0] == "claim":
        assert answers["claim"].status == 200
        assert woken.wakes("r2") == []
    else:
        assert answers["claim"].status == 204
        assert woken.claim("r2").epoch == 2
    assert woken.wakes("r1") == []
    assert_every_wake_is_right()


def test_a_claim_that_is_asked_for_again_stays_within_its_runner(woken: Api, line: Line):
    """It was taken back to another runner while its lock was waited for."""
    bob = Api("user:bob")
    bob.register("r2")
    ask = {"Pullwake_Claim_Nonce": "n1"}
    path = "/_electric/runners/r1/claim"
    assert woken.post(path, {}, **ask).status == 200
    claim = ConsumerClaim.objects.get()
    answers = line.meet(
        "state",
        ("taken", "again"),
        taken=lambda: endings.take_back(claim, "r2"),
        again=lambda: woken.post(path, {}, **ask),
    )
    assert answers["again"].status == 204
    assert bob.claim("r2").epoch == 2
    assert_every_wake_is_right()


# --- At max_concurrent_claims -----------------------------------------------------------------


@pytest.fixture
def limited(alice: Api) -> Api:
    """Runner r1, which may hold two claims, and three entities that wait for it."""
    alice.register(max_concurrent_claims=2)
    for number in (1, 2, 3):
        alice.make_entity(f"/agent/e{number}")
        alice.send(f"/agent/e{number}")
    return alice


def test_it_gives_the_last_place_of_a_runner_to_one_of_two_claims(limited: Api, line: Line):
    limited.claim()
    answers = line.meet(
        "tail", ("first", "second"), first=limited.try_claim, second=limited.try_claim
    )
    assert answers["first"].status == 200
    assert answers["second"].error == "CLAIM_LIMIT_REACHED"
    assert ConsumerClaim.objects.active().count() == 2
    assert_every_wake_is_right()


@both_orders("claim", "done")
def test_it_emits_a_refused_wake_again_or_does_not_refuse_it(
    order: tuple[str, ...], limited: Api, line: Line
):
    first = limited.claim()
    limited.claim()
    tail = limited.get("/runners/r1/wake?offset=now").headers["Stream-Next-Offset"]
    answers = line.meet("tail", order, claim=limited.try_claim, done=first.done)
    assert answers["done"].body["entity_cleared"]
    if order[0] == "claim":
        assert answers["claim"].error == "CLAIM_LIMIT_REACHED"
        assert len(limited.wakes(offset=tail)) == 1
    else:
        assert answers["claim"].status == 200
    assert_every_wake_is_right()


def test_it_emits_two_refused_wakes_again_when_two_claims_end_at_once(limited: Api, line: Line):
    limited.make_entity("/agent/e4")
    limited.send("/agent/e4")
    first, second = limited.claim(), limited.claim()
    tail = limited.get("/runners/r1/wake?offset=now").headers["Stream-Next-Offset"]
    line.meet("claim", ("first", "second"), first=first.done, second=second.done)
    assert {wake["stream"] for wake in limited.wakes(offset=tail)} == {
        "agent/e3/main",
        "agent/e4/main",
    }
    assert_every_wake_is_right()


def test_it_does_not_lose_a_wake_that_is_refused_while_another_claim_is_being_made(
    limited: Api, line: Line
):
    """One claim ends, one is being made and one is refused, all at once."""
    first = limited.claim()
    limited.send()  # so that its done makes a wake, and waits at the stream's tail
    tail = limited.get("/runners/r1/wake?offset=now").headers["Stream-Next-Offset"]
    line.hold("tail")
    line.hold("state of e2")
    being_made = line.join(limited.try_claim)
    done = line.join(first.done)
    third = line.join(limited.try_claim)
    line.let_go("state of e2")
    line.settle()
    line.let_go("tail")
    assert being_made.result(timeout=30).status == 200
    assert done.result(timeout=30).body["entity_cleared"]
    claimed = third.result(timeout=30).status == 200
    emitted_again = {wake["stream"] for wake in limited.wakes(offset=tail)} - {"agent/e1/main"}
    assert claimed or emitted_again == {"agent/e3/main"}
    assert_every_wake_is_right()
