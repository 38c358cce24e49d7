"""A runner's health report: its rows, its claims, and the entities dispatched to it.

The rules are in `runners.health`; `with_health` states the same in SQL, for counting and filtering,
and a test keeps the two equal.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from django.db.models import (
    Case,
    CharField,
    Count,
    Exists,
    F,
    IntegerField,
    OuterRef,
    Q,
    Subquery,
    Value,
    When,
)
from django.db.models.functions import Coalesce, Concat, Now

from claims.models import ConsumerClaim
from core.prepared import ByKey, Param, Select, Values
from dispatch.models import DispatchState, Wake
from dispatch.streams import waiters
from runners import changes, registry
from runners.health import MANY_FAILURES, MANY_RECONNECTS, Health, health
from runners.models import Change, Runner, RunnerQuerySet


@dataclass(frozen=True, slots=True)
class Report:
    """A runner's health, its oldest active claims and how many it holds; counts of its entities."""

    runner: Runner
    claims: Sequence[ConsumerClaim]
    held: int
    active: int
    outstanding: int
    pending: int
    health: Health


RECENT = 20
"""Ended claims of a runner, the newest, of which the share that failed is told."""
FAILED_WITHIN = timedelta(hours=1)
"""What failed, or did not, earlier says nothing of how the runner is."""

MOST_LISTED = 1_000
"""Active claims of a runner that its report lists: it may hold any number."""

_CLAIMS = Select(
    lambda: (
        ConsumerClaim.objects.active()
        .filter(runner=Param("runner"))
        .order_by("pk")[: MOST_LISTED + 1]
    )
)
_COUNTED = ByKey(lambda: _with_counts(registry.seen()))


def find_counted(runner_id: str) -> Runner:
    """A runner as `examine` takes it. Raises NotFound."""
    return registry.found(_COUNTED.first(runner_id), runner_id)


def _with_counts(runners: RunnerQuerySet) -> RunnerQuerySet:
    failed, ended = _failed_and_ended("pk")
    runner = OuterRef("pk")
    return runners.annotate(
        held=held_by(runner),
        claimed=count_of(DispatchState.objects.claimed(), runner),
        outstanding=count_of(Wake.objects.outstanding(), runner),
        unwoken=count_of(DispatchState.objects.unwoken(), runner),
        failed=failed,
        ended=ended,
    )


def count_of(rows: Any, runner: OuterRef) -> Coalesce:
    """How many of these are a runner's; by an index alone, for there may be thousands."""
    n = rows.filter(runner=runner).order_by().values("runner").annotate(n=Count("*"))
    return Coalesce(Subquery(n.values("n"), output_field=IntegerField()), Value(0))


def examine(runner: Any) -> Report:
    """The report of a runner that `find_counted` found: one statement, if it held a claim then.

    Of one that holds more claims than are listed, two.
    """
    claims = _CLAIMS.all(runner=runner.pk) if runner.held else []
    held, lapsed = len(claims), sum(claim.lease_end <= runner.now for claim in claims)
    if held > MOST_LISTED:
        held, lapsed = runner.held, runner.claims.all().lapsed().count()
    verdict = health(
        runner,
        claims=held,
        lapsed=lapsed,
        failed=runner.failed,
        ended=runner.ended,
        now=runner.now,
    )
    return Report(
        runner,
        claims[:MOST_LISTED],
        held,
        runner.claimed,
        runner.outstanding,
        # What is woken has work: `wakes.settle` withdraws a wake whose work was withdrawn.
        runner.outstanding + runner.unwoken,
        verdict,
    )


def with_held(runners: RunnerQuerySet) -> RunnerQuerySet:
    """With ``held`` and ``lapsed``: how many active claims, and how many lapsed ones of them."""
    runner = OuterRef("pk")
    return runners.annotate(
        held=held_by(runner), lapsed=held_by(runner, lease_expires_at__lte=Now())
    )


def _lately() -> Q:
    return Q(ended_at__gt=Now() - FAILED_WITHIN)


_FAILED = Q(status=ConsumerClaim.Status.FAILED)


def _with_many_failures() -> Any:
    """The keys of runners of which many claims failed of late; one index knows them."""
    failed = ConsumerClaim.objects.filter(_lately(), _FAILED, runner__isnull=False).order_by()
    return (
        failed.values("runner")
        .annotate(n=Count("pk"))
        .filter(n__gte=MANY_FAILURES)
        .values("runner")
    )


def failures_of(runner: str, **when: Any) -> tuple[Case, Case]:
    """Of the newest `RECENT` claims of a runner that ended of late: how many failed, and how many.

    ``runner`` is the column that has its key. Both are 0 where too few failed of late to say
    anything, and where it is not so ``when``.
    """
    when |= {f"{runner}__in": _with_many_failures()}
    failed, ended = (
        Case(When(**when, then=n), default=Value(0)) for n in _failed_and_ended(runner)
    )
    return failed, ended


