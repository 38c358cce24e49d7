"""An operator's expiry: any active claim, whatever its lease."""

import pytest

from claims import endings
from claims.models import ConsumerClaim
from core.errors import NotFound
from dispatch.models import DispatchState
from tests.support import Api

pytestmark = pytest.mark.django_db


@pytest.fixture
def claim(alice: Api):
    """A claim with its whole lease before it."""
    alice.register()
    alice.make_entity()
    alice.send()
    return alice.claim()


def row(claim):
    return ConsumerClaim.objects.get(consumer_id=claim.body["consumerId"])


def test_it_expires_a_claim_whose_lease_runs_and_wakes_the_entity(alice, claim):
    expiry = endings.take_back(row(claim))
    assert expiry is not None
    assert expiry.next_wake is not None
    assert row(claim).status == "expired"
    assert [wake["generation"] for wake in alice.wakes()] == [claim.epoch + 1]
    assert expiry.next_wake.generation == claim.epoch + 1


def test_it_does_not_blame_the_entity_however_often(alice, claim):
    for _ in range(3):
        expiry = endings.take_back(row(claim))
        assert expiry is not None
        assert expiry.next_wake is not None
        claim = alice.claim()
    state = DispatchState.objects.get()
    assert (state.failures, state.retry_at) == (0, None)


def test_it_fences_the_holder(alice, claim):
    endings.take_back(row(claim))
    assert claim.heartbeat().error == "FENCED"
    assert claim.done().error == "FENCED"


def test_it_changes_nothing_once_the_claim_ended(alice, claim):
    held = row(claim)
    claim.done()
    assert endings.take_back(held) is None
    assert row(claim).status == "released"


def test_it_emits_what_the_runners_limit_refused_again(alice):
    alice.register("r1", max_concurrent_claims=1)
    for url in ("/agent/e1", "/agent/e2"):
        alice.make_entity(url)
        alice.send(url)
    held = alice.claim()
    (refused,) = alice.wakes()
    assert alice.try_claim("r1", refused).error == "CLAIM_LIMIT_REACHED"
    tail = alice.get("/runners/r1/wake?offset=now").headers["Stream-Next-Offset"]
    endings.take_back(row(held))
    assert refused["subscription_id"] in [
        wake["subscription_id"] for wake in alice.wakes(offset=tail)
    ]


def test_it_goes_to_another_runner_in_the_same_transaction(alice, claim):
    alice.register("heir")
    expiry = endings.take_back(row(claim), "heir")
    assert expiry is not None
    assert expiry.next_wake is not None
    assert [wake["generation"] for wake in alice.wakes("heir")] == [claim.epoch + 1]
    assert alice.wakes() == []


def test_it_is_not_taken_back_for_a_runner_that_is_not_there(alice, claim):
    with pytest.raises(NotFound):
        endings.take_back(row(claim), "nobody")
    assert row(claim).status == "active"
