"""Counts of claims in slices of five minutes: the only writer of `ClaimTally`.

A slice is counted once, when it is over, from two indexes, so the overview costs the same however
many claims exist. Claims after the last slice are counted when the overview is opened.
"""

from datetime import datetime, timedelta

from django.db.models import Count, Max, Min

from claims.models import ClaimQuerySet, ClaimTally, ConsumerClaim, ServerPulse
from core.clock import with_now

SLICE = timedelta(minutes=5)
GRACE = timedelta(minutes=1)
"""A slice is over this long after its end: transactions that began in it have then committed."""
KEPT = timedelta(days=8)
MOST_SLICES = 24
"""Slices that one call counts; after an absence the next calls catch up."""

OUTCOMES = ("released", "failed", "expired", "fenced")


def count(since: datetime, until: datetime) -> dict[str, int]:
    """How many claims were acquired from ``since`` on and before ``until``, and how many ended."""
    claims: ClaimQuerySet = ConsumerClaim.objects.filter(status__in=OUTCOMES)
    ended = claims.filter(ended_at__gte=since, ended_at__lt=until)
    found = dict.fromkeys(OUTCOMES, 0)
    found.update(ended.order_by().values_list("status").annotate(Count("pk")))
    begun = ConsumerClaim.objects.filter(claimed_at__gte=since, claimed_at__lt=until)
    return {"acquired": begun.count(), **found}


def catch_up() -> int:
    """Count the slices that are over and not counted yet, and delete old ones: how many."""
    pulse = with_now(ServerPulse.objects.all()).first()
    if pulse is None:
        return 0
    now = pulse.now
    start = next_slice(now)
    fresh: list[ClaimTally] = []
    while start + SLICE + GRACE <= now and len(fresh) < MOST_SLICES:
        fresh.append(ClaimTally(since=start, **count(start, start + SLICE)))
        start += SLICE
    # Another server may have counted the same slice.
    ClaimTally.objects.bulk_create(fresh, ignore_conflicts=True)
    if fresh:
        ClaimTally.objects.filter(since__lt=now - KEPT).delete()
    return len(fresh)


def counted_until() -> datetime | None:
    """The end of the last slice that was counted, or None."""
    last: datetime | None = ClaimTally.objects.aggregate(last=Max("since"))["last"]
    return None if last is None else last + SLICE


def next_slice(now: datetime) -> datetime:
    """The beginning of the first slice that is not counted."""
    until = counted_until()
    if until is None:
        until = ConsumerClaim.objects.aggregate(first=Min("claimed_at"))["first"] or now
    return floor(max(until, now - KEPT + SLICE))


def floor(when: datetime, size: timedelta = SLICE) -> datetime:
    """The beginning of the slice that contains this time."""
    epoch = datetime(2020, 1, 1, tzinfo=when.tzinfo)
    return when - (when - epoch) % size
