"""What has come to an entity: messages, signals, and the wake events of others it watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Generic, TypeVar

from .errors import BadPayload

P = TypeVar("P")

INTERRUPTS = frozenset({"SIGINT", "SIGTERM", "SIGSTOP"})
"""Signals after which a handler is to come to its end."""
_CLOSING = frozenset({"SIGTERM", "SIGSTOP"})
"""Those of them that the server acts on itself when the claim ends."""


@dataclass(frozen=True, slots=True)
class Message(Generic[P]):
    """A message that was sent to the entity."""

    key: str
    payload: P
    type: str | None
    """What its sender called it."""
    sender: str | None
    """The URL of who sent it: a principal's, or another entity's."""
    offset: str | None
    """The main stream's offset just after it."""
    event: dict[str, Any]
    """The whole event, as the stream has it; `event["value"]` holds what is not here."""


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal for the handler to act on."""

    key: str
    name: str
    """`SIGINT`, `SIGHUP`, `SIGUSR`, `SIGCONT`, …"""
    reason: str | None
    payload: Any
    sender: str | None
    offset: str | None
    event: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Child:
    """How a child's run ended."""

    url: str
    status: str
    """`completed` or `failed`."""
    response: str | None
    """All that the run wrote."""
    error: str | None


@dataclass(frozen=True, slots=True)
class WakeEvent:
    """Something happened that the entity watches: a child finished, a schedule came due."""

    key: str
    source: str | None
    """The path of what was watched."""
    changes: list[dict[str, Any]]
    child: Child | None
    """The child whose run ended, if that is what happened."""
    timeout: bool
    """Nothing happened for as long as was to be waited."""
    offset: str | None
    event: dict[str, Any]

    @property
    def payload(self) -> Any:
        """Of the first change that has one: a schedule's is what it is to do."""
        return next((each["payload"] for each in self.changes if "payload" in each), None)


Item = Message[Any] | Signal | WakeEvent


class Inbox:
    """The events read so far that are still open: later ones change what earlier ones said.

    A message is edited, cancelled or deleted, a signal was handled. What came after the claim's
    `tail` has arrived during the claim; the rest is what the claim delivers.
    """

    def __init__(self, tail: str | None) -> None:
        self.tail = tail
        self.edited = False
        """Whether a message of before these events was edited among them: it lacks the rest."""
        self._found: dict[tuple[str, str], Item] = {}
        self._events = 0
        self._late: set[tuple[str, str]] = set()

    def take(self, events: Iterable[Any]) -> list[Item]:
        """Read these events, which follow those read before. Returns what arrived with them."""
        arrived: dict[tuple[str, str], Item] = {}
        for event in events:
            self._events += 1
            if isinstance(event, dict) and event.get("type") in _MAKERS:
                name = self._take(event)
                if name in self._late and name in self._found:
                    arrived[name] = self._found[name]
                else:
                    arrived.pop(name, None)
        return list(arrived.values())

    def _take(self, event: dict[str, Any]) -> tuple[str, str]:
        kind, key = event["type"], str(event.get("key", ""))
        value, operation, offset = event.get("value"), _operation(event), offset_of(event)
        name = (kind, key or f"\0{self._events}")
        known = self._found.get(name)
        if operation == "delete":
            self._found.pop(name, None)
        elif isinstance(value, dict):
            if known is not None:
                value, offset = {**known.event["value"], **value}, known.offset
            elif kind == "inbox" and "payload" not in value:
                return name
            # Offsets are ordered as strings.
            elif offset is not None and self.tail is not None and offset > self.tail:
                self._late.add(name)
            elif kind == "inbox" and operation == "update":
                self.edited = True
            if _is_open(kind, value):
                self._found[name] = _MAKERS[kind](key, offset, {**event, "value": value})
            else:
                self._found.pop(name, None)
        return name

    def put_first(self, messages: Iterable[Message[Any]]) -> None:
        """Deliver these, of which edits may be among what was read, before all else."""
        first: dict[tuple[str, str], Item] = {}
        for message in messages:
            name = ("inbox", message.key)
            edit = self._found.get(name)
            if edit is not None and name in self._late:  # it arrives by that
                self._found[name] = replace(message, offset=edit.offset)
            else:
                first[name] = message
        self._found = {**first, **self._found, **first}

    def delivered(self) -> list[Item]:
        """What the claim delivers, oldest first."""
        return [item for name, item in self._found.items() if name not in self._late]

    def late(self) -> list[Item]:
        """What arrived during the claim, oldest first."""
        return [item for name, item in self._found.items() if name in self._late]


