"""Reading a durable stream: catch-up, long-poll and SSE, the same for wakes and main streams."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeVar

import msgspec
from django.conf import settings
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from config.bodies import parameter
from config.clock import epoch_ms
from config.errors import InvalidRequest, NotFound
from config.orm import hand_back
from config.prepared import Param, Select
from dispatch.models import DispatchState, StreamEvent, Wake
from dispatch.streams import offsets, waiters
from runners.models import WakeStream

PAGE_EVENTS = 1000
"""Events in one answer at the most."""
PAGE_BYTES = 4 * 1024 * 1024
"""Bytes after which an answer is cut; one event is always given whole."""

SSE_LENGTH_S = 60.0
_SSE_KEEPALIVE_S = 15.0

_CURSOR_EPOCH = datetime(2024, 10, 9, tzinfo=UTC)
_CURSOR_INTERVAL_S = 20
_CURSOR_DIGITS = 15

R = TypeVar("R", HttpResponse, StreamingHttpResponse)


@dataclass(frozen=True, slots=True)
class Page:
    """What lies past an offset: JSON texts, where they end, and whether that is the tail."""

    events: list[str]
    next_offset: int
    up_to_date: bool


class Source(Protocol):
    """A stream that can be read."""

    @property
    def key(self) -> str:
        """What `waiters` know it by."""

    def read(self, after: int) -> Page:
        """What lies past this offset, from the beginning of it; the real tail if it is past that.

        Raises NotFound when the stream is gone.
        """

    def tail(self) -> int:
        """The offset of its newest event. Raises NotFound when the stream is gone."""


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
    lambda: DispatchState.objects.filter(entity=Param("entity")).only("entity_id", "tail")
)
_EVENTS = Select(
    lambda: (
        StreamEvent.objects.filter(
            entity=Param("entity"), offset__gt=Param("after"), offset__lte=Param("tail")
        )
        .only("offset", "data")
        .order_by("offset")[:PAGE_EVENTS]
    )
)


@dataclass(frozen=True, slots=True)
class WakesOf:
    """A runner's wake stream: a view of the wakes that are outstanding."""

    runner_id: str

    @property
    def key(self) -> str:
        return waiters.wake_stream_key(self.runner_id)

    def tail(self) -> int:
        return _tail(_WAKE_STREAM.first(runner=self.runner_id))

    def read(self, after: int) -> Page:
        # The tail first: all below it is committed by now, so nothing can turn up there later.
        tail = self.tail()
        wakes = _WAKES.all(runner=self.runner_id, after=after, tail=tail)
        return _page([(wake.offset, self._event(wake)) for wake in wakes], tail)

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

    def tail(self) -> int:
        return _tail(_MAIN_STREAM.first(entity=self.entity_id))

    def read(self, after: int) -> Page:
        tail = self.tail()
        events = _EVENTS.all(entity=self.entity_id, after=after, tail=tail)
        return _page([(event.offset, event.data) for event in events], tail)


def _tail(stream: WakeStream | DispatchState | None) -> int:
    if stream is None:
        raise NotFound("The stream is gone.")
    return stream.tail


def _page(found: list[tuple[int, str]], tail: int) -> Page:
    size = 0
    for count, (offset, event) in enumerate(found, start=1):
        size += len(event)
        if count == PAGE_EVENTS or (size > PAGE_BYTES and count < len(found)):
            return Page([text for _, text in found[:count]], offset, offset == tail)
    return Page([text for _, text in found], tail, up_to_date=True)


def serve(request: HttpRequest, source: Source) -> HttpResponseBase:
    """Answer a GET or HEAD of a stream, in the mode that it asks for.

    Raises InvalidRequest for an unknown mode, a malformed offset, or live without an offset.
    """
    if request.method == "HEAD":
        return _headed(HttpResponse(), source.tail(), cache="no-store")
    offset = parameter(request, "offset")
    live = parameter(request, "live")
    cursor = parameter(request, "cursor")
    if live not in (None, "long-poll", "sse"):
        raise InvalidRequest.field("/live", "expected long-poll or sse")
    if live is not None and offset is None:
        raise InvalidRequest.field("/offset", "live reads need one")
    if offset is None:
        offset = offsets.START
    after = source.tail() if offset == offsets.NOW else offsets.decode(offset)
    if live == "sse":
        return _sse(source, after, cursor)
    if live == "long-poll":
        return _long_poll(source, after, cursor)
    return _catch_up(request, source.read(after))


