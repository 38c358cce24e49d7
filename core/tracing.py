"""Trace contexts, as W3C's Trace Context has them, and where spans are made, if any are.

A message keeps the context that it was sent in, and its wake's claim hands it to the runner: so
what is done for it is one trace, whoever makes spans. The server makes some where PULLWAKE_TRACES
is on: `config.serving.spans`. Without it nothing of OpenTelemetry is imported.
"""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
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
    """The place in a trace that something is done in; ``state`` is the tracestate, or ""."""

    traceparent: str
    state: str = ""

    @classmethod
    def parse(cls, traceparent: str, state: str = "") -> "TraceContext | None":
        """What the two headers say; None where W3C has the first ignored, and then the second."""
        match = _TRACEPARENT.fullmatch(traceparent.strip(" \t"))
        if match is None:
            return None
        version, trace_id, parent_id, flags, more = match.groups()
        if version == "ff" or (version == "00" and more):
            return None
        if _NONE.fullmatch(trace_id) or _NONE.fullmatch(parent_id):
            return None
        # Of a later version what this one knows: whether it is sampled.
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
    """Whether this is a tracestate; one that is not is left out, and the traceparent kept."""
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
    """Of one request."""

    def end(self, route: str, status: int, facts: Mapping[str, Any]) -> None:
        """Say what came of it."""


class Tracer(Protocol):
    """Makes spans."""

    def request(self, method: str, within: TraceContext | None) -> AbstractContextManager[Span]:
        """The span of a request, which is the current one in the block."""

    def current(self) -> TraceContext | None:
        """Where the current span is."""

    def claimed(
        self, sent: TraceContext, waited: timedelta, facts: Mapping[str, Any]
    ) -> TraceContext:
        """Spans of a wake's wait, and of its claim, which has just been made: where that is.

        ``sent`` is where the message was sent.
        """


tracer: Tracer | None = None
"""This process's, where PULLWAKE_TRACES is on."""


def context_of(request: HttpRequest) -> TraceContext | None:
    """Where a request is done: in its span, or else where its caller says."""
    return sent_with(request.META) if tracer is None else tracer.current()
