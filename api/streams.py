"""The REST API of streams: a runner's wakes and an entity's events, read and appended to.

Reading follows the Durable Streams protocol, as the wire contract's section Wake stream describes
it.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar, cast

import msgspec
from django.conf import settings
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from api.authentication import HANDLER, ReaderAuthentication, access_token, claim_token
from api.http_errors import error_response, status_of, translate
from api.openapi import documented
from api.permissions import MayReadOrAct
from api.throttles import Hold, Released, caller_key, held
from api.views import ApiView, RunnerResource
from claims import acting, writes
from core import log_facts, unread
from core.bodies import JsonObject, decode, parameter, raw_body
from core.database import hand_back, is_passing
from core.errors import (
    BadFields,
    Forbidden,
    InvalidRequest,
    NotFound,
    OffsetGone,
    PayloadTooLarge,
    ServiceUnavailable,
    Unauthenticated,
)
from core.identifiers import is_number, require_id
from core.principals import Principal
from dispatch import entities
from dispatch.streams import offsets, producers, reads, waiters
from dispatch.streams.reads import Page, Source
from runners import tokens
from runners.tokens import Credential

SSE_LENGTH_S = 60.0
_SSE_KEEPALIVE_S = 15.0
_SSE_PIECE = 64 * 1024
"""Characters that are made ready to send at once: what a reader does not read is held but once."""
_RETRY_S = 0.5

_CURSOR_EPOCH = datetime(2024, 10, 9, tzinfo=UTC)
_CURSOR_INTERVAL_S = 20
_CURSOR_DIGITS = 15

R = TypeVar("R", HttpResponse, StreamingHttpResponse)

READ_PARAMETERS = ("offset", "live", "cursor")
LIVE: dict[int | tuple[int, str], Any] = {(200, "text/event-stream"): str}
READ_SENDS = ("Stream-Next-Offset", "Stream-Up-To-Date", "Stream-Cursor", "Stream-Closed", "ETag")
KEPT_SENDS = (*READ_SENDS, "Stream-Earliest-Offset")
"""Of a stream whose oldest events may be removed."""
APPEND_SENDS = ("Stream-Next-Offset", "Producer-Epoch", "Producer-Seq")


class WakeStreamView(RunnerResource):
    """/runners/:id/wake"""

    @documented(
        "Read a runner's wakes",
        answers={200: list[JsonObject], **LIVE, 204: None, 304: None},
        parameters=READ_PARAMETERS,
        headers=["If-None-Match"],
        sends=READ_SENDS,
    )
    def get(self, request: HttpRequest, runner_id: str) -> HttpResponseBase:
        """The wakes that wait for one's own runner."""
        runner = self.runner(runner_id)
        return serve(request, reads.WakesOf(runner.pk, runner.owner_principal))

    @documented("Find the tail of a runner's wakes", answers={200: None})
    def head(self, request: HttpRequest, runner_id: str) -> HttpResponseBase:
        """The headers alone."""
        return self.get(request, runner_id)

    def handle_exception(self, exc: Exception) -> HttpResponse:  # type: ignore[override]
        """Answer trouble with 503 and Retry-After, or the existing client does not back off."""
        error = translate(exc)
        return error_response(ServiceUnavailable() if status_of(error) == 500 else error)


