"""What is recorded of every request: its id, its metrics, its log line, and its span.

What becomes known on the way, such as who calls about what, is noted in `core.log_facts`, and is
then part of each log line until the request is answered.
"""

import logging
import re
import secrets
import time
from functools import cache

from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from prometheus_client import Counter, Histogram

from core import log_facts, tracing
from core.addresses import client_address
from core.metrics import REGISTRY

logger = logging.getLogger("pullwake.access")

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

# Each of their series, once looked up.
_requests, _duration = cache(REQUESTS.labels), cache(DURATION.labels)

NO_ROUTE = "(none)"
"""The route of what leads nowhere, or was refused before it was looked at."""

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_UNTRACED = {"/livez", "/readyz", "/metrics", "/_electric/health"}
_MAX_PATH = 512
_REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


class ObservedHandler(WSGIHandler):
    """Django's handler, observed."""

    def get_response(self, request: HttpRequest) -> HttpResponseBase:
        """Answer."""
        began = time.perf_counter()
        request_id = _identify(request)
        log_facts.begin(request_id=request_id)
        held = "live=" in request.META["QUERY_STRING"]
        if tracing.tracer is None or held or request.path in _UNTRACED:
            response: HttpResponseBase = super().get_response(request)
        else:
            response = self._traced(tracing.tracer, request)
        response.headers["X-Request-Id"] = request_id
        if request.method == "HEAD" and isinstance(response, HttpResponse):
            response.content = b""  # an error's; gunicorn would log that it drops it
        took_s = time.perf_counter() - began
        route, method = self.route(request), _method(request)
        _requests(route, method, response.status_code).inc()
        if not held:
            _duration(route, method).observe(took_s)
        if settings.PULLWAKE_ACCESS_LOG:
            facts = {
                "method": method,
                "route": route,
                "path": request.path[:_MAX_PATH],
                "status": response.status_code,
                "address": client_address(request),
                "duration_ms": round(took_s * 1000, 1),
            }
            logger.info("answered", extra=facts)
        return response

    def _traced(self, tracer: tracing.Tracer, request: HttpRequest) -> HttpResponseBase:
        with tracer.request(_method(request), tracing.sent_with(request.META)) as span:
            response: HttpResponseBase = super().get_response(request)
            span.end(self.route(request), response.status_code, log_facts.known())
        return response

    def route(self, request: HttpRequest) -> str:
        """The pattern of the address that was answered."""
        match = request.resolver_match
        return NO_ROUTE if match is None else _written(match.route)


def _identify(request: HttpRequest) -> str:
    """The request's id: a proxy's or the caller's X-Request-ID, or else one that is given here."""
    request_id: str = request.META.get("HTTP_X_REQUEST_ID", "")
    if not _REQUEST_ID.fullmatch(request_id):
        request_id = request.META["HTTP_X_REQUEST_ID"] = secrets.token_hex(8)
    return request_id


def _method(request: HttpRequest) -> str:
    return request.method if request.method in _METHODS else "(other)"


@cache  # as many label values as there are patterns
def _written(pattern: str) -> str:
    """``_electric/runners/<id:runner_id>`` as ``/_electric/runners/:runner_id``."""
    return "/" + re.sub(r"<(?:\w+:)?(\w+)>", r":\1", pattern)
