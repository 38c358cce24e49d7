"""Reading the wake stream: where it has been read up to, and how it is read on from there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from .api import START
from .clock import Clock
from .errors import BadAnswer, ServerRefused
from .timing import Timing
from .transport import Answer, Transport

Live = Literal["auto", "long-poll", "sse"]
"""`auto` is long-poll, unless the server does not do that; and back again."""

_REFUSED_MODE = frozenset({400, 404, 405, 406, 415, 501})
"""Answers that may mean that the server does not do this live mode. Not those that only mean it
is in trouble: an event stream can be held back by a proxy unnoticed, so it is the second choice."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one answer brought. `offset` is the position after it, if the answer said so."""

    wakes: tuple[dict[str, Any], ...] = ()
    offset: str | None = None
    up_to_date: bool = False


class WakeStream:
    """The position in a runner's wake stream. It survives reconnecting, not the run.

    It moves on only with what `follow` yields: what was read and then not looked at, because the
    connection was given up in between, is read again.
    """

    def __init__(
        self, transport: Transport, live: Live, offset: str, timing: Timing, clock: Clock
    ) -> None:
        self.path = ""
        self.offset = offset
        self._live_works = False
        """Whether the live mode has had an answer on this connection."""
        self._transport = transport
        self._live = live
        self._mode: Literal["long-poll", "sse"] = "sse" if live == "sse" else "long-poll"
        self._cursor: str | None = None
        self._timing = timing
        self._clock = clock

    async def catch_up(self) -> Batch:
        """One read without waiting, for `follow`. Raises as `Transport.call` does."""
        try:
            answer = await self._transport.call(
                "GET",
                self._transport.url(self.path),
                params={"offset": self.offset},
                deadline=self._timing.request_timeout,
            )
        except ServerRefused as error:
            if error.status in (400, 404, 409, 410) and self.offset != START:
                # A position the server does not take would be refused for ever; from the start,
                # it sends only what still matters.
                self.offset = START
            raise
        return self._take(answer)

    async def follow(self, batch: Batch) -> AsyncGenerator[Batch, None]:
        """`batch`, what comes up to the tail, and then whatever comes, live, for ever.

        Ends only by raising, as `Transport.call` does.
        """
        self._live_works = False
        moved = self._move(batch)
        yield batch
        idle = _Idle(self._clock)
        while moved and not batch.up_to_date:  # a server might never say that it is
            await idle.pause(progress=bool(batch.wakes))
            batch = await self.catch_up()
            moved = self._move(batch)
            yield batch
        try:
            async with aclosing(self._sse() if self._mode == "sse" else self._poll()) as batches:
                async for batch in batches:
                    self._move(batch)
                    yield batch
        except ServerRefused as error:
            if self._live == "auto" and error.status in _REFUSED_MODE and not self._live_works:
                self._mode = "long-poll" if self._mode == "sse" else "sse"
            raise

    async def _poll(self) -> AsyncGenerator[Batch, None]:
        idle = _Idle(self._clock)
        while True:
            params = {"offset": self.offset, "live": "long-poll"}
            if self._cursor is not None:
                params["cursor"] = self._cursor
            before = self.offset
            answer = await self._transport.call(
                "GET",
                self._transport.url(self.path),
                params=params,
                deadline=self._timing.long_poll_deadline,
            )
            batch = self._take(answer)
            self._live_works = True
            self._cursor = answer.headers.get("stream-cursor", self._cursor)
            yield batch
            await idle.pause(progress=bool(batch.wakes) and self.offset != before)

    async def _sse(self) -> AsyncGenerator[Batch, None]:
        idle = _Idle(self._clock)
        while True:
            params = {"offset": self.offset, "live": "sse"}
            if self._cursor is not None:
                params["cursor"] = self._cursor
            before, woken = self.offset, False
            async with self._transport.events(
                self._transport.url(self.path),
                params=params,
                deadline=self._timing.request_timeout,
                idle=self._timing.sse_idle_deadline,
                longest=self._timing.sse_deadline,
            ) as events:
                self._live_works = True
                async for event in events:
                    if event.event == "data":
                        wakes = _wakes(_loads(event.data))
                        woken = woken or bool(wakes)
                        yield Batch(wakes=wakes)
                    elif event.event == "control":
                        yield self._control(_loads(event.data))
            await idle.pause(progress=woken and self.offset != before)

    def _take(self, answer: Answer) -> Batch:
        wakes = _wakes(answer.json()) if answer.status != 204 and answer.body else ()
        offset = answer.headers.get("stream-next-offset")
        if offset is None and wakes:
            raise BadAnswer("an answer has wakes but no Stream-Next-Offset")
        return Batch(
            wakes=wakes,
            offset=offset,
            up_to_date=answer.says("stream-up-to-date"),
        )

    def _control(self, control: object) -> Batch:
        if not isinstance(control, dict):
            raise BadAnswer("a control event is not a JSON object")
        cursor, offset = control.get("streamCursor"), control.get("streamNextOffset")
        if isinstance(cursor, str | int):
            self._cursor = str(cursor)
        if not isinstance(offset, str):
            return Batch()
        return Batch(offset=offset, up_to_date=control.get("upToDate") is True)

    def _move(self, batch: Batch) -> bool:
        """Go on after `batch`. Returns whether that is another position.

        It may be a lower one: that heals a position past the tail.
        """
        before = self.offset
        self.offset = before if batch.offset is None else batch.offset
        return self.offset != before


class _Idle:
    """Keeps answers that bring nothing, at once, from becoming a busy loop."""

    _QUICK = 1.0
    _LONGEST = 1.0

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock.monotonic()
        self._streak = 0

    async def pause(self, *, progress: bool) -> None:
        now = self._clock.monotonic()
        quick, self._since = now - self._since < self._QUICK, now
        self._streak = 0 if progress or not quick else self._streak + 1
        if self._streak:
            await asyncio.sleep(min(self._LONGEST, 0.05 * 2.0 ** min(self._streak, 8)))
            self._since = self._clock.monotonic()


def _loads(text: str) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadAnswer("an event is not JSON") from error
    return value


def _wakes(body: object) -> tuple[dict[str, Any], ...]:
    """The events of a batch. What is no object is no wake, and no reason to stop reading."""
    if not isinstance(body, list):
        raise BadAnswer("a read of the wake stream is not a JSON array")
    return tuple(event for event in body if isinstance(event, dict))
