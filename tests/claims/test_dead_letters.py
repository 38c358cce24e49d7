"""A handler gives its work up, or says itself when it is to be tried again; the attempts count."""

from datetime import datetime, timedelta

import pytest

from claims import dead_letters, reaper
from claims.models import ConsumerClaim, DeadLetter
from core.errors import InvalidRequest, NotRunning
from dispatch.models import DispatchState
from tests.support import end_delay


def state():
    return DispatchState.objects.get(entity__url="/agent/e1")


def give_up(claim, reason="no such tool", **facts):
    return claim.call({"failed": True, "error": reason, "give_up": True, **facts})


def payloads(claim):
    """Of the messages in the stream, with their keys, in order."""
    events = claim.api.get("/agent/e1/main?offset=-1").body
    return [(each["key"], each["value"]["payload"]) for each in events if each["type"] == "inbox"]


# --- When, and how often --------------------------------------------------------------------


def test_a_claim_says_which_attempt_it_is(claim):
    seen = [claim.body["attempt"]]
    for _ in range(2):
        claim.fail()
        end_delay()
        reaper.reap()
        claim = claim.api.claim()
        seen.append(claim.body["attempt"])
    claim.done()
    claim.api.send()
    assert [*seen, claim.api.claim().body["attempt"]] == [1, 2, 3, 1]


def test_a_failure_may_say_when_to_try_again(claim):
    answer = claim.call({"failed": True, "error": "busy", "retry_after_ms": 60_000})
    ended_at = ConsumerClaim.objects.get().ended_at
    assert ended_at is not None
    wait = datetime.fromisoformat(answer.body["retry_at"]) - ended_at
    assert round(wait.total_seconds()) == 60
    assert (state().failures, claim.api.wakes()) == (1, [])


