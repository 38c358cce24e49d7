"""What a handler is given: the work, and the way to answer it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
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
        self._messages: list[Message] | None = None
        self._writing = asyncio.Lock()
        self._seq = 0
        self._in_doubt: bytes | None = None
        """An append whose answer was not seen: its sequence number is not free until it is."""
        self._cancelled = False
        self.read_to: str | None = None
        """How far `messages()` has read."""
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
        if self._messages is None:
            self._messages = await self._read()
        return list(self._messages)

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

    async def _read(self) -> list[Message]:
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
                return _messages(read, grant.tail)
            offset = after

    async def _take(self) -> None:
        """Say of the queued messages that the handler has seen that they are not waiting any more.

        Until then they are work, whatever is acknowledged.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        taken = {"status": "processed", "processed_at": now}
        waiting = [each for each in self._messages or () if each.value.get("status") == "pending"]
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


def _messages(events: list[Any], tail: str | None) -> list[Message]:
    """What of these events is for the handler, and lies within what the claim delivers.

    Later events change what former ones said: a message is edited, cancelled or deleted, a signal
    was handled.
    """
    found: dict[tuple[str, str], Message] = {}
    for place, event in enumerate(events):
        if not isinstance(event, dict) or event.get("type") not in ("inbox", "signal"):
            continue
        value, headers = event.get("value"), event.get("headers")
        headers = headers if isinstance(headers, dict) else {}
        kind, key = event["type"], str(event.get("key", ""))
        known = found.get((kind, key or str(place)))
        if headers.get("operation") == "delete":
            found.pop((kind, key), None)
            continue
        if not isinstance(value, dict):
            continue
        offset = headers.get("offset")
        offset = offset if isinstance(offset, str) else None
        # Offsets are ordered as strings. What came after the claim is the next wake's.
        late = offset is not None and tail is not None and offset > tail
        if known is not None:
            value = {**known.value, **value}
        elif late or (kind == "inbox" and "payload" not in value):
            continue
        if _is_open(kind, value):
            at = known.offset if known is not None else offset
            found[kind, key or str(place)] = Message(kind, key, value, at, event)
        else:
            found.pop((kind, key), None)
    return list(found.values())


def _is_open(kind: str, value: Mapping[str, Any]) -> bool:
    if kind == "inbox":
        return value.get("status") != "cancelled" and value.get("mode") != "paused"
    return value.get("status") == "unhandled" and value.get("signal") not in _NOT_THE_HANDLERS
