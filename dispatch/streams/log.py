"""Streams of events: append only, with offsets handed out under a lock until the commit.

An entity's main stream is locked by its dispatch state, a shared state's by its own row.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec

from core.bodies import JsonObject
from core.clock import from_iso
from core.prepared import Insert
from dispatch.models import DispatchState, SharedState, SharedStateEvent, StreamEvent
from dispatch.streams import (
    manifests,
    observing,
    offsets,
    registrations,
    schedules,
    waiters,
    work,
)

_ADD = Insert(StreamEvent)


def append(
    state: DispatchState,
    events: Sequence[Any],
    *,
    by_handler: bool = False,
    message_key: str | None = None,
    traces: Sequence[str | None] = (),
    objections: Mapping[int, str] | None = None,
) -> None:
    """Append events to the stream of an entity whose locked state this is; the caller saves it.

    Each event whose ``headers.operation`` is a string is given ``headers.offset``, the offset just
    after it. `work.is_work` decides which of them wake the entity; those that its own handler wrote
    (``by_handler``) never do. ``message_key`` is the key of an inbox message that must not arrive
    twice, which is then the only event; ``traces``, of each event or of none, are kept with them.
    Deliveries are recorded for those who wait for such events, and manifest events take effect,
    except for the ``objections``, by index, to messages that they schedule. Raises InvalidRequest
    for a manifest event that asks for something we do not do, and PayloadTooLarge for a handler's
    events of which too many would have to be told.
    """
    begin = state.tail
    rows = []
    for offset, event, data in _placed(events, begin):
        state.tail = offset
        is_work = work.is_work(event, by_handler=by_handler)
        if is_work:
            state.last_work_offset = offset
            state.retry_at = None  # it is worth a try at once, whatever failed before
        rows.append(
            StreamEvent(
                entity_id=state.entity_id,
                offset=offset,
                message_key=message_key,
                work=is_work,
                trace=traces[offset - begin - 1] if traces else None,
                data=data,
                created_at=state.now,
            )
        )
    if len(rows) == 1:
        _ADD.add(rows[0])
    else:
        StreamEvent.objects.bulk_create(rows)
    for offset, event in enumerate(events, start=begin + 1):
        work.follow(state, event, offset, by_handler=by_handler)
    orders: Sequence[registrations.Order] = ()
    if any(map(_is_manifest, events)):
        orders = manifests.orders(events)
        registrations.hold_names(orders)
        schedules.hold_targets(state, events)
        for index, event in enumerate(events):
            schedules.follow(state, event, (objections or {}).get(index))
        observing.follow(state, events)
    registrations.follow(state, events, begin, orders, in_part=not by_handler)
    waiters.announce(waiters.entity_stream_key(state.entity_id))


def _is_manifest(event: Any) -> bool:
    return isinstance(event, dict) and event.get("type") == "manifest"


def take_over(streams: Sequence[tuple[DispatchState, Sequence[JsonObject]]]) -> None:
    """Append what streams had on another server; the caller saves the states.

    Their effects happened there: nobody who waits is told, and manifest events ask for nothing.
    What was not acked there is work here. Each event has a type, and a message, signal or wake has
    a key; a message's key has at most 256 characters.
    """
    rows = []
    for state, events in streams:
        sent = set()
        for offset, event, data in _placed(events, state.tail):
            state.tail = offset
            is_work = work.is_work(event, by_handler=False)
            if is_work:
                state.last_work_offset = offset
            key = _key_of_message(event)
            rows.append(
                StreamEvent(
                    entity_id=state.entity_id,
                    offset=offset,
                    message_key=None if key in sent else key,
                    work=is_work,
                    data=data,
                    created_at=_moment(event, state.now),
                )
            )
            sent.add(key)
    StreamEvent.objects.bulk_create(rows, batch_size=1000)
    for state, events in streams:
        known = set()
        for offset, event in enumerate(events, start=state.tail - len(events) + 1):
            # A message that is sent again under its key changes the earlier one.
            named = (event["type"], event.get("key"))
            work.follow(state, event, offset, by_handler=named in known)
            known.add(named)


def _key_of_message(event: JsonObject) -> str | None:
    """The key of a message that is sent, not changed, and that names its transaction."""
    match event:
        case {
            "type": "inbox",
            "key": str(key),
            "headers": {"operation": "insert", "txid": str() | int()},
        }:
            return key
    return None


def _moment(event: JsonObject, now: datetime) -> datetime:
    """When an event says that it was appended; ``now`` if it does not."""
    for part in ("headers", "value"):
        said = event.get(part)
        timestamp = said.get("timestamp") if isinstance(said, dict) else None
        if isinstance(timestamp, str):
            with suppress(ValueError):
                return min(from_iso(timestamp), now)
    return now


def append_shared(state: SharedState, events: Sequence[Any]) -> None:
    """Append events to a locked shared state; the caller saves its tail.

    Each is given ``headers.offset`` as in `append`.
    """
    SharedStateEvent.objects.bulk_create(
        SharedStateEvent(state=state, offset=offset, data=data)
        for offset, _, data in _placed(events, state.tail)
    )
    state.tail += len(events)
    waiters.announce(waiters.shared_state_key(state.pk))


def _placed(events: Sequence[Any], begin: int) -> Iterator[tuple[int, Any, str]]:
    """Each event after this offset: its own offset, the event, and the text that readers get."""
    for offset, event in enumerate(events, start=begin + 1):
        yield offset, event, msgspec.json.encode(_with_offset(event, offset)).decode()


def _with_offset(event: Any, offset: int) -> Any:
    headers = event.get("headers") if isinstance(event, dict) else None
    if not isinstance(headers, dict) or not isinstance(headers.get("operation"), str):
        return event
    placed: JsonObject = {**event, "headers": {**headers, "offset": offsets.encode(offset)}}
    return placed
