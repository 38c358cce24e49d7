"""An entity's stream as a person reads it: messages, the agent's text, runs, tools, errors.

Between them stand the claims and the cursor. A page is a range of offsets, read by index, so it
costs the same however long the stream is. Strangers wrote everything here: templates escape it, and
`_plain` makes hidden characters visible.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from django.db.models import Case, F, TextField, When
from django.db.models.functions import Left

from claims.models import ConsumerClaim, OrphanReason
from core.clock import with_now
from dispatch.models import DispatchState, Entity, StreamEvent
from dispatch.streams.scan import Bytes
from operators.kit.markup import decoded, plain, principal, shortened

PAGE = 100
"""Events of one page."""

CLAIMS = 50
"""Claims that a page tells of, the newest of its range; one that fails makes many and no event."""

LONGEST = 4_000
"""Characters of a text that are shown."""

LARGEST = 64 * 1024
"""Bytes of an event that is read for a page; of a larger one only that it is there."""

MOST_RAW = 500
"""Events whose JSON is shown together."""


@dataclass(frozen=True, slots=True)
class Item:
    """An item of the conversation; ``at`` is its place, ``join`` names what its text is a part of.

    ``kind`` is message, text, tool, error, signal, state, claim, cursor or removed; ``more`` is how
    many characters of ``text`` are left out.
    """

    kind: str
    at: float
    first: int = 0
    last: int = 0
    who: str = ""
    what: str = ""
    text: str = ""
    when: datetime | None = None
    join: str = ""
    more: int = 0
    claim: Any = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A page of it: its first and last offset, and whether there is more before it."""

    items: list[Item]
    first: int
    last: int
    older: bool
    state: Any
    now: datetime
    seen: str = field(default="")
    """What has not changed while it is the same: how long the stream is, and the newest claims."""


# --- A page -----------------------------------------------------------------------------------


def newest(entity: Entity, state: Any = None) -> Conversation:
    """The newest page; with the entity's dispatch ``state``, which has ``now``, if it is known."""
    state = state or _state(entity)
    rows, older = _before(entity, state.tail + 1)
    first = rows[0].offset if rows else state.tail + 1
    return _page(entity, state, rows, older=older, first=first, last=state.tail)


def before(entity: Entity, offset: int) -> Conversation:
    """The page that ends just before an offset."""
    state = _state(entity)
    rows, older = _before(entity, offset)
    first = rows[0].offset if rows else offset
    return _page(entity, state, rows, older=older, first=first, last=offset - 1)


def after(entity: Entity, offset: int) -> Conversation:
    """What came after an offset, at most a page, and the newest claims as they are."""
    state = _state(entity)
    rows = list(_read(entity).filter(offset__gt=offset).order_by("offset")[:PAGE])
    last = rows[-1].offset if rows else offset
    return _page(entity, state, rows, older=False, first=offset + 1, last=last, claims_from=0)


def raw(entity: Entity, first: int, last: int) -> str:
    """The JSON of these events."""
    events = StreamEvent.objects.filter(entity=entity, offset__gte=first, offset__lte=last)
    said = [decoded(each.data) for each in events.order_by("offset")[:MOST_RAW]]
    return "\n".join(json.dumps(each, indent=2, ensure_ascii=False) for each in said)


def _state(entity: Entity) -> Any:
    return with_now(DispatchState.objects.filter(pk=entity.pk)).get()


def _read(entity: Entity) -> Any:
    known = When(size__lte=LARGEST, then=F("data"))
    return (
        StreamEvent.objects.filter(entity=entity)
        .annotate(size=Bytes("data"))
        .annotate(text=Case(known, default=Left("data", 200), output_field=TextField()))
        .defer("data")
    )


def _before(entity: Entity, offset: int) -> tuple[list[Any], bool]:
    rows = list(_read(entity).filter(offset__lt=offset).order_by("-offset")[: PAGE + 1])
    older = len(rows) > PAGE
    return rows[:PAGE][::-1], older


