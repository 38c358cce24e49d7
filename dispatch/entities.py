"""Entities: made, sent to, tagged and moved. `claims.endings` deletes them.

Whatever changes an entity locks its dispatch state first, changes it through `dispatch.wakes`, and
ends with `wakes.settle`, all in one transaction.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models.expressions import RawSQL
from django.db.models.functions import Now

from core import quotas
from core.bodies import JsonObject
from core.clock import epoch_ms, iso
from core.database import lock_name
from core.errors import (
    AlreadyClaimed,
    BadFields,
    DuplicateUrl,
    Forbidden,
    InvalidRequest,
    NoPendingWork,
    NotFound,
    NotRunning,
    PullwakeError,
)
from core.identifiers import new_id, new_txid, require_id
from core.metrics import type_name as named
from core.prepared import Insert, Param, Select
from core.principals import Principal
from dispatch import schemas, timers, types, wakes
from dispatch.messages import Message
from dispatch.metrics import SENDS
from dispatch.models import (
    DispatchState,
    Entity,
    EntityQuerySet,
    EntityType,
    StreamEvent,
    Wake,
    subscription_key,
)
from dispatch.streams import log, registrations, waiters, work
from dispatch.streams.conditions import Wish
from dispatch.streams.registrations import Order
from runners import changes, registry
from runners.models import Runner

MAX_TAGS_BYTES = 64 * 1024
"""All tags of an entity, as JSON."""

_DELETED = "The entity was deleted."


def _with_state() -> EntityQuerySet:
    return Entity.objects.select_related("dispatch_state__runner")


_ENTITY = Select(lambda: _with_state().filter(url=Param("url")))


def find(type_name: str, name: str) -> Entity:
    """The entity at an address, with its dispatch state and its runner. Raises NotFound."""
    return _found(_ENTITY, type_name, name)


def _found(rows: Select[Entity], type_name: str, name: str) -> Entity:
    require_id(type_name, name)
    entity = rows.first(url=f"/{type_name}/{name}")
    if entity is None:
        raise NotFound(f"There is no entity /{type_name}/{name}.")
    return entity


_ENTITY_ALONE = Select(lambda: Entity.objects.filter(url=Param("url")))


def find_alone(type_name: str, name: str) -> Entity:
    """`find` without the dispatch state, for who locks that anyway. Raises NotFound."""
    return _found(_ENTITY_ALONE, type_name, name)


def find_at(url: str) -> Entity:
    """`find` by an entity's URL. Raises NotFound."""
    _, type_name, name = url.split("/")
    return find(type_name, name)


_ENTITY_AGAIN = Select(lambda: _with_state().filter(pk=Param("entity")))


def find_again(entity: Entity) -> Entity:
    """An entity that was found before, as it is now.

    Raises NotFound where it was deleted since, also if another was made at its URL.
    """
    now = _ENTITY_AGAIN.first(entity=entity.pk)
    if now is None:
        raise NotFound(_DELETED)
    return now


def at(url: str) -> Entity | None:
    """The entity at this URL, as `find` finds it, or None."""
    return _ENTITY.first(url=url)


# --- Who may ----------------------------------------------------------------------------------


def may_act(entity: Entity, principal: Principal) -> bool:
    """Whether the principal has the creator's rights in the entity."""
    return entity.created_by == principal.url or types.granted(
        types.of(entity), principal, types.MANAGE
    )


def may_read(entity: Entity, principal: Principal) -> bool:
    """Whether the principal may read the entity and its stream; its runner's owner may, too."""
    runner = entity.dispatch_state.runner
    return (runner is not None and runner.owner_principal == principal.url) or may_act(
        entity, principal
    )


_LINEAGE = """
    WITH RECURSIVE above (id, parent) AS (
        SELECT id, parent FROM dispatch_entity WHERE url = %s
        UNION ALL
        SELECT entity.id, entity.parent FROM dispatch_entity entity
        JOIN above ON entity.url = above.parent AND entity.id < above.id
    ) SELECT id FROM above
"""


def lineage(url: str) -> RawSQL:
    """The keys of the entity at a URL, its parent, and so on, for ``__in``.

    A parent is older than its child. So an entity that was created later at the URL of a former
    parent is not taken for it, and the walk cannot loop.
    """
    return RawSQL(_LINEAGE, [url])  # noqa: S611  the URL is a parameter


