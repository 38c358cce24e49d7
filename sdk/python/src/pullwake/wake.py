"""What a handler is given: the work, and the way to answer it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from .api import Api, Grant, dump_events
from .errors import BadAnswer, ServerRefused

T = TypeVar("T")


class Retry(Protocol):
    """Makes a call until it is answered, or the claim cannot wait for it any longer."""

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T: ...


@dataclass(frozen=True, slots=True)
class Message:
    """One thing to see to: an inbox message, or a signal that is the handler's."""

    type: str
    """`inbox` or `signal`."""
    key: str
    value: dict[str, Any]
    """The event's value: `from`, `payload`, … of a message; `signal`, `reason`, … of a signal."""
    offset: str | None
    """The main stream's offset just after it."""
    event: dict[str, Any]
    """The whole event, as the stream has it."""

    @property
    def payload(self) -> Any:
        return self.value.get("payload")

    @property
    def sender(self) -> str | None:
        """The principal URL of who sent it."""
        sender = self.value.get("from", self.value.get("sender"))
        return sender if isinstance(sender, str) else None

    @property
    def signal(self) -> str | None:
        """`SIGINT`, `SIGHUP` and the like; None for a message."""
        signal = self.value.get("signal") if self.type == "signal" else None
        return signal if isinstance(signal, str) else None


@dataclass(frozen=True, slots=True)
class WakeEvent:
    """News that the entity was to be woken for: of another entity, a shared state, or a timer."""

    key: str
    value: dict[str, Any]
    """The event's value, with all that it says."""
    offset: str | None
    """The main stream's offset just after it."""
    event: dict[str, Any]
    """The whole event, as the stream has it."""

    @property
    def source(self) -> str | None:
        """Where it happened: an entity's URL, or the path of a shared state or a timer."""
        source = self.value.get("source")
        return source if isinstance(source, str) else None

    @property
    def timeout(self) -> bool:
        """Whether it says that nothing has happened for too long."""
        return self.value.get("timeout") is True

    @property
    def changes(self) -> list[dict[str, Any]]:
        """What happened: each {collection, kind, key, …}; a timer's tick has its `payload`."""
        changes = self.value.get("changes")
        changes = changes if isinstance(changes, list) else []
        return [each for each in changes if isinstance(each, dict)]

    @property
    def finished_child(self) -> dict[str, Any] | None:
        """The child that has finished a run: {url, type, run_status, response?, error?}."""
        child = self.value.get("finished_child")
        return child if isinstance(child, dict) else None


class Wake:
    """One claimed wake, for as long as its handler runs.

    The claim is kept alive meanwhile. When it is lost, the handler is cancelled as any asyncio
    task is, and `cancelled` turns true, for what runs in a thread.
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
        self._read_events: list[Any] | None = None
        self._messages: list[Message] = []
        self._writing = asyncio.Lock()
        self._seq = 0
        self._in_doubt: bytes | None = None
        """An append whose answer was not seen: its sequence number is not free until it is."""
        self._cancelled = False
        self.read_to: str | None = None
        """How far `messages()` or `events()` has read."""
        self.runner_id = api.registration.runner_id
        self.write_token = write_token
        self.entity = grant.entity
        self.entity_url = grant.entity_url
        self.epoch = grant.epoch
        self.consumer_id = grant.consumer_id
        self.stream_path = grant.stream_path
        self.stream_url = api.transport.url(grant.stream_path)
        self.trigger_event = grant.trigger_event
        self.principal = grant.principal
        """Who created the entity: {url, key, kind, id}."""

    def __repr__(self) -> str:
        return f"<Wake {self.entity_url} epoch {self.epoch}>"

    @property
    def cancelled(self) -> bool:
        """Whether the work is to end: the claim was lost, or the runner is stopping."""
        return self._cancelled

    async def messages(self) -> list[Message]:
        """The messages, and signals for the handler, that this claim delivers; oldest first.

        They are acknowledged when the handler returns. Raises RunnerError.
        """
        self._messages = _messages(await self._delivered(), self._grant.tail)
        return list(self._messages)

    async def events(self) -> list[WakeEvent]:
        """The wake events that this claim delivers, oldest first: what messages are not.

        A child that has finished a run, a change that the entity waits for, a timer. They are
        acknowledged when the handler returns. Raises RunnerError.
        """
        return _wake_events(await self._delivered(), self._grant.tail)

    async def append(self, *events: Mapping[str, Any]) -> None:
        """Append events to the entity's main stream, in order and exactly once.

        Raises ClaimLost, ServerRefused (such as 413 for too much at once), RunnerError when no
        answer came for too long, ValueError or TypeError for what is not JSON.
        """
        if not events:
            return
        body = dump_events(events)
        async with self._writing:
            if self._in_doubt is not None:
                await self._write(self._in_doubt)
            await self._write(body)

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

    async def _delivered(self) -> list[Any]:
        """The events from the first that the claim delivers on, read once."""
        if self._read_events is None:
            self._read_events = await self._read()
        return self._read_events

    async def _read(self) -> list[Any]:
        grant, offset = self._grant, self._grant.cursor
        read: list[Any] = []
        while True:
            answer = await self._retry(
                partial(self._api.read, grant.stream_path, offset, self.write_token)
            )
            events = answer.json()
            if not isinstance(events, list):
                raise BadAnswer("a read of the main stream is not a JSON array")
            read += events
            after = answer.headers.get("stream-next-offset", offset)
            self.read_to = after
            if (
                after == offset
                or answer.headers.get("stream-up-to-date", "").lower() == "true"
                or (grant.tail is not None and after >= grant.tail)
            ):
                return read
            offset = after

    async def _take(self) -> None:
        """Say of the queued messages that the handler has seen that they are not waiting any more.

        Until then they are work, whatever is acknowledged.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        taken = {"status": "processed", "processed_at": now}
        waiting = [each for each in self._messages if each.value.get("status") == "pending"]
        await self.append(
            *(
                {
                    "type": "inbox",
                    "key": message.key,
                    "value": taken,
                    "headers": {"operation": "update"},
                }
                for message in waiting
                if message.type == "inbox"
            )
        )

    def _cancel(self) -> None:
        self._cancelled = True


