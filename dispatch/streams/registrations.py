"""Who is woken for what happens where: the only writer of registrations and deliveries.

An event that a registration waits for leaves a delivery in the transaction that appends it, and
`dispatch.deliveries` tells the subscriber in a transaction of its own: no transaction holds two
entities. When something is due is a time in the registration's row. An entity that nobody watches
pays nothing: its dispatch state says so (``watched``). That is set under its lock before a
registration counts, so that no later event is missed. Lock order: dispatch state, name of a source
that does not exist yet, subscriber's row, claim, registrations by key, wake, tails. So all
registrations that a transaction changes are locked by one statement.
"""

import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import msgspec
from django.conf import settings
from django.db import transaction
from django.db.models import Case, Exists, Q, QuerySet, Value, When
from django.db.models.functions import Now

from core import quotas, tracing
from core.bodies import JsonObject
from core.clock import with_now
from core.database import lock_name
from core.errors import InvalidRequest, NotFound, NotRunning, PayloadTooLarge
from core.prepared import Param
from core.principals import Principal
from dispatch.cron import PREFIX, Cron
from dispatch.models import (
    MANAGE,
    Delivery,
    DispatchState,
    Entity,
    EntityType,
    Registration,
    StreamEvent,
)
from dispatch.streams import conditions, sources
from dispatch.streams.conditions import Wish
from dispatch.streams.scan import naming, scan
from runners.models import Runner

MOST_DEBOUNCES = 10
"""A busy source puts a debounced wake off for this many times its ``debounce_ms``, not for ever."""

MOST_AT_A_SOURCE = 1_000
"""Registrations of one creator's entities at one source: each event there looks at all of them."""

MOST_DELIVERIES = 20_000
"""That one append leaves: more would hold its locks, and its worker, for longer than a moment."""

MOST_TOLD = 16 * 1024 * 1024
"""Characters of deliveries that one append leaves, or else a thousand registrations would make a
gibibyte of one message: what comes after has only texts of at most `MOST_OUTLINED` characters."""

MOST_OUTLINED = 1024

DUE_TOGETHER = 100
"""Registrations of a subscriber that are told in one transaction, at the most."""

MAX_RESPONSE = 1024 * 1024
"""Characters that are kept of a finished run's response, and of its errors."""

nudged = threading.Event()
"""Set when a transaction of this process has just left something to deliver."""

_RUN_FINISHED = Registration.Condition.RUN_FINISHED
_TOLD = ("last_offset", "told_given", "told_epoch", "told_tail")
_TIMES = ("first_at", "deliver_at", "timeout_at", "tick_at", "due_at")
_TICK: JsonObject = {"type": "cron_tick", "key": "", "headers": {"operation": "insert"}}


# --- Asking for it ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """What a subscriber wants at a source, under a manifest key or without one; None: nothing more.

    ``payload``: what it is told at each tick of a cron source, as JSON; empty: nothing.
    ``near_only``: someone other than its creator asks, and must not read all that the creator may.
    """

    source_url: str
    wish: Wish | None
    manifest_key: str = ""
    payload: str = ""
    near_only: bool = False

    @property
    def watched(self) -> DispatchState.Watched:
        """The kinds of events for which the source must look up registrations."""
        if self.wish is None:
            return DispatchState.Watched.NOT
        if self.wish.condition == _RUN_FINISHED:
            return DispatchState.Watched.FOR_RUNS
        return DispatchState.Watched.FOR_CHANGES

    @property
    def identity(self) -> str:
        """The fields that identify a subscriber's registration."""
        said: Any = ["manifest", self.manifest_key]
        if not self.manifest_key and self.wish is not None:
            wish = self.wish
            source = _place(self.source_url)
            said = [source, wish.condition, wish.collections, wish.ops]
        return hashlib.sha256(msgspec.json.encode(said)).hexdigest()


def _place(url: str) -> str:
    """A source by one canonical URL: each ICU has its own names for a cron stream's zone."""
    if sources.is_cron(url):
        with suppress(ValueError):  # nothing was registered there
            return Cron.of(url).path
    return url