def is_near(held: Entity, entity: Entity) -> bool:
    """Whether an entity is the held one, its parent, or a descendant of it."""
    if entity == held or (entity.url == held.parent and entity.pk < held.pk):
        return True
    return Entity.objects.filter(pk=held.pk, pk__in=lineage(entity.url)).exists()


# --- Entities ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Watch:
    """A request to wake an entity, the subscriber, for what happens at the entity being made."""

    subscriber: str
    wish: Wish
    manifest_key: str = ""


@dataclass(frozen=True, slots=True)
class _Target:
    """The runner of a new entity, and the principals (URLs) that may own it."""

    runner_id: str
    owners: tuple[str, ...]

    def check(self, runner: Runner) -> Runner:
        """The runner. Raises Forbidden."""
        return registry.require_owner(runner, *self.owners)


_ADD = Insert(Entity, created_at=Now(), updated_at=Now())


def create(
    caller: Principal,
    type_name: str,
    name: str,
    *,
    args: JsonObject,
    tags: Mapping[str, str],
    runner_id: str | None = None,
    parent: str = "",
    sandbox: JsonObject | None = None,
    message: Message | None = None,
    watch: Watch | None = None,
) -> tuple[Entity, int]:
    """Make an entity, and wake it for a first message, if any: it, and the call's txid.

    Everything happens, or nothing. Raises, in this order: Forbidden where the type is registered
    and not open to the caller; NotFound for a parent, Forbidden for a parent in which the caller
    lacks the rights; the same for the subscriber in ``watch``, and for the runner; InvalidRequest
    for invalid args, message or sandbox; NotFound for a parent that was deleted meanwhile;
    DuplicateUrl; RateLimited past PULLWAKE_MAX_ENTITIES; NotRunning for a subscriber that has
    ended.
    """
    url = f"/{type_name}/{name}"
    entity_type = types.find(type_name)
    if entity_type is not None and not types.granted(
        entity_type, caller, types.SPAWN, types.MANAGE
    ):
        raise Forbidden(f"Entities of type {type_name} are not the caller's to make.")
    above = find_own(caller, parent, "parent") if parent else None
    subscriber = None if watch is None else find_own(caller, watch.subscriber, "subscriber")
    target = _target(caller, runner_id, above, entity_type)
    runner = None if target is None else target.check(registry.find(target.runner_id))
    bad = BadFields()
    with bad:
        if entity_type is not None and entity_type.creation_schema is not None:
            author = entity_type.registered_by
            schemas.check(args, entity_type.creation_schema, "/args", whose=author)
    with bad:
        if message is not None:
            field = "/initialMessage"
            types.check_message(entity_type, message.payload, message.type, field, f"{field}Type")
    with bad:
        _require_room(tags)
    with bad:
        sandbox = _resolve(sandbox, above, runner)
    bad.refuse()
    with transaction.atomic():
        if target is not None:  # again, since it may have changed hands before it was locked
            runner = target.check(registry.lock(target.runner_id))
        lock_name(url)
        if above is not None:
            _hold(above, subscriber)
        try:
            with transaction.atomic():
                entity = Entity(
                    type=type_name,
                    registration="" if entity_type is None else entity_type.registration,
                    url=url,
                    subscription_key=subscription_key(url),
                    tags=dict(tags),
                    spawn_args=args,
                    sandbox=sandbox,
                    parent=parent,
                    created_by=caller.url,
                )
                _ADD.add(entity)
        except IntegrityError:
            raise DuplicateUrl(f"{url} exists.") from None
        others = Entity.objects.filter(created_by=caller.url).exclude(pk=entity.pk)
        quotas.take("entities", settings.PULLWAKE_MAX_ENTITIES, caller.url, others.count)
        state = wakes.begin(entity, runner)
        entity = state.entity
        if subscriber is not None:
            registrations.hold(subscriber)  # before any registration is locked
        txid = new_txid()
        log.append(state, created_events(entity, entity_type, state.now, txid))
        state.cursor = state.tail
        if message is not None:
            deliver(state, message, str(uuid.uuid4()))
        if watch is not None and subscriber is not None:
            # Last: a subscriber that made the entity does not hear how it began.
            order = Order(url, watch.wish, watch.manifest_key)
            state.watched = max(state.watched, order.watched)
            registrations.register(subscriber, order, state.now)
        wakes.settle(state)
    entity.dispatch_state = state
    return entity, txid


