"""Traces: a wake goes on in the trace of the message that it was woken for.

With OpenTelemetry (`pip install 'pullwake[otel]'`) the wake is a span, and so are, within it, each
append, each message that it sends, and the call that says how it ended. The program's own
TracerProvider decides where they go. Without it the wake's `traceparent` is passed on as it came.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    INSTALLED = False
else:
    INSTALLED = True
    _tracer = trace.get_tracer("pullwake", version("pullwake"))
    _propagator = TraceContextTextMapPropagator()

_WELL_FORMED = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)

_given: ContextVar[str | None] = ContextVar("pullwake traceparent", default=None)
"""Of the wake that is being worked on; empty for one without, None outside of wakes."""

Attributes = Mapping[str, str | int]


def well_formed(traceparent: object) -> str | None:
    """A W3C `traceparent`, or None for anything else."""
    if isinstance(traceparent, str) and _WELL_FORMED.fullmatch(traceparent):
        return traceparent
    return None


def headers() -> dict[str, str]:
    """Of a call that is made for a wake: what its server's side of the trace goes on from."""
    given = _given.get()
    if given is None:
        return {}
    carrier: dict[str, str] = {}
    if INSTALLED:
        _propagator.inject(carrier)
    return carrier or ({"traceparent": given} if given else {})


@contextmanager
def wake(name: str, traceparent: str | None, attributes: Attributes) -> Iterator[None]:
    """The work on a wake, which goes on where `traceparent` ends, or begins a trace."""
    reset = _given.set(traceparent or "")
    try:
        if not INSTALLED:
            yield
            return
        # Not in the trace of whoever started the runner.
        context = _propagator.extract({"traceparent": traceparent or ""}, Context())
        with _tracer.start_as_current_span(
            name, context, trace.SpanKind.CONSUMER, attributes, record_exception=False
        ):
            yield
    finally:
        _given.reset(reset)


@contextmanager
def step(name: str, attributes: Attributes | None = None) -> Iterator[None]:
    """One call of a wake's, with all its tries."""
    if not INSTALLED:
        yield
        return
    with _tracer.start_as_current_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes):
        yield


def failed(why: str) -> None:
    """The span that is current has failed."""
    if INSTALLED:
        trace.get_current_span().set_status(trace.StatusCode.ERROR, why)
