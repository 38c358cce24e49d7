"""max_concurrent_claims: what is refused, and how the refused wakes come back."""

import pytest

from claims import reaper
from dispatch.models import subscription_key
from tests.support import lapse


@pytest.fixture
def limited(alice):
    """Alice's r1 may hold one claim; /agent/e1, e2 and e3 wait for it."""
    alice.register(max_concurrent_claims=1)
    for name in ("e1", "e2", "e3"):
        alice.make_entity(f"/agent/{name}", initialMessage="hi")
    return alice


def streams(wakes):
    return [wake["stream"] for wake in wakes]


def offset_of(api, runner_id="r1"):
    offset: str = api("HEAD", f"/runners/{runner_id}/wake").headers["Stream-Next-Offset"]
    return offset


def expire(claim):
    lapse(claim)
    assert reaper.reap().expired == 1


# Every way out of a claim, by a name.
ENDS = {
    "done": lambda claim: claim.done(),
    "failed": lambda claim: claim.fail(),
    "expired": expire,
    "killed": lambda claim: claim.api.signal("/agent/e1", "SIGKILL"),
    "deleted": lambda claim: claim.api("DELETE", "/_electric/entities/agent/e1"),
}


@pytest.mark.parametrize("event", [{}, "the wake"])
def test_it_refuses_a_claim_past_the_limit(limited, event):
    limited.claim()
    answer = limited.try_claim("r1", event and limited.wakes()[0])
    assert (answer.status, answer.error) == (409, "CLAIM_LIMIT_REACHED")
    assert streams(limited.wakes()) == ["agent/e2/main", "agent/e3/main"]


def test_it_counts_up_to_the_limit(limited):
    limited.register(max_concurrent_claims=2)
    limited.claim()
    limited.claim()
    assert limited.try_claim().error == "CLAIM_LIMIT_REACHED"


def test_a_runner_without_a_limit_claims_all(limited):
    limited.register(max_concurrent_claims=None)
    assert [limited.claim().body["entity"]["url"] for _ in range(3)] == [
        "/agent/e1",
        "/agent/e2",
        "/agent/e3",
    ]


def test_a_lapsed_claim_still_counts_until_it_is_expired(limited):
    lapse(limited.claim())
    assert limited.try_claim().error == "CLAIM_LIMIT_REACHED"


@pytest.mark.parametrize("end", ENDS)
def test_it_emits_the_oldest_refused_wake_again_when_a_claim_ends(limited, end):
    claim = limited.claim()
    before = limited.wakes()
    seen = offset_of(limited)
    ENDS[end](claim)
    again = [each for each in limited.wakes(offset=seen) if "e1" not in each["stream"]]
    assert streams(again) == ["agent/e2/main"]
    assert again[0]["generation"] == before[0]["generation"]
    assert limited.claim("r1", again[0]).body["entity"]["url"] == "/agent/e2"


def test_it_emits_one_again_for_each_claim_that_ends(limited):
    limited.claim().done()
    seen = offset_of(limited)
    limited.claim().done()
    assert streams(limited.wakes(offset=seen)) == ["agent/e3/main"]


def test_it_emits_nothing_again_below_the_limit(limited):
    limited.register(max_concurrent_claims=3)
    claim = limited.claim()
    seen = offset_of(limited)
    claim.done()
    assert limited.wakes(offset=seen) == []


def test_it_emits_nothing_again_for_a_runner_without_a_limit(limited):
    limited.register(max_concurrent_claims=None)
    claim = limited.claim()
    seen = offset_of(limited)
    claim.done()
    assert limited.wakes(offset=seen) == []


def test_a_busy_entity_does_not_keep_the_others_waiting(limited):
    worked = []
    wake = limited.wakes()[0]
    for _ in range(3):
        seen = offset_of(limited)
        claim = limited.claim("r1", wake)
        worked.append(claim.body["entity"]["url"])
        limited.send(claim.body["entity"]["url"])
        claim.done()
        # What a runner that follows the stream sees first is what it claims first.
        wake = limited.wakes(offset=seen)[0]
    assert worked == ["/agent/e1", "/agent/e2", "/agent/e3"]


def test_it_emits_the_former_runners_wake_again_when_another_takes_over(limited):
    claim = limited.claim()
    limited.register("r0")
    target = {"targets": [{"type": "runner", "runnerId": "r0"}]}
    limited("PATCH", "/_electric/entities/agent/e1", {"dispatch_policy": target})
    seen = offset_of(limited)
    lapse(claim)
    limited.claim("r0", {"subscription_id": f"runner:r0:{subscription_key('/agent/e1')}"})
    assert streams(limited.wakes(offset=seen)) == ["agent/e2/main"]


def test_it_emits_a_wake_again_when_a_claim_meets_a_lapsed_one_with_no_work_left(limited):
    claim = limited.claim()
    claim.heartbeat(acks=[{"path": "/agent/e1/main", "offset": claim.tail}])
    seen = offset_of(limited)
    lapse(claim)
    answer = limited.try_claim(
        "r1", {"subscription_id": f"runner:r1:{subscription_key('/agent/e1')}"}
    )
    assert answer.error == "NO_PENDING_WORK"
    assert streams(limited.wakes(offset=seen)) == ["agent/e2/main"]
