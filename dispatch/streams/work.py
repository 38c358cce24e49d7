"""Which events are work, and when work is done although nobody acked it.

An event that is work wakes its entity and is given to a handler until it is acked. `is_work`
decides that for each event as it is appended. `follow` records what later events say about earlier
ones: a message that is cancelled, deleted or held back is no longer work, nor is a signal that a
handler has handled. A queued message stays work, wherever the cursor is, until it is taken: a
handler takes one at a time, and acks the others with it. What a claim took is its own until the
claim acks it or ends: then it is done with (`finish`), or waits in its old place again (`untake`);
or until its handler says that it waits.
"""

from typing import Any

import msgspec

from core.bodies import JsonObject
from dispatch.models import DispatchState, QueuedMessage, StreamEvent, TakenMessage
from dispatch.streams.events import operation_of, value_of
from dispatch.streams.scan import naming, scan

QUEUED_MODES = ("queued", "paused")
"""Of messages that wait in the queue until a handler takes them."""
_FOR_THE_HANDLER = [("unhandled", name) for name in ("SIGINT", "SIGHUP", "SIGUSR", "SIGCONT")]

_PLACE = ("position", "offset", "held", "created_at")
"""The columns that say where a message waits, or did."""

MAX_POSITION = 1024
"""Bytes of a position that count."""

Event = Any
"""An event as it was sent: anything that is JSON."""


def is_work(event: Event, *, by_handler: bool) -> bool:
    """Whether this event wakes the entity. ``by_handler``: its own handler wrote it."""
    if by_handler or not isinstance(event, dict):
        return False
    kind, value = event.get("type"), value_of(event)
    if kind == "wake":
        return operation_of(event) != "delete"
    if kind == "signal":
        return (value.get("status"), value.get("signal")) in _FOR_THE_HANDLER
    if kind == "inbox":
        mode = value.get("mode")
        asks = "payload" in value or mode in ("queued", "steer")
        return asks and mode != "paused" and not _is_withdrawn(event)
    return False


def follow(state: DispatchState, event: Event, offset: int, *, by_handler: bool) -> None:
    """Record what an event, just appended, says about earlier ones; the caller saves."""
    if not isinstance(event, dict) or not isinstance(event.get("key"), str):
        return
    kind, is_insert = event.get("type"), operation_of(event) == "insert" and not by_handler
    if kind == "inbox":
        if is_insert:
            _enqueue(state, event, offset)
        else:
            _follow_message(state, event, offset, by_handler=by_handler)
    elif kind == "signal" and not is_insert and value_of(event).get("status") == "handled":
        _retract(state, "signal", event["key"])


def _enqueue(state: DispatchState, event: JsonObject, offset: int) -> None:
    value = value_of(event)
    if value.get("status") != "pending" or value.get("mode") not in QUEUED_MODES:
        return
    QueuedMessage.objects.create(
        entity_id=state.entity_id,
        key=event["key"],
        position=_position(value),
        offset=offset,
        held=value["mode"] == "paused",
        created_at=state.now,
    )
    _look_at_queue(state)


def _follow_message(
    state: DispatchState, event: JsonObject, offset: int, *, by_handler: bool
) -> None:
    """An update of a message holds only the fields that change."""
    key, value = event["key"], value_of(event)
    mode, status = value.get("mode"), value.get("status")
    queue = QueuedMessage.objects.filter(entity_id=state.entity_id)
    queued = queue.filter(key=key).first()
    if queued is None and by_handler and status == "pending":
        queued = _put_back(state, key)
    held = mode == "paused" if "mode" in value else queued is not None and queued.held
    if held or _is_withdrawn(event):
        _retract(state, "inbox", key)
    if queued is None:
        # What is decided of it now holds after the claim, too, and not what the claim took.
        if _is_withdrawn(event) or status == "pending" or (status is not None and not by_handler):
            TakenMessage.objects.filter(entity=state.entity_id, key=key).delete()
        if not by_handler:
            _enqueue(state, event, offset)
        return
    if _is_withdrawn(event) or status == "processed" or not (held or mode in (None, "queued")):
        queued.delete()
        if status == "processed":
            state.given_offset = None
            if by_handler:
                _take(state, queued)
    else:
        moved = {"position": _position(value)} if "position" in value else {}
        queue.filter(key=key).update(held=held, **moved)
    _look_at_queue(state)