class MainStreamView(ApiView):
    """/:type/:id/main"""

    authentication_classes = (ReaderAuthentication,)
    permission_classes = ()
    reports = True

    @documented(
        "Read an entity's stream",
        answers={200: list[Any], **LIVE, 204: None, 304: None},
        parameters=READ_PARAMETERS,
        errors=[410],
        headers=["Electric-Claim-Token", "If-None-Match"],
        sends=KEPT_SENDS,
    )
    def get(self, request: HttpRequest, type_name: str, name: str) -> HttpResponseBase:
        """For whoever may read the entity, and the holder of its active claim.

        From the start that is what is left of it; where what follows another offset was removed,
        410.
        """
        runner_id = cast(str | None, self.request.auth)
        who = (self.caller, runner_id, claim_token(request))
        find = partial(_find_to_read, type_name, name, *who)
        return serve(request, reads.EventsOf(find(), find))

    @documented("Find the tail of an entity's stream", answers={200: None})
    def head(self, request: HttpRequest, type_name: str, name: str) -> HttpResponseBase:
        """The headers alone."""
        return self.get(request, type_name, name)

    @documented(
        "Append to an entity's stream",
        body=Any,
        answers={200: None, 204: None},
        errors=[409],
        headers=["Electric-Claim-Token", *producers.HEADERS],
        sends=APPEND_SENDS,
    )
    def post(self, request: HttpRequest, type_name: str, name: str) -> HttpResponse:
        """Append an event, or an array of events, with the active claim's write token."""
        token = claim_token(request)
        if token is None:
            raise Unauthenticated("Appending needs the active claim's write token.")
        require_id(type_name, name)
        # Before the body: a caller without the write token gets 401, not a hint about it.
        claim = writes.hold(f"/{type_name}/{name}", token)
        sequence = producers.Sequence.parse(request.headers)
        appended = writes.append(claim, read_events(request), sequence)
        log_facts.note(principal=HANDLER)
        next_offset = offsets.encode(appended.tail)
        if appended.unseen_work is not None:
            next_offset = offsets.encode_just_past(appended.unseen_work - 1)
        return answer_append(next_offset, sequence, is_new=appended.is_new)


def _find_to_read(
    type_name: str, name: str, caller: Principal, runner_id: str | None, token: str | None
) -> int:
    """The key of the entity, whose stream the caller, or a handler by its token, may read.

    Raises Unauthenticated, NotFound, Forbidden. NotFound is for principals: a caller that holds no
    token of an entity's is not told whether it exists, unless no such entity can exist.
    """
    if token is not None:
        require_id(type_name, name)
        entity_id = acting.opened_by(token, f"/{type_name}/{name}")
        if entity_id is None:
            raise Unauthenticated(writes.NOT_THE_HOLDER)
        return entity_id
    entity = entities.find(type_name, name)
    own = runner_id is None and entities.may_read(entity, caller)
    if not own and not acting.may_read(caller, entity, runner_id):
        raise Forbidden(MayReadOrAct.message)
    return entity.pk


# --- Appending ---------------------------------------------------------------------------------


MOST_EVENTS = 10_000
"""In one append: more would keep the worker from its other calls for longer than a moment."""

MOST_STEPS = 1_000
"""Of its events those that cost statements of their own, under the lock and with a connection."""

_STEPS = ("manifest", "inbox", "signal")


def read_events(request: HttpRequest) -> list[Any]:
    """The events in a body, one or an array.

    Raises InvalidRequest for none, PayloadTooLarge for too many.
    """
    body = decode(raw_body(request), Any)
    events = body if isinstance(body, list) else [body]
    if not events:
        raise InvalidRequest("There is no event to append.")
    if len(events) > MOST_EVENTS:
        raise PayloadTooLarge(f"There are more than {MOST_EVENTS} events in one append.")
    steps = sum(isinstance(each, dict) and each.get("type") in _STEPS for each in events)
    if steps > MOST_STEPS:
        named = ", ".join(_STEPS)
        raise PayloadTooLarge(f"There are more than {MOST_STEPS} events of {named} in one append.")
    return events


def answer_append(
    next_offset: str, sequence: producers.Sequence | None, *, is_new: bool
) -> HttpResponse:
    """The answer to an append: 200 to a new one of an idempotent producer, else 204."""
    response = HttpResponse(status=200 if is_new and sequence is not None else 204)
    response.headers["Stream-Next-Offset"] = next_offset
    if sequence is not None:
        response.headers["Producer-Epoch"] = str(sequence.epoch)
        response.headers["Producer-Seq"] = str(sequence.seq)
    return response