def waiting(events: Iterable[dict[str, Any]]) -> list[Message[Any]]:
    """The messages that wait in the queue after these, all inbox events of a stream:
    in its order, and up to one that is held back."""
    found: dict[str, Message[Any]] = {}
    for event in events:
        key, value, offset = str(event.get("key", "")), event.get("value"), offset_of(event)
        known = found.get(key)
        if _operation(event) == "delete":
            found.pop(key, None)
        elif isinstance(value, dict):
            if known is not None:
                value, offset = {**known.event["value"], **value}, known.offset
            found[key] = _message(key, offset, {**event, "value": value})
    queue = sorted(filter(is_queued, found.values()), key=position)
    return list(takewhile(lambda message: _is_open("inbox", message.event["value"]), queue))


def is_queued(message: Message[Any]) -> bool:
    """Whether it waits in the queue until a handler takes it."""
    return bool(message.event["value"].get("status") == "pending")


def position(message: Message[Any]) -> str:
    """Where in the queue it waits; positions are ordered as strings."""
    return str(message.event["value"].get("position", ""))


def _is_open(kind: str, value: Mapping[str, Any]) -> bool:
    if kind == "signal":
        return value.get("status") == "unhandled"
    if kind == "inbox":
        return value.get("status") != "cancelled" and value.get("mode") != "paused"
    return True


def offset_of(event: Mapping[str, Any]) -> str | None:
    """The main stream's offset just after it."""
    return _text(_headers(event).get("offset"))


def _operation(event: Mapping[str, Any]) -> object:
    return _headers(event).get("operation")


def _headers(event: Mapping[str, Any]) -> Mapping[str, Any]:
    headers = event.get("headers")
    return headers if isinstance(headers, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _message(key: str, offset: str | None, event: dict[str, Any]) -> Message[Any]:
    value = event["value"]
    return Message(
        key=key,
        payload=value.get("payload"),
        type=_text(value.get("message_type")),
        sender=_text(value.get("from")),
        offset=offset,
        event=event,
    )


def _signal(key: str, offset: str | None, event: dict[str, Any]) -> Signal:
    value = event["value"]
    return Signal(
        key=key,
        name=str(value.get("signal", "")),
        reason=_text(value.get("reason")),
        payload=value.get("payload"),
        sender=_text(value.get("sender")),
        offset=offset,
        event=event,
    )


def _wake_event(key: str, offset: str | None, event: dict[str, Any]) -> WakeEvent:
    value = event["value"]
    changes = value.get("changes")
    child = value.get("finished_child")
    return WakeEvent(
        key=key,
        source=_text(value.get("source")),
        changes=[each for each in changes if isinstance(each, dict)]
        if isinstance(changes, list)
        else [],
        child=_child(child) if isinstance(child, dict) else None,
        timeout=value.get("timeout") is True,
        offset=offset,
        event=event,
    )


def _child(told: Mapping[str, Any]) -> Child:
    return Child(
        url=str(told.get("url", "")),
        status=str(told.get("run_status", "")),
        response=_text(told.get("response")),
        error=_text(told.get("error")),
    )


_MAKERS: Mapping[str, Callable[[str, str | None, dict[str, Any]], Item]] = {
    "inbox": _message,
    "signal": _signal,
    "wake": _wake_event,
}


def for_the_handler(signal: Signal) -> bool:
    """Whether the handler has to act on it; on the others the server acts itself."""
    return signal.name not in _CLOSING


def typed(messages: Sequence[Message[Any]], model: type[P]) -> list[Message[P]]:
    """The messages with payloads of this msgspec or pydantic model. Raises BadPayload."""
    return [_typed(message, model) for message in messages]


def _typed(message: Message[Any], model: type[P]) -> Message[P]:
    try:
        payload = parse(message.payload, model)
    except ValueError as error:  # both libraries' errors are such
        who = f"the message {message.key} from {message.sender or 'nobody'}"
        raise BadPayload(f"{who} is not a valid {model.__name__}: {error}") from error
    return Message(
        message.key, payload, message.type, message.sender, message.offset, message.event
    )


def parse(value: Any, model: type[P]) -> P:
    """`value` as this model. Raises the library's own ValueError, TypeError for another class.

    Neither library is needed, nor imported: a model of one comes with it.
    """
    made: P
    if hasattr(model, "__struct_fields__"):
        made = sys.modules["msgspec"].convert(value, model)
    elif hasattr(model, "model_validate"):
        made = getattr(model, "model_validate")(value)  # noqa: B009  no class that is known here
    else:
        raise TypeError(f"{model!r} is neither a msgspec.Struct nor a pydantic model")
    return made