def test_a_failure_after_that_waits_as_it_would_have(claim):
    claim.call({"failed": True, "retry_after_ms": 60_000})
    end_delay()
    reaper.reap()
    answer = claim.api.claim().fail()
    ended_at = ConsumerClaim.objects.latest("pk").ended_at
    assert ended_at is not None
    wait = datetime.fromisoformat(answer.body["retry_at"]) - ended_at
    assert timedelta(seconds=19) < wait < timedelta(seconds=21)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"failed": True, "retry_after_ms": 999}, "/retry_after_ms"),
        ({"failed": True, "retry_after_ms": 30 * 86_400_000 + 1}, "/retry_after_ms"),
        ({"failed": True, "retry_after_ms": 1e300}, "/retry_after_ms"),
        ({"failed": True, "retry_after_ms": "60"}, "/retry_after_ms"),
        ({"done": True, "retry_after_ms": 1_000}, "/retry_after_ms"),
        ({"retry_after_ms": 1_000}, "/retry_after_ms"),
        ({"give_up": True}, "/give_up"),
        ({"done": True, "give_up": True}, "/give_up"),
        ({"failed": True, "give_up": 1}, "/give_up"),
        ({"failed": True, "give_up": True, "retry_after_ms": 1_000}, "/give_up"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(claim, body, path):
    answer = claim.call(body)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert [each["path"] for each in answer.body["error"]["details"]] == [path]
    assert ConsumerClaim.objects.get().status == "active"


# --- Giving up ------------------------------------------------------------------------------


def test_what_is_given_up_is_acked_and_kept(claim):
    claim.fail()
    claim.api.send(payload="second")
    claim = claim.api.claim()
    answer = give_up(claim)
    assert (answer.status, answer.body) == (200, {"ok": True, "entity_cleared": True})
    row = ConsumerClaim.objects.latest("pk")
    assert (row.status, row.error) == ("failed", "no such tool")
    letters = DeadLetter.objects.order_by("offset")
    assert [(each.offset, each.reason, each.attempts, each.runner_name) for each in letters] == [
        (2, "no such tool", 2, "r1"),
        (3, "no such tool", 2, "r1"),
    ]
    now = state()
    assert (now.cursor, now.failures, now.retry_at, now.pending) == (3, 0, None, False)
    assert claim.api.wakes() == []


def test_what_came_since_is_woken_for_at_once(claim):
    claim.api.send(payload="later")
    give_up(claim)
    assert [each.offset for each in DeadLetter.objects.all()] == [2]
    assert len(claim.api.wakes()) == 1
    assert claim.api.claim().body["attempt"] == 1


def test_only_what_it_acks_is_given_up(claim):
    claim.fail()
    claim.api.send(payload="second")
    claim = claim.api.claim()
    first = claim.offset  # just before the first: one further is the first
    ack = {"path": "/agent/e1/main", "offset": f"{0:016d}_{2:016d}"}
    assert first < ack["offset"]
    give_up(claim, acks=[ack])
    assert [each.offset for each in DeadLetter.objects.all()] == [2]
    assert len(claim.api.wakes()) == 1


def test_queued_messages_are_taken_from_the_queue(claim):
    claim.done()
    for payload in ("first", "second"):
        claim.api.send(payload=payload, mode="queued")
    claim = claim.api.claim()
    claim.api.send(payload="since", mode="queued")
    give_up(claim)
    letters = DeadLetter.objects.order_by("offset")
    assert [each.offset for each in letters] == [3, 4]
    events = claim.api.get("/agent/e1/main?offset=-1").body
    cancelled = [each for each in events if each.get("value", {}).get("status") == "cancelled"]
    assert [each["key"] for each in cancelled] == [events[2]["key"], events[3]["key"]]
    assert (state().failures, state().queue_waiting, len(claim.api.wakes())) == (0, True, 1)
    give_up(claim.api.claim())
    assert (state().pending, claim.api.wakes()) == (False, [])
    dead_letters.redrive(letters[0])
    assert (state().queue_waiting, len(claim.api.wakes())) == (True, 1)


def test_a_bad_ack_gives_nothing_up(claim):
    answer = give_up(claim, acks=[{"path": "/agent/e2/main", "offset": claim.tail}])
    assert answer.error == "INVALID_OFFSET"
    assert (DeadLetter.objects.count(), ConsumerClaim.objects.get().status) == (0, "active")


def test_what_was_acked_before_is_not_given_up(claim):
    claim.call({"acks": [{"path": "/agent/e1/main", "offset": claim.tail}]})
    give_up(claim)
    assert not DeadLetter.objects.exists()


def test_it_is_fenced_when_it_comes_again(claim):
    give_up(claim)
    assert give_up(claim).error == "FENCED"
    assert DeadLetter.objects.count() == 1


# --- Redriving ------------------------------------------------------------------------------


def test_a_redriven_letter_comes_again_as_new(claim):
    give_up(claim)
    letter = DeadLetter.objects.get()
    dead_letters.redrive(letter)
    letter.refresh_from_db()
    assert letter.redriven_at is not None
    (first, hi), (second, hi_again) = payloads(claim)
    assert (hi, hi_again) == ("hi", "hi")
    assert first != second
    claim = claim.api.claim()
    assert claim.body["attempt"] == 1
    claim.done()
    assert not state().pending


def test_a_signal_is_redriven_too(claim):
    claim.done()
    claim.api.signal("/agent/e1", "SIGHUP")
    claim = claim.api.claim()
    give_up(claim)
    dead_letters.redrive(DeadLetter.objects.get())
    assert len(claim.api.wakes()) == 1


def test_it_is_redriven_once(claim):
    give_up(claim)
    letter = DeadLetter.objects.get()
    dead_letters.redrive(letter)
    with pytest.raises(InvalidRequest):
        dead_letters.redrive(letter)
    assert len(payloads(claim)) == 2


def test_it_is_not_redriven_to_an_entity_at_its_end(claim):
    give_up(claim)
    claim.api.signal("/agent/e1", "SIGTERM")
    with pytest.raises(NotRunning):
        dead_letters.redrive(DeadLetter.objects.get())
    assert DeadLetter.objects.get().redriven_at is None


def test_one_given_up_again_is_a_letter_of_its_own(claim):
    give_up(claim)
    dead_letters.redrive(DeadLetter.objects.get())
    give_up(claim.api.claim())
    assert DeadLetter.objects.count() == 2


def test_letters_go_with_their_entity(claim):
    give_up(claim)
    claim.api("DELETE", "/_electric/entities/agent/e1")
    assert not DeadLetter.objects.exists()
