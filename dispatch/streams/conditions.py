"""What a subscriber may wait for at a source, and which events match."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from core.bodies import Body, JsonObject
from dispatch.models import Registration
from dispatch.streams.events import operation_of

DebounceMs = Annotated[int, Meta(ge=0, le=3_600_000)]
TimeoutMs = Annotated[int, Meta(ge=0, le=30 * 24 * 3_600_000)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]


class RunFinished(Body, frozen=True, kw_only=True, tag_field="on", tag="runFinished"):
    """A run of the source ends."""

    includeResponse: bool | UnsetType = UNSET  # noqa: N815
    """Whether the run's text comes with the wake; true unless said otherwise."""
    debounceMs: DebounceMs | UnsetType = UNSET  # noqa: N815
    """Milliseconds to wait after the last run, and then wake once for all."""
    timeoutMs: TimeoutMs | UnsetType = UNSET  # noqa: N815
    """Milliseconds after which it is woken if no run finished; 0 is never."""


class Change(Body, frozen=True, kw_only=True, tag_field="on", tag="change"):
    """An event arrives: of any collection and operation, or of these."""

    collections: Annotated[list[Name], Meta(max_length=64)] | UnsetType = UNSET
    """The collections that count, by their name or the type of their events; all unless said
    otherwise.
    """
    ops: list[Literal["insert", "update", "delete"]] | UnsetType = UNSET
    """The operations that count; all unless said otherwise."""
    includeResponse: bool | UnsetType = UNSET  # noqa: N815
    """Whether a finished run's text comes with the wake; true unless said otherwise."""
    debounceMs: DebounceMs | UnsetType = UNSET  # noqa: N815
    """Milliseconds to wait after the last change, and then wake once for all."""
    timeoutMs: TimeoutMs | UnsetType = UNSET  # noqa: N815
    """Milliseconds after which it is woken if nothing changed; 0 is never."""


Condition = Literal["runFinished"] | RunFinished | Change


@dataclass(frozen=True, slots=True)
class Wish:
    """What to wait for, as a `Registration` stores it.

    ``types`` are the event types of collections with other names; None if the caller named none.
    """

    condition: Registration.Condition
    collections: tuple[str, ...] = ()
    types: Mapping[str, str] | None = None
    ops: tuple[str, ...] = ()
    include_response: bool = True
    debounce_ms: int = 0
    timeout_ms: int = 0


def wish(
    condition: Condition,
    *,
    include_response: bool | UnsetType = UNSET,
    debounce_ms: int | UnsetType = UNSET,
    timeout_ms: int | UnsetType = UNSET,
    types: Mapping[str, str] | None = None,
) -> Wish:
    """What a condition asks for; fields beside the condition win over fields in it."""
    if condition == "runFinished":
        condition = RunFinished()
    assert not isinstance(condition, str)  # noqa: S101  there is no other such word
    watches_changes = isinstance(condition, Change)
    names = (condition.collections or ()) if isinstance(condition, Change) else ()
    ops = (condition.ops or ()) if isinstance(condition, Change) else ()
    told = condition.includeResponse if include_response is UNSET else include_response
    Kind = Registration.Condition  # noqa: N806
    return Wish(
        Kind.CHANGE if watches_changes else Kind.RUN_FINISHED,
        collections=tuple(sorted(set(names))),
        types=types,
        ops=tuple(sorted(set(ops))),
        include_response=told is not False,
        debounce_ms=(condition.debounceMs if debounce_ms is UNSET else debounce_ms) or 0,
        timeout_ms=(condition.timeoutMs if timeout_ms is UNSET else timeout_ms) or 0,
    )


@lru_cache(maxsize=4096)
def _types_of(name: str) -> frozenset[str]:
    """The event types that a collection's name may mean: ``toolCalls`` are of type tool_call."""
    snake = re.sub(r"(?<=[a-z0-9])[A-Z]", lambda capital: f"_{capital[0]}", name).lower()
    return frozenset((name, f"state:{name}", snake, snake.removesuffix("s")))


def types_of(registration: Registration) -> set[str]:
    """The event types that a registration's collections may mean; it has some."""
    said = registration.types
    named = {said[name] for name in registration.collections if said.get(name)}
    return named.union(*map(_types_of, registration.collections))


_KINDS = ("insert", "update", "delete")

Placed = tuple[int, Any]
"""An event, and before it the offset just after it."""

# --- Events -----------------------------------------------------------------------------------


def is_finished_run(event: Any) -> bool:
    """Whether this event says that a run ended."""
    match event:
        case {
            "type": "run",
            "key": str(),
            "value": {"status": "completed" | "failed"},
            "headers": {"operation": "update"},
        }:
            return True
    return False


def is_begun_run(event: Any) -> bool:
    """Whether this event says that a run began."""
    return isinstance(event, dict) and event.get("type") == "run" and _kind(event) == "insert"


def matches(registration: Registration, event: Any) -> bool:
    """Whether this event is what the registration waits for."""
    return bool(Heard([event], 0).by(registration))


class Heard:
    """Events past an offset, by what may be waited for: looking for a match does not try each.

    There may be a thousand registrations at a source, and ten thousand events in an append.
    """

    def __init__(self, events: Iterable[Any], after: int) -> None:
        self._runs: list[Placed] = []
        self._by_kind: dict[str, list[Placed]] = {}
        self._by_type: dict[tuple[str, str], list[Placed]] = {}
        for placed in enumerate(events, start=after + 1):
            event = placed[1]
            if is_finished_run(event):
                self._runs.append(placed)
            if is_change(event):
                kind = _kind(event)
                self._by_kind.setdefault(kind, []).append(placed)
                self._by_type.setdefault((event["type"], kind), []).append(placed)

    def by(self, registration: Registration) -> list[Placed]:
        """What the registration waits for of these, in order, each with its offset."""
        if registration.condition == Registration.Condition.RUN_FINISHED:
            return self._runs
        kinds = registration.ops or _KINDS
        if registration.collections:
            types = types_of(registration)
            found = [self._by_type.get((each, kind), []) for each in types for kind in kinds]
        else:
            found = [self._by_kind.get(kind, []) for kind in kinds]
        return sorted(chain.from_iterable(found), key=itemgetter(0))


def is_change(event: Any) -> bool:
    """Whether this event can be waited for as a change.

    A `wake` never can: two entities that watch each other would wake each other for ever.
    """
    return (
        isinstance(event, dict) and isinstance(event.get("type"), str) and event["type"] != "wake"
    )


_OF_A_MESSAGE = ("from", "from_principal", "from_agent", "payload", "timestamp", "message_type")


def change(registration: Registration, event: JsonObject) -> JsonObject:
    """What a wake says about a matching event."""
    runs = registration.condition == Registration.Condition.RUN_FINISHED
    said: JsonObject = {
        "collection": "runs" if runs else event["type"],
        "kind": _kind(event),
        "key": event.get("key", ""),
    }
    value = event.get("value")
    if not isinstance(value, dict):
        return said
    told = ["value", "oldValue"]
    if event["type"] == "inbox":
        told += _OF_A_MESSAGE
    return said | {name: value[name] for name in told if name in value}


def _kind(event: JsonObject) -> str:
    operation = operation_of(event)
    return str(operation) if operation in ("update", "delete") else "insert"