def hold(subscriber: Entity) -> datetime:
    """Hold a subscriber against deletion until the transaction ends: the database's time.

    Raises NotFound for one that was deleted, NotRunning for one that has ended.
    """
    # Locking its dispatch state would lock a second entity.
    held = Entity.objects.select_for_update(no_key=True).filter(pk=subscriber.pk)
    state = with_now(DispatchState.objects.filter(entity__in=held)).first()
    if state is None:
        raise NotFound("The subscriber was deleted.")
    if state.ended:
        raise NotRunning(f"The subscriber is {state.ended}.")
    return state.now


def register(subscriber: Entity, order: Order, now: datetime) -> None:
    """Register one that is held since ``now``; the source is locked, and looks up registrations.

    A second call changes the first one's, and keeps what is not delivered yet. Raises RateLimited
    for one registration too many.
    """
    _put(subscriber, order, _lock(_identified(subscriber.pk, [order])), now)


def unregister(subscriber: Entity, *, source_url: str = "", manifest_key: str = "") -> None:
    """Remove the subscriber's registrations at this source, under this key, or both."""
    which = Q(subscriber=subscriber)
    if manifest_key:
        which &= Q(manifest_key=manifest_key)
    if sources.is_cron(source_url):
        which &= Q(source_url__startswith=PREFIX)
    elif source_url:
        which &= Q(source_url=source_url)
    with transaction.atomic():
        rows = _lock(which)
        place = _place(source_url)
        _delete(each for each in rows if not source_url or _place(each.source_url) == place)


def watched_from_birth(url: Param) -> Case:
    """Whether an entity being made at this URL is watched: some may wait for it already.

    Whoever makes it holds the URL's name (`core.database.lock_name`), so a concurrent registration
    waits until the transaction ends.
    """
    waited_for = Exists(Registration.objects.filter(source_url=url))
    Watched = DispatchState.Watched  # noqa: N806
    return Case(When(waited_for, then=Value(Watched.FOR_CHANGES)), default=Value(Watched.NOT))


def _identified(subscriber_id: int, orders: Iterable[Order]) -> Q:
    return Q(subscriber=subscriber_id, identity__in=[each.identity for each in orders])


def _lock(which: Q) -> list[Registration]:
    rows = Registration.objects.filter(which).select_related("subscriber")
    return list(rows.select_for_update(of=("self",)).order_by("pk"))


def _delete(rows: Iterable[Registration]) -> None:
    keys = [each.pk for each in rows]
    if keys:
        Registration.objects.filter(pk__in=keys).delete()


def _put(subscriber: Entity, order: Order, known: Iterable[Registration], now: datetime) -> None:
    """Carry out an order; ``known`` are locked registrations, among them the one in the order.

    Raises RateLimited past PULLWAKE_MAX_REGISTRATIONS of the subscriber's creator, and past
    `MOST_AT_A_SOURCE`.
    """
    named = subscriber.pk, order.identity
    rows = [each for each in known if (each.subscriber_id, each.identity) == named]
    place = _place(order.source_url)
    if order.wish is None or any(_place(each.source_url) != place for each in rows):
        _delete(rows)
        rows = []
    if order.wish is None:
        return
    if rows and rows[0].closed and not _is_ended(order.source_url):
        # Its last deliveries are of what was deleted at this URL, and it goes with them.
        Registration.objects.filter(pk=rows[0].pk).update(identity=f"closed {rows[0].pk}")
        rows = []
    facts = asdict(order.wish)
    facts |= {"collections": list(order.wish.collections), "ops": list(order.wish.ops)}
    facts["near_only"] = order.near_only
    if order.wish.types is None:  # a call leaves it out, and the manifest event may have said it
        facts["types"] = rows[0].types if rows else {}
    if rows and order.payload:
        facts["payload"] = order.payload
    elif rows:
        # A call names the source as its runtime does, which looks for that name in its wakes.
        facts["source_url"] = order.source_url
    if rows:
        _change(rows[0], facts, now)
        return
    creator = subscriber.created_by
    own = Registration.objects.filter(subscriber__created_by=creator)
    quotas.take("registrations", settings.PULLWAKE_MAX_REGISTRATIONS, creator, own.count)
    if not sources.is_cron(order.source_url):  # where each has a time of its own
        here = own.filter(source_url=order.source_url)
        who = f"{creator} at {order.source_url}"
        quotas.take("registrations at this source", MOST_AT_A_SOURCE, who, here.count)
    row = Registration(
        subscriber_id=subscriber.pk,
        creator=creator,
        source_url=order.source_url,
        manifest_key=order.manifest_key,
        identity=order.identity,
        payload=order.payload,
        created_at=now,
        **facts,
    )
    if sources.is_cron(row.source_url):
        if not conditions.matches(row, _TICK):
            raise InvalidRequest.field("/condition", "of a cron source, inserts of cron_tick come")
        row.tick_at = Cron.of(row.source_url).after(now)
    _begin_wait(row, now)
    # Of two concurrent calls the first one stands, as if it had come earlier.
    Registration.objects.bulk_create([row], ignore_conflicts=True)


