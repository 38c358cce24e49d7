"""Entities: made, sent to, tagged and moved. `claims.endings` deletes them.

Whatever changes an entity locks its dispatch state first, changes it through `dispatch.wakes`, and
ends with `wakes.settle`, all in one transaction.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from core import quotas
from core.bodies import JsonObject
from core.clock import iso
from core.errors import (
    AlreadyClaimed,
    DuplicateUrl,
    Forbidden,
    InvalidRequest,
    NoPendingWork,
    NotFound,
    NotRunning,
    PullwakeError,
)
from core.identifiers import new_id, require_id
from core.prepared import Param, Select
from core.principals import Principal
from dispatch import schemas, types, wakes
from dispatch.models import (
    DispatchState,
    Entity,
    EntityType,
    StreamEvent,
    Wake,
    subscription_key,
)
from dispatch.streams import log
from runners import registry
from runners.models import Runner

MAX_TAGS_BYTES = 64 * 1024
"""All tags of an entity, as JSON."""


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent to an entity; ``sender`` is a principal's or an entity's URL."""

    payload: Any
    sender: str
    key: str | None = None
    type: str | None = None
    mode: str = "immediate"
    position: Any = msgspec.UNSET


_ENTITY = Select(
    lambda: Entity.objects.select_related("dispatch_state__runner").filter(url=Param("url"))
)


def find(type_name: str, name: str) -> Entity:
    """The entity at an address, with its dispatch state and its runner. Raises NotFound."""
    require_id(type_name, name)
    entity = _ENTITY.first(url=f"/{type_name}/{name}")
    if entity is None:
        raise NotFound(f"There is no entity /{type_name}/{name}.")
    return entity


# --- Who may ----------------------------------------------------------------------------------


def may_act(entity: Entity, principal: Principal) -> bool:
    """Whether the principal may do what the creator may."""
    return entity.created_by == principal.url or types.granted(
        types.find(entity.type), principal, types.MANAGE
    )


def may_read(entity: Entity, principal: Principal) -> bool:
    """Whether the principal may read the entity and its stream: its runner's owner may, too."""
    runner = entity.dispatch_state.runner
    return (runner is not None and runner.owner_principal == principal.url) or may_act(
        entity, principal
    )


# --- Entities ---------------------------------------------------------------------------------


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
) -> Entity:
    """Make an entity, and wake it if it is made with a first message.

    Raises DuplicateUrl; Forbidden where the type is registered and not open to the caller;
    InvalidRequest where the args or the message are not what the type asks for; for the runner
    what `registry.lock_own` raises; RateLimited past PULLWAKE_MAX_ENTITIES.
    """
    url = f"/{type_name}/{name}"
    entity_type = types.find(type_name)
    if entity_type is not None:
        if not types.granted(entity_type, caller, types.SPAWN, types.MANAGE):
            raise Forbidden(f"Entities of type {type_name} are not the caller's to make.")
        if entity_type.creation_schema is not None:
            schemas.check(args, entity_type.creation_schema, "/args")
    if message is not None:
        types.check_message(entity_type, message.payload, message.type, "/initialMessage")
    _require_room(tags)
    own = Entity.objects.filter(created_by=caller.url)
    quotas.take("entities", settings.PULLWAKE_MAX_ENTITIES, caller.url, own.count)
    with transaction.atomic():
        runner = _first_runner(caller, runner_id, entity_type)
        try:
            with transaction.atomic():
                entity = Entity.objects.create(
                    type=type_name,
                    url=url,
                    subscription_key=subscription_key(url),
                    tags=dict(tags),
                    spawn_args=args,
                    sandbox=sandbox,
                    parent=parent,
                    created_by=caller.url,
                )
        except IntegrityError:
            raise DuplicateUrl(f"{url} exists.") from None
        state = wakes.begin(entity, runner)
        log.append(state, [_created_event(entity, state.now)])
        state.cursor = state.tail
        if message is not None:
            _deliver(state, message)
        wakes.settle(state)
    entity.dispatch_state = state
    return entity


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
        if runner is not None:
            wakes.redirect(state, runner)
        wakes.settle(state)
        facts = {} if tags is None else {"tags": dict(tags)}
        Entity.objects.filter(pk=entity.pk).update(updated_at=Now(), **facts)


def move(entity: Entity, runner_id: str) -> bool:
    """Dispatch an entity to this runner, whoever owns it: for operators. Whether it moved.

    Its outstanding wake goes along; a running claim stays where it is. Raises NotFound for the
    runner, NotRunning for an entity that is stopped or killed.
    """
    with transaction.atomic():
        runner = registry.lock(runner_id)
        state = lock(entity)
        if state.ended:
            raise NotRunning(f"The entity is {state.ended}.")
        moved = state.runner_id != runner.pk
        wakes.redirect(state, runner)
        wakes.settle(state)
        Entity.objects.filter(pk=entity.pk).update(updated_at=Now())
    return moved


