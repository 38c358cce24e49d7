"""The callback heartbeat: the lease renewed for its full length."""

from datetime import datetime, timedelta

import pytest
from django.db.models.functions import Now

from claims import reaper
from claims.models import ConsumerClaim
from tests.support import lapse


def row():
    return ConsumerClaim.objects.get()


def test_it_renews_the_lease_for_its_full_length_from_now(claim):
    # 10 s of the 30 s are left.
    ConsumerClaim.objects.update(lease_expires_at=Now() + timedelta(seconds=10))
    answer = claim.heartbeat()
    assert answer.status == 200
    assert answer.body == {
        "ok": True,
        "next_wake": False,
        "lease_expires_at": answer.body["lease_expires_at"],
    }
    assert row().lease_expires_at - row().last_heartbeat_at == timedelta(seconds=30)
    told = datetime.fromisoformat(answer.body["lease_expires_at"])
    assert abs(told - row().lease_expires_at) < timedelta(milliseconds=1)


def test_it_renews_for_the_lease_that_the_claim_was_made_with(claim):
    claim.api.register(claim_lease_ms=600_000)
    claim.heartbeat()
    assert row().lease_expires_at - row().last_heartbeat_at == timedelta(seconds=30)


def test_it_takes_back_nothing_of_a_lease_that_was_renewed(claim):
    lapse(claim)
    claim.heartbeat()
    assert reaper.reap().expired == 0
    assert claim.done().status == 200


def test_it_says_nothing_of_messages_that_wait(claim):
    claim.api.send()
    assert claim.heartbeat().body["next_wake"] is False


@pytest.mark.parametrize("age", [timedelta(hours=2), timedelta(days=30)])
def test_the_token_lives_as_long_as_its_claim(claim, age):
    token = claim.mint()
    ConsumerClaim.objects.update(claimed_at=Now() - age)
    assert claim.heartbeat().status == 200
    assert claim.append({"n": 1}, token=token).status == 204
    assert claim.done().status == 200


def test_the_lease_of_an_active_claim_is_never_null(claim):
    for _ in range(2):
        assert row().lease_expires_at is not None
        claim.heartbeat()
