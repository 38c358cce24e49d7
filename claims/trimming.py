"""What a living entity keeps of its stream: by its type's retention, its oldest acked events go.

A type says how many acked events are kept (``retain_events``), for how many days
(``retain_days``), or both: then an event goes as soon as either lets it. Without either a type
keeps all, for a living entity's stream is its memory. As with all that a type asks, this holds for
the entities that were made under its registration, and no others.

What goes is always the beginning of a stream, a batch in a transaction that holds its dispatch
state, and never

- what is not acked, or anything while a claim is active: its handler may be reading the stream;
- a queued message that nobody has taken, or what came after it;
- a dead letter that can be redriven, for that sends the event anew;
- the message whose key a pending timer has, which keeps that from being sent a second time;
- what came since the last finished run that those who wait for runs here were told of: the next
  one's response, or that there will be none, is read from that.
"""

from collections.abc import Iterator
from datetime import timedelta
from itertools import takewhile

from django.db import transaction
from django.db.models import F, Min, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce, Now

from claims.models import DeadLetter
from core.clock import with_now
from dispatch import types, wakes
from dispatch.models import (
    DispatchState,
    EntityType,
    QueuedMessage,
    Registration,
    StreamEvent,
    Timer,
)


def trim(size: int) -> Iterator[int]:
    """Remove what living entities need not keep, ``size`` events at a time: how many went."""
    for entity_type in types.retaining():
        for entity_id in _to_trim(entity_type):
            while removed := _trim(entity_type, entity_id, size):
                yield removed


def count(size: int) -> int:
    """How many events `trim` would remove now."""
    found = 0
    for entity_type in types.retaining():
        for state in with_now(DispatchState.objects.filter(pk__in=_to_trim(entity_type))):
            kept_from, after = _kept_from(state), 0
            while batch := _batch(entity_type, state, after, kept_from, size):
                found += len(batch)
                after = batch[-1]
    return found


def _to_trim(entity_type: EntityType) -> list[int]:
    """The type's living entities whose oldest event is acked, and more or older than is kept."""
    oldest = StreamEvent.objects.filter(entity=OuterRef("pk")).order_by("offset")
    states = DispatchState.objects.filter(
        entity__type=entity_type.name,
        entity__registration=entity_type.registration,
        ended="",
        active_epoch=None,
    ).annotate(
        oldest=Subquery(oldest.values("offset")[:1]),
        since=Subquery(oldest.values("created_at")[:1]),
    )
    goes = Q(pk__in=[])
    if entity_type.retain_events is not None:
        goes |= Q(oldest__lte=F("cursor") - entity_type.retain_events)
    if entity_type.retain_days is not None:
        old = Now() - timedelta(days=entity_type.retain_days)
        goes |= Q(oldest__lte=F("cursor"), since__lt=old)
    return list(states.filter(goes).order_by("pk").values_list("pk", flat=True))


def _trim(entity_type: EntityType, entity_id: int, size: int) -> int:
    with transaction.atomic():
        states = DispatchState.objects.filter(pk=entity_id, ended="", active_epoch=None)
        state = wakes.try_lock(states)
        if state is None:
            return 0
        batch = _batch(entity_type, state, 0, _kept_from(state), size)
        if batch:
            StreamEvent.objects.filter(entity=entity_id, offset__lte=batch[-1]).delete()
    return len(batch)


def _batch(
    entity_type: EntityType, state: DispatchState, after: int, kept_from: int, size: int
) -> list[int]:
    """The offsets past ``after`` of the next events to go, ``size`` of them at the most."""
    most, days = entity_type.retain_events, entity_type.retain_days
    events = StreamEvent.objects.filter(
        entity=state.entity_id, offset__gt=after, offset__lt=kept_from
    )
    oldest = events.order_by("offset").values_list("offset", "created_at")[:size]
    surplus = 0 if most is None else state.cursor - most
    old = None if days is None else state.now - timedelta(days=days)
    return [
        offset
        for offset, created_at in takewhile(
            lambda row: row[0] <= surplus or (old is not None and row[1] < old), oldest
        )
    ]


def _kept_from(state: DispatchState) -> int:
    """The offset of the oldest event that something still needs."""
    queued = QueuedMessage.objects.filter(entity=state.entity_id)
    letters = DeadLetter.objects.filter(entity=state.entity_id, redriven_at=None)
    keys = Timer.objects.pending().filter(target=state.entity_id).values("key")
    sent = StreamEvent.objects.filter(entity=state.entity_id, message_key__in=keys)
    waiting = Registration.objects.filter(
        source_url=state.entity.url, condition=Registration.Condition.RUN_FINISHED, closed=False
    )
    needed: list[int | None] = [
        rows.aggregate(oldest=Min("offset"))["oldest"] for rows in (queued, letters, sent)
    ]
    told = waiting.aggregate(told=Min(Coalesce("last_offset", 0)))["told"]
    needed.append(None if told is None else told + 1)
    return min(each for each in (state.cursor + 1, *needed) if each is not None)
