"""A runner's health report: its rows, its claims, and the entities dispatched to it.

The rules are in `runners.health`; `with_health` states the same in SQL, for counting and filtering,
and a test keeps the two equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
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
from django.db.models.functions import Coalesce, Concat, Now

from claims.models import ClaimQuerySet, ConsumerClaim
from core.prepared import Param, Select, Values
from dispatch.models import DispatchState
from dispatch.streams import waiters
from runners import changes, registry
from runners.health import MANY_FAILURES, MANY_RECONNECTS, Health, health
from runners.models import Change, Runner, RunnerQuerySet


@dataclass(frozen=True, slots=True)
class Report:
    """A runner's health, its active claims oldest first, and counts of its entities."""

    runner: Runner
    claims: Sequence[ConsumerClaim]
    active: int
    outstanding: int
    pending: int
    health: Health


RECENT = 20
"""Ended claims of a runner, the newest, of which the share that failed is told."""
FAILED_WITHIN = timedelta(hours=1)
"""What failed earlier says nothing of how the runner is."""

_CLAIMS = Select(
    lambda: ConsumerClaim.objects.active().filter(runner=Param("runner")).order_by("pk")
)
_COUNTS = Values(lambda: DispatchState.objects.filter(runner=Param("runner")).counts())
_ENDED = Values(lambda: _recent(Param("runner")).values_list("status", "ended_at")[:RECENT])


def _recent(runner: Any) -> ClaimQuerySet:
    """A runner's claims that have ended, newest first."""
    return ConsumerClaim.objects.ended().filter(runner=runner).order_by("-pk")


def examine(runner: Runner) -> Report:
    """The report of a runner that has liveness and ``now``: three statements."""
    claims = _CLAIMS.all(runner=runner.pk)
    active, outstanding, pending = _COUNTS.first(runner=runner.pk) or (0, 0, 0)
    lapsed = sum(claim.lease_end <= runner.now for claim in claims)
    ended = _ENDED.all(runner=runner.pk)
    failed = sum(
        status == ConsumerClaim.Status.FAILED and when > runner.now - FAILED_WITHIN
        for status, when in ended
    )
    verdict = health(
        runner,
        claims=len(claims),
        lapsed=lapsed,
        failed=failed,
        ended=len(ended),
        now=runner.now,
    )
    return Report(runner, claims, active, outstanding, pending, verdict)


def with_held(runners: RunnerQuerySet) -> RunnerQuerySet:
    """With ``held`` and ``lapsed``: how many active claims, and how many lapsed ones of them."""
    runner = OuterRef("pk")
    return runners.annotate(
        held=held_by(runner), lapsed=held_by(runner, lease_expires_at__lte=Now())
    )


def with_failures(runners: RunnerQuerySet) -> RunnerQuerySet:
    """With ``failed`` and ``ended``: of the newest `RECENT` claims that ended, how many failed.

    Both are 0 where too few failed recently to matter: one index finds the runners to look at.
    """
    Status = ConsumerClaim.Status  # noqa: N806
    lately = {"status": Status.FAILED, "ended_at__gt": Now() - FAILED_WITHIN}
    failing = ConsumerClaim.objects.filter(runner__isnull=False, **lately).order_by()
    of_many = failing.values("runner").annotate(n=Count("pk")).filter(n__gte=MANY_FAILURES)
    newest = _recent(OuterRef(OuterRef("pk"))).values("pk")[:RECENT]

    def counted(**which: Any) -> Case:
        claims = ConsumerClaim.objects.filter(pk__in=newest, **which).order_by()
        n = claims.values("runner").annotate(n=Count("pk")).values("n")
        told = Coalesce(Subquery(n, output_field=IntegerField()), Value(0))
        return Case(When(pk__in=of_many.values("runner"), then=told), default=Value(0))

    return runners.annotate(failed=counted(**lately), ended=counted())


def held_by(runner: OuterRef, **which: Any) -> Coalesce:
    """How many active claims a runner holds, of those that are ``which``."""
    claims = ConsumerClaim.objects.active().filter(runner=runner, **which)
    n = claims.order_by().values("runner").annotate(n=Count("pk")).values("n")
    return Coalesce(Subquery(n, output_field=IntegerField()), Value(0))


def with_health(runners: RunnerQuerySet) -> RunnerQuerySet:
    """With ``liveness_status``, ``health_status``, `with_held` and `with_failures`."""
    disabled = ~Q(admin_status=Runner.AdminStatus.ENABLED)
    never = Q(liveness__lease_expires_at=None)
    expired = Q(liveness__lease_expires_at__lte=Now())
    degraded = (
        Q(liveness__last_seen_at=None)
        | Q(liveness__diagnostics__isnull=True)
        | Q(liveness__diagnostics__stream_connected=False)
        | Q(liveness__diagnostics__last_heartbeat_ok=False)
        | Q(liveness__diagnostics__reconnect_count__gt=MANY_RECONNECTS)
        | Q(lapsed__gt=0)
        | Q(max_concurrent_claims__isnull=False, held__gte=F("max_concurrent_claims"))
        | (Q(failed__gte=MANY_FAILURES) & Q(failed__gte=F("ended") - F("failed")))
    )
    return with_failures(with_held(runners)).annotate(
        liveness_status=_case("online", (disabled | never, "offline"), (expired, "expired")),
        health_status=_case("healthy", (disabled | expired, "unhealthy"), (degraded, "degraded")),
    )


def tell_health(*, limit: int) -> int:
    """Tell the feed of runners which of them changed liveness or health: how many.

    Time alone, and ends of claims, can change these, so each round looks.
    """
    told = Change.objects.filter(kind=Change.Kind.RUNNER, key=OuterRef("pk"), departed=False)
    rows: Any = with_health(Runner.objects.annotate(said=Subquery(told.values("told"))))
    now = Concat("liveness_status", Value(" "), "health_status")
    changed = rows.annotate(now_so=now).exclude(said=F("now_so")).order_by("pk")[:limit]
    count = 0
    for runner_id, owner, alive, status in changed.values_list(
        "pk", "owner_principal", "liveness_status", "health_status"
    ):
        changes.write(
            changes.Kind.RUNNER, runner_id, owner=owner, told=registry.told(alive, status)
        )
        count += 1
    if count:
        waiters.announce(waiters.RUNNER_FEED)
    return count


def with_presence(runners: RunnerQuerySet) -> RunnerQuerySet:
    """`with_health`, and ``presence``, as in `runners.health.presence`, and ``condition``.

    The condition is the health of a runner that has not stopped; of one that has, it says nothing.
    """
    gone = Q(liveness_status="expired", liveness__diagnostics__status="stopped", held=0)
    stopped = When(gone, then=Value("stopped"))
    return with_health(runners).annotate(
        presence=Case(stopped, default=F("liveness_status"), output_field=CharField()),
        condition=Case(stopped, default=F("health_status"), output_field=CharField()),
    )


def _case(default: str, *cases: tuple[Q, str]) -> Case:
    return Case(
        *(When(condition, then=Value(word)) for condition, word in cases),
        default=Value(default),
        output_field=CharField(),
    )
