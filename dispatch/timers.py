"""What is to be sent at a time: the only writer of timers. `dispatch.firing` fires them.

==========  ================================================================================
a timer is  when
==========  ================================================================================
pending     until its time has come; nothing of it ever changes
gone        its message was sent, in the same transaction; or it was cancelled
failed      its message could not be sent; it stays, for operators to see, until it is pruned
==========  ================================================================================

A schedule's is added and cancelled under its owner's lock. Whatever fires timers locks them first,
and waits for nobody: it passes over those whose owner or target somebody else has locked.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec
from django.conf import settings
from django.db.models import Q
from django.db.models.functions import Now

from core import quotas
from core.database import can_skip_locked
from dispatch.messages import Message
from dispatch.models import Entity, Timer, TimerQuerySet


def delay(target: Entity, message: Message, txid: str, due_at: datetime) -> None:
    """Have a locked entity sent a message at a time; a message without a key is given one."""
    key = message.key if message.key is not None else f"scheduled-task-{txid}"
    timer = Timer(due_at=due_at)
    fill(timer, target, replace(message, key=key), txid)
    add(timer)


def fill(timer: Timer, target: Entity, message: Message, txid: str) -> None:
    """Give a timer that is not added yet the message that it will send, which has a key."""
    timer.target = target
    timer.target_url = target.url
    timer.key = message.key or ""
    timer.message = msgspec.json.encode(message).decode()
    timer.txid = txid


def message_of(timer: Timer) -> Message:
    """The message that it sends."""
    return msgspec.json.decode(timer.message, type=Message)


def txid_of(target: Entity, key: str) -> str | None:
    """The txid of the pending message with this key to an entity, or None."""
    waiting = Timer.objects.pending().filter(target=target, key=key)
    return waiting.values_list("txid", flat=True).first()


def add(timer: Timer) -> None:
    """Add a timer; a schedule's replaces the former one of that name. Its owner is locked.

    Raises RateLimited past PULLWAKE_MAX_TIMERS of its entity's creator.
    """
    entity = timer.owner or timer.target
    assert entity is not None  # noqa: S101  a target is deleted only later
    timer.creator = entity.created_by
    replaced = 0
    if timer.owner_id is not None:
        former = Timer.objects.filter(owner=timer.owner_id, schedule=timer.schedule)
        replaced, _ = former.delete()
    if not replaced:
        own = Timer.objects.pending().filter(creator=timer.creator)
        quotas.take("timers", settings.PULLWAKE_MAX_TIMERS, timer.creator, own.count)
    timer.save(force_insert=True)


def cancel(owner_id: int, schedule: str) -> None:
    """Cancel an entity's schedule; the entity is locked."""
    Timer.objects.pending().filter(owner=owner_id, schedule=schedule).delete()


def cancel_all(owner_id: int) -> None:
    """Cancel all schedules of a locked entity that ended.

    This waits for nobody: a process that holds one of the timers finds the owner ended, and drops
    it.
    """
    pending = Timer.objects.pending().filter(owner=owner_id)
    keys = list(_unused(pending).values_list("pk", flat=True))
    if keys:
        Timer.objects.filter(pk__in=keys).delete()


def let_go(entity_id: int) -> None:
    """A locked entity is about to be deleted: its schedules go; timers aimed at it will fail."""
    concerned = Timer.objects.filter(Q(owner=entity_id) | Q(target=entity_id))
    # In one order: two that are deleted may have schedules for each other.
    list(concerned.order_by("pk").select_for_update().values_list("pk"))
    Timer.objects.filter(owner=entity_id).delete()
    Timer.objects.filter(target=entity_id).update(target=None)


def lock_due(limit: int, **which: Any) -> list[Timer]:
    """Lock due timers, the most overdue first, skipping those that another has locked.

    Inside a transaction.
    """
    due = Timer.objects.due().filter(**which).order_by("due_at", "pk")
    return list(_unused(due)[:limit])


def _unused(timers: TimerQuerySet) -> TimerQuerySet:
    return timers.select_for_update(skip_locked=can_skip_locked())


def end(fired: Iterable[int], failed: Mapping[int, str]) -> None:
    """Record that locked timers have fired, or failed for these reasons."""
    Timer.objects.filter(pk__in=list(fired)).delete()
    for pk, error in failed.items():
        Timer.objects.filter(pk=pk).update(failed_at=Now(), error=error)