def _take(state: DispatchState, queued: QueuedMessage) -> None:
    if state.active_epoch is None:  # it was taken on another server, long ago
        return
    taken = TakenMessage(**_facts(queued), epoch=state.active_epoch)
    # A server of the previous version leaves rows of claims that it has ended.
    TakenMessage.objects.bulk_create(
        [taken],
        update_conflicts=True,
        unique_fields=["entity", "key"],
        update_fields=[*_PLACE, "epoch"],
    )


def _put_back(state: DispatchState, key: str) -> QueuedMessage | None:
    """A handler lets a message that its claim took wait again, if it did take it."""
    taken = TakenMessage.objects.filter(entity=state.entity_id, epoch=state.active_epoch or 0)
    message = taken.filter(key=key).first()
    if message is None:
        return None
    message.delete()
    if not taken.exists():  # as if it had taken none, so that it is not given it for ever at once
        unacked = StreamEvent.objects.filter(entity_id=state.entity_id, work=True)
        given = unacked.filter(offset__gt=state.cursor, offset__lte=state.claimed_tail)
        state.given_offset = given.order_by("offset").values_list("offset", flat=True).first() or 0
    return QueuedMessage.objects.create(**_facts(message))


def _facts(message: QueuedMessage | TakenMessage) -> dict[str, Any]:
    """What stays the same of a message when it is taken, and when it is put back."""
    return {name: getattr(message, name) for name in ("entity_id", "key", *_PLACE)}


def finish(state: DispatchState, *, up_to: int | None = None) -> None:
    """What the active claim took from the queue is done: all of it, or that up to an offset."""
    taken = TakenMessage.objects.filter(entity=state.entity_id)
    if up_to is not None:
        taken = taken.filter(offset__lte=up_to)
    taken.delete()


def untake(state: DispatchState, epoch: int) -> list[str]:
    """What this claim took waits again, in its old place: the keys, oldest first.

    The caller says so in the stream.
    """
    taken = TakenMessage.objects.filter(entity=state.entity_id, epoch=epoch).order_by("offset")
    back = [QueuedMessage(**_facts(each)) for each in taken]
    QueuedMessage.objects.bulk_create(back)
    finish(state)
    return [each.key for each in back]


def _look_at_queue(state: DispatchState) -> None:
    # A message that is held back also stops those after it.
    queue = QueuedMessage.objects.filter(entity_id=state.entity_id)
    head = queue.order_by("position", "offset").first()
    state.queue_waiting = head is not None and not head.held


def _retract(state: DispatchState, kind: str, key: str) -> None:
    """Whatever is left to do of this message or signal is no longer work."""
    if state.last_work_offset <= state.cursor:
        return
    work = StreamEvent.objects.filter(entity_id=state.entity_id, work=True)
    unacked = naming(work.filter(offset__gt=state.cursor), key)
    retracted = []
    for offset, data in scan(unacked):
        said = msgspec.json.decode(data)
        if (said["type"], said["key"]) == (kind, key):
            retracted.append(offset)
    if retracted:
        work.filter(offset__in=retracted).update(work=False)
        newest = work.order_by("-offset").values_list("offset", flat=True).first()
        state.last_work_offset = newest or 0


def _position(value: JsonObject) -> bytes:
    return str(value.get("position", "")).encode()[:MAX_POSITION]


def _is_withdrawn(event: JsonObject) -> bool:
    return operation_of(event) == "delete" or value_of(event).get("status") == "cancelled"