def _failed_and_ended(runner: str) -> tuple[Coalesce, Coalesce]:
    """The same, however few failed."""
    ended = ConsumerClaim.objects.ended().filter(runner=OuterRef(OuterRef(runner)))
    newest = ended.order_by("-pk").values("pk")[:RECENT]
    every = ConsumerClaim.objects.order_by().filter(pk__in=newest).values("runner")

    def counted(which: Q) -> Coalesce:
        # The aggregate's filter: as the rows' it would have all that ended of late looked through.
        n = every.annotate(n=Count("pk", filter=which)).values("n")
        return Coalesce(Subquery(n, output_field=IntegerField()), Value(0))

    return counted(_lately() & _FAILED), counted(_lately())


def with_failures(runners: RunnerQuerySet) -> RunnerQuerySet:
    """With ``failed`` and ``ended``, as `failures_of` counts them."""
    failed, ended = failures_of("pk")
    return runners.annotate(failed=failed, ended=ended)


def held_by(runner: OuterRef, **which: Any) -> Coalesce:
    """How many active claims a runner holds, of those that are ``which``."""
    return count_of(ConsumerClaim.objects.active().filter(**which), runner)


def with_health(runners: RunnerQuerySet) -> RunnerQuerySet:
    """With ``liveness_status`` and ``health_status``.

    What claims say of runners is looked for once for all of them: counting them runner by runner
    took most of the time where there are many.
    """
    active = ConsumerClaim.objects.active().filter(runner__isnull=False).order_by()
    held = active.values("runner").annotate(n=Count("pk"))
    many: Any = with_failures(Runner.objects.filter(pk__in=_with_many_failures()))
    failing = many.filter(failed__gte=MANY_FAILURES).filter(failed__gte=F("ended") - F("failed"))
    disabled = ~Q(admin_status=Runner.AdminStatus.ENABLED)
    never = Q(liveness__lease_expires_at=None)
    expired = Q(liveness__lease_expires_at__lte=Now())
    degraded = (
        Q(liveness__last_seen_at=None)
        | Q(liveness__diagnostics__isnull=True)
        | Q(liveness__diagnostics__stream_connected=False)
        | Q(liveness__diagnostics__last_heartbeat_ok=False)
        | Q(liveness__diagnostics__reconnect_count__gt=MANY_RECONNECTS)
        | Q(pk__in=active.filter(lease_expires_at__lte=Now()).values("runner"))
        | Q(pk__in=held.filter(n__gte=F("runner__max_concurrent_claims")).values("runner"))
        | Q(pk__in=failing.values("pk"))
    )
    return runners.annotate(
        liveness_status=_case("online", (disabled | never, "offline"), (expired, "expired")),
        health_status=_case("healthy", (disabled | expired, "unhealthy"), (degraded, "degraded")),
    )


@cache
def _changed_health(limit: int) -> Values:
    """The first runners of which the feed says something else than is so by now.

    Built once, since each round asks it: that takes ten times as long as to run it. But planned
    each time: one for few runners reads two whole tables for each of a fleet that came since.
    """
    said = Change.objects.filter(kind=Change.Kind.RUNNER, key=OuterRef("pk"), departed=False)
    theirs = said.filter(owner=OuterRef("owner_principal"), gone=False)

    def build() -> Any:
        now = Concat("liveness_status", Value(" "), "health_status")
        rows: Any = with_health(Runner.objects.all()).annotate(now_so=now, known=Exists(theirs))
        changed = rows.filter(~Exists(said.filter(told=OuterRef("now_so")))).order_by("pk")
        return changed.values_list(
            "pk", "owner_principal", "liveness_status", "health_status", "known"
        )[:limit]

    return Values(build, replanned=True)


def tell_health(*, limit: int) -> int:
    """Tell the feed of runners which of them changed liveness or health: how many.

    Time alone, and ends of claims, can change these, so each round looks. After an outage it may be
    all of them: those that the feed has are told together.
    """
    count = 0
    together: dict[str, list[str]] = defaultdict(list)
    for runner_id, owner, alive, status, known in _changed_health(limit).all():
        told = registry.told(alive, status)
        if known:
            together[told].append(runner_id)
            continue
        changes.write(changes.Kind.RUNNER, runner_id, owner=owner, told=told)
        count += 1
    count += sum(changes.tell(told, runner_ids) for told, runner_ids in together.items())
    if count:
        waiters.announce(waiters.RUNNER_FEED)
    return count


def with_presence(runners: RunnerQuerySet) -> RunnerQuerySet:
    """`with_health`, and ``presence``, as in `runners.health.presence`, and ``condition``.

    The condition is the health of a runner that has not stopped; of one that has, it says nothing.
    """
    holding = ConsumerClaim.objects.active().filter(runner__isnull=False).values("runner")
    gone = Q(liveness_status="expired", liveness__diagnostics__status="stopped")
    stopped = When(gone & ~Q(pk__in=holding), then=Value("stopped"))
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