def wake_now(entity: Entity) -> Wake:
    """Wake an entity without waiting for a delay to pass, or emit its unclaimed wake again.

    Raises what `why_not_woken` says.
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
    """What stands against waking an entity now, whatever its delay; None if nothing does."""
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


def set_tag(entity: Entity, key: str, value: str | None) -> None:
    """Set a tag, or with None take it away. Raises InvalidRequest for one too many."""
    with transaction.atomic():
        lock(entity)
        tags = Entity.objects.values_list("tags", flat=True).get(pk=entity.pk)
        if value is None:
            tags.pop(key, None)
        else:
            tags[key] = value
            _require_room(tags)
        Entity.objects.filter(pk=entity.pk).update(tags=tags, updated_at=Now())


# --- Messages ---------------------------------------------------------------------


def send(entity: Entity, message: Message) -> str:
    """Append a message to the entity's stream and wake it: the message's txid.

    A key that was sent before is the same message: the first stands, and its txid is answered.
    Raises NotRunning for an entity that is stopping, stopped or killed, InvalidRequest for a
    payload that its type does not allow.
    """
    problem = _problem_with(entity, message)
    with transaction.atomic():
        state = lock(entity)
        if message.key is not None:
            first = StreamEvent.objects.filter(entity=entity, message_key=message.key).first()
            if first is not None:
                known: str = msgspec.json.decode(first.data)["headers"]["txid"]
                return known
        closed = why_not_sent(state)
        if closed is not None:
            raise closed
        if problem is not None:
            raise problem
        txid = _deliver(state, message)
        wakes.settle(state)
    return txid


def why_not_sent(state: DispatchState) -> NotRunning | None:
    """What stands against sending an entity a message; None if nothing does."""
    return NotRunning("The entity is stopping, stopped or killed.") if state.closed else None


def _problem_with(entity: Entity, message: Message) -> InvalidRequest | None:
    """What its type has against a message: found before the lock, for a check takes its time."""
    if message.type is None:  # only a typed one has a schema
        return None
    try:
        types.check_message(types.find(entity.type), message.payload, message.type, "/payload")
    except InvalidRequest as problem:
        return problem
    return None


def _deliver(state: DispatchState, message: Message) -> str:
    txid = str(uuid.uuid4())
    value: JsonObject = {
        "from": message.sender,
        "payload": message.payload,
        "timestamp": iso(state.now),
        "mode": message.mode,
    }
    if message.type is not None:
        value["message_type"] = message.type
    if message.position is not msgspec.UNSET:
        value["position"] = message.position
    key = message.key if message.key is not None else new_id("msg")
    headers = {"operation": "insert", "txid": txid}
    event = {"type": "inbox", "key": key, "value": value, "headers": headers}
    log.append(state, [event], work=True, message_key=message.key)
    # News is worth a try at once, whatever failed before.
    state.retry_at = None
    return txid


def _created_event(entity: Entity, now: datetime) -> JsonObject:
    value: JsonObject = {
        "url": entity.url,
        "type": entity.type,
        "created_by": entity.created_by,
        "spawn_args": entity.spawn_args,
        "tags": entity.tags,
        "timestamp": iso(now),
    }
    if entity.parent:
        value["parent"] = entity.parent
    return {
        "type": "entity_created",
        "key": "entity-created",
        "value": value,
        "headers": {"operation": "insert", "timestamp": iso(now)},
    }


def lock(entity: Entity) -> DispatchState:
    """The entity's dispatch state, locked until the transaction ends. Raises NotFound."""
    state = wakes.lock_of(entity.pk)
    if state is None:
        raise NotFound("The entity was deleted.")
    return state


def _first_runner(
    caller: Principal, runner_id: str | None, entity_type: EntityType | None
) -> Runner | None:
    if runner_id is not None:
        return registry.lock_own(caller, runner_id)
    if entity_type is None or entity_type.default_runner_id is None:
        return None
    # Its registrar owned that runner, and so consented.
    default = Runner.objects.select_for_update(no_key=True)
    return default.filter(pk=entity_type.default_runner_id).first()


def entities_of(principal: Principal) -> QuerySet[Entity]:
    """The principal's entities, newest first, with their dispatch states."""
    own = Entity.objects.filter(created_by=principal.url)
    return own.select_related("dispatch_state").order_by("-pk")
