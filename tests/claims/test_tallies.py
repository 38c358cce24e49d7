"""Claims counted in slices of five minutes, each once."""

from datetime import timedelta

import pytest
from django.db.models.functions import Now

from claims import reaper, tallies
from claims.models import ClaimTally, ConsumerClaim
from tests.factories import ConsumerClaimFactory, ago

pytestmark = pytest.mark.django_db


@pytest.fixture
def ended(db):
    """A claim that was released and one that failed, both an hour ago."""
    then = {"claimed_at": ago(hours=1), "ended_at": ago(hours=1)}
    ConsumerClaimFactory.create(released=True, **then)
    ConsumerClaimFactory.create(failed=True, **then)
    reaper.pulse()


def sums():
    rows = ClaimTally.objects.values_list(*("acquired", *tallies.OUTCOMES))
    return tuple(map(sum, zip(*rows, strict=True)))


def test_it_counts_each_claim_once(ended):
    assert tallies.catch_up() in (11, 12)
    assert sums() == (2, 1, 1, 0, 0)
    assert tallies.catch_up() == 0
    assert sums() == (2, 1, 1, 0, 0)


def test_it_leaves_the_slice_that_is_not_over(ended):
    tallies.catch_up()
    last = ClaimTally.objects.latest("since").since
    assert ConsumerClaim.objects.latest("pk").claimed_at < last
    ConsumerClaim.objects.update(claimed_at=Now(), ended_at=Now())
    assert tallies.catch_up() == 0
    assert tallies.counted_until() == last + tallies.SLICE


def test_it_catches_up_a_bounded_number_at_a_time(ended):
    ConsumerClaim.objects.update(claimed_at=Now() - timedelta(hours=5))
    counted = []
    while found := tallies.catch_up():
        counted.append(found)
    assert max(counted) == tallies.MOST_SLICES
    assert sum(counted) in (59, 60)


def test_two_servers_may_count_the_same_slice(ended):
    tallies.catch_up()
    mine = sums()
    first = ClaimTally.objects.earliest("since")
    ClaimTally.objects.filter(since__gt=first.since).delete()
    tallies.catch_up()
    assert sums() == mine


def test_it_drops_what_no_chart_shows(ended):
    old = ClaimTally.objects.create(since="2020-01-01T00:00Z", acquired=9)
    tallies.catch_up()
    while tallies.catch_up():
        pass
    assert not ClaimTally.objects.filter(pk=old.pk).exists()


def test_it_waits_for_a_first_server(alice):
    assert tallies.catch_up() == 0
    assert tallies.counted_until() is None
