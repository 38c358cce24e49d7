"""Trace contexts, as defined by W3C Trace Context, and where spans are made, if any are.

A message keeps the context that it was sent in, a wake event that of the append which it tells of,
and the claim of its wake hands that to the runner, so that everything done for it is one trace,
whoever makes spans. The server makes some where PULLWAKE_TRACES is on (`config.serving.spans`);
without that, nothing of OpenTelemetry is imported.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from django.http import HttpRequest

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NONE = re.compile(r"0+")
_MEMBER = re.compile(
    r"[ \t]*([a-z0-9][a-z0-9_*/@-]{0,255})=([ -+\--<>-~]{0,255}[!-+\--<>-~])[ \t]*"
)
_MOST_MEMBERS = 32
_MOST_STATE = 512
"""Characters of a tracestate, as many as W3C asks to be kept."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A position in a trace; ``state`` is the tracestate, or ""."""

    traceparent: str
    state: str = ""

    @classmethod
    def parse(cls, traceparent: str, state: str = "") -> "TraceContext | None":
        """Parse the two headers; None if W3C says to ignore the first, and so the second."""
        match = _TRACEPARENT.fullmatch(traceparent.strip(" \t"))
        if match is None:
            return None
        version, trace_id, parent_id, flags, more = match.groups()
        if version == "ff" or (version == "00" and more):
            return None
        if _NONE.fullmatch(trace_id) or _NONE.fullmatch(parent_id):
            return None
        # Of a later version only what this version defines is kept: whether it is sampled.
        flags = flags if version == "00" else f"{int(flags, 16) & 1:02x}"
        return cls(f"00-{trace_id}-{parent_id}-{flags}", state if _is_state(state) else "")

    @classmethod
    def load(cls, kept: str | None) -> "TraceContext | None":
        """What `dump` gave."""
        return None if kept is None else cls(*kept.split(" ", 1))

    def dump(self) -> str:
        """As it is kept with a message."""
        return f"{self.traceparent} {self.state}".rstrip(" ")


def _is_state(text: str) -> bool:
    """Whether this is a valid tracestate; an invalid one is dropped, and the traceparent kept."""
    members = [each for each in text.split(",") if each.strip(" \t")]
    if len(text) > _MOST_STATE or len(members) > _MOST_MEMBERS:
        return False
    keys = [match[1] for each in members if (match := _MEMBER.fullmatch(each))]
    return len(keys) == len(members) == len(set(keys))


def sent_with(meta: Mapping[str, Any]) -> TraceContext | None:
    """The context that a request's headers name, or None."""
    traceparent = meta.get("HTTP_TRACEPARENT")
    if traceparent is None:
        return None
    return TraceContext.parse(traceparent, meta.get("HTTP_TRACESTATE", ""))


class Span(Protocol):
    """The span of one request."""

    def end(self, route: str, status: int, facts: Mapping[str, Any]) -> None:
        """End the span, and record the outcome."""


class Tracer(Protocol):
    """Makes spans."""

    def request(self, method: str, within: TraceContext | None) -> AbstractContextManager[Span]:
        """The span of a request, which is the current one in the block."""

    def current(self) -> TraceContext | None:
        """The position of the current span."""

    def claimed(
        self, sent: TraceContext, waited: timedelta, facts: Mapping[str, Any]
    ) -> TraceContext:
        """Add spans for a wake's wait and for its new claim; return the claim's position.

        ``sent`` is where the message was sent.
        """


tracer: Tracer | None = None
"""This process's, where PULLWAKE_TRACES is on."""


_at_hand: ContextVar[HttpRequest | None] = ContextVar("request", default=None)


@contextmanager
def serving(request: HttpRequest) -> Iterator[None]:
    """Have `cause` tell of this request while the block runs."""
    token = _at_hand.set(request)
    try:
        yield
    finally:
        _at_hand.reset(token)


def cause() -> str | None:
    """The position of what is done now, as it is stored: the span of the request that is served, or
    else what its caller sent. None where there is neither.
    """
    request = _at_hand.get()
    if request is None:
        return None
    place = sent_with(request.META) if tracer is None else tracer.current()
    return None if place is None else place.dump()
