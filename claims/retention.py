"""What is kept for how long: rows that no longer matter go after PULLWAKE_RETENTION_DAYS, and what
a living entity need not keep as `claims.trimming` says.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db.models import QuerySet
from django.db.models.functions import Now

from claims import trimming
from claims.models import ConsumerClaim, DeadLetter
from core import audit
from dispatch.models import SharedStateEvent, SharedStateLink, StreamEvent, Timer, Wake
from runners import changes

BATCH = 1000
"""Rows deleted in one transaction."""


def prunable() -> dict[str, "QuerySet[Any]"]:
    """What may be deleted, by name.

    Ended claims, past wakes, failed timers, events of ended entities, and of shared states that
    only these have; dead letters that were redriven or cannot be; changes of rows that left a feed;
    the audit log's entries of what callers of the API did; and, however long ago, sessions of the
    pages that are over.
    """
    before = Now() - timedelta(days=settings.PULLWAKE_RETENTION_DAYS)
    return {
        "claims": ConsumerClaim.objects.filter(ended_at__lt=before),
        "wakes": Wake.objects.exclude(status=Wake.Status.OUTSTANDING).filter(emitted_at__lt=before),
        # A living entity's stream is its memory: of that goes what its type says.
        "events": StreamEvent.objects.filter(created_at__lt=before).exclude(
            entity__dispatch_state__ended=""
        ),
        "dead letters": DeadLetter.objects.filter(given_up_at__lt=before).exclude(
            redriven_at=None, entity__dispatch_state__ended=""
        ),
        "shared events": SharedStateEvent.objects.filter(created_at__lt=before).exclude(
            state__name__in=SharedStateLink.objects.filter(
                manifest="", entity__dispatch_state__ended=""
            ).values("name")
        ),
        "changes": changes.over(before),
        "timers": Timer.objects.failed().filter(failed_at__lt=before),
        # What operators did stays: there is little of it.
        "audit entries": audit.calls().filter(action_time__lt=before),
        "sessions": Session.objects.filter(expire_date__lt=Now()),
    }


def in_batches(rows: "QuerySet[Any]", size: int) -> Iterator[list[Any]]:
    """The keys of these rows a batch at a time, oldest first."""
    left = rows.order_by("pk").values_list("pk", flat=True)
    while batch := list(left[:size]):
        yield batch
        left = left.filter(pk__gt=batch[-1])


def batches(rows: "QuerySet[Any]", size: int) -> Iterator[int]:
    """Delete rows a batch at a time, oldest first; yields how many were deleted."""
    for oldest in in_batches(rows, size):
        rows.model._default_manager.filter(pk__in=oldest).delete()
        yield len(oldest)


ACKED = "acked events"


def pruning(size: int = BATCH) -> Iterator[tuple[str, Iterator[int]]]:
    """What may go, by name, and its batches: each deletes some and says how many."""
    for name, rows in prunable().items():
        yield name, batches(rows, size)
    yield ACKED, trimming.trim(size)


def counted() -> Iterator[tuple[str, int]]:
    """What may go, by name: how many rows."""
    for name, rows in prunable().items():
        yield name, rows.count()
    yield ACKED, trimming.count(BATCH)


def each_batch() -> Iterator[int]:
    """Delete everything that may be deleted, a batch at a time: how many rows."""
    for _, each in pruning():
        yield from each
