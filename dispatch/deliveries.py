"""Tell subscribers what they wait for: the second transaction of a wake between entities.

The first transaction, the source's, left a delivery or a due time
(`dispatch.streams.registrations`). This one appends the wake to the subscriber's stream, settles
it, and removes what it told: exactly once, whoever runs it and however often. It locks only the
subscriber.
"""

import logging
from collections.abc import Iterator, Sequence

import msgspec
from django.db import transaction

from core.bodies import JsonObject
from core.clock import epoch_ms, iso
from core.database import in_turns, leave
from core.principals import Principal
from dispatch import entities, shared_states, wakes
from dispatch.models import DispatchState, Entity, Registration
from dispatch.shares import share
from dispatch.streams import log, offsets, registrations, sources
from dispatch.streams.scan import PAGE_EVENTS, page

logger = logging.getLogger(__name__)


def deliver_due(*, limit: int) -> int:
    """Tell the subscribers of at most ``limit`` due registrations, each creator's share.

    Returns how many were told.
    """
    due = share(Registration.objects.due().values_list("subscriber_id", flat=True), limit)
    return sum(map(_deliver_or_leave, in_turns(dict.fromkeys(due))))


def _deliver_or_leave(subscriber_id: int) -> int:
    try:
        return deliver(subscriber_id)
    except Exception as exc:  # noqa: BLE001  one that fails must not keep the others waiting
        leave(logger, f"what entity {subscriber_id} waits for", exc)
    return 0


def deliver(subscriber_id: int) -> int:
    """Tell a subscriber what is due: of how many registrations; 0 if another does it."""
    with transaction.atomic():
        state = wakes.try_lock(DispatchState.objects.filter(pk=subscriber_id))
        if state is None:
            return 0
        if state.ended:
            registrations.drop(subscriber_id)
            return 0
        rows = registrations.due_of(subscriber_id)
        wake_events = [each for row in rows for each in _wakes_of(row, state)]
        if wake_events:
            events, traces = zip(*wake_events, strict=True)
            log.append(state, events, traces=traces)
            wakes.settle(state)
    return len(rows)


def _wakes_of(row: Registration, state: DispatchState) -> list[tuple[JsonObject, str | None]]:
    """The wakes that are due for a locked registration, which is then marked as told."""
    if row.tick_at is not None and row.tick_at <= state.now:
        registrations.tick(row, state.now)
    found: list[tuple[JsonObject, str | None]] = []
    up_to = None
    more = False
    if row.deliver_at is not None and row.deliver_at <= state.now:
        # A wake holds at most a page of changes; the rest go into the next one.
        left = page(row.deliveries.all())
        told = [(offset, text) for offset, text in left if text is not None]
        more = len(told) < len(left) or len(left) == PAGE_EVENTS
        up_to = told[-1][0] if told else None
        if _may_be_told(row):
            found += [(_wake(row, state, each), _trace(each)) for each in _grouped(row, told)]
    else:
        more = row.deliver_at is not None
    if row.timeout_at is not None and row.timeout_at <= state.now:
        found.append((_timeout(row, state), None))
        row.timeout_at = None
    registrations.mark_told(row, up_to, more=more)
    return found


def _grouped(row: Registration, told: Sequence[tuple[int, str]]) -> Iterator[list[JsonObject]]:
    """Group deliveries by the wake that they go into: what they say, and at which offset.

    A child's result has a wake of its own, unless the subscriber asked to wait for what follows
    shortly.
    """
    group: list[JsonObject] = []
    for offset, data in told:
        said: JsonObject = msgspec.json.decode(data)
        if group and "child" in said and not row.debounce_ms:
            yield group
            group = []
        group.append({**said, "offset": offset})
    if group:
        yield group


def _wake(row: Registration, state: DispatchState, group: list[JsonObject]) -> JsonObject:
    changes = [each["change"] for each in group if "change" in each]
    value: JsonObject = {"timeout": False, "changes": changes}
    children = [each["child"] for each in group if "child" in each]
    if children:
        value["finished_child"] = children[-1]
    return _event(row, state, offsets.encode(group[-1]["offset"]), value)


def _trace(group: list[JsonObject]) -> str | None:
    """The trace in which the newest of these happened that happened in one."""
    return next((each["trace"] for each in reversed(group) if "trace" in each), None)


def _timeout(row: Registration, state: DispatchState) -> JsonObject:
    assert row.timeout_at is not None  # noqa: S101  it is over
    key = f"timeout-{epoch_ms(row.timeout_at)}"
    return _event(row, state, key, {"timeout": True, "changes": []})


def _event(row: Registration, state: DispatchState, key: str, value: JsonObject) -> JsonObject:
    when = iso(state.now)
    return {
        "type": "wake",
        "key": f"wake-{row.pk}-{key}",
        "value": {"timestamp": when, "source": row.source_url, **value},
        "headers": {"operation": "insert", "timestamp": when},
    }


def _may_be_told(row: Registration) -> bool:
    """Whether the subscriber may hear about the source; checked when the wake is told."""
    if sources.is_cron(row.source_url):
        return True
    if not sources.is_entity(row.source_url):
        shared = shared_states.at(row.source_url)
        creator = Principal.parse(row.subscriber.created_by)
        return shared is not None and shared_states.may_use(shared, creator)
    source = entities.at(row.source_url)
    if source is None:
        return row.closed  # it was checked when the source was deleted
    return may_tell(row, source)


def may_tell(row: Registration, source: Entity) -> bool:
    """Whether the subscriber may hear about this entity: its creator must be allowed to read it.

    If a handler on another principal's runner asked, the entity must also be near the subscriber,
    or the runner's owner's to read: the rest of what the creator has is no part of the task.
    """
    subscriber = row.subscriber
    if not entities.may_read(source, Principal.parse(subscriber.created_by)):
        return False
    if not row.near_only or entities.is_near(subscriber, source):
        return True
    runner = subscriber.dispatch_state.runner
    return runner is not None and entities.may_read(source, Principal.parse(runner.owner_principal))
