"""Spans by OpenTelemetry, which is imported only here, and only if PULLWAKE_TRACES is on.

OpenTelemetry's own OTEL_* variables say where they are sent, and how many are kept.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from core.tracing import TraceContext
from core.version import VERSION

_propagator = TraceContextTextMapPropagator()


class _Span:
    """The span of one request."""

    def __init__(self, span: trace.Span, method: str) -> None:
        self._span = span
        self._method = method

    def end(self, route: str, status: int, facts: Mapping[str, Any]) -> None:
        """End the span, and record the outcome."""
        self._span.update_name(f"{self._method} {route}")
        self._span.set_attributes(
            {"http.route": route, "http.response.status_code": status, **_named(facts)}
        )
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))


class Spans:
    """This process's `core.tracing.Tracer`."""

    def __init__(self) -> None:
        os.environ.setdefault("OTEL_SERVICE_NAME", "pullwake")
        self._provider = TracerProvider(resource=Resource.create({"service.version": VERSION}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("pullwake", VERSION)

    @contextmanager
    def request(self, method: str, within: TraceContext | None) -> Iterator[_Span]:
        """The span of a request, which is the current one in the block."""
        with self._tracer.start_as_current_span(
            method,
            context=Context() if within is None else _context(within),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method},
        ) as span:
            yield _Span(span, method)

    def current(self) -> TraceContext | None:
        """The position of the current span."""
        return _place(None)

    def claimed(
        self, sent: TraceContext, waited: timedelta, facts: Mapping[str, Any]
    ) -> TraceContext:
        """Spans of a wake's wait and its claim, in the message's trace, linked to the request."""
        now = time.time_ns()
        begun = now - int(waited.total_seconds() * 1e9)
        asked = trace.get_current_span().get_span_context()
        links = [trace.Link(asked)] if asked.is_valid else []
        wake = self._tracer.start_span("wake", context=_context(sent), start_time=begun)
        wake.set_attributes(_named(facts))
        wake.end(now)
        within = trace.set_span_in_context(wake, Context())
        claim = self._tracer.start_span("claim", context=within, start_time=now, links=links)
        claim.set_attributes(_named(facts))
        claim.end()
        return _place(trace.set_span_in_context(claim, Context())) or sent

    def flush(self) -> None:
        """Send what is still queued."""
        self._provider.shutdown()


def _named(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {f"pullwake.{name}": value for name, value in facts.items()}


def _context(place: TraceContext) -> Context:
    carrier = {"traceparent": place.traceparent, "tracestate": place.state}
    return _propagator.extract(carrier, Context())


def _place(context: Context | None) -> TraceContext | None:
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context)
    traceparent = carrier.get("traceparent")
    return None if traceparent is None else TraceContext(traceparent, carrier.get("tracestate", ""))
