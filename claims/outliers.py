"""Recent outliers: runners whose claims fail, and entities that are claimed all the time.

Each query reads only the newest claims, by an index, so its cost does not grow.
`ClaimQuerySet.quiet` finds the claims that write nothing.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Exists, OuterRef, Subquery
from django.db.models.functions import Coalesce, Left

from claims.models import ConsumerClaim
from dispatch.models import DispatchState
from runners.models import Runner

SAMPLE = 2000
"""Claims that are looked at, the newest."""
SPAN = timedelta(hours=1)
FEW = 3
"""Fewer failures of one kind are no pattern yet."""
TALKING = 30.0
"""From this many claims an hour on, an entity is one that talks."""
_LINE = 200


@dataclass(frozen=True, slots=True)
class Failures:
    """Claims of one runner that failed for one reason, and how many it ended in the same time."""

    runner_id: str | None
    runner_name: str
    error: str
    failed: int
    entities: int
    ended: int
    enabled: bool
    """Whether the runner may claim more."""
    serves: bool
    """Whether entities that live are dispatched to it."""


@dataclass(frozen=True, slots=True)
class Talker:
    """An entity, how many of the newest claims were for it, and how many an hour that makes."""

    entity_id: int
    url: str
    claims: int
    of: int
    an_hour: float


def failures(now: datetime, limit: int) -> list[Failures]:
    """By runner and first line of the error, the most first: two statements at most."""
    failed = ConsumerClaim.objects.filter(
        status=ConsumerClaim.Status.FAILED, ended_at__gt=now - SPAN
    )
    newest: Any = failed.order_by("-ended_at").annotate(said=Left("error", _LINE))
    grouped: dict[tuple[str | None, str, str], list[int | None]] = defaultdict(list)
    for *who, said, entity in newest.values_list("runner", "runner_name", "said", "entity")[
        :SAMPLE
    ]:
        runner_id, name = who
        grouped[runner_id, name, said.partition("\n")[0].strip()].append(entity)
    most = sorted(grouped.items(), key=lambda group: -len(group[1]))
    shown = [(who, entities) for who, entities in most if len(entities) >= FEW][:limit]
    if not shown:
        return []
    runners = _runners({who[0] for who, _ in shown if who[0] is not None}, now)
    return [
        Failures(
            runner_id,
            name,
            error,
            failed=len(entities),
            entities=len(set(entities)),
            ended=max(runner.n if runner else 0, len(entities)),
            enabled=runner is not None and runner.enabled,
            serves=runner is not None and runner.serves,
        )
        for (runner_id, name, error), entities in shown
        for runner in [runners.get(runner_id or "")]
    ]


def _runners(runner_ids: set[str], now: datetime) -> dict[str, Any]:
    """The runners, with ``n``, how many claims of each ended in the same time, and ``serves``."""
    own = ConsumerClaim.objects.ended().filter(runner=OuterRef(OuterRef("pk")))
    newest = own.order_by("-pk").values("pk")[:SAMPLE]
    lately = ConsumerClaim.objects.filter(pk__in=newest, ended_at__gt=now - SPAN).order_by()
    n = lately.values("runner").annotate(n=Count("pk")).values("n")
    living = DispatchState.objects.filter(runner=OuterRef("pk"), ended="")
    return Runner.objects.annotate(n=Coalesce(Subquery(n), 0), serves=Exists(living)).in_bulk(
        runner_ids
    )


def talkers(now: datetime, limit: int) -> list[Talker]:
    """The entities that are claimed most often, the most first: one statement."""
    lately = ConsumerClaim.objects.filter(claimed_at__gt=now - SPAN, entity__isnull=False)
    newest = list(
        lately.order_by("-claimed_at").values_list("entity", "entity_url", "claimed_at")[:SAMPLE]
    )
    if not newest:
        return []
    covered = SPAN if len(newest) < SAMPLE else now - newest[-1][2]
    hours = max(covered, timedelta(seconds=1)) / timedelta(hours=1)
    counts = Counter((entity, url) for entity, url, _ in newest)
    return [
        Talker(entity or 0, url, claims, of=len(newest), an_hour=claims / hours)
        for (entity, url), claims in counts.most_common(limit)
        if claims / hours >= TALKING
    ]
