"""Send what is due: each timer's message once, by whichever server is first.

A timer is locked before the states of its target and its owner, and a locked row is never waited
for: it is left to the next round. So two servers that fire do not wait for each other, nor does one
that fires and one that cancels. The message, the owner's entry, the wakes and the end of the timer
are one transaction.
"""

import logging
from collections.abc import Iterable, Sequence

from django.db import transaction

from core.database import in_turns, is_lock_refused, is_passing
from core.principals import Principal
from dispatch import entities, schedules, timers, wakes
from dispatch.models import DispatchState, StreamEvent, Timer
from dispatch.shares import share
from dispatch.streams import registrations

logger = logging.getLogger(__name__)

BATCH = 100
"""Timers in one transaction, at the most."""


def fire_due(*, limit: int = BATCH) -> int:
    """Fire timers whose time has come, each creator's share: how many of at most ``limit``."""
    due = Timer.objects.due().order_by("due_at", "pk")
    keys = share(due.values_list("pk", flat=True), limit)
    if not keys:
        return 0  # and no lock is taken, which on SQLite would be the whole database's
    try:
        with transaction.atomic():
            # Another server may have just these: others may be due.
            return _fire(timers.lock_due(limit, pk__in=keys) or timers.lock_due(limit))
    except Exception as exc:
        if is_passing(exc) and not is_lock_refused(exc):
            raise  # the database is away, for these and for all others
        logger.warning("timers are fired one by one, for not together: %s", exc)
    return sum(map(_fire_alone, in_turns(keys)))


def _fire_alone(pk: int) -> int:
    """Fire one timer; one that fails is set aside, and does not keep the others waiting."""
    with transaction.atomic():
        due = timers.lock_due(1, pk=pk)
        try:
            with transaction.atomic():
                return _fire(due)
        except Exception as exc:
            if is_lock_refused(exc):
                logger.warning("timer %d is left to the next round: %s", pk, exc)
                return 0
            if is_passing(exc):
                raise
            logger.exception("timer %d could not be fired", pk)
            timers.end([], {pk: "The server failed; its log says how."})
            return 1


def _fire(due: Sequence[Timer]) -> int:
    """Fire locked timers, except those whose entities another transaction has locked: how many."""
    if not due:
        return 0
    problems = {timer.pk: _problem_with(timer) for timer in due}
    states = _lock_concerned(due)
    registrations.lock_at(states.values())
    free = [timer for timer in due if _concerned(timer) <= states.keys()]
    # Their owner ended while they were being locked: they are cancelled.
    dropped = [each for each in free if each.owner_id and states[each.owner_id].ended]
    free = [each for each in free if each not in dropped]
    sent = _sent_before(free)
    failed: dict[int, str] = {}
    for timer in free:
        target = None if timer.target_id is None else states[timer.target_id]
        closed = None if target is None else entities.why_not_sent(target)
        problem = problems[timer.pk] or (None if closed is None else closed.message)
        if problem is not None:
            failed[timer.pk] = problem
        elif target is not None and (timer.target_id, timer.key) not in sent:
            entities.deliver(target, timers.message_of(timer), timer.txid)
            sent.add((timer.target_id, timer.key))
    timers.end([each.pk for each in [*free, *dropped] if each.pk not in failed], failed)
    for timer in free:
        if timer.owner_id is not None:
            schedules.note(states[timer.owner_id], timer, failed.get(timer.pk))
    wakes.settle_all(states.values())
    return len(free) + len(dropped)


def _concerned(timer: Timer) -> set[int]:
    return {entity for entity in (timer.target_id, timer.owner_id) if entity is not None}


def _lock_concerned(due: Iterable[Timer]) -> dict[int, DispatchState]:
    """Lock the states, by entity, of timers' targets and owners, but none locked elsewhere."""
    concerned = set[int]().union(*map(_concerned, due))
    states = DispatchState.objects.filter(pk__in=concerned)
    return {state.entity_id: state for state in wakes.lock(states, skip_locked=True)}


def _sent_before(due: Sequence[Timer]) -> set[tuple[int | None, str | None]]:
    """The targets and keys of messages that were meanwhile sent directly."""
    known = StreamEvent.objects.filter(
        entity__in={each.target_id for each in due}, message_key__in={each.key for each in due}
    )
    return set(known.values_list("entity_id", "message_key"))


def _problem_with(timer: Timer) -> str | None:
    """What forbids sending a timer's message, besides its target's state; None if nothing.

    Its payload was checked when it was set: a check takes time, and other timers are due.
    """
    if timer.error or timer.target_id is None:
        return timer.error or f"The entity {timer.target_url} was deleted."
    if timer.owner_id is None:
        return None
    owner, target = timer.owner, timer.target
    if owner is None or target is None or timer.principal is None:
        return None
    if target != owner:
        near = not timer.near_only or entities.is_near(owner, target)
        if not (near and entities.may_act(target, Principal.parse(timer.principal))):
            return f"{target.url} is not its sender's to act on."
    return None
