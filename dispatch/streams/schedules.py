"""Schedules in an entity's manifest: one that sends a message at a time becomes a timer.

Whoever appends such an entry, a handler or a call of the API, has thereby set, replaced or
cancelled it. An entry that asks for something impossible is treated as if its time had come: it
fails, and its owner finds the reason in its manifest. A valid cron schedule is a registration.
"""

import uuid
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from django.db import connection
from django.db.models.query import QuerySet, RawQuerySet
from msgspec import Meta

from core import tracing
from core.bodies import JsonObject
from core.clock import from_iso
from core.errors import InvalidRequest
from dispatch import timers
from dispatch.cron import Cron
from dispatch.messages import Message
from dispatch.models import DispatchState, Entity, Timer
from dispatch.streams.events import operation_of, value_of

PREFIX = "schedule:"
"""Of the keys of schedules in a manifest."""
MAX_NAME = 256
"""Of a schedule's name, in characters."""

_Short = Annotated[str, Meta(min_length=1, max_length=240)]


class FutureSend(msgspec.Struct, kw_only=True):
    """An entry that sends a message at a time, once."""

    payload: Any
    fireAt: str  # noqa: N815
    producerId: _Short | None = None  # noqa: N815
    targetUrl: str | None = None  # noqa: N815
    senderUrl: str | None = None  # noqa: N815
    messageType: _Short | None = None  # noqa: N815


class CronSchedule(msgspec.Struct, kw_only=True):
    """An entry that wakes its owner repeatedly."""

    payload: Any
    expression: str
    timezone: str = "UTC"


def is_one(event: Any) -> bool:
    """Whether an event is a schedule's manifest entry."""
    match event:
        case {"type": "manifest", "key": str(key)}:
            return key.startswith(PREFIX)
    return False


def entry_of(owner_id: int, key: str) -> JsonObject:
    """The text of a schedule that has not sent its message yet; empty if there is none."""
    known = _pending(owner_id, key)
    entry: JsonObject = {} if known is None else msgspec.json.decode(known.entry)
    return entry


def _pending(owner_id: int, key: str) -> Timer | None:
    return Timer.objects.pending().filter(owner=owner_id, schedule=_name(key)).first()


def _name(key: str) -> str:
    return key.removeprefix(PREFIX)[:MAX_NAME]


def follow(state: DispatchState, event: Any, objection: str | None = None) -> None:
    """Do what an event, just appended to the stream of a locked entity, says about a schedule.

    A message from a handler's entry is sent with the rights of the entity's creator. ``objection``:
    why it cannot be sent. Raises InvalidRequest for a schedule without a name.
    """
    match event:
        case {"type": "manifest", "key": str(key)} if key == PREFIX:
            raise InvalidRequest.field("/key", "a schedule has an id")
        case {"type": "manifest", "key": str(key)} if is_one(event):
            _follow(state, key, event, objection)


def _follow(state: DispatchState, key: str, event: JsonObject, objection: str | None) -> None:
    operation, name = operation_of(event), _name(key)
    known = _pending(state.entity_id, key)
    entry: JsonObject = {**value_of(event), "key": key}
    if known is not None:
        former = msgspec.json.decode(known.entry)
        if operation == "update":
            entry = {**former, **entry}
        if entry == former and operation != "delete":
            return  # the same entry again
    timer = None
    if operation != "delete" and entry.get("status", "pending") == "pending":
        timer = _asked_for(state, name, entry)
    if timer is not None:
        timer.error = timer.error or objection or ""
        timers.add(timer)
    elif known is not None:
        timers.cancel(state.entity_id, name)


def _asked_for(state: DispatchState, name: str, entry: JsonObject) -> Timer | None:
    """The timer that a handler's entry asks for, or None."""
    owner = state.entity
    timer = Timer(
        owner=owner,
        schedule=name,
        entry=msgspec.json.encode(entry).decode(),
        principal=owner.created_by,
        near_only=state.near_only,
        due_at=state.now,
        created_at=state.now,
    )
    try:
        _require_name(entry["key"])
        if entry.get("scheduleType") == "future_send":
            fill(timer, msgspec.convert(entry, FutureSend))
            return timer
        if entry.get("scheduleType") == "cron":
            _parse(entry)
    except ValueError as problem:  # msgspec's errors, too
        timer.error = str(problem)
        return timer
    return None


def cron_of(entry: JsonObject) -> Cron | None:
    """When a schedule's entry says that its owner is woken, or None."""
    if entry.get("scheduleType") != "cron" or entry.get("status", "pending") != "pending":
        return None
    try:
        return _parse(entry)
    except ValueError:
        return None


def _parse(entry: JsonObject) -> Cron:
    cron = msgspec.convert(entry, CronSchedule)
    return Cron.parse(cron.expression, cron.timezone)


def _require_name(key: str) -> None:
    if len(key) > len(PREFIX) + MAX_NAME:
        raise ValueError(f"a schedule's id has at most {MAX_NAME} characters")


def fill(timer: Timer, entry: FutureSend) -> None:
    """Give a schedule's timer what its entry says. Raises ValueError."""
    owner = timer.owner
    assert owner is not None  # noqa: S101  it is a schedule's
    url = entry.targetUrl if entry.targetUrl is not None else owner.url
    sender = entry.senderUrl if entry.senderUrl is not None else owner.url
    if sender not in (owner.url, timer.principal):
        raise ValueError("senderUrl is neither the entity's nor that of whose rights hold")
    target = owner if url == owner.url else _held(url)
    if target is None:
        raise ValueError(f"there is no entity {url}"[:300])
    timer.due_at = max(from_iso(entry.fireAt), timer.due_at)
    # The same entry again after its message was sent sends nothing.
    producer = entry.producerId or f"{timer.schedule}-{entry.fireAt}"
    message = Message(
        entry.payload,
        sender,
        key=f"scheduled-{producer}"[:256],
        type=entry.messageType,
        principal=timer.principal,
        agent=owner.url if sender == owner.url else None,
        trace=tracing.cause(),
    )
    timers.fill(timer, target, message, str(uuid.uuid4()))


def hold_targets(state: DispatchState, events: Sequence[Any]) -> None:
    """Hold what several schedules of a locked entity send to, before a timer of one is locked."""
    entries = [event for event in events if is_one(event)]
    if len(entries) < 2:
        return
    said = [event["value"] for event in entries if isinstance(event.get("value"), dict)]
    urls = {entry["targetUrl"] for entry in said if isinstance(entry.get("targetUrl"), str)}
    names = {_name(event["key"]) for event in entries}
    known = Timer.objects.pending().filter(owner=state.entity_id, schedule__in=names)
    urls |= set(known.values_list("target_url", flat=True))
    others = urls - {state.entity.url}
    if others:
        list(_holding(Entity.objects.filter(url__in=others)))


def _held(url: str) -> Entity | None:
    """The entity at a URL, which nobody deletes before this transaction ends."""
    return next(iter(_holding(Entity.objects.filter(url=url))), None)


def _holding(entities: "QuerySet[Entity]") -> "RawQuerySet[Entity] | QuerySet[Entity]":
    if connection.vendor != "postgresql":
        return entities
    # Two that send to the same one need not wait for each other; Django does not know this lock.
    sql, params = entities.query.sql_with_params()
    return Entity.objects.raw(f"{sql} FOR SHARE", params)
