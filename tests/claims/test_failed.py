"""The callback failed: the entity is freed and woken again, later each time."""

from datetime import datetime, timedelta

import pytest

from claims import reaper
from claims.models import ConsumerClaim
from dispatch.models import DispatchState
from tests.support import end_delay


def state():
    return DispatchState.objects.get(entity__url="/agent/e1")


def delay(answer):
    """How long after the claim's end the entity is woken again."""
    ended_at = ConsumerClaim.objects.latest("pk").ended_at
    assert ended_at is not None
    wait = datetime.fromisoformat(answer.body["retry_at"]) - ended_at
    # The delay is counted from the moment that the entity was locked.
    return timedelta(seconds=round(wait.total_seconds()))


def test_it_frees_the_entity_and_keeps_the_error(claim):
    answer = claim.fail("no such model")
    assert answer.status == 200
    assert answer.body == {"ok": True, "entity_cleared": True, "retry_at": answer.body["retry_at"]}
    assert claim.api.status() == "idle"
    row = ConsumerClaim.objects.get()
    assert (row.status, row.error) == ("failed", "no such model")


def test_its_error_may_be_left_out(claim):
    assert claim.call({"failed": True}).body["entity_cleared"] is True
    assert ConsumerClaim.objects.get().error == ""


def test_it_keeps_the_beginning_of_a_long_error(claim):
    claim.fail("x" * 100_000)
    assert ConsumerClaim.objects.get().error == "x" * 4096


def test_it_leaves_the_cursor(claim):
    claim.call({"failed": True, "acks": [{"path": "/agent/e1/main", "offset": claim.tail}]})
    assert state().cursor == 1


def test_it_is_fenced_when_it_comes_again(claim):
    claim.fail()
    assert claim.fail().error == "FENCED"
    assert state().failures == 1


def test_until_then_there_is_no_wake_and_no_pending_work(claim):
    event = {"subscription_id": f"runner:r1:{claim_key()}"}
    claim.fail()
    reaper.reap()
    assert claim.api.wakes() == []
    assert claim.api.try_claim("r1", event).error == "NO_PENDING_WORK"
    assert claim.api.try_claim("r1", {}).status == 204


def claim_key():
    key: str = DispatchState.objects.get().entity.subscription_key
    return key


def test_the_reaper_wakes_it_once_the_delay_is_over(claim):
    claim.fail()
    end_delay()
    assert reaper.reap().retried == 1
    (wake,) = claim.api.wakes()
    assert wake["generation"] == 2
    assert reaper.reap().retried == 0
    assert claim.api.claim().epoch == 2


def test_a_claim_wakes_it_once_the_delay_is_over(claim):
    claim.fail()
    end_delay()
    assert claim.api.claim("r1", {"subscription_id": f"runner:r1:{claim_key()}"}).epoch == 2


def test_a_send_wakes_it_at_once(claim):
    claim.fail()
    claim.api.send()
    assert claim.api.claim().epoch == 2


def test_a_send_that_is_held_back_does_not_wake_it(claim):
    claim.fail()
    claim.api.send(mode="paused")
    assert claim.api.wakes() == []


@pytest.mark.parametrize("signal", ["SIGINT", "SIGHUP", "SIGUSR"])
def test_a_signal_for_the_handler_wakes_it_at_once(claim, signal):
    claim.fail()
    claim.api.signal("/agent/e1", signal)
    assert claim.api.claim().epoch == 2


def test_the_delay_doubles_from_10_s_to_1_h(claim):
    seen = []
    for _ in range(11):
        seen.append(delay(claim.fail()).total_seconds())
        end_delay()
        reaper.reap()
        claim = claim.api.claim()
    assert seen == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]


def test_a_send_in_between_does_not_reset_the_delay(claim):
    claim.fail()
    claim.api.send()
    assert delay(claim.api.claim().fail()) == timedelta(seconds=20)


def test_a_released_claim_resets_the_delay(claim):
    claim.fail()
    claim.api.send()
    claim.api.claim().done()
    claim.api.send()
    assert delay(claim.api.claim().fail()) == timedelta(seconds=10)


def test_a_failure_after_many_does_not_overflow(claim):
    DispatchState.objects.update(failures=10_000)
    assert delay(claim.fail()) == timedelta(hours=1)


def test_it_has_no_time_to_be_woken_when_it_is_to_stop(claim):
    claim.api.signal("/agent/e1", "SIGTERM")
    assert claim.fail().body == {"ok": True, "entity_cleared": True}
    assert claim.api.status() == "stopped"


def test_a_paused_entity_waits_past_the_delay(claim):
    claim.api.signal("/agent/e1", "SIGSTOP")
    claim.fail()
    end_delay()
    reaper.reap()
    assert claim.api.wakes() == []
    claim.api.signal("/agent/e1", "SIGCONT")
    assert len(claim.api.wakes()) == 1


def test_a_move_to_another_runner_does_not_cut_the_delay_short(claim):
    claim.api.register("r2")
    claim.fail()
    target = {"targets": [{"type": "runner", "runnerId": "r2"}]}
    claim.api("PATCH", "/_electric/entities/agent/e1", {"dispatch_policy": target})
    assert claim.api.wakes("r2") == []
    end_delay()
    reaper.reap()
    assert [wake["generation"] for wake in claim.api.wakes("r2")] == [2]


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (b'"a\\u0000b"', "a\ufffdb"),
        (b'"a\\ud800b"', "a\ufffdb"),
        (b'"' + b"x" * 5000 + b'\\u0000"', "x" * 4096),
        (b'{"reason":"down"}', '{"reason":"down"}'),
        (b"7", "7"),
        (b"null", ""),
        (b'[1e999,"\\u0000\\ud800"]', '[null,"\\u0000\\u0000"]'),
        (b"9" * 5000, "null"),
    ],
)
def test_whatever_the_error_is_it_does_not_fail_the_call(claim, error, kept):
    body = b'{"epoch": 1, "failed": true, "error": ' + error + b"}"
    path = f"/_electric/wake-callbacks/{claim.body['consumerId']}"
    answer = claim.api.post(path, body, Electric_Claim_Token=claim.body["claimToken"])
    assert answer.status == 200
    row = ConsumerClaim.objects.get()
    assert (row.status, row.error) == ("failed", kept)


@pytest.mark.parametrize("bad", [b"\\u0000", b"\\ud800"])
def test_what_no_database_keeps_is_refused_elsewhere_and_changes_nothing(claim, bad):
    body = b'{"epoch": 1, "failed": true, "error": "%s", "wakeId": "%s"}' % (bad, bad)
    path = f"/_electric/wake-callbacks/{claim.body['consumerId']}"
    answer = claim.api.post(path, body, Electric_Claim_Token=claim.body["claimToken"])
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert ConsumerClaim.objects.get().status == "active"
