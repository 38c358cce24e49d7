"""When an entity's runner is woken: the only writer of dispatch states and wakes.

==================  ========================================================================
an entity is        when
==================  ========================================================================
pending             work lies past its cursor, or its queue has a message to take
due                 pending, awake, with a runner, and not within its delay after a failure
claimed             a claim is active: nothing is emitted, the end of the claim looks again
outstanding         its wake is emitted and unclaimed: nothing more is emitted
==================  ========================================================================

`settle` is called, under the lock of the dispatch state, at the end of whatever may have made an
entity due. It emits a wake if, and only if, none is outstanding and no claim is active; so two
sends that race, or a send that races a done, make one wake and never none.

`dispatch.streams.work` says what is work. A wake is outstanding, and ends as claimed (`take`) or
withdrawn (`withdraw`). Emitting it again (`reemit`) gives it a new offset and keeps its generation.
Lock order: dispatch state, claim, wake, then the tail of the runner's wake stream; a runner that
must not be deleted is locked before all.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from django.conf import settings
from django.db import connection, transaction
from django.db.models import DateTimeField, ExpressionWrapper, F, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Greatest, Now

from core.clock import Milliseconds, epoch_ms, now_sql, with_now
from core.database import (
    HeldBriefly,
    WaitsBriefly,
    can_skip_locked,
    in_turns,
    is_lock_refused,
    leave,
)
from core.identifiers import new_id
from core.metrics import type_name
from core.prepared import Insert, Param, SaveChanged, Select, Update, Values, relate
from dispatch import timers
from dispatch.metrics import WAKES_EMITTED, WAKES_EMITTED_AGAIN
from dispatch.models import (
    DispatchState,
    DispatchStateQuerySet,
    Entity,
    StreamEvent,
    Wake,
    WakeQuerySet,
)
from dispatch.streams import registrations, waiters
from runners import changes
from runners.models import Runner, WakeStream

logger = logging.getLogger(__name__)

MAX_DELAY = timedelta(hours=1)
"""The longest that an entity waits after a failure."""


def lock(states: DispatchStateQuerySet, *, skip_locked: bool = False) -> list[DispatchState]:
    """Lock these dispatch states in the one order that cannot deadlock; inside a transaction.

    Each gets ``now``, the database's time. ``skip_locked`` leaves out those that another holds.
    """
    locking = _locking(states, skip_locked=skip_locked and can_skip_locked())
    return [remember(state) for state in locking]


def try_lock(states: DispatchStateQuerySet) -> DispatchState | None:
    """`lock` for the one state of these; None if it is gone, or another holds it.

    Its transaction waits for no other lock for long, either.
    """
    return next(iter(lock(states.filter(WaitsBriefly()), skip_locked=True)), None)


State = TypeVar("State", DispatchState, DispatchState | None)


def remember(state: State) -> State:
    """A state that was just locked, with how it is in the database, and what its feed shows."""
    if state is not None:
        state.kept = vars(state).copy()
        state.before = state.seen
    return state


def _locking(states: DispatchStateQuerySet, *, skip_locked: bool = False) -> DispatchStateQuerySet:
    return _locking_alone(states.select_related("entity"), skip_locked=skip_locked)


def _locking_alone(
    states: DispatchStateQuerySet, *, skip_locked: bool = False
) -> DispatchStateQuerySet:
    return (
        with_now(states)
        .order_by("entity_id")
        .select_for_update(of=("self",), skip_locked=skip_locked)
    )


_STATE_OF = Select(lambda: _locking(DispatchState.objects.filter(entity=Param("entity"))))
_STATE_ALONE = Select(lambda: _locking_alone(DispatchState.objects.filter(entity=Param("entity"))))


def lock_alone(entity: Entity) -> DispatchState | None:
    """`lock` for the state of an entity that is at hand; None when it was deleted."""
    state = remember(_STATE_ALONE.first(entity=entity.pk))
    if state is not None:
        relate(state, "entity", entity)
    return state


def lock_of(entity_id: int) -> DispatchState | None:
    """`lock` for the state of this entity; None when it was deleted."""
    return remember(_STATE_OF.first(entity=entity_id))


def _takable(**which: Any) -> DispatchStateQuerySet:
    """Which states are locked to be taken: with ``first_work``, which `take` needs.

    And with ``runner_owner``: by the time of a claim, another may have registered its runner's id.
    It is no condition, by which PostgreSQL might look through all states of a runner.
    """
    owner = Runner.objects.filter(pk=OuterRef("runner")).values("owner_principal")
    known = {"runner_owner": Subquery(owner)}
    return _locking(DispatchState.objects.with_first_work().annotate(**known).filter(**which))


_STATE_CLAIMED = Select(lambda: _takable(entity=Param("entity")))


def lock_claimed(entity_id: int) -> DispatchState | None:
    """`lock_of` for a state to be taken."""
    return remember(_STATE_CLAIMED.first(entity=entity_id))


_STATE_SUBSCRIBED = Select(
    lambda: _takable(runner=Param("runner"), entity__subscription_key=Param("subscription_key"))
)


def lock_subscribed(runner_id: str, subscription_key: str) -> DispatchState | None:
    """`lock` for the runner's state with this subscription, to be taken; None if there is none."""
    found = _STATE_SUBSCRIBED.first(runner=runner_id, subscription_key=subscription_key)
    return remember(found)


