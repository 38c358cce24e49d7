"""Reading a stream page by page: a runner's wakes, an entity's events, a shared state."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec
from django.db.models import QuerySet

from core.clock import epoch_ms
from core.errors import NotFound, OffsetGone
from core.prepared import Param, Select, Values
from dispatch.models import DispatchState, SharedState, SharedStateEvent, StreamEvent, Wake
from dispatch.streams import offsets, waiters
from dispatch.streams.scan import PAGE_EVENTS, rows, take
from runners.models import WakeStream

_GONE = "The stream is gone."


@dataclass(frozen=True, slots=True)
class Page:
    """What lies past an offset: JSON texts, where they end, and whether that is the tail.

    ``closed``: it is the tail, and nothing will follow. ``removed``: the offset of the newest event
    that was removed, where the page begins with what is left; 0 where nothing was.
    """

    events: list[str]
    next_offset: int
    up_to_date: bool
    closed: bool = False
    removed: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """The offset of a stream's newest event, and whether it is the last one ever."""

    tail: int
    closed: bool = False


class Source(Protocol):
    """A stream that can be read."""

    passes_over: bool
    """Whether a reader's place moves on past what it is not told."""

    @property
    def key(self) -> str:
        """Its key in `waiters`."""

    def read(self, after: int) -> Page:
        """What lies past this offset, from the oldest; the real tail for an offset beyond it.

        From the start that is what is left. Raises NotFound when the stream is gone, OffsetGone
        where events that follow another offset are.
        """

    def follow(self, after: int) -> Page:
        """`read`, for a reader that waits for more; it may lag a moment behind.

        It also raises Unauthenticated, Forbidden or NotFound for who may no longer read.
        """

    def end(self) -> "End":
        """Where it ends. Raises NotFound when the stream is gone."""

    def encode(self, offset: int) -> str:
        """The wire form of an offset."""

    def decode(self, text: str) -> int:
        """Parse an offset, 0 being the start. Raises InvalidRequest for another form."""


class Counted:
    """A stream whose offsets count its events; each reader reads the database."""

    require_right: Callable[[], object]
    """Raises what a new request of the reader's would be refused with."""

    passes_over = False
    encode = staticmethod(offsets.encode)
    decode = staticmethod(offsets.decode)

    def follow(self, after: int) -> Page:
        page = self.read(after)
        if page.events or page.closed:
            self.require_right()  # afterwards: none of them came after the right had ended
        return page

    def read(self, after: int) -> Page:
        # The tail first: all below it is committed by now, so nothing can appear there later.
        end = self.end()
        if after >= end.tail:  # most of those that wait
            return Page([], end.tail, up_to_date=True, closed=end.closed)
        return self._past(after, end)

    def end(self) -> End:
        raise NotImplementedError

    def _past(self, after: int, end: End) -> Page:
        """What lies past an offset that is short of the end."""
        raise NotImplementedError


_WAKE_STREAM = Select(
    lambda: WakeStream.objects.filter(
        runner=Param("runner"), runner__owner_principal=Param("owner")
    )
)
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


def _between(events: "QuerySet[Any]") -> "QuerySet[Any, tuple[int, str | None]]":
    return rows(events.filter(offset__gt=Param("after"), offset__lte=Param("tail")))


_EVENTS = Values(lambda: _between(StreamEvent.objects.filter(entity=Param("entity"))), take)
_SHARED_EVENTS = Values(
    lambda: _between(SharedStateEvent.objects.filter(state=Param("state"))), take
)


@dataclass(frozen=True, slots=True)
class WakesOf(Counted):
    """A runner's wake stream: a view of its outstanding wakes.

    ``owner`` is the URL of its owner: whoever waits for the wakes of a runner that is deleted
    meanwhile must not be told those of another's that is registered by its id.
    """

    runner_id: str
    owner: str

    def require_right(self) -> None:
        """It is looked for with the stream."""

    @property
    def key(self) -> str:
        return waiters.wake_stream_key(self.runner_id)

    def end(self) -> End:
        stream = _WAKE_STREAM.first(runner=self.runner_id, owner=self.owner)
        if stream is None:
            raise NotFound(_GONE)
        return End(stream.tail)

    def _past(self, after: int, end: End) -> Page:
        wakes = _WAKES.all(runner=self.runner_id, after=after, tail=end.tail)
        return _page([(wake.offset, self._event(wake)) for wake in wakes], end)

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
class EventsOf(Counted):
    """An entity's main stream."""

    entity_id: int
    require_right: Callable[[], object]

    @property
    def key(self) -> str:
        return waiters.entity_stream_key(self.entity_id)

    def end(self) -> End:
        state = _MAIN_STREAM.first(entity=self.entity_id)
        if state is None:
            raise NotFound(_GONE)
        return End(state.tail, closed=state.ended == DispatchState.End.KILLED)

    def _past(self, after: int, end: End) -> Page:
        return _kept(_EVENTS.all(entity=self.entity_id, after=after, tail=end.tail), after, end)


@dataclass(frozen=True, slots=True)
class SharedEventsOf(Counted):
    """A shared state, which ends only when it is deleted."""

    state_id: int
    require_right: Callable[[], object]

    @property
    def key(self) -> str:
        return waiters.shared_state_key(self.state_id)

    def end(self) -> End:
        state = _SHARED_STATE.first(state=self.state_id)
        if state is None:
            raise NotFound(_GONE)
        return End(state.tail)

    def _past(self, after: int, end: End) -> Page:
        found = _SHARED_EVENTS.all(state=self.state_id, after=after, tail=end.tail)
        return _kept(found, after, end)


def _kept(found: "Sequence[tuple[int, str | None]]", after: int, end: End) -> Page:
    """The events that were found past an offset of a stream whose oldest may have been removed.

    Every offset has had its event: what does not follow at once was removed.
    """
    before = found[0][0] - 1 if found else end.tail
    if before <= after:
        return _page(found, end)
    if after:
        raise OffsetGone(earliest=offsets.encode(before))
    return replace(_page(found, end), removed=before)


def _page(found: "Sequence[tuple[int, str | None]]", end: End) -> Page:
    """The events found past an offset, up to the first one whose text was left out."""
    told = [(offset, text) for offset, text in found if text is not None]
    cut = len(told) < len(found) or len(found) == PAGE_EVENTS
    last = told[-1][0] if cut else end.tail
    at_end = last == end.tail
    return Page([text for _, text in told], last, at_end, at_end and end.closed)