def _page(
    entity: Entity,
    state: Any,
    rows: Sequence[Any],
    *,
    older: bool,
    first: int,
    last: int,
    claims_from: int | None = None,
) -> Conversation:
    begins = claims_from is None and not older
    begin = claims_from if claims_from is not None else first - begins
    held: Any = ConsumerClaim.objects.filter(
        entity=entity, delivered_offset__gte=begin, delivered_offset__lte=last
    )
    newest_first = held.with_orphan_reason().order_by("-delivered_offset", "-pk")
    claims = list(newest_first.defer("acked_streams")[:CLAIMS])[::-1]
    items = [*_joined(map(_item, rows)), *map(_claim, claims)]
    if first - 1 <= state.cursor <= last or claims_from is not None:
        items.append(Item("cursor", state.cursor + 0.25, what="Acked up to here"))
    if begins and first > 1:
        told = "Event 1 was" if first == 2 else f"Events 1 to {first - 1} were"
        items.append(Item("removed", first - 0.75, what=f"{told} removed"))
    items.sort(key=lambda each: each.at)
    facts = [(each.pk, each.status, each.orphan_reason) for each in claims]
    seen = hashlib.sha256(repr((state.tail, state.cursor, facts)).encode()).hexdigest()[:16]
    return Conversation(items, first, last, older, state, state.now, seen)


def _claim(claim: Any) -> Item:
    reason = OrphanReason(claim.orphan_reason).label if claim.orphan_reason else ""
    return Item("claim", claim.delivered_offset + 0.5, claim=claim, reason=reason)


def _joined(items: Iterable[Item]) -> list[Item]:
    """Join the texts of one run that follow each other."""
    joined: list[Item] = []
    for item in items:
        former = joined[-1] if joined else None
        if former is not None and item.join and former.join == item.join:
            text = former.text + item.text
            kept, more = text[:LONGEST], former.more + item.more + max(len(text) - LONGEST, 0)
            joined[-1] = replace(former, text=kept, more=more, last=item.last)
        else:
            joined.append(item)
    return joined


# --- An event ---------------------------------------------------------------------------------


def _item(row: Any) -> Item:
    if row.size > LARGEST:
        said = _Said("state", what="large event", text=f"{row.size} bytes: {row.text}…")
    else:
        event = decoded(row.text)
        said = _said(event) if isinstance(event, dict) else _Said("state", "event", "", event)
    text = plain(said.text if isinstance(said.text, str) else _json(said.text))
    return Item(
        said.kind,
        row.offset,
        first=row.offset,
        last=row.offset,
        who=plain(shortened(said.who, 300)),
        what=plain(shortened(said.what, 300)),
        text=text[:LONGEST],
        when=row.created_at,
        join=said.join,
        more=max(len(text) - LONGEST, 0),
    )


@dataclass(frozen=True, slots=True)
class _Said:
    """What an event says; ``text`` may be any JSON."""

    kind: str
    what: str = ""
    who: str = ""
    text: Any = ""
    join: str = ""


def _said(event: dict[str, Any]) -> _Said:
    kind, key = str(event.get("type", "event")), str(event.get("key", ""))
    value, headers = event.get("value"), event.get("headers")
    value = value if isinstance(value, dict) else {}
    operation = str(headers.get("operation", "")) if isinstance(headers, dict) else ""
    said = _TELLS[kind](key, value, operation) if kind in _TELLS else None
    if said is not None:
        return said
    told = event.get("value", {name: event[name] for name in event if name != "headers"})
    what = " ".join(each for each in (kind, key, operation) if each)
    return _Said("state", what, text="" if told == {} else told)


def _message(key: str, value: dict[str, Any], operation: str) -> _Said | None:
    if operation == "delete":
        return _Said("state", f"message {key} deleted")
    if "from" not in value:
        changed = ", ".join(f"{name} {_short(value[name])}" for name in value)
        return _Said("state", f"message {key} changed", text=changed)
    sender = value.get("from_agent") or value["from"]
    notes = [value.get("message_type"), value.get("mode"), value.get("status")]
    said = [str(each) for each in notes if each not in (None, "immediate", "processed")]
    return _Said("message", ", ".join(said), principal(str(sender)), _text_of(value.get("payload")))