def _catch_up(request: HttpRequest, page: Page) -> HttpResponse:
    body = _array(page)
    digest = hashlib.sha256(f"{page.next_offset} {page.up_to_date} {body}".encode()).hexdigest()
    etag = f'"{digest[:32]}"'
    asked = [each.strip() for each in request.META.get("HTTP_IF_NONE_MATCH", "").split(",")]
    fresh = etag in asked or f"W/{etag}" in asked or "*" in asked
    response = HttpResponse(status=304) if fresh else HttpResponse(body)
    response.headers["ETag"] = etag
    return _headed(response, page.next_offset, page.up_to_date, cache="private, no-cache")


def _long_poll(source: Source, after: int, cursor: str | None) -> HttpResponse:
    page = _wait(source, after, settings.PULLWAKE_LONG_POLL_MS / 1000)
    # An offset past the tail is told the real one at once: 200 with nothing, which heals it.
    if page.events or after > page.next_offset:
        response = HttpResponse(_array(page))
    else:
        response = HttpResponse(status=204)
    response.headers["Stream-Cursor"] = _next_cursor(cursor)
    return _headed(response, page.next_offset, page.up_to_date, cache="no-store")


def _sse(source: Source, after: int, cursor: str | None) -> StreamingHttpResponse:
    # Read before the answer begins, while trouble can still be told as a status.
    page = source.read(after)

    def stream() -> Iterator[str]:
        nonlocal page
        deadline = time.monotonic() + SSE_LENGTH_S
        said = None
        while True:
            hand_back()  # a slow reader holds no connection
            if page.events:
                yield f"event: data\ndata:{_array(page)}\n\n"
            control = (page.next_offset, page.up_to_date)
            if control != said:
                yield f"event: control\ndata:{_control(page, cursor)}\n\n"
                said = control
            remaining = deadline - time.monotonic()
            if remaining <= 0 or waiters.hub.closing:
                return
            if page.up_to_date:
                page = _wait(source, page.next_offset, min(remaining, _SSE_KEEPALIVE_S))
                if not page.events:
                    yield ":\n\n"  # fails when the reader is gone
            else:
                page = source.read(page.next_offset)

    response = StreamingHttpResponse(stream(), content_type="text/event-stream")
    # Where it starts: what is past it comes in the body.
    return _headed(response, min(after, page.next_offset), cache="no-cache")


def _wait(source: Source, after: int, patience_s: float) -> Page:
    """What lies past ``after``, as soon as something does; nothing after ``patience_s``."""
    deadline = time.monotonic() + patience_s
    with waiters.hub.waiter(source.key) as grown:
        while True:
            grown.clear()
            page = source.read(after)
            remaining = deadline - time.monotonic()
            if page.events or page.next_offset < after or remaining <= 0:
                return page
            # Wakes that were claimed meanwhile left nothing to deliver.
            after = page.next_offset
            hand_back()  # a waiting request holds no connection
            if not waiters.hub.closing:
                grown.wait(remaining)
            if waiters.hub.closing:
                return page  # and none of the thousands that wait looks once more


def _array(page: Page) -> str:
    return f"[{','.join(page.events)}]"


def _control(page: Page, cursor: str | None) -> str:
    control: dict[str, object] = {
        "streamNextOffset": offsets.encode(page.next_offset),
        "streamCursor": _next_cursor(cursor),
    }
    if page.up_to_date:
        control["upToDate"] = True
    return msgspec.json.encode(control).decode()


def _next_cursor(given: str | None) -> str:
    """The interval that it is now, or one past the reader's own when that is not smaller."""
    since = datetime.now(UTC) - _CURSOR_EPOCH
    interval = int(since.total_seconds()) // _CURSOR_INTERVAL_S
    if given is not None and given.isdecimal() and len(given) <= _CURSOR_DIGITS:
        interval = max(interval, int(given) + 1)
    return str(interval)


def _headed(response: R, next_offset: int, up_to_date: bool = False, *, cache: str) -> R:
    response.headers["Stream-Next-Offset"] = offsets.encode(next_offset)
    if up_to_date:
        response.headers["Stream-Up-To-Date"] = "true"
    response.headers["Cache-Control"] = cache
    response.headers["X-Content-Type-Options"] = "nosniff"
    if response.status_code == 200 and not response.streaming:
        response.headers["Content-Type"] = "application/json"
    return response
