"""``GET /metrics``: the state of the whole system for Prometheus, asked of the database.

Every server gives the same figures, for they are the rows'; nothing is counted in a process. The
one exception is whether the process that answers hears what others announce.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.db.models import Count, DurationField, ExpressionWrapper, F, Max, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from api.openapi import documented
from api.views import ApiView
from claims.models import ConsumerClaim, ServerPulse
from dispatch.models import DispatchState, Wake
from dispatch.streams.waiters import hub
from runners.models import Runner

WINDOW = timedelta(minutes=5)
"""Claims that ended within this are counted by how they did."""


class Figures(Collector):
    """The gauges, collected anew for each scrape."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Numbers, and the age of the oldest where that says more."""
        runners = Runner.objects.aggregate(total=Count("pk"))["total"]
        unable = Runner.objects.unable().count()
        yield _by("pullwake_runners", "runners", "state", able=runners - unable, unable=unable)
        claims = ConsumerClaim.objects.all()
        yield _by(
            "pullwake_claims_active",
            "active claims; orphaned ones among them",
            "state",
            all=claims.active().count(),
            orphaned=claims.orphaned().count(),
            lapsed=claims.lapsed().count(),
        )
        ended = claims.filter(ended_at__gt=Now() - WINDOW).values_list("status")
        by_status = dict.fromkeys(ConsumerClaim.Status.values, 0)
        by_status.pop(ConsumerClaim.Status.ACTIVE)
        by_status |= dict(ended.annotate(n=Count("pk")).order_by())
        yield _by("pullwake_claims_ended", "claims ended in five minutes", "status", **by_status)
        wakes = Wake.objects.outstanding()
        yield GaugeMetricFamily(
            "pullwake_wakes_outstanding", "wakes unclaimed", value=wakes.count()
        )
        yield GaugeMetricFamily(
            "pullwake_wakes_oldest_seconds", "age of the oldest", value=_age(wakes, "created_at")
        )
        states = DispatchState.objects.all()
        waiting = states.pending().awake()
        yield _by(
            "pullwake_entities",
            "entities by what they need",
            "state",
            pending=states.waiting().count(),
            without_runner=waiting.filter(runner=None).count(),
            failing=states.failing().count(),
        )
        yield GaugeMetricFamily(
            "pullwake_reaper_idle_seconds",
            "since the reaper's last round",
            value=_age(ServerPulse.objects.all(), "reaped_at"),
        )
        yield GaugeMetricFamily(
            "pullwake_listener_up",
            "whether this process hears of wakes at once; else within two seconds",
            value=not hub.deaf,
        )


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
_registry.register(Figures())


class MetricsView(ApiView):
    """/metrics"""

    @documented(
        "Give the system's figures to Prometheus",
        answers={(200, "text/plain"): str},
        operation="getMetrics",
    )
    def get(self, request: HttpRequest) -> HttpResponse:
        """For any principal."""
        return HttpResponse(generate_latest(_registry), content_type=CONTENT_TYPE_LATEST)