_STATE_OLDEST = Select(
    # Its runner is its wake's.
    lambda: _takable(
        outstanding_wake=Subquery(
            Wake.objects.outstanding()
            .filter(runner=Param("runner"))
            .order_by("pk")
            .values("pk")[:1]
        )
    )
)


def lock_oldest(runner_id: str) -> DispatchState | None:
    """`lock` for the state with the runner's oldest wake, to be taken; None if there is none."""
    return remember(_STATE_OLDEST.first(runner=runner_id))


_BEGIN = Insert(DispatchState, watched=registrations.watched_from_birth(Param("url")))


def begin(entity: Entity, runner: Runner | None) -> DispatchState:
    """The locked dispatch state of an entity that has just been made; with the entity as stored.

    The caller has locked the name of its URL.
    """
    _BEGIN.add(DispatchState(entity=entity, runner=runner), url=entity.url)
    state = lock_of(entity.pk)
    assert state is not None  # noqa: S101  it was made just now
    _show(entity, runner)
    return state


def begin_all(states: Sequence[DispatchState]) -> int:
    """Add these states, of entities just made, and wake those that are due: how many.

    Inside a transaction.
    """
    DispatchState.objects.bulk_create(states)
    changes.write_all(changes.Kind.ENTITY, [_shown(each.entity, each.runner) for each in states])
    waiters.announce(waiters.ENTITY_FEED)
    ready = [state.pk for state in states if state.due]
    settle_all(lock(DispatchState.objects.filter(pk__in=ready)) if ready else ())
    return len(ready)


def _show(entity: Entity, runner: Runner | None) -> None:
    """Show an entity in the feeds of its creator and of the owner of its runner."""
    changes.write(changes.Kind.ENTITY, **_shown(entity, runner))
    waiters.announce(waiters.ENTITY_FEED)


def _shown(entity: Entity, runner: Runner | None) -> dict[str, str]:
    owner = "" if runner is None else runner.owner_principal
    return {
        "key": entity.url,
        "owner": entity.created_by,
        "other_owner": "" if owner == entity.created_by else owner,
        "type": entity.type,
        "registration": entity.registration,
    }


_SAVE = SaveChanged(DispatchState)


def save(state: DispatchState) -> None:
    """Write a locked dispatch state back, and tell the feed of entities if it shows the change."""
    if not _write(state):
        return
    if not changes.note(changes.Kind.ENTITY, state.entity.url):
        # A server of the previous version created it.
        _show(state.entity, state.runner)
    waiters.announce(waiters.ENTITY_FEED)