_NOT_THE_HANDLERS = ("SIGSTOP", "SIGTERM")


@dataclass(frozen=True, slots=True)
class _Event:
    """An event of one of the types that a handler sees, where it lies in what was read."""

    type: str
    key: str
    place: str
    """Its key; without one, a place of its own."""
    offset: str | None
    late: bool
    """Whether it came after what the claim delivers: that is the next wake's."""
    deletes: bool
    value: Any
    whole: dict[str, Any]


def _of_types(events: list[Any], tail: str | None, *types: str) -> Iterator[_Event]:
    for place, event in enumerate(events):
        if not isinstance(event, dict) or event.get("type") not in types:
            continue
        headers = event.get("headers")
        headers = headers if isinstance(headers, dict) else {}
        key, offset = str(event.get("key", "")), headers.get("offset")
        offset = offset if isinstance(offset, str) else None
        yield _Event(
            type=event["type"],
            key=key,
            place=key or str(place),
            offset=offset,
            # Offsets are ordered as strings.
            late=offset is not None and tail is not None and offset > tail,
            deletes=headers.get("operation") == "delete",
            value=event.get("value"),
            whole=event,
        )


def _messages(events: list[Any], tail: str | None) -> list[Message]:
    """What of these events is for the handler, and lies within what the claim delivers.

    Later events change what former ones said: a message is edited, cancelled or deleted, a signal
    was handled.
    """
    found: dict[tuple[str, str], Message] = {}
    for each in _of_types(events, tail, "inbox", "signal"):
        at, kind, value = (each.type, each.place), each.type, each.value
        known = found.get(at)
        if each.deletes:
            found.pop(at, None)
            continue
        if not isinstance(value, dict):
            continue
        if known is not None:
            value = {**known.value, **value}
        elif each.late or (kind == "inbox" and "payload" not in value):
            continue
        if _is_open(kind, value):
            offset = known.offset if known is not None else each.offset
            found[at] = Message(kind, each.key, value, offset, each.whole)
        else:
            found.pop(at, None)
    return list(found.values())


def _wake_events(events: list[Any], tail: str | None) -> list[WakeEvent]:
    """The wake events among these that lie within what the claim delivers."""
    found = {
        each.place: WakeEvent(each.key, each.value, each.offset, each.whole)
        for each in _of_types(events, tail, "wake")
        if isinstance(each.value, dict) and not each.late and not each.deletes
    }
    return list(found.values())


def _is_open(kind: str, value: Mapping[str, Any]) -> bool:
    if kind == "inbox":
        return value.get("status") != "cancelled" and value.get("mode") != "paused"
    return value.get("status") == "unhandled" and value.get("signal") not in _NOT_THE_HANDLERS