def find_own(caller: Principal, url: str, role: str) -> Entity:
    """The entity at a URL, in which the caller has the rights. Raises NotFound, Forbidden.

    ``role`` is what the entity is to the call: its parent, for instance.
    """
    entity = find_at(url)
    if not may_act(entity, caller):
        raise Forbidden(f"The {role} {url} is not the caller's to act on.")
    return entity


def _hold(parent: Entity, subscriber: Entity | None) -> None:
    """Hold a parent against deletion until its child, which names it by its URL, is made.

    Another that is made at that URL is then younger, and no parent of the child's. Raises NotFound.
    """
    rows = {each.pk for each in (parent, subscriber) if each is not None}
    locking = Entity.objects.select_for_update(no_key=True).filter(pk__in=rows).order_by("pk")
    if parent not in list(locking.only("pk")):
        raise NotFound(f"The parent {parent.url} was deleted.")


def _target(
    caller: Principal, runner_id: str | None, parent: Entity | None, entity_type: EntityType | None
) -> _Target | None:
    """The runner that the caller names, else the parent's, else the type's default, else none.

    A child may use its parent's runner: its owner agreed to that for the parent. A type's registrar
    may name a default that does not exist yet, so another principal that registers that id must get
    nothing.
    """
    if runner_id is not None:
        return _Target(runner_id, (caller.url,))
    above = None if parent is None else parent.dispatch_state.runner
    if above is not None:
        return _Target(above.pk, (above.owner_principal,))
    if entity_type is not None and entity_type.default_runner is not None:
        return _Target(entity_type.default_runner, (entity_type.registered_by, caller.url))
    return None


def _resolve(
    asked: JsonObject | None, parent: Entity | None, runner: Runner | None
) -> JsonObject | None:
    """The sandbox as it is stored, with ``inherit`` replaced by the parent's.

    Raises InvalidRequest for a profile that the runner does not advertise.
    """
    sandbox = dict(asked or {})
    if sandbox.pop("inherit", False):
        given: JsonObject = (parent and parent.sandbox) or {}
        sandbox = {field: given[field] for field in ("profile", "key") if field in given}
        if sandbox:
            sandbox["owner"] = False
    advertised = [each["name"] for each in runner.sandbox_profiles] if runner is not None else []
    if "profile" in sandbox and sandbox["profile"] not in advertised:
        raise InvalidRequest.field("/sandbox/profile", "the entity's runner does not advertise it")
    return sandbox or None


def update(
    caller: Principal,
    entity: Entity,
    *,
    tags: Mapping[str, str] | None = None,
    runner_id: str | None = None,
) -> None:
    """Replace an entity's tags, its runner, or both; a running claim stays where it is.

    Raises InvalidRequest for too many tags, and for the runner what `registry.lock_own` raises.
    """
    if tags is not None:
        _require_room(tags)
    with transaction.atomic():
        runner = registry.lock_own(caller, runner_id) if runner_id is not None else None
        state = lock(entity)
        if tags is None:
            touch(state)
        else:
            known = Entity.objects.values_list("tags", flat=True).get(pk=entity.pk)
            _replace_tags(state, known, dict(tags), new_txid())
        if runner is not None:
            wakes.redirect(state, runner)
        wakes.settle(state)


def move(entity: Entity, runner_id: str) -> bool:
    """Dispatch an entity to this runner, whoever owns it: whether it moved; for operators.

    Its outstanding wake moves along; a running claim stays where it is. Raises NotFound for the
    runner, NotRunning for an entity that is stopped or killed.
    """
    with transaction.atomic():
        runner = registry.lock(runner_id)
        state = lock(entity)
        if state.ended:
            raise NotRunning(f"The entity is {state.ended}.")
        moved = state.runner_id != runner.pk
        touch(state)
        wakes.redirect(state, runner)
        wakes.settle(state)
    return moved


