"""``GET /metrics``: what Prometheus scrapes; docs/metrics.md lists all of it.

The state of the whole system is read from the database, and is the same from every server. What was
done and how long it took is counted by each server, over all its workers: `core.metrics`.
"""

import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import django
from django.conf import settings
from django.db import connection
from django.db.models import Count, DurationField, ExpressionWrapper, F, Max, Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from api.authentication import MetricsAuthentication
from api.openapi import documented
from api.permissions import IsAuthenticated
from api.views import ApiView
from claims.models import ConsumerClaim, ServerPulse
from core.database import is_passing
from core.metrics import OTHER, REGISTRY
from core.version import VERSION
from dispatch.models import DispatchState, Timer, Wake
from runners.models import Runner

WINDOW = timedelta(minutes=5)
"""Claims that ended within this are counted by how they did."""

NO_RUNNER = "(none)"
"""The runner of work that has none; no id is of this form."""


class Scrape(Collector):
    """All metrics, collected for each scrape."""

    def collect(self) -> Iterator[Metric]:
        """The counters are reported even while the database is away."""
        facts = {
            "version": VERSION,
            "python": platform.python_version(),
            "django": django.get_version(),
            "database": connection.vendor,
        }
        build = GaugeMetricFamily("pullwake_build_info", "1; what serves", labels=[*facts])
        build.add_metric([*facts.values()], 1)
        yield build
        figures: list[GaugeMetricFamily] = []
        try:
            figures = list(_figures())
        except Exception as exc:
            if not is_passing(exc):
                raise
        yield GaugeMetricFamily(
            "pullwake_database_up", "Whether the database answered this.", value=bool(figures)
        )
        yield from figures
        yield from _counted()


def _counted() -> Iterable[Metric]:
    """What all workers of this server counted; outside a server, what this process counted."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        found: Iterable[Metric] = MultiProcessCollector(None).collect()  # type: ignore[no-untyped-call]
        return found
    return REGISTRY.collect()


def _figures() -> Iterator[GaugeMetricFamily]:
    """Numbers of rows, and the age of the oldest where that says more."""
    runners = Runner.objects.aggregate(total=Count("pk"))["total"]
    unable = Runner.objects.unable().count()
    yield _by("pullwake_runners", "Runners.", "state", able=runners - unable, unable=unable)
    claims = ConsumerClaim.objects.all()
    yield _by(
        "pullwake_claims_active",
        "Active claims; orphaned ones among them.",
        "state",
        all=claims.active().count(),
        orphaned=claims.orphaned().count(),
        lapsed=claims.lapsed().count(),
    )
    ended = claims.filter(ended_at__gt=Now() - WINDOW).values_list("status")
    by_status = dict.fromkeys(ConsumerClaim.Status.values, 0)
    by_status.pop(ConsumerClaim.Status.ACTIVE)
    by_status |= dict(ended.annotate(n=Count("pk")).order_by())
    yield _by("pullwake_claims_ended", "Claims ended in five minutes.", "status", **by_status)
    wakes = Wake.objects.outstanding()
    yield GaugeMetricFamily(
        "pullwake_wakes_outstanding", "Wakes that are unclaimed.", value=wakes.count()
    )
    yield GaugeMetricFamily(
        "pullwake_wakes_oldest_seconds",
        "Age of the oldest unclaimed wake.",
        value=_age(wakes, "created_at"),
    )
    states = DispatchState.objects.all()
    yield _by(
        "pullwake_entities",
        "Entities by what they need.",
        "state",
        pending=states.waiting().count(),
        without_runner=states.stranded().count(),
        failing=states.failing().count(),
    )
    timers = Timer.objects.all()
    yield _by(
        "pullwake_timers",
        "Timers that are ten seconds late or more, and that failed and are kept.",
        "state",
        late=timers.late().count(),
        failed=timers.failed().count(),
    )
    yield GaugeMetricFamily(
        "pullwake_reaper_idle_seconds",
        "Since the reaper's last round, whichever server's.",
        value=_age(ServerPulse.objects.all(), "reaped_at"),
    )
    ready = states.waiting().filter(Q(retry_at=None) | Q(retry_at__lte=Now()))
    yield _by_runner_and_type(
        "pullwake_work_waiting",
        "Entities whose work could be claimed now.",
        ready.values_list("runner_id", "entity__type"),
    )
    yield _by_runner_and_type(
        "pullwake_work_in_flight",
        "Entities that are claimed.",
        claims.active().values_list("runner_name", "entity__type"),
    )


def _by_runner_and_type(name: str, says: str, rows: "QuerySet[Any, Any]") -> GaugeMetricFamily:
    """The largest groups, at most PULLWAKE_METRICS_NAMES, and the rest as one."""
    counted: Counter[tuple[str, str]] = Counter()
    for runner, type_name, count in rows.annotate(n=Count("pk")).order_by(
        "-n", *rows.query.values_select
    ):
        named = runner or NO_RUNNER, type_name or OTHER
        counted[named if len(counted) < settings.PULLWAKE_METRICS_NAMES else (OTHER, OTHER)] += (
            count
        )
    family = GaugeMetricFamily(name, says, labels=["runner", "type"])
    for labels, count in counted.items():
        family.add_metric(labels, count)
    return family


def _by(name: str, says: str, label: str, **values: int) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, says, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _age(rows: "QuerySet[Any]", column: str) -> float:
    """Seconds since the oldest time in a column, by the database's clock; 0 without any."""
    age = ExpressionWrapper(Now() - F(column), DurationField())
    oldest: timedelta | None = rows.aggregate(oldest=Max(age))["oldest"]
    return 0.0 if oldest is None else max(oldest.total_seconds(), 0.0)


_registry = CollectorRegistry()
_registry.register(Scrape())


class MetricsView(ApiView):
    """/metrics"""

    authentication_classes = (MetricsAuthentication,)
    permission_classes = (IsAuthenticated,)

    @documented(
        "Give the system's figures to Prometheus",
        answers={(200, "text/plain"): str},
        operation="getMetrics",
    )
    def get(self, request: HttpRequest) -> HttpResponse:
        """For a metrics token; in development mode for anybody."""
        return HttpResponse(generate_latest(_registry), content_type=CONTENT_TYPE_LATEST)