def _is_ended(url: str) -> bool:
    """Whether the entity at this URL is at its end, and was not deleted."""
    return DispatchState.objects.filter(entity__url=url).exclude(ended="").exists()


def _change(row: Registration, facts: JsonObject, now: datetime) -> None:
    waited = bool(row.timeout_ms) and row.timeout_at is None and row.last_offset is None
    if not waited and all(getattr(row, name) == fact for name, fact in facts.items()):
        return  # a handler repeats itself, and a match in between has ended the wait
    for name, fact in facts.items():
        setattr(row, name, fact)
    if row.first_at is None:
        _begin_wait(row, now)
    row.save()


def _begin_wait(row: Registration, now: datetime) -> None:
    wait = timedelta(milliseconds=row.timeout_ms)
    row.timeout_at = now + wait if wait else None
    schedule(row)


def schedule(row: Registration) -> None:
    """Set when a registration whose times changed is due; the caller saves it."""
    times = [each for each in (row.deliver_at, row.timeout_at, row.tick_at) if each is not None]
    row.due_at = min(times, default=None)


# --- What happens at a source -----------------------------------------------------------------


def hold_names(orders: Iterable[Order]) -> None:
    """Make whoever creates a source of these orders wait until the transaction ends."""
    for url in sorted({each.source_url for each in orders if each.wish is not None}):
        if not sources.is_cron(url):  # which always exists
            lock_name(url)


def follow(
    state: DispatchState,
    events: Sequence[Any],
    after: int,
    orders: Sequence[Order] = (),
    *,
    in_part: bool,
) -> None:
    """Act on events just appended to a locked entity's stream, past ``after``.

    Leave deliveries for others, and carry out the ``orders``, its handler's, of the entity as a
    subscriber, whose names are held. This costs nothing where there are no orders and nobody waits
    for such events.
    Past `MOST_DELIVERIES` it raises PayloadTooLarge, or leaves the first ones ``in_part``.
    """
    is_heard = _is_heard(state, events)
    if not is_heard and not orders:
        return
    which = _heard_at(state) if is_heard else Q()
    if orders:
        which |= _identified(state.entity_id, orders)
    known = _lock(which)
    if is_heard:
        hearing = _hearing(known, _reads(state))
        _fire(hearing, state.entity.url, events, after, state.now, state, in_part=in_part)
    for order in orders:
        _put(state.entity, _within_reach(order, state), known, state.now)


def fire(
    source_urls: Collection[str],
    events: Sequence[Any],
    after: int,
    now: datetime,
    reads: Callable[[str], bool],
) -> None:
    """`follow` for a stream that is not an entity's, by any of the URLs that name it.

    ``reads``: whether the principal at a URL may read it. The caller holds its lock until it
    commits. Raises PayloadTooLarge past `MOST_DELIVERIES`.
    """
    hearing = _hearing(_lock(Q(source_url__in=source_urls)), reads)
    for url in source_urls:
        _fire(hearing, url, events, after, now, None, in_part=False)