def touch(state: DispatchState) -> None:
    """Note that a locked entity changes; before anything that is locked after its row."""
    Entity.objects.filter(pk=state.entity_id).update(updated_at=Now())
    state.before = None  # the feed shows it


def wake_now(entity: Entity) -> Wake:
    """Wake an entity before its delay has passed, or emit its unclaimed wake again.

    Raises what `why_not_woken` returns.
    """
    with transaction.atomic():
        state = lock(entity)
        problem = why_not_woken(state)
        if problem is not None:
            raise problem
        wake = state.outstanding_wake
        if wake is not None:
            wakes.reemit(Wake.objects.filter(pk=wake.pk))
            return wake
        state.retry_at = None
        wake = wakes.settle(state)
        assert wake is not None  # noqa: S101  nothing was in its way
        return wake


def why_not_woken(state: DispatchState) -> PullwakeError | None:
    """The error that forbids waking an entity now, whatever its delay; None if it may be woken."""
    closed = why_not_sent(state)
    if closed is not None:
        return closed
    if state.claimed:
        return AlreadyClaimed()
    if state.paused:
        return NotRunning("The entity is paused.")
    if not state.pending:
        return NoPendingWork()
    if state.runner_id is None:
        return NotRunning("The entity has no runner.")
    return None


def _require_room(tags: Mapping[str, str]) -> None:
    if len(msgspec.json.encode(tags)) > MAX_TAGS_BYTES:
        raise InvalidRequest.field("/tags", f"together larger than {MAX_TAGS_BYTES} bytes")


def set_tag(entity: Entity, key: str, value: str | None) -> int:
    """Set a tag, or remove it with None: the txid, which the stream's event carries.

    Raises InvalidRequest for one tag too many.
    """
    txid = new_txid()
    with transaction.atomic():
        state = lock(entity)
        known = Entity.objects.values_list("tags", flat=True).get(pk=entity.pk)
        tags = {name: text for name, text in known.items() if name != key}
        if value is not None:
            tags[key] = value
            _require_room(tags)
        _replace_tags(state, known, tags, txid, named=key)
        wakes.save(state)
    return txid


def _replace_tags(
    state: DispatchState,
    known: Mapping[str, str],
    tags: dict[str, str],
    txid: int,
    named: str | None = None,
) -> None:
    """Give an entity these tags; append an event for each that changed, and for the ``named``."""
    Entity.objects.filter(pk=state.entity_id).update(tags=tags, updated_at=Now())
    changes.retag(state.entity.url)
    waiters.announce(waiters.ENTITY_FEED)
    if state.ended == DispatchState.End.KILLED:
        return  # its stream is closed
    events = []
    for key in sorted(known.keys() | tags.keys()):
        if key != named and known.get(key) == tags.get(key):
            continue
        operation = "update" if key in known and key in tags else "insert"
        event: JsonObject = {"type": "tags", "key": key}
        if key in tags:
            event["value"] = {"key": key, "value": tags[key]}
        else:
            operation = "delete"
        event["headers"] = {"operation": operation, "timestamp": iso(state.now), "txid": txid}
        events.append(event)
    if events:
        log.append(state, events)


# --- Messages ---------------------------------------------------------------------


def send(entity: Entity, message: Message, after: timedelta = timedelta()) -> str:
    """Append a message to the entity's stream and wake it: the message's txid.

    ``after`` delays the message by this much (`dispatch.timers`); it is accepted or refused now. A
    key that was sent before means the same message: the first one stands, and its txid is returned.
    Raises NotRunning for an entity that is stopping, stopped or killed, InvalidRequest for a
    payload that its type does not allow.
    """
    problem = problem_with(entity, message)
    with transaction.atomic():
        state = lock(entity)
        known = None if message.key is None else _txid_of(entity, message.key, delayed=bool(after))
        if known is not None:
            SENDS.labels(named(entity.type), "repeated").inc()
            return known
        closed = why_not_sent(state)
        if closed is not None:
            raise closed
        if problem is not None:
            raise problem
        txid = str(uuid.uuid4())
        if after:
            timers.delay(entity, message, txid, state.now + after)
        else:
            deliver(state, message, txid)
            wakes.settle(state)
    SENDS.labels(named(entity.type), "delayed" if after else "sent").inc()
    return txid