def _save_all(states: Iterable[DispatchState]) -> None:
    """`save` for states of different entities, and the feed is told in one statement."""
    changed = {state.entity.url: state for state in states if _write(state)}
    if not changed:
        return
    for url in changes.note_all(changes.Kind.ENTITY, changed.keys()):
        _show(changed[url].entity, changed[url].runner)
    waiters.announce(waiters.ENTITY_FEED)


def _write(state: DispatchState) -> bool:
    """Write a state back: whether the feed of entities shows the change."""
    _SAVE.save(state, state.kept)
    seen = state.seen
    changed = seen != state.before
    state.before = seen
    return changed


def watch(url: str, level: DispatchState.Watched) -> bool:
    """Have the entity at a URL look up registrations from now on: whether there is such an entity.

    It is locked until the transaction ends. Outside a transaction, appends in progress to its
    stream are waited for.
    """
    states = DispatchState.objects.filter(entity__url=url)
    return bool(states.update(watched=Greatest("watched", level)))


def settle(state: DispatchState) -> Wake | None:
    """Do what the state of an entity requires, and save it: the new wake, or None.

    An entity without a claim that was asked to stop stops; one that is due is woken. One that is
    paused, or whose work was withdrawn, has its wake withdrawn.
    """
    wake = None
    if state.active_epoch is None:
        if state.stop_requested:
            end(state, DispatchState.End.STOPPED)
            registrations.close(state, state.ended)
            withdraw(state)
        elif state.outstanding_wake_id is None:
            wake = _emit(state) if state.due else None
        elif state.paused or not state.pending:
            withdraw(state)
    save(state)
    return wake


def settle_all(states: Iterable[DispatchState]) -> None:
    """`settle` each of these locked states, in few statements where many are woken."""
    woken = []
    for state in states:
        claimed, outstanding = state.active_epoch is not None, state.outstanding_wake_id is not None
        if claimed or outstanding or state.stop_requested or not state.due:
            settle(state)
        else:
            woken.append(state)
    _emit_all(woken)
    _save_all(woken)


def end(state: DispatchState, how: DispatchState.End) -> None:
    """The entity stops or is killed: it is never woken again, and its schedules are cancelled.

    Once all its events are appended, the caller closes it for those who watch it
    (`registrations.close`), and then withdraws its wake.
    """
    timers.cancel_all(state.entity_id)
    state.ended = how
    state.stop_requested = state.paused = False
    state.retry_at = None
    # Not in this transaction: two entities that watch each other and end would deadlock.
    # A function, for Django names it where it fails: a partial has no name.
    transaction.on_commit(lambda: registrations.drop(state.entity_id), robust=True)


def withdraw(state: DispatchState) -> None:
    """Remove the outstanding wake, if there is one, from its runner's stream."""
    if state.outstanding_wake_id is not None:
        Wake.objects.unended().filter(pk=state.outstanding_wake_id).update(
            status=Wake.Status.WITHDRAWN
        )
        state.outstanding_wake = None


def redirect(state: DispatchState, runner: Runner | None) -> None:
    """Dispatch the entity to another runner, or to none; the caller settles it.

    An outstanding wake moves along as a new generation. A claim stays where it is.
    """
    if state.runner_id != (runner and runner.pk):
        withdraw(state)
        state.runner = runner
        _show(state.entity, runner)


def strand(states: Sequence[DispatchState]) -> None:
    """`redirect` these locked states to no runner, and save them, in few statements for many.

    Nothing else of them has changed.
    """
    for first in range(0, len(states), _MANY):
        some = states[first : first + _MANY]
        woken = [state.outstanding_wake_id for state in some if state.outstanding_wake_id]
        Wake.objects.outstanding().filter(pk__in=woken).update(status=Wake.Status.WITHDRAWN)
        rows = DispatchState.objects.filter(pk__in=[state.pk for state in some])
        rows.update(runner=None, outstanding_wake=None)
        changes.end_sight([state.entity.url for state in some])
    if states:
        waiters.announce(waiters.ENTITY_FEED)