# --- Reading -----------------------------------------------------------------------------------


def serve(request: HttpRequest, source: Source) -> HttpResponseBase:
    """Answer a GET or HEAD of a stream, in the mode that was asked for.

    Raises InvalidRequest for an unknown mode, a malformed offset, or live without an offset, and
    RateLimited when the caller holds too many streams.
    """
    if request.method == "HEAD":
        end = source.end()
        tail = source.encode(end.tail)
        return _headed(HttpResponse(), tail, closed=end.closed, cache="no-store")
    offset, live, bad = None, None, BadFields()
    with bad:
        cursor = parameter(request, "cursor")
    with bad:
        live = parameter(request, "live")
        if live not in (None, "long-poll", "sse"):
            raise InvalidRequest.field("/live", "expected long-poll or sse")
    with bad:
        offset = parameter(request, "offset")
        if live is not None and offset is None:
            raise InvalidRequest.field("/offset", "live reads need one")
        if offset is None:
            offset = offsets.START
        after = source.end().tail if offset == offsets.NOW else source.decode(offset)
    bad.refuse()
    if live == "sse":
        return _sse(source, after, cursor, Hold(caller_key(request), live), access_token(request))
    if live == "long-poll":
        with held(caller_key(request), live):
            return _long_poll(source, after, cursor, access_token(request))
    return _catch_up(request, source, source.read(after))


def _catch_up(request: HttpRequest, source: Source, page: Page) -> HttpResponse:
    body = _array(page)
    next_offset = source.encode(page.next_offset)
    place = f"{next_offset} {page.up_to_date} {page.closed}"
    digest = hashlib.sha256(f"{place} {body}".encode()).hexdigest()
    etag = f'"{digest[:32]}"'
    asked = [each.strip() for each in request.META.get("HTTP_IF_NONE_MATCH", "").split(",")]
    fresh = etag in asked or f"W/{etag}" in asked or "*" in asked
    response = HttpResponse(status=304) if fresh else HttpResponse(body)
    response.headers["ETag"] = etag
    _say_what_is_left(response, source, page)
    return _headed(response, next_offset, page.up_to_date, page.closed, cache="private, no-cache")


def _long_poll(
    source: Source, after: int, cursor: str | None, token: Credential | None
) -> HttpResponse:
    page = _wait(source, after, settings.PULLWAKE_LONG_POLL_MS / 1000, token)
    # An offset past the tail gets the real one at once: 200 with nothing, which corrects it.
    if page.events or after > page.next_offset:
        response = HttpResponse(_array(page))
    else:
        response = HttpResponse(status=204)
    response.headers["Stream-Cursor"] = _next_cursor(cursor)
    _say_what_is_left(response, source, page)
    next_offset = source.encode(page.next_offset)
    return _headed(response, next_offset, page.up_to_date, page.closed, cache="no-store")


def _sse(
    source: Source, after: int, cursor: str | None, place: Hold, token: Credential | None
) -> StreamingHttpResponse:
    try:
        # Read before the answer begins, while an error can still be a status.
        page = source.follow(after)
    except BaseException:
        place.release()
        raise

    def stream() -> Iterator[str]:
        nonlocal page
        deadline = time.monotonic() + SSE_LENGTH_S
        said = None
        while True:
            hand_back()  # a slow reader holds no connection
            # In one write: it costs a thousand readers more than what is in it.
            told = f"event: data\ndata:{_array(page)}\n\n" if page.events else ""
            control = (page.next_offset, page.up_to_date, page.closed)
            if control != said:
                told += f"event: control\ndata:{_control(source, page, cursor)}\n\n"
                said = control
            page = replace(page, events=[])  # they are in what is told
            with unread.held(len(told)):
                for begin in range(0, len(told), _SSE_PIECE):
                    yield told[begin : begin + _SSE_PIECE]
            told = ""
            remaining = deadline - time.monotonic()
            if page.closed or remaining <= 0 or _is_over(token):
                return
            try:
                if page.up_to_date:
                    page = _wait(source, page.next_offset, min(remaining, _SSE_KEEPALIVE_S), token)
                    if not page.events:
                        yield ":\n\n"  # fails when the reader is gone
                else:
                    page = source.follow(page.next_offset)
            except (Unauthenticated, Forbidden, NotFound, OffsetGone):
                return  # a reader that comes back is told why

    said = Released(stream(), place)
    response = StreamingHttpResponse(said, content_type="text/event-stream")
    _say_what_is_left(response, source, page)
    # Where it starts: what is past it comes in the body.
    return _headed(response, source.encode(min(after, page.next_offset)), cache="no-cache")


