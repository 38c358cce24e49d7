"""What is to be sent at a time: the only writer of timers. `dispatch.firing` fires them.

==========  ================================================================================
a timer is  when
==========  ================================================================================
pending     until its time has come; nothing of it ever changes
gone        its message was sent, in the same transaction; or it was cancelled
failed      its message could not be sent; it stays, for operators to see, until it is pruned
==========  ================================================================================

A schedule's is added and cancelled under its owner's lock. Who fires timers locks them first, and
waits for nobody: it goes round those whose owner or target somebody else has locked.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec
from django.db import connection
from django.db.models.functions import Now

from dispatch.messages import Message
from dispatch.models import Entity, Timer


def delay(target: Entity, message: Message, txid: str, due_at: datetime) -> None:
    """Have an entity, which is locked, sent a message at a time; one without a key gets one."""
    key = message.key if message.key is not None else f"scheduled-task-{txid}"
    timer = Timer(due_at=due_at)
    fill(timer, target, replace(message, key=key), txid)
    add(timer)


def fill(timer: Timer, target: Entity, message: Message, txid: str) -> None:
    """Give a timer, yet to be added, the message that it sends, which has a key."""
    timer.target = target
    timer.target_url = target.url
    timer.key = message.key or ""
    timer.message = msgspec.json.encode(message).decode()
    timer.txid = txid


def message_of(timer: Timer) -> Message:
    """What it sends."""
    return msgspec.json.decode(timer.message, type=Message)


def txid_of(target: Entity, key: str) -> str | None:
    """The txid of the message with this key that is to be sent to an entity, or None."""
    waiting = Timer.objects.pending().filter(target=target, key=key)
    return waiting.values_list("txid", flat=True).first()


def add(timer: Timer) -> None:
    """Add a timer; a schedule's replaces the former one of that name. Its owner is locked."""
    if timer.owner_id is not None:
        Timer.objects.filter(owner=timer.owner_id, schedule=timer.schedule).delete()
    timer.save(force_insert=True)


def cancel(owner_id: int, schedule: str | None = None) -> None:
    """An entity's schedule, or each of them, fires no more; the entity is locked."""
    pending = Timer.objects.pending().filter(owner=owner_id)
    (pending if schedule is None else pending.filter(schedule=schedule)).delete()


def lock_due(limit: int, **which: Any) -> list[Timer]:
    """Lock timers whose time has come, the most overdue first, but those that another has locked.

    Inside a transaction.
    """
    due = Timer.objects.due().filter(**which).order_by("due_at", "pk")
    skip = connection.features.has_select_for_update_skip_locked
    return list(due.select_for_update(skip_locked=skip)[:limit])


def end(fired: Iterable[int], failed: Mapping[int, str]) -> None:
    """Locked timers have fired, or failed for these reasons."""
    Timer.objects.filter(pk__in=list(fired)).delete()
    for pk, error in failed.items():
        Timer.objects.filter(pk=pk).update(failed_at=Now(), error=error)