def delay(first: timedelta, failures: int) -> timedelta:
    """How long an entity waits after this many failures in a row: ``first``, doubled with each."""
    return min(first * 2 ** min(failures - 1, 30), MAX_DELAY) if failures > 0 else timedelta()


_TAKE = Update(
    lambda: Wake.objects.unended().filter(pk=Param("wake")),
    returning=["wake_id", "generation"],
    status=Wake.Status.CLAIMED,
)


def take(state: DispatchState) -> tuple[str, int]:
    """A claim takes the outstanding wake of a locked state: the wake's id and generation.

    ``given_offset`` is set to the offset of the first work, or 0 where a queued message is the only
    work.
    """
    ((wake_id, generation),) = _TAKE.returned(wake=state.outstanding_wake_id)
    state.outstanding_wake = None
    state.given_offset = _first_work(state) or 0
    state.claimed_tail = state.tail
    state.active_epoch = generation
    state.last_claimed_at = state.now
    return wake_id, generation


def start_over() -> None:
    """After a restore: withdraw all wakes, and raise generations and offsets past all that existed.

    Generations start from the database's time in milliseconds: no entity is woken more often than
    that, so this is more than was handed out since the backup, or since an earlier restore of it.
    """
    newest = with_now(DispatchState.objects.all()).first()
    if newest is None:
        return
    past = epoch_ms(newest.now)
    Wake.objects.outstanding().update(status=Wake.Status.WITHDRAWN)
    DispatchState.objects.update(generation=F("generation") + past, outstanding_wake=None)
    WakeStream.objects.update(tail=F("tail") + past)


def wake_all_due() -> int:
    """Wake every entity that is due: how many."""
    waiting = DispatchState.objects.waiting().filter(runner__isnull=False)
    woken = 0
    for entity_id in list(waiting.order_by("pk").values_list("pk", flat=True)):
        state = lock_of(entity_id)
        woken += state is not None and settle(state) is not None
    return woken


def put_back(state: DispatchState) -> None:
    """Undo `take` in the same transaction, for a claim that was refused after all.

    ``state`` is not saved afterwards in it, so nothing of it changed.
    """
    Wake.objects.filter(entity=state.entity_id, generation=state.generation).update(
        status=Wake.Status.OUTSTANDING
    )


def _first_work(state: DispatchState) -> int | None:
    """The offset of the oldest work past the cursor of a state that a claim has locked."""
    if state.first_work is not None and state.first_work > state.cursor:
        return state.first_work
    # It was looked up before the lock was waited for, and the state has changed since.
    found = _oldest_work(state, state.cursor)
    if found is not None:
        state.first_trace = found[1]
    return found and found[0]


_OLDEST_WORK = Values(
    lambda: (
        StreamEvent.objects.filter(entity=Param("entity"), offset__gt=Param("after"), work=True)
        .order_by("offset")
        .values_list("offset", "trace")[:1]
    )
)


def _oldest_work(state: DispatchState, after: int) -> tuple[int, str | None] | None:
    if state.last_work_offset <= after:
        return None
    row = _OLDEST_WORK.first(entity=state.entity_id, after=after)
    return None if row is None else (int(row[0]), row[1])


def oldest_work(state: DispatchState, after: int) -> int | None:
    """The offset of the oldest work past this offset, or None."""
    found = _oldest_work(state, after)
    return found and found[0]


def reemit(wakes: WakeQuerySet) -> int:
    """Emit outstanding wakes of one runner again, oldest first: how many. Skips locked ones."""
    with transaction.atomic():
        return _emit_again(_lock_unused(wakes.outstanding().order_by("pk")))


def _lock_unused(wakes: WakeQuerySet) -> WakeQuerySet:
    return wakes.select_for_update(of=("self",), skip_locked=can_skip_locked())


