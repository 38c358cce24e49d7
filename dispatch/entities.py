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
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from core.bodies import JsonObject
from core.clock import epoch_ms, iso
from core.errors import (
    AlreadyClaimed,
    DuplicateUrl,
    Forbidden,
    NoPendingWork,
    NotFound,
    NotRunning,
    PullwakeError,
)
from core.identifiers import new_id, new_txid, require_id
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
from dispatch.streams import log, work
from runners import registry
from runners.models import Runner


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent to an entity.

    ``sender`` is a principal's or an entity's URL; ``principal`` that of the principal whose
    rights held, ``agent`` that of the entity that speaks. Without a ``position`` a queued message
    goes to the end of the queue.
    """

    payload: Any
    sender: str
    key: str | None = None
    type: str | None = None
    mode: str = "immediate"
    position: str | None = None
    principal: str | None = None
    agent: str | None = None


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
) -> tuple[Entity, int]:
    """Make an entity, and wake it if it is made with a first message: it, and the call's txid.

    Raises DuplicateUrl; Forbidden where the type is registered and not open to the caller;
    InvalidRequest where the args or the message are not what the type asks for; for the runner
    what `registry.lock_own` raises.
    """
    url = f"/{type_name}/{name}"
    with transaction.atomic():
        entity_type = types.find(type_name)
        if entity_type is not None:
            if not types.granted(entity_type, caller, types.SPAWN, types.MANAGE):
                raise Forbidden(f"Entities of type {type_name} are not the caller's to make.")
            if entity_type.creation_schema is not None:
                schemas.check(args, entity_type.creation_schema, "/args")
        if message is not None:
            types.check_message(entity_type, message.payload, message.type, "/initialMessage")
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
        txid = new_txid()
        log.append(state, _created_events(entity, entity_type, state.now, txid))
        state.cursor = state.tail
        if message is not None:
            _deliver(state, message)
        wakes.settle(state)
    entity.dispatch_state = state
    return entity, txid


def update(
    caller: Principal,
    entity: Entity,
    *,
    tags: Mapping[str, str] | None = None,
    runner_id: str | None = None,
) -> None:
    """Replace an entity's tags, its runner, or both; a running claim stays where it is.

    For the runner raises what `registry.lock_own` raises.
    """
    with transaction.atomic():
        runner = registry.lock_own(caller, runner_id) if runner_id is not None else None
        state = lock(entity)
        if runner is not None:
            wakes.redirect(state, runner)
        if tags is None:
            Entity.objects.filter(pk=entity.pk).update(updated_at=Now())
        else:
            known = Entity.objects.values_list("tags", flat=True).get(pk=entity.pk)
            _replace_tags(state, known, dict(tags), new_txid())
        wakes.settle(state)


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


def set_tag(entity: Entity, key: str, value: str | None) -> int:
    """Set a tag, or with None take it away: the txid, which the stream's event bears."""
    txid = new_txid()
    with transaction.atomic():
        state = lock(entity)
        known = Entity.objects.values_list("tags", flat=True).get(pk=entity.pk)
        tags = {name: text for name, text in known.items() if name != key}
        if value is not None:
            tags[key] = value
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
    """Give an entity these tags, and tell its stream of each that changed, and of the ``named``."""
    Entity.objects.filter(pk=state.entity_id).update(tags=tags, updated_at=Now())
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


def send(entity: Entity, message: Message) -> str:
    """Append a message to the entity's stream and wake it: the message's txid.

    A key that was sent before is the same message: the first stands, and its txid is answered.
    Raises NotRunning for an entity that is stopping, stopped or killed, InvalidRequest for a
    payload that its type does not allow.
    """
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
        if message.type is not None:  # only such a one has a schema
            types.check_message(types.find(entity.type), message.payload, message.type, "/payload")
        txid = _deliver(state, message)
        wakes.settle(state)
    return txid


def why_not_sent(state: DispatchState) -> NotRunning | None:
    """What stands against sending an entity a message; None if nothing does."""
    return NotRunning("The entity is stopping, stopped or killed.") if state.closed else None


def _deliver(state: DispatchState, message: Message) -> str:
    txid = str(uuid.uuid4())
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
            position = f"{epoch_ms(state.now):016d}:a0"
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
    log.append(state, [event], message_key=message.key)
    # News is worth a try at once, whatever failed before.
    state.retry_at = None
    return txid


def _created_events(
    entity: Entity, entity_type: EntityType | None, now: datetime, txid: int
) -> list[JsonObject]:
    """What an entity's stream begins with: that it was made, and the type's slash commands."""
    value: JsonObject = {
        "entity_type": entity.type,
        "timestamp": iso(now),
        "args": entity.spawn_args,
    }
    if entity.parent:
        value["parent_url"] = entity.parent
    headers = {"operation": "insert", "timestamp": iso(now), "txid": txid}
    commands = getattr(entity_type, "slash_commands", None) or ()
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