def _within_reach(order: Order, state: DispatchState) -> Order:
    """What a handler orders: on another's runner it is not to hear of all that its creator may."""
    if order.wish is None or sources.is_cron(order.source_url):
        return order
    return replace(order, near_only=state.near_only)


def _hearing(rows: Iterable[Registration], reads: Callable[[str], bool]) -> list[Registration]:
    """Those whose subscriber's creator ``reads`` the source: the others cost it no row."""
    rows = list(rows)
    creators = set(filter(reads, {each.subscriber.created_by for each in rows}))
    return [each for each in rows if each.subscriber.created_by in creators]


def _heard_at(state: DispatchState) -> Q:
    """The registrations at an entity: where it has no type, only those that may hear of it."""
    here = Q(source_url=state.entity.url)
    if state.entity.registration:
        return here
    owner = Runner.objects.filter(pk=state.runner_id).values("owner_principal")
    own = Q(subscriber__created_by=state.entity.created_by)
    return here & (own | Q(subscriber__created_by__in=owner))


def _reads(state: DispatchState) -> Callable[[str], bool]:
    """Whether the principal at a URL may read an entity; without a statement for its creator."""
    under = EntityType.objects.filter(registration=state.entity.registration)
    found = cache(lambda: under.first() if state.entity.registration else None)

    def reads(url: str) -> bool:
        if url == state.entity.created_by:
            return True
        if state.runner is not None and state.runner.owner_principal == url:
            return True
        entity_type = found()
        return entity_type is not None and entity_type.grants(Principal.parse(url), MANAGE)

    return reads


def lock_at(states: Iterable[DispatchState]) -> None:
    """Lock the registrations at several locked entities, which one transaction changes."""
    urls = [each.entity.url for each in states if each.watched != DispatchState.Watched.NOT]
    if urls:
        _lock(Q(source_url__in=urls))


def _is_heard(state: DispatchState, events: Sequence[Any]) -> bool:
    if state.watched == DispatchState.Watched.FOR_RUNS:
        return any(map(conditions.is_finished_run, events))
    return state.watched != DispatchState.Watched.NOT and any(map(conditions.is_change, events))