_MANY = 10_000
"""Wakes in one statement, at the most: SQLite takes 32 766 values."""


def _emit_again(locking: WakeQuerySet) -> int:
    """Emit these wakes of one runner again, in the order in which they were emitted: how many.

    It takes the same few statements however many there are.
    """
    wakes = sorted(locking.values_list("offset", "pk", "runner_id"))
    if not wakes:
        return 0
    runner_id = wakes[0][2]
    assert runner_id is not None  # noqa: S101  an outstanding wake has a runner
    offset = _advance(runner_id, len(wakes)) - len(wakes)
    for first in range(0, len(wakes), _MANY):
        some = [pk for _, pk, _ in wakes[first : first + _MANY]]
        _move(some, offset + first)
    transaction.on_commit(partial(WAKES_EMITTED_AGAIN.inc, len(wakes)))
    return len(wakes)


_MOVE = """
UPDATE dispatch_wake
SET "offset" = %s + again.place, emitted_at = {now}, emissions = emissions + 1
FROM (
    SELECT id AS moved, row_number() OVER (ORDER BY "offset") AS place
    FROM dispatch_wake WHERE id IN ({wakes})
) AS again
WHERE id = again.moved
"""


def _move(wakes: list[int], offset: int) -> None:
    """Give these wakes, in their order, the offsets that follow this one."""
    # The ORM can number rows in an UPDATE only by a subquery or a branch for each.
    sql = _MOVE.format(now=now_sql(), wakes=", ".join(["%s"] * len(wakes)))
    with connection.cursor() as cursor:
        cursor.execute(sql, [offset, *wakes])


def reemit_refused(runner: Runner, free: int) -> None:
    """After a claim of a runner at its limit ended: emit the wakes again that it was refused.

    ``free`` is how many claims it may make now. Places that wakes emitted again have not used yet
    count as taken: so when two claims end, two wakes are emitted again, whether or not the first
    one was claimed in between.
    """
    outstanding = runner.wakes.outstanding()
    if outstanding[:free].count() >= free:
        _emit_again(_lock_unused(outstanding.order_by("emitted_at", "pk"))[:1])


UNSEEN = timedelta(hours=1)
"""How long wakes are emitted again to a runner that has sent no heartbeat ever."""


def reemit_stale(*, limit: int) -> int:
    """Emit again what stayed unclaimed too long: how many of at most ``limit``.

    Too long is one claim lease of its runner, or PULLWAKE_WAKE_REEMIT_MS: a runner commits its
    offset on receipt, so it may have died after that. Wakes of a runner whose liveness has lapsed
    are left: it gets them when it returns. For a runner that was never seen, only wakes younger
    than `UNSEEN`: it may work without heartbeats, or never come.
    """
    online = Q(runner__liveness__lease_expires_at__gt=Now()) | Q(
        runner__liveness__lease_expires_at=None, created_at__gt=Now() - UNSEEN
    )
    stale = Wake.objects.outstanding().filter(
        online, _unclaimed_for_long(), runner__admin_status=Runner.AdminStatus.ENABLED
    )
    oldest = stale.order_by("emitted_at").values_list("pk", "runner_id")[:limit]
    by_runner: dict[str, list[int]] = {}
    for pk, runner_id in oldest:
        by_runner.setdefault(runner_id or "", []).append(pk)
    # One transaction for each runner: two tails are never locked at once.
    each = in_turns(by_runner.values())
    return sum(_reemit_or_leave(stale.filter(WaitsBriefly(), pk__in=wakes)) for wakes in each)


def _unclaimed_for_long() -> Q:
    if settings.PULLWAKE_WAKE_REEMIT_MS is not None:
        return Q(emitted_at__lte=Now() - timedelta(milliseconds=settings.PULLWAKE_WAKE_REEMIT_MS))
    lease = Milliseconds("runner__claim_lease_ms")
    return Q(emitted_at__lte=ExpressionWrapper(Now() - lease, DateTimeField()))


