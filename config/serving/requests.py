"""What is kept of every request: how many there were, and how long they took."""

import re
import time
from functools import cache

from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from prometheus_client import Counter, Histogram

from core.metrics import REGISTRY

REQUESTS = Counter(
    "pullwake_http_requests",
    "Requests answered, by the address's pattern.",
    ["route", "method", "status"],
    registry=REGISTRY,
)
DURATION = Histogram(
    "pullwake_http_request_duration_seconds",
    "How long requests took until their answer began, but for reads that are held.",
    ["route", "method"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, float("inf")),
    registry=REGISTRY,
)

NO_ROUTE = "(none)"
"""The route of what leads nowhere, or was refused before it was looked at."""

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class ObservedHandler(WSGIHandler):
    """Django's handler, observed."""

    def get_response(self, request: HttpRequest) -> HttpResponseBase:
        """Answer."""
        began = time.perf_counter()
        response: HttpResponseBase = super().get_response(request)
        took_s = time.perf_counter() - began
        route = self.route(request)
        method = request.method if request.method in _METHODS else "(other)"
        REQUESTS.labels(route, method, response.status_code).inc()
        if "live=" not in request.META["QUERY_STRING"]:
            DURATION.labels(route, method).observe(took_s)
        return response

    def route(self, request: HttpRequest) -> str:
        """The pattern of the address that was answered."""
        match = request.resolver_match
        return NO_ROUTE if match is None else _written(match.route)


@cache  # as many as there are patterns
def _written(pattern: str) -> str:
    """``_electric/runners/<id:runner_id>`` as ``/_electric/runners/:runner_id``."""
    return "/" + re.sub(r"<(?:\w+:)?(\w+)>", r":\1", pattern)
