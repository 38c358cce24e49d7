"""A runner's health report: its rows, its claims, and what is dispatched to it.

The rules are in `runners.health`; `with_health` says the same in SQL, for counting and filtering,
and a test holds the two together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import (
    Case,
    CharField,
    Count,
    F,
    IntegerField,
    OuterRef,
    Q,
    Subquery,
    Value,
    When,
)
from django.db.models.functions import Coalesce, Now

from claims.models import ConsumerClaim
from core.prepared import Param, Select, Values
from dispatch.models import DispatchState
from runners.health import MANY_RECONNECTS, Health, health
from runners.models import Runner, RunnerQuerySet


@dataclass(frozen=True, slots=True)
class Report:
    """A runner's health, its active claims oldest first, and counts of its entities."""

    runner: Runner
    claims: Sequence[ConsumerClaim]
    active: int
    outstanding: int
    pending: int
    health: Health


_CLAIMS = Select(
    lambda: ConsumerClaim.objects.active().filter(runner=Param("runner")).order_by("pk")
)
_COUNTS = Values(lambda: DispatchState.objects.filter(runner=Param("runner")).counts())


def examine(runner: Runner) -> Report:
    """The report of a runner that has liveness and ``now``: two statements."""
    claims = _CLAIMS.all(runner=runner.pk)
    active, outstanding, pending = _COUNTS.first(runner=runner.pk) or (0, 0, 0)
    lapsed = sum(claim.lease_end <= runner.now for claim in claims)
    verdict = health(runner, claims=len(claims), lapsed=lapsed, now=runner.now)
    return Report(runner, claims, active, outstanding, pending, verdict)


def with_held(runners: RunnerQuerySet) -> RunnerQuerySet:
    """With ``held`` and ``lapsed``: how many active claims, and how many lapsed ones of them."""

    def counted(**which: Any) -> Coalesce:
        claims = ConsumerClaim.objects.active().filter(runner=OuterRef("pk"), **which)
        n = claims.order_by().values("runner").annotate(n=Count("pk")).values("n")
        return Coalesce(Subquery(n, output_field=IntegerField()), Value(0))

    return runners.annotate(held=counted(), lapsed=counted(lease_expires_at__lte=Now()))


def with_health(runners: RunnerQuerySet) -> RunnerQuerySet:
    """With its ``presence``, its ``health_status`` ("stopped" where its presence is that), and what
    `with_held` gives.
    """
    disabled = ~Q(admin_status=Runner.AdminStatus.ENABLED)
    never = Q(liveness__lease_expires_at=None)
    expired = Q(liveness__lease_expires_at__lte=Now())
    stopped = expired & Q(liveness__diagnostics__status="stopped", held=0)
    degraded = (
        Q(liveness__last_seen_at=None)
        | Q(liveness__diagnostics__isnull=True)
        | Q(liveness__diagnostics__stream_connected=False)
        | Q(liveness__diagnostics__last_heartbeat_ok=False)
        | Q(liveness__diagnostics__reconnect_count__gt=MANY_RECONNECTS)
        | Q(lapsed__gt=0)
        | Q(max_concurrent_claims__isnull=False, held__gte=F("max_concurrent_claims"))
    )
    return with_held(runners).annotate(
        presence=_case(
            "online", (disabled | never, "offline"), (stopped, "stopped"), (expired, "expired")
        ),
        health_status=_case(
            "healthy",
            (disabled, "unhealthy"),
            (stopped, "stopped"),
            (expired, "unhealthy"),
            (degraded, "degraded"),
        ),
    )


def _case(default: str, *cases: tuple[Q, str]) -> Case:
    return Case(
        *(When(condition, then=Value(word)) for condition, word in cases),
        default=Value(default),
        output_field=CharField(),
    )
