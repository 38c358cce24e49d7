"""The reaper: expires lapsed claims, emits stale wakes again, wakes entities after their delay.

It runs inside every server, and as the command `expire_claims`; any number may run at once, and a
round may be repeated at any time. Correctness never depends on it: a claim that meets a lapsed one
expires it on the spot. It skips what it cannot lock, until the next round. It distrusts itself.
Servers leave a pulse; where none did for two intervals, nobody could renew, so no claim is blamed
until a server has been back for that claim's lease.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import Case, F, Q, When
from django.db.models.functions import Now

from claims import lifecycle, reports, retention, tallies
from claims.metrics import ENTITIES_RETRIED, REAPER_ROUND, REAPER_ROUNDS, WAKES_LATE
from claims.models import ClaimQuerySet, ConsumerClaim, ServerPulse
from core import planner
from core.clock import with_now
from core.database import in_turns, is_lock_refused, leave
from core.rounds import Rounds
from dispatch import wakes

logger = logging.getLogger(__name__)

BATCH = 500
"""Rows of a kind in one round, at the most."""

PRUNE_EVERY_S = 3600.0


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did."""

    expired: int = 0
    reemitted: int = 0
    retried: int = 0
    pardoned: int = 0


def absence() -> timedelta:
    """How long without a pulse counts as all servers having been away."""
    return 2 * timedelta(milliseconds=settings.PULLWAKE_REAPER_INTERVAL_MS) + timedelta(seconds=1)


def pulse() -> None:
    """Record that a server lives, and, if none did for `absence`, that one came back.

    A return in the future was dated by a clock that has been set back since: it counts as now.
    """
    came_back = Q(seen_at__lt=Now() - absence()) | Q(resumed_at__gt=Now())
    seen = ServerPulse.objects.filter(pk=1).update(
        resumed_at=Case(When(came_back, then=Now()), default=F("resumed_at")),
        seen_at=Now(),
    )
    if not seen:
        ServerPulse.objects.bulk_create(
            [ServerPulse(pk=1, seen_at=Now(), resumed_at=Now())], ignore_conflicts=True
        )


def servers_away_since() -> datetime | None:
    """Since when every server has been away, or None if one is there or none ever was."""
    away = ServerPulse.objects.filter(seen_at__lt=Now() - absence())
    return away.values_list("seen_at", flat=True).first()


def expirable() -> ClaimQuerySet:
    """The lapsed claims that could have been renewed, longest lapsed first."""
    lapsed = ConsumerClaim.objects.lapsed().order_by("lease_expires_at", "pk")
    servers = with_now(ServerPulse.objects.all()).first()
    if servers is None:
        return lapsed
    if servers_away_since() is not None:
        return lapsed.none()
    return lapsed.filter(lease__lte=servers.now - servers.resumed_at)


def reap(*, limit: int = BATCH) -> Round:
    """One round over at most ``limit`` rows of each kind."""
    lifecycle.redate(limit=limit)
    done = Round(
        expired=_each(lifecycle.expire, expirable(), limit),
        reemitted=wakes.reemit_stale(limit=limit),
        retried=wakes.retry_due(limit=limit),
        pardoned=_each(lifecycle.pardon, ConsumerClaim.objects.pardonable(), limit),
    )
    reports.tell_health(limit=limit)
    ServerPulse.objects.filter(pk=1).update(
        reaped_at=Now(), expired=done.expired, reemitted=done.reemitted, retried=done.retried
    )
    WAKES_LATE.inc(done.reemitted)
    ENTITIES_RETRIED.inc(done.retried)
    if done != Round():
        logger.info(
            "reaped %d claims, emitted %d wakes again, retried %d entities",
            done.expired,
            done.reemitted,
            done.retried,
        )
    return done


def _each(act: Callable[[ConsumerClaim], object], claims: ClaimQuerySet, limit: int) -> int:
    """Do this to each of the first ``limit`` of these claims: how many it was done to."""
    count, held = 0, set[tuple[str | None, str | None]]()
    first: Any = claims.annotate(wakes_at=F("entity__dispatch_state__runner"))[:limit]
    for claim in in_turns(first):
        tails = claim.runner_id, claim.wakes_at  # both may be waited for
        if tails in held:  # each would wait in vain, and meanwhile the server leaves no pulse
            continue
        try:
            count += bool(act(claim))
        except Exception as exc:  # noqa: BLE001  one that cannot be done must not stop the others
            leave(logger, f"claim {claim}", exc)
            if is_lock_refused(exc):
                held.add(tails)
    return count


class Housekeeper(Rounds):
    """The thread of a server that leaves its pulse, reaps, and keeps the tables in order."""

    NAME = "housekeeper"
    FAILED = "housekeeping failed, and is tried again"

    def __init__(self) -> None:
        super().__init__()
        self.EVERY_S = settings.PULLWAKE_REAPER_INTERVAL_MS / 1000
        self._prune_at = time.monotonic() + PRUNE_EVERY_S * random.random()  # noqa: S311
        self._pruning: Iterator[int] = iter(())

    def _round(self) -> None:
        try:
            with REAPER_ROUND.time():
                pulse()
                reap()
                tallies.catch_up()
                planner.analyze_grown_tables()
            self._prune(self.EVERY_S / 2)
        except Exception:
            REAPER_ROUNDS.labels("failed").inc()
            raise
        REAPER_ROUNDS.labels("done").inc()

    def _prune(self, longest_s: float) -> None:
        """Go on with what is pruned each hour, or begin it: the next round must not wait for all.

        It may be millions of rows, and without a pulse meanwhile the server would count as away.
        """
        if time.monotonic() > self._prune_at:
            self._prune_at = time.monotonic() + PRUNE_EVERY_S
            self._pruning = retention.each_batch()
        until = time.monotonic() + longest_s
        for _ in in_turns(self._pruning):
            if time.monotonic() > until or self._stopped.is_set():
                return