def _is_over(token: Credential | None) -> bool:
    """Whether nobody should wait any more: the server stops, or the reader's token ended."""
    return waiters.hub.closing or (token is not None and token.seconds_left() <= 0)


def _wait(source: Source, after: int, patience_s: float, token: Credential | None) -> Page:
    """What lies past ``after``, once there is something; nothing after ``patience_s`` seconds."""
    if token is not None:
        patience_s = min(patience_s, token.seconds_left())
    deadline = time.monotonic() + patience_s
    page: Page | None = None
    with waiters.hub.waiter(source.key) as grown, tokens.held_open(token, grown):
        while True:
            grown.clear()
            try:
                page = source.follow(after)
            except Exception as exc:
                if page is None or not is_passing(exc) or time.monotonic() >= deadline:
                    raise
                # It waited already when the database went away, and may wait for it to come back.
                hand_back()
                grown.wait(_RETRY_S)
                if _is_over(token):
                    return page
                continue
            remaining = deadline - time.monotonic()
            if page.events or page.closed or page.next_offset < after or remaining <= 0:
                return page
            # Wakes that were claimed meanwhile left nothing to deliver.
            after = grown.after = page.next_offset
            hand_back()  # a waiting request holds no connection
            came = not _is_over(token) and grown.wait(remaining)
            if _is_over(token) or not (came or source.passes_over):
                return page  # thousands that waited in vain do not all look once more


def _say_what_is_left(response: R, source: Source, page: Page) -> None:
    """Tell a reader that began at the start that earlier events were removed, if they were."""
    if page.removed:
        response.headers["Stream-Earliest-Offset"] = source.encode(page.removed)


def _array(page: Page) -> str:
    return f"[{','.join(page.events)}]"


def _control(source: Source, page: Page, cursor: str | None) -> str:
    control: dict[str, object] = {
        "streamNextOffset": source.encode(page.next_offset),
        "streamCursor": _next_cursor(cursor),
    }
    if page.up_to_date:
        control["upToDate"] = True
    if page.closed:
        control["streamClosed"] = True
    return msgspec.json.encode(control).decode()


def _next_cursor(given: str | None) -> str:
    """The current interval, or one past the reader's own if that is not smaller."""
    since = datetime.now(UTC) - _CURSOR_EPOCH
    interval = int(since.total_seconds()) // _CURSOR_INTERVAL_S
    if given is not None and is_number(given, _CURSOR_DIGITS):
        interval = max(interval, int(given) + 1)
    return str(interval)


def _headed(
    response: R, next_offset: str, up_to_date: bool = False, closed: bool = False, *, cache: str
) -> R:
    response.headers["Stream-Next-Offset"] = next_offset
    if closed:
        response.headers["Stream-Closed"] = "true"
    if up_to_date:
        response.headers["Stream-Up-To-Date"] = "true"
    response.headers["Cache-Control"] = cache
    response.headers["X-Content-Type-Options"] = "nosniff"
    if response.status_code == 200 and not response.streaming:
        response.headers["Content-Type"] = "application/json"
    return response
