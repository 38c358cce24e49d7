"""Schedules of entities: set and cancelled by a call, and how their manifest entries end.

Each is an entry in its entity's manifest; `dispatch.streams.schedules` does what such entries ask
for.
"""

import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
from django.db import transaction

from core.bodies import JsonObject
from core.clock import iso
from core.errors import Forbidden, InvalidRequest
from core.principals import Principal
from dispatch import entities, timers, types, wakes
from dispatch.cron import Cron
from dispatch.models import DispatchState, Entity, Timer
from dispatch.streams import log
from dispatch.streams import schedules as entries
from dispatch.streams.schedules import PREFIX, FutureSend, entry_of, is_one


def set_future_send(
    entity: Entity, name: str, asked: FutureSend, caller: Principal, *, near_only: bool
) -> str:
    """Have the entity send a message at a time, once, with the caller's rights: the txid.

    It replaces the schedule of that name. ``near_only``: the target must be near the entity. Raises
    NotFound for the target, Forbidden for one in which the caller lacks the rights, InvalidRequest
    for a payload that its type does not allow, NotRunning for an entity that has ended.
    """
    target = entity
    if asked.targetUrl not in (None, entity.url):
        _, type_name, target_name = str(asked.targetUrl).split("/")
        target = entities.find(type_name, target_name)
        near = not near_only or entities.is_near(entity, target)
        if not (near and entities.may_act(target, caller)):
            raise Forbidden(f"{target.url} is not the caller's to act on.")
    kind = asked.messageType
    if kind is not None:
        types.check_message(types.of(target), asked.payload, kind, type_path="/messageType")
    asked = msgspec.structs.replace(asked, producerId=str(uuid.uuid4()), targetUrl=target.url)
    said = {
        field: value for field, value in msgspec.structs.asdict(asked).items() if value is not None
    }
    value = {**_named(name, "future_send"), **said, "status": "pending"}
    with transaction.atomic():
        state = entities.lock_open(entity)
        timer = Timer(
            owner=entity,
            schedule=name,
            entry=msgspec.json.encode(value).decode(),
            principal=caller.url,
            near_only=near_only,
            due_at=state.now,
            created_at=state.now,
        )
        try:
            entries.fill(timer, asked)
        except ValueError as problem:
            raise InvalidRequest(f"This cannot be sent: {problem}.") from None
        timers.add(timer)
        return _append(state, name, "upsert", value)


def set_cron(
    entity: Entity, name: str, cron: Cron, payload: Any, *, debounce_ms: int, timeout_ms: int
) -> str:
    """Have the entity woken whenever a cron expression ticks: the txid.

    It replaces the schedule of that name. Raises NotRunning for an entity that has ended.
    """
    wake = {"on": "change", "debounceMs": debounce_ms, "timeoutMs": timeout_ms}
    value = {
        **_named(name, "cron"),
        "expression": cron.expression,
        "timezone": cron.timezone,
        "payload": payload,
        "wake": {field: each for field, each in wake.items() if each},
    }
    with transaction.atomic():
        return _append(entities.lock_open(entity), name, "upsert", value)


def cancel(entity: Entity, name: str) -> str:
    """Cancel a schedule, if it exists: the txid. Raises NotRunning for an entity that has ended."""
    with transaction.atomic():
        return _append(entities.lock_open(entity), name, "delete", None)


def objections(owner: Entity, events: Sequence[Any]) -> dict[int, str]:
    """What types have against messages that a handler's entries schedule, by index of the event.

    Looked up before the owner is locked, since a check takes time; firing a timer then takes none.
    Whether the creator has rights in the target is checked when it fires.
    """
    found: dict[int, str] = {}
    known: dict[str, JsonObject] = {}
    for index, event in enumerate(events):
        said = event.get("value") if is_one(event) else None
        if not isinstance(said, dict):
            continue
        key, entry = event["key"], said
        match event:
            case {"headers": {"operation": "update"}}:
                entry = {**(known.get(key) or entry_of(owner.pk, key)), **said}
        known[key] = entry
        problem = _objection(owner, entry)
        if problem is not None:
            found[index] = problem
    return found


def _objection(owner: Entity, entry: JsonObject) -> str | None:
    kind = entry.get("messageType")
    if entry.get("scheduleType") != "future_send" or not isinstance(kind, str):
        return None
    url = entry.get("targetUrl", owner.url)
    target = owner if url == owner.url else entities.at(url) if isinstance(url, str) else None
    if target is None or not entities.may_act(target, Principal.parse(owner.created_by)):
        return None
    try:
        payload = entry.get("payload")
        types.check_message(types.of(target), payload, kind, type_path="/messageType")
    except InvalidRequest as problem:
        return problem.message
    return None


def note(state: DispatchState, timer: Timer, error: str | None) -> None:
    """Append to the owner's stream that its schedule's message was sent, or why it was not.

    ``state`` is the owner's locked state; the caller saves it.
    """
    entry = msgspec.json.decode(timer.entry)
    if error is None:
        outcome = {"status": "sent", "sentAt": iso(state.now)}
    else:
        outcome = {"status": "failed", "failedAt": iso(state.now), "lastError": error}
    headers = {"operation": "update", "timestamp": iso(state.now)}
    value = {**entry, **outcome}
    event = {"type": "manifest", "key": entry["key"], "value": value, "headers": headers}
    log.append(state, [event])


def _named(name: str, kind: str) -> JsonObject:
    return {"key": PREFIX + name, "kind": "schedule", "id": name, "scheduleType": kind}


def _append(state: DispatchState, name: str, operation: str, value: JsonObject | None) -> str:
    txid = str(uuid.uuid4())
    headers = {"operation": operation, "timestamp": iso(state.now), "txid": txid}
    event: JsonObject = {"type": "manifest", "key": PREFIX + name}
    if value is not None:
        event["value"] = value
    log.append(state, [{**event, "headers": headers}])
    wakes.save(state)
    return txid