def _reemit_or_leave(wakes: WakeQuerySet) -> int:
    """`reemit`; none if that fails, as where another holds the runner's tail for long."""
    try:
        return reemit(wakes)
    except Exception as exc:  # noqa: BLE001  one runner's must not keep the others waiting
        leave(logger, "what is to be emitted again", exc)
        return 0


def retry_due(*, limit: int) -> int:
    """Wake entities whose delay after a failure is over: how many of at most ``limit``."""
    overdue = DispatchState.objects.retry_due()
    woken, held = 0, set[str | None]()
    oldest = overdue.order_by("retry_at").values_list("pk", "runner_id")[:limit]
    for entity_id, runner_id in in_turns(oldest):
        if runner_id in held:  # each would wait in vain, and meanwhile the server leaves no pulse
            continue
        try:
            woken += _retry(overdue.filter(pk=entity_id))
        except Exception as exc:  # noqa: BLE001  one entity must not keep the others waiting
            leave(logger, f"the retry of entity {entity_id}", exc)
            if is_lock_refused(exc):
                held.add(runner_id)
    return woken


def _retry(overdue: DispatchStateQuerySet) -> bool:
    """Wake the one entity of these, unless another has locked it: whether this did."""
    with transaction.atomic():
        state = try_lock(overdue)
        if state is None:
            return False
        wake = settle(state)
        if wake is not None or not state.due:
            state.retry_at = None
            save(state)
    return wake is not None


def _tail() -> QuerySet[WakeStream]:
    """Of a runner: all of its entities need it."""
    return WakeStream.objects.filter(HeldBriefly(), runner=Param("runner"))


_TAIL = Select(lambda: _tail().select_for_update())


def lock_tail(runner_id: str) -> None:
    """Lock the tail of a runner's wake stream until the transaction ends."""
    _TAIL.first(runner=runner_id)


_ADD = Insert(Wake)


def _emit(state: DispatchState) -> Wake:
    assert state.runner_id is not None  # noqa: S101  only what is due is woken
    wake = _next_wake(state, _advance(state.runner_id, 1))
    _ADD.add(wake)
    _note(state, wake)
    return wake


def _emit_all(states: Sequence[DispatchState]) -> None:
    """Wake what is due; the caller saves it."""
    counts = Counter(state.runner_id or "" for state in states)
    # Tails are locked in the order of their runners.
    tails = {runner: _advance(runner, counts[runner]) for runner in sorted(counts)}
    emitted = []
    for state in reversed(states):
        runner = state.runner_id or ""
        emitted.append(_next_wake(state, tails[runner]))
        tails[runner] -= 1
    Wake.objects.bulk_create(emitted)
    for state, wake in zip(reversed(states), emitted, strict=True):
        _note(state, wake)


def _next_wake(state: DispatchState, offset: int) -> Wake:
    state.generation += 1
    return Wake(
        wake_id=new_id("w"),
        entity_id=state.entity_id,
        generation=state.generation,
        runner_id=state.runner_id,
        offset=offset,
        created_at=state.now,
        emitted_at=state.now,
    )


def _note(state: DispatchState, wake: Wake) -> None:
    relate(state, "outstanding_wake", wake)
    state.retry_at = None
    state.last_wake_at = state.now
    transaction.on_commit(WAKES_EMITTED.labels(type_name(state.entity.type)).inc)


_ADVANCE = Update(
    _tail,
    returning=["tail"],
    tail=F("tail") + Param("count", WakeStream._meta.get_field("tail")),
)


def _advance(runner_id: str, count: int) -> int:
    """Hand out ``count`` offsets of a runner's wake stream and announce them: the new tail.

    The row stays locked until the transaction ends, so that commit order is offset order.
    """
    ((tail,),) = _ADVANCE.returned(runner=runner_id, count=count)
    waiters.announce(waiters.wake_stream_key(runner_id))
    return int(tail)
