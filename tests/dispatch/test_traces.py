"""The trace that a message is sent in comes to the runner with its claim."""

import pytest

from dispatch import deliveries, wakes
from dispatch.firing import fire_due
from tests.support import come_due, end_delay

TRACE = "0af7651916cd43dd8448eb211c80319c"


def parent(number: int) -> str:
    return f"00-{TRACE}-{number:016x}-01"


@pytest.fixture
def e1(alice):
    """Alice's runner r1 with an entity."""
    alice.register()
    alice.make_entity()
    return alice


def send(api, number, **facts):
    body = {"payload": number, **facts}
    headers = {"traceparent": parent(number), "tracestate": "rojo=1"} if number else {}
    answer = api.post("/_electric/entities/agent/e1/send", body, **headers)
    assert answer.status == 200
    return answer


def test_a_claim_has_that_of_its_first_work(e1):
    for number in (1, 2):
        send(e1, number)
    claim = e1.claim()
    assert claim.body["traceparent"] == parent(1)
    assert claim.body["tracestate"] == "rojo=1"
    first = e1.events()[1]["headers"]["offset"]
    assert claim.done(first).body["next_wake"] is True
    assert e1.claim().body["traceparent"] == parent(2)


def test_the_stream_does_not_show_it(e1):
    send(e1, 1)
    assert TRACE not in str(e1.events())
    assert TRACE not in str(e1.wakes())


def test_without_one_there_is_none(e1):
    send(e1, 0)
    send(e1, 2)
    assert "traceparent" not in e1.claim().body


@pytest.mark.parametrize("header", ["nonsense", f"00-{'0' * 32}-{'1' * 16}-01"])
def test_one_that_is_none_is_ignored(e1, header):
    answer = e1.post("/_electric/entities/agent/e1/send", {"payload": 1}, traceparent=header)
    assert answer.status == 200
    assert "traceparent" not in e1.claim().body


def test_a_first_message_has_one(alice):
    alice.register()
    target = {"targets": [{"type": "runner", "runnerId": "r1"}]}
    body = {"dispatch_policy": target, "initialMessage": "hi"}
    assert alice("PUT", "/_electric/entities/agent/e1", body, traceparent=parent(3)).status == 201
    assert alice.claim().body["traceparent"] == parent(3)


def test_a_delayed_one_keeps_it(e1):
    send(e1, 4, afterMs=60_000)
    come_due()
    fire_due(limit=10)
    assert e1.claim().body["traceparent"] == parent(4)


def test_a_message_that_waits_in_the_queue_keeps_it(e1):
    for number in (5, 6):
        send(e1, number, mode="queued")
    claim = e1.claim()
    assert claim.body["traceparent"] == parent(5)
    token = claim.mint()
    key = e1.events()[1]["key"]
    processed = {"status": "processed"}
    taken = {"type": "inbox", "key": key, "value": processed, "headers": {"operation": "update"}}
    assert claim.append(taken, token=token).status == 204
    assert claim.done(claim.tail).body["next_wake"] is True
    assert e1.claim().body["traceparent"] == parent(6)


def test_a_claim_that_is_answered_again_has_it_again(e1):
    send(e1, 7)
    for _ in range(2):
        answer = e1.post("/_electric/runners/r1/claim", {}, Pullwake_Claim_Nonce="n")
        assert answer.body["traceparent"] == parent(7)


def test_a_repeated_attempt_has_it_again(e1):
    send(e1, 8)
    e1.claim().fail()
    end_delay()
    assert wakes.retry_due(limit=10) == 1
    assert e1.claim().body["traceparent"] == parent(8)


def test_the_wake_of_a_parent_goes_on_with_the_trace_of_the_run_that_it_waited_for(e1):
    e1.register("above")
    e1.make_entity("/agent/parent", "above")
    watch = {"subscriberUrl": "/agent/parent", "sourceUrl": "/agent/e1", "condition": "runFinished"}
    assert e1.post("/_electric/wake", watch).status == 204
    send(e1, 1)
    claim = e1.claim()
    run = {"type": "run", "key": "r", "value": {"status": "completed"}}
    run["headers"] = {"operation": "update"}
    token = claim.mint()
    assert claim.append(run, token=token, traceparent=parent(9)).status == 204
    assert deliveries.deliver_due(limit=10) == 1
    told = e1.claim("above")
    assert told.body["traceparent"] == parent(9)
    assert TRACE not in str(e1.events("/agent/parent"))


def test_a_schedules_message_has_that_of_the_call_that_set_it(e1):
    path = "/_electric/entities/agent/e1/schedules/s1"
    body = {"scheduleType": "future_send", "payload": 1, "fireAt": "2026-01-01T00:00:00Z"}
    assert e1("PUT", path, body, traceparent=parent(10)).status == 200
    come_due()
    fire_due(limit=10)
    assert e1.claim().body["traceparent"] == parent(10)