def _txid_of(entity: Entity, key: str, *, delayed: bool) -> str | None:
    """The txid of the message that already has this key, or None.

    If the message to be sent now has the key of a delayed one, the delayed one will not be sent
    when its time comes.
    """
    first = StreamEvent.objects.filter(entity=entity, message_key=key).first()
    if first is not None:
        known: str = msgspec.json.decode(first.data)["headers"]["txid"]
        return known
    return timers.txid_of(entity, key) if delayed else None


def why_not_sent(state: DispatchState) -> NotRunning | None:
    """The error that forbids sending an entity a message; None if it may be sent."""
    return NotRunning("The entity is stopping, stopped or killed.") if state.closed else None


def problem_with(entity: Entity, message: Message) -> InvalidRequest | None:
    """What its type has against a message; asked before the lock, for a check takes time."""
    if message.type is None:  # only a typed one has a schema
        return None
    try:
        types.check_message(types.of(entity), message.payload, message.type)
    except InvalidRequest as problem:
        return problem
    return None


def deliver(state: DispatchState, message: Message, txid: str) -> None:
    """Append a message to the stream of an entity whose locked state this is; the caller settles.

    Raises IntegrityError for a key that was sent before.
    """
    value: JsonObject = {
        "from": message.sender,
        "payload": message.payload,
        "timestamp": iso(state.now),
        "mode": message.mode,
    }
    position = message.position
    if message.mode in work.QUEUED_MODES:
        value["status"] = "pending"
        if position is None:
            position = end_of_queue(state)
    else:
        value |= {"status": "processed", "processed_at": iso(state.now)}
    optional = {
        "from_principal": message.principal,
        "from_agent": message.agent,
        "message_type": message.type,
        "position": position,
    }
    value |= {name: text for name, text in optional.items() if text is not None}
    key = message.key if message.key is not None else new_id("msg")
    headers = {"operation": "insert", "txid": txid}
    event = {"type": "inbox", "key": key, "value": value, "headers": headers}
    log.append(state, [event], message_key=key, traces=[message.trace])


def end_of_queue(state: DispatchState) -> str:
    """The position of a message that is queued now."""
    return f"{epoch_ms(state.now):016d}:a0"


def created_events(
    entity: Entity, entity_type: EntityType | None, now: datetime, txid: int
) -> list[JsonObject]:
    """The first events of an entity's stream: that it was made, and its type's slash commands."""
    value: JsonObject = {
        "entity_type": entity.type,
        "timestamp": iso(now),
        "args": entity.spawn_args,
    }
    if entity.parent:
        value["parent_url"] = entity.parent
    headers = {"operation": "insert", "timestamp": iso(now), "txid": txid}
    commands = (entity_type and entity_type.slash_commands) or ()
    events: list[JsonObject] = [
        {"type": "entity_created", "key": "entity-created", "value": value},
        *(
            {
                "type": "slash_command",
                "key": command["name"],
                "value": {**command, "source": "static", "updated_at": iso(now)},
            }
            for command in commands
        ),
    ]
    return [{**event, "headers": headers} for event in events]


def lock(entity: Entity) -> DispatchState:
    """The entity's dispatch state, locked until the transaction ends. Raises NotFound.

    Its entity is the one given here: of what that says, anything that can change may have changed.
    """
    state = wakes.lock_alone(entity)
    if state is None:
        raise NotFound(_DELETED)
    return state


def lock_open(entity: Entity) -> DispatchState:
    """`lock` for an entity that takes messages. Raises NotFound, or NotRunning for another."""
    state = lock(entity)
    closed = why_not_sent(state)
    if closed is not None:
        raise closed
    return state


def lock_row(state: DispatchState) -> None:
    """Lock the row of an entity whose locked state this is."""
    # Not the whole row: what others write about it is checked at their commit, and must not wait.
    Entity.objects.select_for_update(no_key=True).values_list("pk").get(pk=state.entity_id)


def entities_of(principal: Principal) -> EntityQuerySet:
    """The principal's entities, newest first, with their dispatch states."""
    own = Entity.objects.filter(created_by=principal.url)
    return own.select_related("dispatch_state").order_by("-pk")
