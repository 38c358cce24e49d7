"""Messages in an entity's inbox: edited, cancelled and deleted.

A message is the sum of the events with its key. Each edit adds one more, from which
`dispatch.streams.work` sees what is still to be done.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from django.db import transaction
from django.db.models import QuerySet

from core.bodies import JsonObject
from core.clock import iso
from core.errors import InvalidRequest, NotFound, NotRunning
from dispatch import entities, types, wakes
from dispatch.models import DispatchState, Entity, QueuedMessage, StreamEvent
from dispatch.streams import log, work
from dispatch.streams.scan import naming, scan


def edit(entity: Entity, key: str, change: JsonObject) -> str:
    """Change a message's ``payload``, ``mode``, ``position`` or ``status``: the edit's txid.

    Raises NotFound for a message that does not exist, was cancelled or deleted, NotRunning for an
    entity that was killed, and InvalidRequest for a payload that its type does not allow, or a
    status that does not fit the mode.
    """
    message = _read(entity, key)
    if "payload" in change:  # before the lock, since a check takes time
        asked = message.require()
        kind = asked.get("message_type")
        types.check_message(types.of(entity), change["payload"], kind, type_path="/payload")
    with transaction.atomic():
        state = _lock(entity)
        known = message.followed_by(_events(entity, key, message.tail)).require()
        return _append(state, key, "update", _completed(state, known, change))


def delete(entity: Entity, key: str) -> str:
    """Delete a message: the deletion's txid. Raises NotFound, and NotRunning as `edit` does."""
    message = _read(entity, key)
    with transaction.atomic():
        state = _lock(entity)
        message.followed_by(_events(entity, key, message.tail)).require(cancelled=True)
        return _append(state, key, "delete", None)


def queued(state: DispatchState, *, up_to: int) -> "QuerySet[QueuedMessage]":
    """The messages up to an offset that wait in a locked entity's queue and are not held back."""
    waiting = QueuedMessage.objects.filter(entity=state.entity_id, held=False, offset__lte=up_to)
    return waiting.order_by("offset")


def cancel(state: DispatchState, keys: Sequence[str]) -> None:
    """Cancel these messages of a locked entity, if any; the caller settles it."""
    _update(state, keys, {"status": "cancelled", "cancelled_at": iso(state.now)})


def put_back(state: DispatchState, epoch: int) -> None:
    """Let the messages that this claim of a locked entity took wait in the queue again, if any.

    The caller settles it. They are pending and no more: what else they hold has not changed, and a
    handler takes them from the queue.
    """
    _update(state, work.untake(state, epoch), {"status": "pending"})


def _update(state: DispatchState, keys: Sequence[str], value: JsonObject) -> None:
    events = [_event(key, "update", value, str(uuid.uuid4())) for key in keys]
    if events:
        log.append(state, events)


def _completed(state: DispatchState, known: JsonObject, change: JsonObject) -> JsonObject:
    """The change with all that it implies: whether the message now waits in the queue."""
    value = dict(change)
    mode = value.get("mode", known.get("mode"))
    waits = mode in work.QUEUED_MODES
    if value.get("status") == "pending" and not waits:
        raise InvalidRequest.field("/status", "only messages of mode queued or paused wait")
    if "mode" in value:
        value.setdefault("status", "pending" if waits else "processed")
    status, waited = value.get("status"), known.get("status") == "pending"
    if status == "pending" and not waited:
        value["mode"] = mode
        value.setdefault("position", entities.end_of_queue(state))
    if status == "processed" and waited:
        value["processed_at"] = iso(state.now)
    if status == "cancelled":
        value["cancelled_at"] = iso(state.now)
    # It becomes work now, not when it was sent: handlers have been given what came since.
    moved = "mode" in value and change.get("status") in (None, "pending") and mode != "paused"
    if moved and (waited or waits or mode != known.get("mode")) and "payload" in known:
        value.setdefault("payload", known["payload"])
    return value


def _append(state: DispatchState, key: str, operation: str, value: JsonObject | None) -> str:
    txid = str(uuid.uuid4())
    log.append(state, [_event(key, operation, value, txid)])
    wakes.settle(state)
    return txid


def _event(key: str, operation: str, value: JsonObject | None, txid: str) -> JsonObject:
    event: JsonObject = {"type": "inbox", "key": key}
    if value is not None:
        event["value"] = value
    return {**event, "headers": {"operation": operation, "txid": txid}}


def _lock(entity: Entity) -> DispatchState:
    state = entities.lock(entity)
    if state.ended == DispatchState.End.KILLED:
        raise NotRunning("The entity is killed, and its stream closed.")
    return state


_NONE = "There is no such message."


@dataclass(frozen=True, slots=True)
class _Message:
    """The sum of a key's events up to an offset: None if they make no message."""

    value: JsonObject | None
    tail: int

    def followed_by(self, events: list[JsonObject]) -> "_Message":
        value = self.value
        for event in events:
            match event:
                case {"headers": {"operation": "delete"}}:
                    value = None
                case {"value": dict(changed)}:
                    value = {**(value or {}), **changed}
        return _Message(value, self.tail)

    def require(self, *, cancelled: bool = False) -> JsonObject:
        """Its value. Raises NotFound; with ``cancelled`` also for a message that was cancelled."""
        if self.value is None:
            raise NotFound(_NONE)
        if self.value.get("status") == "cancelled" and not cancelled:
            raise NotFound("The message was cancelled.")
        return self.value


def _read(entity: Entity, key: str) -> _Message:
    queued = QueuedMessage.objects.filter(entity=entity, key=key)
    sent = StreamEvent.objects.filter(entity=entity, message_key=key)
    first = sent.values_list("offset", flat=True).first() or (
        queued.values_list("offset", flat=True).first()
    )
    if first is None:  # found without reading the whole stream
        raise NotFound(_NONE)
    tail = entity.dispatch_state.tail
    none = _Message(None, tail)
    return none.followed_by(_events(entity, key, first - 1, up_to=tail))


def _events(entity: Entity, key: str, after: int, *, up_to: int | None = None) -> list[JsonObject]:
    """The inbox events of this key past an offset."""
    found = naming(StreamEvent.objects.filter(entity=entity, offset__gt=after), key)
    if up_to is not None:
        found = found.filter(offset__lte=up_to)
    return [
        event
        for event in (msgspec.json.decode(data) for _, data in scan(found))
        if isinstance(event, dict) and (event.get("type"), event.get("key")) == ("inbox", key)
    ]