def _text_of(payload: Any) -> Any:
    """The text of a payload, if it has one in a usual place, else the payload."""
    if isinstance(payload, dict):
        for name in ("text", "content", "message"):
            if isinstance(payload.get(name), str) and len(payload) == 1:
                return payload[name]
    return "" if payload is None else payload


def _delta(key: str, value: dict[str, Any], operation: str) -> _Said | None:
    delta = value.get("delta")
    if not isinstance(delta, str):
        return None
    return _Said("text", text=delta, join=f"text {value.get('run_id') or value.get('text_id')}")


def _output(key: str, value: dict[str, Any], operation: str) -> _Said | None:
    text = value.get("text")
    return _Said("text", text=f"{text}\n", join="output") if isinstance(text, str) else None


def _run(key: str, value: dict[str, Any], operation: str) -> _Said:
    reason = value.get("finish_reason") or value.get("reason") or ""
    return _Said("state", f"run {value.get('status', operation)}", text=str(reason))


def _tool(key: str, value: dict[str, Any], operation: str) -> _Said:
    name = value.get("tool_name") or value.get("name") or value.get("tool") or key
    status = value.get("status") or ("" if operation == "insert" else operation)
    told = [value[part] for part in ("args", "arguments", "input") if part in value][:1]
    told += [value[part] for part in ("result", "output", "error") if part in value][:1]
    text = "\n→ ".join(_short(part, 1_500) for part in told)
    return _Said("tool", " ".join(each for each in (str(name), str(status)) if each), text=text)


def _error(key: str, value: dict[str, Any], operation: str) -> _Said:
    code = value.get("error_code") or value.get("code") or ""
    return _Said("error", str(code), text=value.get("message", value))


def _signal(key: str, value: dict[str, Any], operation: str) -> _Said | None:
    if "signal" not in value:
        return _Said("state", f"signal {key} {value.get('status', operation)}")
    states = [str(value[name]) for name in ("previous_state", "new_state") if name in value]
    told = [f"{value['signal']} {value.get('status', '')}", " → ".join(dict.fromkeys(states))]
    who = principal(str(value.get("sender", "")))
    return _Said("signal", ", ".join(filter(None, told)), who, str(value.get("reason", "")))


def _wake(key: str, value: dict[str, Any], operation: str) -> _Said:
    source = str(value.get("source", ""))
    child = value.get("finished_child")
    if isinstance(child, dict):
        said = child.get("response") or child.get("error") or ""
        how = f"finished: {child.get('run_status', '')}"
        return _Said("message", how, str(child.get("url", source)), said)
    if value.get("timeout"):
        return _Said("state", f"nothing came of {source} in time")
    changes = value.get("changes")
    told = [each for each in changes if isinstance(each, dict)] if isinstance(changes, list) else []
    named = [f"{each.get('collection', '')} {each.get('kind', '')}" for each in told[:5]]
    return _Said("state", f"woken by {source}", text=", ".join(named))


def _created(key: str, value: dict[str, Any], operation: str) -> _Said:
    parent = value.get("parent_url")
    args = value.get("args")
    return _Said("state", f"created by {parent}" if parent else "created", text=args or "")


def _tag(key: str, value: dict[str, Any], operation: str) -> _Said:
    if operation == "delete":
        return _Said("state", f"tag {key} taken off")
    return _Said("state", f"tag {key}", text=str(value.get("value", "")))


def _short(value: Any, length: int = 200) -> str:
    return shortened(value if isinstance(value, str) else _json(value), length)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_TELLS = {
    "inbox": _message,
    "text_delta": _delta,
    "output": _output,
    "run": _run,
    "tool_call": _tool,
    "error": _error,
    "signal": _signal,
    "wake": _wake,
    "entity_created": _created,
    "tags": _tag,
}
"""Of a type of event what it says; None where it is not as it should be."""
