"""Reading a durable stream page by page: a runner's wakes, an entity's events, a shared state."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec
from django.db.models import BigIntegerField, Func, QuerySet, RowRange, Sum, Window
from django.db.models.functions import Coalesce

from core.clock import epoch_ms
from core.errors import NotFound
from core.prepared import Param, Select
from dispatch.models import DispatchState, SharedState, SharedStateEvent, StreamEvent, Wake
from dispatch.streams import waiters
from runners.models import WakeStream

Event = TypeVar("Event", StreamEvent, SharedStateEvent)

PAGE_EVENTS = 1000
"""Events in one answer at the most."""
PAGE_BYTES = 4 * 1024 * 1024
"""Bytes after which an answer is cut; one event is always given whole."""

_GONE = "The stream is gone."


@dataclass(frozen=True, slots=True)
class Page:
    """What lies past an offset: JSON texts, where they end, and whether that is the tail.

    ``closed``: it is, and nothing will ever come after it.
    """

    events: list[str]
    next_offset: int
    up_to_date: bool
    closed: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """The offset of a stream's newest event, and whether that is its last."""

    tail: int
    closed: bool = False


class Source(Protocol):
    """A stream that can be read."""

    @property
    def key(self) -> str:
        """What `waiters` know it by."""

    def read(self, after: int) -> Page:
        """What lies past this offset, from the beginning of it; the real tail if it is past that.

        Raises NotFound when the stream is gone.
        """

    def end(self) -> "End":
        """Where it ends. Raises NotFound when the stream is gone."""


_WAKE_STREAM = Select(lambda: WakeStream.objects.filter(runner=Param("runner")))
_WAKES = Select(
    lambda: (
        Wake.objects.outstanding()
        .filter(runner=Param("runner"), offset__gt=Param("after"), offset__lte=Param("tail"))
        .select_related("entity")
        .only("offset", "generation", "emitted_at", "entity__url", "entity__subscription_key")
        .order_by("offset")[:PAGE_EVENTS]
    )
)
_MAIN_STREAM = Select(
    lambda: DispatchState.objects.filter(entity=Param("entity")).only("entity_id", "tail", "ended")
)
_SHARED_STATE = Select(lambda: SharedState.objects.filter(pk=Param("state")).only("tail"))


class _Bytes(Func):
    """The length of a text, which PostgreSQL tells without reading it."""

    function = "OCTET_LENGTH"
    output_field = BigIntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, Any]:
        """Versions before 3.43 have no such function."""
        return self.as_sql(
            compiler, connection, template="LENGTH(CAST(%(expressions)s AS BLOB))", **context
        )


def _between(events: "QuerySet[Event]") -> "QuerySet[Event]":
    """The events of a range, as far as a page goes: a thousand large ones are not held at once."""
    before = Window(Sum(_Bytes("data")), order_by="offset", frame=RowRange(end=-1))
    return (
        events.filter(offset__gt=Param("after"), offset__lte=Param("last"))
        .annotate(before=Coalesce(before, 0))
        .filter(before__lte=PAGE_BYTES)
        .only("offset", "data")
        .order_by("offset")
    )


_EVENTS = Select(lambda: _between(StreamEvent.objects.filter(entity=Param("entity"))))
_SHARED_EVENTS = Select(lambda: _between(SharedStateEvent.objects.filter(state=Param("state"))))


def _read(events: "Select[Any]", whole: "QuerySet[Any]", after: int, end: End, **key: int) -> Page:
    """A page of a stream: ``whole`` are all its events, ``key`` is what ``events`` names it by."""

    def page(after: int) -> list[Any]:
        return events.all(after=after, last=min(after + PAGE_EVENTS, end.tail), **key)

    found = page(after)
    if not found and after < end.tail:  # what lay there was pruned
        kept = whole.filter(offset__gt=after).order_by("offset")
        first = kept.values_list("offset", flat=True).first()
        found = [] if first is None else page(first - 1)
    texts = [event.data for event in found]
    if found and found[-1].offset < end.tail:
        return Page(texts, found[-1].offset, up_to_date=False)
    return Page(texts, end.tail, up_to_date=True, closed=end.closed)


@dataclass(frozen=True, slots=True)
class WakesOf:
    """A runner's wake stream: a view of the wakes that are outstanding."""

    runner_id: str

    @property
    def key(self) -> str:
        return waiters.wake_stream_key(self.runner_id)

    def end(self) -> End:
        stream = _WAKE_STREAM.first(runner=self.runner_id)
        if stream is None:
            raise NotFound(_GONE)
        return End(stream.tail)

    def read(self, after: int) -> Page:
        # The tail first: all below it is committed by now, so nothing can turn up there later.
        tail = self.end().tail
        wakes = _WAKES.all(runner=self.runner_id, after=after, tail=tail)
        events = [self._event(wake) for wake in wakes]
        if len(wakes) == PAGE_EVENTS:
            return Page(events, wakes[-1].offset, up_to_date=wakes[-1].offset == tail)
        return Page(events, tail, up_to_date=True)

    def _event(self, wake: Wake) -> str:
        event = {
            "type": "wake",
            "subscription_id": f"runner:{self.runner_id}:{wake.entity.subscription_key}",
            "stream": wake.entity.stream_path[1:],
            "generation": wake.generation,
            "ts": epoch_ms(wake.emitted_at),
        }
        return msgspec.json.encode(event).decode()


@dataclass(frozen=True, slots=True)
class EventsOf:
    """An entity's main stream."""

    entity_id: int

    @property
    def key(self) -> str:
        return waiters.entity_stream_key(self.entity_id)

    def end(self) -> End:
        state = _MAIN_STREAM.first(entity=self.entity_id)
        if state is None:
            raise NotFound(_GONE)
        return End(state.tail, closed=state.ended == DispatchState.End.KILLED)

    def read(self, after: int) -> Page:
        whole = StreamEvent.objects.filter(entity=self.entity_id)
        return _read(_EVENTS, whole, after, self.end(), entity=self.entity_id)


@dataclass(frozen=True, slots=True)
class SharedEventsOf:
    """A shared state, which ends with its deletion alone."""

    state_id: int

    @property
    def key(self) -> str:
        return waiters.shared_state_key(self.state_id)

    def end(self) -> End:
        state = _SHARED_STATE.first(state=self.state_id)
        if state is None:
            raise NotFound(_GONE)
        return End(state.tail)

    def read(self, after: int) -> Page:
        whole = SharedStateEvent.objects.filter(state=self.state_id)
        return _read(_SHARED_EVENTS, whole, after, self.end(), state=self.state_id)
