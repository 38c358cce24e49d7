"""A runner's health: a pure function of its rows and the time.

The rules are the wire contract's section Health; the admin shows the same report. `with_health`
says the same in SQL, for counting and filtering; a test holds the two together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

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

from runners.models import Runner, RunnerQuerySet

Liveness = Literal["online", "offline", "expired"]
Status = Literal["healthy", "degraded", "unhealthy"]

MANY_RECONNECTS = 5


@dataclass(frozen=True, slots=True)
class Health:
    """The worst of what is wrong, and each thing that is, in a sentence."""

    status: Status
    issues: Sequence[str]


def liveness(runner: Runner, now: datetime) -> Liveness:
    """online while the lease runs, expired after it, offline when disabled or never seen."""
    expires_at = runner.liveness.lease_expires_at
    if not runner.enabled or expires_at is None:
        return "offline"
    return "online" if expires_at > now else "expired"


def health(runner: Runner, *, claims: int, lapsed: int, now: datetime) -> Health:
    """The health of a runner that holds ``claims`` active claims, ``lapsed`` of them lapsed."""
    unhealthy = list(_unhealthy(runner, now))
    degraded = list(_degraded(runner, claims, lapsed))
    status: Status = "unhealthy" if unhealthy else "degraded" if degraded else "healthy"
    return Health(status, [*unhealthy, *degraded])


def _unhealthy(runner: Runner, now: datetime) -> Iterable[str]:
    if not runner.enabled:
        yield "Runner is disabled"
    expires_at = runner.liveness.lease_expires_at
    if runner.enabled and expires_at is not None and expires_at <= now:
        yield f"Heartbeat lease expired {int((now - expires_at).total_seconds())}s ago"


def _degraded(runner: Runner, claims: int, lapsed: int) -> Iterable[str]:
    seen = runner.liveness.last_seen_at is not None
    client = runner.liveness.diagnostics or {}
    if runner.enabled and not seen:
        yield "Runner has never sent a heartbeat"
    if client.get("stream_connected") is False:
        yield "Client reports stream disconnected"
    if client.get("last_heartbeat_ok") is False:
        yield "Client reports last heartbeat failed"
    if client.get("reconnect_count", 0) > MANY_RECONNECTS:
        yield f"Client has reconnected {client['reconnect_count']} times"
    if seen and not client:
        yield "No client diagnostics available"
    if lapsed:
        yield f"{lapsed} active {'claim has' if lapsed == 1 else 'claims have'} a lapsed lease"
    limit = runner.max_concurrent_claims
    if limit is not None and claims >= limit:
        yield f"Runner holds {claims} of at most {limit} claims"


def with_held(runners: RunnerQuerySet) -> RunnerQuerySet:
    """With ``held`` and ``lapsed``: how many active claims, and how many lapsed ones of them."""

    def counted(**which: Any) -> Coalesce:
        claims = Runner.objects.filter(pk=OuterRef("pk"), claims__status="active", **which)
        n = claims.order_by().values("pk").annotate(n=Count("claims")).values("n")
        return Coalesce(Subquery(n, output_field=IntegerField()), Value(0))

    return runners.annotate(held=counted(), lapsed=counted(claims__lease_expires_at__lte=Now()))


def with_health(runners: RunnerQuerySet) -> RunnerQuerySet:
    """With ``liveness_status`` and ``health_status``, and what `with_held` gives."""
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
    )
    return with_held(runners).annotate(
        liveness_status=_case("online", (disabled | never, "offline"), (expired, "expired")),
        health_status=_case("healthy", (disabled | expired, "unhealthy"), (degraded, "degraded")),
    )


def _case(default: str, *cases: tuple[Q, str]) -> Case:
    return Case(
        *(When(condition, then=Value(word)) for condition, word in cases),
        default=Value(default),
        output_field=CharField(),
    )