def _fire(
    known: Iterable[Registration],
    url: str,
    events: Sequence[Any],
    after: int,
    now: datetime,
    state: DispatchState | None,
    *,
    in_part: bool,
) -> None:
    matched: dict[int, Registration] = {}
    deliveries: list[Delivery] = []
    repeated = []
    said: dict[str, JsonObject] = {}
    open_here = [each for each in known if each.source_url == url and not each.closed]
    heard = conditions.Heard(events, after)
    each_most = max(1, MOST_DELIVERIES // max(1, len(open_here)))
    left = MOST_TOLD
    for row in open_here:
        found = heard.by(row)
        if in_part:
            found = found[:each_most]
        elif len(deliveries) + len(found) > max(MOST_DELIVERIES, len(open_here)):
            raise PayloadTooLarge(
                f"Who waits for what happens here would be told of more than {MOST_DELIVERIES} "
                "changes: append fewer events at once."
            )
        for offset, event in found:
            data: JsonObject = {"change": conditions.change(row, event)}
            if state is not None and row.condition == _RUN_FINISHED:
                run, status = event["key"], event["value"]["status"]
                if status == "completed" and _is_told(row, state) and _repeats(row, state, offset):
                    repeated.append(row)
                    continue
                _note(row, state, status)
                if _is_parent(row, state.entity):
                    if run not in said:
                        said[run] = _said_in(state, run)
                    data["child"] = _child(row, state.entity, status, said[run])
            row.last_offset = offset
            deliveries.append(_delivery(row, offset, data if left > 0 else _outline(data)))
            left -= len(deliveries[-1].data)
            matched[row.pk] = row
    _save([each for each in repeated if each.pk not in matched], _TOLD)
    _keep(matched.values(), deliveries, now)


def _note(row: Registration, state: DispatchState, status: str) -> None:
    """Note which work led to a run that is now being told of."""
    known = status == "completed" and bool(state.given_offset)
    row.told_given = state.given_offset if known else None
    row.told_epoch = state.active_epoch
    row.told_tail = state.claimed_tail


def _is_told(row: Registration, state: DispatchState) -> bool:
    """Whether all the work was already given to an earlier claim whose run was told of.

    That claim's runtime died before its done, so the work is being repeated.
    """
    return (
        bool(state.given_offset)
        and row.told_given == state.given_offset
        and row.told_epoch != state.active_epoch
        and row.told_tail is not None
        and state.last_work_offset <= row.told_tail
    )


def _repeats(row: Registration, state: DispatchState, offset: int) -> bool:
    """Whether a completed run stands for one that was told of: the claim had as many before.

    Noting the last of them makes those that follow in this claim new.
    """
    told = _completed(state, row.told_tail, row.last_offset)
    again = _completed(state, state.claimed_tail, offset)
    if again == told:
        _note(row, state, "completed")
        row.last_offset = offset
    return again <= told


def _completed(state: DispatchState, after: int | None, up_to: int | None) -> int:
    """How many runs were completed past one offset of the stream and up to another."""
    events = StreamEvent.objects.filter(
        entity=state.entity_id, offset__gt=after or 0, offset__lte=up_to or 0
    )
    said = (msgspec.json.decode(data) for _, data in scan(events.filter(data__contains='"run"')))
    return sum(
        conditions.is_finished_run(event) and event["value"]["status"] == "completed"
        for event in said
    )


def _delivery(row: Registration, offset: int, data: JsonObject) -> Delivery:
    trace = tracing.cause()
    if trace is not None:
        data = {**data, "trace": trace}
    return Delivery(registration=row, offset=offset, data=msgspec.json.encode(data).decode())


def _outline(data: JsonObject) -> JsonObject:
    """What a delivery tells, but for all that may be long."""
    return {
        part: {name: each for name, each in told.items() if _is_short(each)}
        for part, told in data.items()
    }


def _is_short(told: Any) -> bool:
    return isinstance(told, str) and len(told) <= MOST_OUTLINED


def _keep(rows: Iterable[Registration], deliveries: Sequence[Delivery], now: datetime) -> None:
    """Write these deliveries, and set when their registrations are due."""
    changed = list(rows)
    if not changed:
        return
    Delivery.objects.bulk_create(deliveries)
    for row in changed:
        row.timeout_at = None
        row.first_at = row.first_at or now
        pause = timedelta() if row.closed else timedelta(milliseconds=row.debounce_ms)
        row.deliver_at = min(now + pause, row.first_at + MOST_DEBOUNCES * pause)
        schedule(row)
    _save(changed, (*_TIMES, *_TOLD, "closed"))
    transaction.on_commit(nudged.set)


def _save(rows: Iterable[Registration], names: Sequence[str]) -> None:
    """Save these columns: a statement for all that say the same, as those of one event mostly do.

    One of Django's for a thousand rows takes the worker's processor, and the database's, for long.
    """
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for row in rows:
        alike[tuple(getattr(row, name) for name in names)].append(row.pk)
    for values, keys in alike.items():
        said = dict(zip(names, values, strict=True))
        Registration.objects.filter(pk__in=keys).update(**said)


def _is_parent(row: Registration, child: Entity) -> bool:
    # A parent is older than its child: an entity created later at the same URL is not the parent.
    return child.parent == row.subscriber.url and row.subscriber_id < child.pk


def _child(row: Registration, child: Entity, status: str, said: JsonObject) -> JsonObject:
    told = {name: text for name, text in said.items() if name != "response"}
    if row.include_response and "response" in said:
        told["response"] = said["response"]
    return {"url": child.url, "type": child.type, "run_status": status, **told}


def _said_in(source: DispatchState, run: str) -> JsonObject:
    """The answer of a run and the errors it met: ``response`` and ``error``, where present.

    Most runs began in the claim that ends them; only for one that did not is the whole stream
    searched.
    """
    events = naming(StreamEvent.objects.filter(entity=source.entity_id), run)
    claimed = source.claimed_tail or 0
    began, found = _said_by(run, events.filter(offset__gt=claimed))
    if claimed and not began:
        _, found = _said_by(run, events)
    return found


def _said_by(run: str, events: "QuerySet[StreamEvent]") -> tuple[bool, JsonObject]:
    """What these events say about a run, and whether it began in them."""
    began = False
    answered, failed = _Text(), _Text("\n")
    for _, data in scan(events):
        event = msgspec.json.decode(data)
        match event:
            case {"type": "text_delta", "value": {"run_id": of, "delta": str(text)}} if of == run:
                answered.add(text)
            case {"type": "error", "value": {"run_id": of, "message": str(text)}} if of == run:
                failed.add(text)
            case {"type": "run", "key": key} if key == run and conditions.is_begun_run(event):
                began = True
    found = {"response": answered.whole, "error": failed.whole}
    return began, {name: text for name, text in found.items() if text}


class _Text:
    """The beginning of a long text that arrives in parts: `MAX_RESPONSE` characters."""

    def __init__(self, between: str = "") -> None:
        self._between = between
        self._parts: list[str] = []
        self._left = MAX_RESPONSE

    def add(self, part: str) -> None:
        """Add a part."""
        if self._left > 0:
            self._parts.append(part)
            self._left -= len(part)

    def __bool__(self) -> bool:
        return bool(self._parts)

    @property
    def whole(self) -> str:
        """All that was kept."""
        return self._between.join(self._parts)[:MAX_RESPONSE]


def tick(row: Registration, now: datetime) -> None:
    """A locked registration at a cron source is due: it ticks.

    It ticks once, however many ticks were missed; the next tick is computed from now.
    """
    number = (row.last_offset or 0) + 1
    change: JsonObject = {"collection": "cron_tick", "kind": "insert", "key": f"tick-{number}"}
    if row.payload:
        change["payload"] = msgspec.json.decode(row.payload)
    row.last_offset = number
    row.tick_at = Cron.of(row.source_url).after(now)
    _keep([row], [_delivery(row, number, {"change": change})], now)


# --- What does not happen any more ------------------------------------------------------------


def tell_of_errors(state: DispatchState, since: int, given_up: str | None = None) -> None:
    """A claim on a watched entity that was given the events up to ``since`` was released.

    If it left an error and finished no run, subscribers that wait for a run are told of the error.
    ``given_up``: its work is never tried again, for this reason, which is as good as an error.
    """
    errors = _Text("\n")
    events = StreamEvent.objects.filter(entity=state.entity_id, offset__gt=since)
    told = Q(data__contains='"error"') | Q(data__contains='"run"')
    for _, data in scan(events.filter(told)):
        event = msgspec.json.decode(data)
        if conditions.is_finished_run(event):
            return
        match event:
            case {"type": "error", "value": {"message": str(text)}}:
                errors.add(text)
            case {"type": "error"}:
                errors.add("")
    if given_up is not None:
        errors.add(given_up)
    if errors:
        rows = _hearing(_lock(_heard_at(state)), _reads(state))
        waiting = [
            each
            for each in rows
            if not each.closed and each.condition == _RUN_FINISHED and not _is_told(each, state)
        ]
        # What was given up may have left no event, and what ends the stream was told of before.
        offset = state.tail if given_up is None else state.given_offset or state.tail
        _tell_of_failure(waiting, waiting, state, offset, errors.whole)


def close(state: DispatchState, how: str) -> None:
    """A locked entity ended: nothing more happens there.

    Subscribers that wait for a run hear that the entity was stopped or killed (``how``).
    Registrations at it go at once, or once their last deliveries are made.
    """
    if state.watched != DispatchState.Watched.NOT:
        rows = _lock(Q(source_url=state.entity.url))
        hearing = _hearing(rows, _reads(state))
        _delete(set(rows) - set(hearing))
        _close(hearing, state, how)


def forget(
    state: DispatchState, may_tell: Callable[[Registration], bool], gone: Collection[str] = ()
) -> None:
    """`close` for a locked entity that is about to be deleted; its own registrations go with it.

    Only registrations that it ``may_tell`` are told; afterwards nobody could decide that. Nor is
    anybody told about the sources at the URLs in ``gone``, which go with it.
    """
    urls = {state.entity.url, *gone}
    rows = _lock(Q(source_url__in=urls) | Q(subscriber=state.entity_id))
    _delete(each for each in rows if each.source_url in gone)
    theirs = [
        each
        for each in rows
        if each.subscriber_id != state.entity_id and each.source_url not in gone
    ]
    told = set(filter(may_tell, _hearing(theirs, _reads(state))))
    _delete(set(theirs) - told)
    _close([each for each in theirs if each in told], state, "deleted")


def _close(rows: Iterable[Registration], state: DispatchState, how: str) -> None:
    still_open = [each for each in rows if not each.closed]
    waiting = [
        each
        for each in still_open
        if each.condition == _RUN_FINISHED and _is_unanswered(each, state)
    ]
    asked = set(waiting)
    left = [each for each in still_open if each.first_at is not None or each in asked]
    for row in left:
        row.closed = True
    _tell_of_failure(waiting, left, state, state.tail, f"The entity was {how}.")
    _delete(set(still_open) - set(left))


def _is_unanswered(row: Registration, state: DispatchState) -> bool:
    """Whether no run has finished since it was registered, or another has begun since one did."""
    if row.last_offset is None:
        return True
    if _is_told(row, state):
        return False
    later = StreamEvent.objects.filter(entity=state.entity_id, offset__gt=row.last_offset)
    events = scan(later.filter(data__contains='"run"'))
    return any(conditions.is_begun_run(msgspec.json.decode(data)) for _, data in events)


def _tell_of_failure(
    waiting: Iterable[Registration],
    rows: Iterable[Registration],
    state: DispatchState,
    offset: int,
    error: str,
) -> None:
    """Record that no run will finish, for those of these registrations that are ``waiting``.

    ``offset``: of an event in the stream that none of them was told of.

    A parent hears about its child. A mere observer has only changes to hear it by: it is told of a
    run that failed, which is in no stream and so has no key.
    """
    failure = {"status": "failed", "error": error[:MAX_RESPONSE]}
    change: JsonObject = {"collection": "runs", "kind": "update", "key": "", "value": failure}
    deliveries = []
    for row in waiting:
        data: JsonObject = {"change": change}
        if _is_parent(row, state.entity):
            data = {"child": _child(row, state.entity, "failed", {"error": failure["error"]})}
        deliveries.append(_delivery(row, offset, data))
        row.last_offset = state.tail
        row.told_given = None
    _keep(rows, deliveries, state.now)


# --- Telling it -------------------------------------------------------------------------------


def due_of(subscriber_id: int) -> list[Registration]:
    """The subscriber's registrations that are due, locked: `DUE_TOGETHER` at the most."""
    longest = Registration.objects.due().filter(subscriber=subscriber_id).values("pk")
    return _lock(Q(pk__in=longest[:DUE_TOGETHER], due_at__lte=Now()))


def mark_told(row: Registration, up_to: int | None, *, more: bool) -> None:
    """Record that a locked registration's deliveries ``up_to`` an offset were made.

    ``more``: others remain. Its other times are as the caller has changed them.
    """
    if up_to is not None:
        row.deliveries.filter(offset__lte=up_to).delete()
    if not more:
        row.first_at = row.deliver_at = None
        if row.closed:
            _delete([row])
            return
    schedule(row)
    row.save(update_fields=_TIMES)


def drop(subscriber_id: int) -> None:
    """Remove the registrations of an entity that ended."""
    with transaction.atomic():
        _delete(_lock(Q(subscriber=subscriber_id)))
