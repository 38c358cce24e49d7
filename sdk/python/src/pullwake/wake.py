"""What a handler is given: the work, and the way to answer it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, overload

from . import tracing
from .api import START, Api, Grant, dump_events
from .errors import ServerRefused
from .inbox import (
    INTERRUPTS,
    Inbox,
    Item,
    Message,
    Signal,
    WakeEvent,
    for_the_handler,
    is_queued,
    offset_of,
    position,
    typed,
    waiting,
)
from .run import Run
from .transport import Answer

T = TypeVar("T")
P = TypeVar("P")

Mode = Literal["immediate", "queued", "paused", "steer"]
"""How a message waits for its entity."""

Condition = Literal["runFinished"] | Mapping[str, Any]
"""What a parent is woken for: that a run of the child finished, or {"on": "change", …}."""


class Retry(Protocol):
    """Makes a call until it is answered, or the claim cannot wait for it any longer."""

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T: ...


class Wake:
    """One claimed wake, for as long as its handler runs.

    The claim is kept alive meanwhile. When it is lost, the handler is cancelled as any asyncio
    task is, and `cancelled` turns true, for what runs in a thread. The calls raise ClaimLost once
    it is, ServerRefused for what the server does not take, and RunnerError when no answer came for
    too long.
    """

    def __init__(
        self,
        api: Api,
        grant: Grant,
        write_token: str,
        retry: Retry,
    ) -> None:
        self._api = api
        self._grant = grant
        self._retry = retry
        self._inbox = Inbox(grant.tail)
        self._read_to: str | None = None
        """How far the stream has been read; None before it is."""
        self._delivered_to = grant.tail
        """Up to here is what the claim delivers."""
        self._reading = asyncio.Lock()
        self._arrived: asyncio.Queue[Message[Any] | WakeEvent | None] = asyncio.Queue()
        self._heard: set[tuple[object, ...]] = set()
        """What arrived during the claim, and the handler was given."""
        self._interrupt = asyncio.Event()
        self.listening = asyncio.Event()
        """The handler waits for what arrives: so it is to be looked for at once."""
        self._writing = asyncio.Lock()
        self._seq = 0
        self._in_doubt: bytes | None = None
        """An append whose answer was not seen: its sequence number is not free until it is."""
        self._cancelled = False
        self.runner_id = api.registration.runner_id
        self.write_token = write_token
        self.entity = grant.entity
        self.entity_url = grant.entity_url
        self.entity_type = grant.entity_type
        self.epoch = grant.epoch
        self.attempt = grant.attempt
        """1, and one more after each failure in a row."""
        self.consumer_id = grant.consumer_id
        self.stream_path = grant.stream_path
        self.stream_url = api.transport.url(grant.stream_path)
        self.trigger_event = grant.trigger_event
        self.principal = grant.principal
        """Who created the entity: {url, key, kind, id}."""
        self.traceparent = grant.traceparent
        """W3C's, of the message that woke it; None for one that was sent without."""
        self.removed_to: str | None = None
        """Up to this offset the stream's events were removed, as `history` last found when it read
        from the start; None: none was, or it did not read."""

    def __repr__(self) -> str:
        return f"<Wake {self.entity_url} epoch {self.epoch}>"

    @property
    def cancelled(self) -> bool:
        """Whether the work is to end: the claim was lost, or the runner is stopping."""
        return self._cancelled

    @property
    def interrupted(self) -> bool:
        """Whether somebody asked this work to end: by SIGINT, SIGTERM or SIGSTOP.

        It is known within a second or two. A SIGKILL is not asked for: it takes the claim away.
        """
        return self._interrupt.is_set()

    async def interruption(self) -> None:
        """Return once `interrupted` is true."""
        self.listening.set()
        await self._interrupt.wait()

    # What has come

    @overload
    async def messages(self) -> list[Message[Any]]: ...
    @overload
    async def messages(self, model: type[P]) -> list[Message[P]]: ...
    async def messages(self, model: type[Any] | None = None) -> list[Message[Any]]:
        """The messages that this claim delivers, oldest first; acknowledged when the handler ends.

        Those that another runtime acked and left in the entity's queue come when nothing newer
        does, in the queue's order and up to one that is held back.

        With `model`, a msgspec Struct or a pydantic model, their payloads are of it. Raises
        BadPayload for one that is not, which fails the wake if nobody catches it.
        """
        found = [item for item in await self.items() if isinstance(item, Message)]
        return found if model is None else typed(found, model)

    async def signals(self) -> list[Signal]:
        """The signals for the handler, oldest first; those that came while it runs among them."""
        delivered = [item for item in await self.items() if isinstance(item, Signal)]
        late = [item for item in self._inbox.late() if isinstance(item, Signal)]
        self._hear(*late)
        return [each for each in [*delivered, *late] if for_the_handler(each)]

    async def events(self) -> list[WakeEvent]:
        """What happened that the entity watches, oldest first: a child finished, a cron tick."""
        return [item for item in await self.items() if isinstance(item, WakeEvent)]

    async def items(self) -> list[Item]:
        """All that this claim delivers, in order: messages, signals for the handler, events."""
        await self._read_delivered()
        return self._delivered()

    async def live(self, *, idle: float | None = None) -> AsyncIterator[Message[Any] | WakeEvent]:
        """What arrives while the handler runs, as it comes.

        Ends when the work is interrupted or the runner is stopping, and after `idle` seconds
        without any. What it gave is acknowledged with the rest when the handler ends.
        """
        await self._read_delivered()
        self.listening.set()
        while True:
            try:
                async with asyncio.timeout(idle):
                    item = await self._arrived.get()
            except TimeoutError:
                return
            if item is None:
                self._arrived.put_nowait(None)  # for whoever else waits
                return
            self._hear(item)
            yield item

    async def history(self, after: str = START) -> AsyncIterator[dict[str, Any]]:
        """The events of the entity's stream past the offset `after`, oldest first, to its end.

        They are read a page at a time, as they are asked for. A type may have its entities keep
        less than all: from the start it gives what is left, and says so in `removed_to`. Raises
        `ServerRefused` with the code `OFFSET_GONE` where events that follow another `after` were
        removed.
        """
        from_start = after == START
        while True:
            answer = await self._page(after)
            if from_start:
                self.removed_to, from_start = answer.headers.get("stream-earliest-offset"), False
            for event in answer.array():
                if isinstance(event, dict):
                    yield event
            end = answer.headers.get("stream-next-offset", after)
            if end == after or answer.says("stream-up-to-date"):
                return
            after = end

    async def ack(self, item: Item) -> None:
        """Acknowledge all up to and including this: it does not come again, whatever follows.

        Messages are acknowledged when the handler ends; this is for those done with before.
        """
        if item.offset is not None:
            await self._take(up_to=self._place(item))
            deadline = self._api.timing.request_timeout
            offset = max(item.offset, self._grant.cursor)
            await self._retry(partial(self._api.renew, self._grant, deadline, offset))

    # What is to be told

    async def append(self, *events: Mapping[str, Any]) -> None:
        """Append events to the entity's main stream, in order and exactly once.

        Raises ValueError or TypeError for what is not JSON; 413 is too much at once.
        """
        if not events:
            return
        body = dump_events(events)
        with tracing.step("append", {"pullwake.events": len(events)}):
            await self._append(body)

    async def _append(self, body: bytes) -> None:
        async with self._writing:
            if self._in_doubt is not None:
                await self._write(self._in_doubt)
            await self._write(body)

    def run(self, run_id: str | None = None) -> Run:
        """A run of the agent, for `async with`: what its watchers and user interfaces follow.

        It is completed at the end of the block, or failed with the error that left it. A parent
        that spawned this entity with `wake="runFinished"` is told, with all that was written.
        """
        return Run(self.append, run_id or f"run-{self.epoch}-{secrets.token_hex(4)}")

    async def send(
        self,
        to: str,
        payload: Any,
        *,
        type: str | None = None,  # noqa: A002  as it is on the wire
        key: str | None = None,
        mode: Mode | None = None,
        after: float | timedelta | None = None,
    ) -> None:
        """Send a message to the entity at the URL `to`, such as `/agent/hello`, from this one.

        A message with the `key` of one sent before is that one; so a retried handler sends none
        twice. `after`: seconds until it is delivered.
        """
        body: dict[str, Any] = {"payload": payload, "key": key or f"sent-{secrets.token_hex(12)}"}
        if after is not None:
            body["afterMs"] = max(0, round(_seconds(after) * 1000))
        optional = {"type": type, "mode": mode}
        body |= {name: text for name, text in optional.items() if text is not None}
        with tracing.step("send", {"pullwake.to": to}):
            await self._retry(partial(self._api.send, to, body, self.write_token))

    async def sleep_until(
        self, when: datetime | timedelta, payload: Any = None, *, key: str | None = None
    ) -> None:
        """Have this entity woken at that time, or after that long; then let the handler end.

        `payload` comes as a message from the entity itself. Nothing waits meanwhile, so it may be
        days. `key` as for `send`.
        """
        delay = when if isinstance(when, timedelta) else when - datetime.now(UTC)
        await self.send(self.entity_url, payload, key=key, after=delay)

    async def spawn(
        self,
        type: str,  # noqa: A002  as it is on the wire
        id: str,  # noqa: A002  as it is on the wire
        args: Mapping[str, Any] | None = None,
        *,
        message: Any = None,
        message_type: str | None = None,
        tags: Mapping[str, str] | None = None,
        wake: Condition | None = None,
        runner: str | None = None,
        sandbox: Mapping[str, Any] | None = None,
    ) -> str:
        """Make a child of this entity, with a first message if one is given: the child's URL.

        One that is there already is left as it is, so that a retried handler spawns none twice.
        With `wake="runFinished"` this entity is woken when a run of the child finishes, by an
        event with its `child`. `runner`: whom it is dispatched to; this one's, if none is named.
        """
        url = f"/{type}/{id}"
        body: dict[str, Any] = {"parent": self.entity_url, "args": dict(args or {})}
        watch = None if wake is None else {"subscriberUrl": self.entity_url, "condition": wake}
        policy = None
        if runner is not None:
            policy = {"targets": [{"type": "runner", "runnerId": runner}]}
        optional = {
            "initialMessage": message,
            "initialMessageType": message_type,
            "tags": None if tags is None else dict(tags),
            "wake": watch,
            "dispatch_policy": policy,
            "sandbox": None if sandbox is None else dict(sandbox),
        }
        body |= {name: value for name, value in optional.items() if value is not None}
        with tracing.step("spawn", {"pullwake.to": url}):
            await self._spawn(url, body, watch)
        return url

    async def _spawn(self, url: str, body: dict[str, Any], watch: dict[str, Any] | None) -> None:
        creator = self.principal.get("key")
        try:
            await self._retry(partial(self._api.spawn, url, body, creator))
        except ServerRefused as error:
            if error.code != "DUPLICATE_URL":
                raise
            if watch is not None:
                known = {**watch, "sourceUrl": url}
                await self._retry(partial(self._api.watch, known, creator))

    async def set_tag(self, key: str, value: str | None, *, of: str | None = None) -> None:
        """Set a tag of this entity, or of another's URL; None takes it off."""
        url = self.entity_url if of is None else of
        await self._retry(partial(self._api.set_tag, url, key, value, self.write_token))

    # For `Claims`, which holds the claim

    async def watch(self) -> None:
        """Read what arrives, until cancelled. Raises ServerRefused when the claim is lost."""
        await self._read_delivered()
        while True:
            assert self._read_to is not None  # noqa: S101  it has been read
            answer = await self._api.read(
                self.stream_path, self._read_to, self.write_token, live=True
            )
            arrived = self._notice(answer)
            if answer.says("stream-closed"):
                raise ServerRefused(409, "FENCED", "the entity was killed")
            if not arrived:
                # Woken by its own writes, most likely: they must not make a busy loop of it.
                await asyncio.sleep(self._api.timing.watch_gap)

    def wind_down(self) -> None:
        """The runner is stopping: `live()` comes to its end."""
        self._arrived.put_nowait(None)

    def cancel(self) -> None:
        """The claim is lost."""
        self._cancelled = True
        self.wind_down()

    async def settle(self) -> None:
        """Mark what the handler was given as handled, once it has returned."""
        await self._take(up_to=None if self.acked is None else (self.acked,))

    @property
    def acked(self) -> str | None:
        """The offset up to which the work is done, once the handler has returned."""
        done = self._delivered_to
        for item in self._inbox.late():
            if _name(item) not in self._heard:
                if isinstance(item, Signal) and not for_the_handler(item):
                    continue
                break  # what it was not given comes again, and so whatever lies behind that
            if item.offset is not None:
                done = item.offset
        return done

    # Inside

    async def _read_delivered(self) -> None:
        async with self._reading:
            if self._read_to is not None:
                return
            offset, tail = self._grant.cursor, self._grant.tail
            while True:
                answer = await self._page(offset)
                self._inbox.take(answer.array())
                end = answer.headers.get("stream-next-offset", offset)
                reached = tail is not None and end >= tail
                if end == offset or answer.says("stream-up-to-date") or reached:
                    break
                offset = end
            if tail is None:
                self._delivered_to = end
                self._inbox.tail = end
            if self._inbox.edited or not self._delivered():
                await self._look_at_queue(end)
            self._read_to = end
            for item in self._inbox.late():
                self._announce(item)

    async def _look_at_queue(self, end: str) -> None:
        """Find what waits in the queue since before the cursor: handlers of other runtimes ack it
        without taking it. Only the whole stream shows whether it still waits.
        """
        history = [event async for event in self.history() if event.get("type") == "inbox"]
        queue = waiting(event for event in history if (offset_of(event) or "") <= end)
        cursor = self._grant.cursor
        self._inbox.put_first(each for each in queue if (each.offset or "") <= cursor)

    def _delivered(self) -> list[Item]:
        return [
            item
            for item in self._inbox.delivered()
            if not isinstance(item, Signal) or for_the_handler(item)
        ]

    def _place(self, item: Item) -> tuple[str, ...]:
        """Where it stands in what is delivered: first, in its own order, what the queue kept."""
        offset = item.offset or ""
        if isinstance(item, Message) and offset <= self._grant.cursor:
            return ("", position(item), offset)
        return (offset,)

    async def _page(self, offset: str) -> Answer:
        return await self._retry(
            partial(self._api.read, self.stream_path, offset, self.write_token)
        )

    def _notice(self, answer: Answer) -> bool:
        """Take in what a live read brought: whether anything arrived."""
        arrived = self._inbox.take(answer.array()) if answer.status != 204 else []
        self._read_to = answer.headers.get("stream-next-offset", self._read_to)
        for item in arrived:
            self._announce(item)
        return bool(arrived) or answer.status == 204

    def _announce(self, item: Item) -> None:
        if not isinstance(item, Signal):
            self._arrived.put_nowait(item)
        elif item.name in INTERRUPTS:
            self._hear(item)
            self._interrupt.set()
            self.wind_down()

    def _hear(self, *items: Item) -> None:
        self._heard.update(map(_name, items))

    async def _write(self, body: bytes) -> None:
        self._in_doubt = body
        try:
            await self._retry(
                partial(
                    self._api.append,
                    self.stream_path,
                    body,
                    self.write_token,
                    producer=f"runner:{self.runner_id}",
                    # The wake's epoch as the producer's: a newer claim fences this one's appends.
                    epoch=self.epoch,
                    seq=self._seq,
                )
            )
        except ServerRefused as error:
            if not error.transient:
                self._in_doubt = None  # refused is not written: the number is still free
            raise
        self._in_doubt = None
        self._seq += 1

    async def _take(self, up_to: tuple[str, ...] | None) -> None:
        """Mark queued messages as processed, and signals that came during the work as handled.
        Until then they are work, whatever was acknowledged.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        taken = {"status": "processed", "processed_at": now}
        handled = {"status": "handled", "handled_at": now, "handled_by": self.entity_url}
        heard = [item for item in self._inbox.late() if _name(item) in self._heard]
        updates = []
        for item in [*self._inbox.delivered(), *heard]:
            in_reach = up_to is None or self._place(item) <= up_to
            if isinstance(item, Message) and is_queued(item) and in_reach:
                updates.append(_update("inbox", item.key, taken))
            elif isinstance(item, Signal) and item in heard and for_the_handler(item):
                updates.append(_update("signal", item.key, handled))
        await self.append(*updates)
        self._inbox.take(updates)


def _name(item: Item) -> tuple[object, ...]:
    """What stays the same of it when a later event changes it."""
    return item.event["type"], item.key, item.offset


def _update(kind: str, key: str, value: Mapping[str, Any]) -> dict[str, Any]:
    headers = {"operation": "update"}
    return {"type": kind, "key": key, "value": dict(value), "headers": headers}


def _seconds(span: float | timedelta) -> float:
    return span.total_seconds() if isinstance(span, timedelta) else float(span)
