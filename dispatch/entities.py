"""Entities and entity types: made, sent to, signalled, moved and deleted.

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
from django.db.models import F, QuerySet
from django.db.models.functions import Now

from config.bodies import JsonObject
from config.clock import iso
from config.errors import (
    AlreadyClaimed,
    DuplicateUrl,
    Forbidden,
    InvalidRequest,
    InvalidSignal,
    NoPendingWork,
    NotFound,
    NotRunning,
    PullwakeError,
)
from config.identifiers import new_id
from config.prepared import Param, Select
from config.principals import Principal
from dispatch import schemas, wakes
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
from runners.models import Runner, RunnerQuerySet

SPAWN, MANAGE = "spawn", "manage"


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent to an entity; ``sender`` is a principal's or an entity's URL."""

    payload: Any
    sender: str
    key: str | None = None
    type: str | None = None
    mode: str = "immediate"
    position: Any = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Signalled:
    """What a signal did: the entity's status before and after it."""

    entity: Entity
    signal: str
    previous_state: str
    new_state: str
    created_at: datetime
    txid: str


# --- Who may ----------------------------------------------------------------------------------


def granted(entity_type: EntityType | None, principal: Principal, *permissions: str) -> bool:
    """Whether the registrar is this principal, or granted it one of these permissions."""
    if entity_type is None:
        return False
    subjects = {("principal", principal.url), ("principal_kind", principal.kind)}
    return entity_type.registered_by == principal.url or any(
        grant["permission"] in permissions
        and (grant["subject_kind"], grant["subject_value"]) in subjects
        for grant in entity_type.permission_grants
    )


_TYPE = Select(lambda: EntityType.objects.filter(name=Param("name")))


def _type(name: str) -> EntityType | None:
    return _TYPE.first(name=name)


def may_act(entity: Entity, principal: Principal) -> bool:
    """Whether the principal may do what the creator may."""
    return entity.created_by == principal.url or granted(_type(entity.type), principal, MANAGE)


def may_read(entity: Entity, principal: Principal) -> bool:
    """Whether the principal may read the entity and its stream: its runner's owner may, too."""
    runner = entity.dispatch_state.runner
    return (runner is not None and runner.owner_principal == principal.url) or may_act(
        entity, principal
    )


def runner_for(caller: Principal, runner_id: str) -> Runner:
    """The runner that the caller dispatches to. Raises NotFound, or Forbidden for another's.

    Locked against its deletion until the transaction ends, and before any dispatch state is.
    """
    runner = Runner.objects.select_for_update(no_key=True).filter(pk=runner_id).first()
    if runner is None:
        raise NotFound(f"There is no runner {runner_id}.")
    if runner.owner_principal != caller.url:
        raise Forbidden(f"The runner {runner_id} is another principal's.")
    return runner


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
    what `runner_for` raises.
    """
    url = f"/{type_name}/{name}"
    with transaction.atomic():
        entity_type = _type(type_name)
        if entity_type is not None:
            if not granted(entity_type, caller, SPAWN, MANAGE):
                raise Forbidden(f"Entities of type {type_name} are not the caller's to make.")
            if entity_type.creation_schema is not None:
                schemas.check(args, entity_type.creation_schema, "/args")
        if message is not None:
            _check_message(entity_type, message, "/initialMessage")
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
        wakes.settle(state, claimed=False)
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

    For the runner raises what `runner_for` raises.
    """
    with transaction.atomic():
        runner = runner_for(caller, runner_id) if runner_id is not None else None
        state = _locked(entity)
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
        state = _locked(entity)
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
        state = _locked(entity)
        problem = why_not_woken(state, claimed=wakes.is_claimed(entity.pk))
        if problem is not None:
            raise problem
        wake = state.outstanding_wake
        if wake is not None:
            Wake.objects.filter(pk=wake.pk).reemit()
            return wake
        state.retry_at = None
        wake = wakes.settle(state, claimed=False)
        assert wake is not None  # noqa: S101  nothing was in its way
        return wake


def why_not_woken(state: DispatchState, *, claimed: bool) -> PullwakeError | None:
    """What stands against waking an entity now, whatever its delay; None if nothing does."""
    if state.ended or state.stop_requested:
        return NotRunning("The entity is stopping, stopped or killed.")
    if claimed:
        return AlreadyClaimed()
    if state.paused:
        return NotRunning("The entity is paused.")
    if not state.pending:
        return NoPendingWork()
    if state.runner_id is None:
        return NotRunning("The entity has no runner.")
    return None


def set_tag(entity: Entity, key: str, value: str | None) -> None:
    """Set a tag, or with None take it away."""
    with transaction.atomic():
        _locked(entity)
        tags = Entity.objects.values_list("tags", flat=True).get(pk=entity.pk)
        if value is None:
            tags.pop(key, None)
        else:
            tags[key] = value
        Entity.objects.filter(pk=entity.pk).update(tags=tags, updated_at=Now())


def delete(entity: Entity) -> None:
    """Delete an entity and its stream; an active claim is fenced."""
    with transaction.atomic():
        wakes.lock_limited(_holder(entity))
        state = _locked(entity)
        entity.claims.fence()
        wakes.end(state, DispatchState.End.KILLED)
        wakes.save(state)
        entity.delete()


# --- Messages and signals ---------------------------------------------------------------------


def send(entity: Entity, message: Message) -> str:
    """Append a message to the entity's stream and wake it: the message's txid.

    A key that was sent before is the same message: the first stands, and its txid is answered.
    Raises NotRunning for an entity that is stopping, stopped or killed, InvalidRequest for a
    payload that its type does not allow.
    """
    with transaction.atomic():
        state = _locked(entity)
        if message.key is not None:
            first = StreamEvent.objects.filter(entity=entity, message_key=message.key).first()
            if first is not None:
                known: str = msgspec.json.decode(first.data)["headers"]["txid"]
                return known
        if state.ended or state.stop_requested:
            raise NotRunning("The entity is stopping, stopped or killed.")
        if message.type is not None:  # only such a one has a schema
            _check_message(_type(entity.type), message, "/payload")
        txid = _deliver(state, message)
        wakes.settle(state)
    return txid


HANDLERS = ("SIGINT", "SIGHUP", "SIGUSR")
"""Signals that change nothing here and are work for the handler."""
SIGNALS = ("SIGSTOP", "SIGCONT", "SIGTERM", "SIGKILL", *HANDLERS)


def signal(
    entity: Entity,
    name: str,
    *,
    sender: str,
    reason: str | None = None,
    payload: Any = msgspec.UNSET,
) -> Signalled:
    """Signal an entity, and append that to its stream. Raises InvalidSignal at its end.

    SIGSTOP pauses, SIGCONT resumes, SIGTERM stops, each once an active claim has ended; SIGKILL
    kills at once and fences it. The others are work for the handler.
    """
    txid = str(uuid.uuid4())
    with transaction.atomic():
        if name == "SIGKILL":
            wakes.lock_limited(_holder(entity))
        state = _locked(entity)
        if state.ended:
            raise InvalidSignal
        claimed = wakes.is_claimed(entity.pk)
        before = state.status(claimed=claimed)
        if name in HANDLERS:
            outcome: JsonObject = {"status": "unhandled"}
        else:
            changed = _transition(state, name, claimed=claimed)
            claimed = claimed and not state.ended
            outcome = {"status": "handled", "outcome": "transitioned" if changed else "ignored"}
        stopped = state.stop_requested and not claimed
        after = DispatchState.End.STOPPED.value if stopped else state.status(claimed=claimed)
        if name not in HANDLERS:
            outcome |= {"previous_state": before, "new_state": after}
        value = {"signal": name, **outcome, "sender": sender, "timestamp": iso(state.now)}
        if reason is not None:
            value["reason"] = reason
        if payload is not msgspec.UNSET:
            value["payload"] = payload
        headers = {"operation": "insert", "timestamp": iso(state.now), "txid": txid}
        log.append(
            state,
            [{"type": "signal", "key": new_id("sig"), "value": value, "headers": headers}],
            work=name in HANDLERS,
        )
        if name in HANDLERS:
            state.retry_at = None
        if name == "SIGKILL":
            wakes.save(state)
        else:
            wakes.settle(state, claimed=claimed)
        Entity.objects.filter(pk=entity.pk).update(updated_at=Now())
    return Signalled(entity, name, before, after, state.now, txid)


def _transition(state: DispatchState, name: str, *, claimed: bool) -> bool:
    """Whether the signal changed anything; stopping an unclaimed entity is left to `settle`."""
    if name == "SIGKILL":
        state.entity.claims.fence()
        wakes.end(state, DispatchState.End.KILLED)
        return True
    if state.stop_requested:
        return False
    if name == "SIGTERM":
        state.stop_requested = True
        return True
    pause = name == "SIGSTOP"
    changed = state.paused != pause
    if pause:
        wakes.withdraw(state)
    state.paused = pause
    return changed


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


def _check_message(entity_type: EntityType | None, message: Message, path: str) -> None:
    inbox = entity_type.inbox_schemas if entity_type is not None else None
    if not inbox or message.type is None:
        return
    if message.type not in inbox:
        raise InvalidRequest.field("/type", f"the entity takes only {', '.join(sorted(inbox))}")
    schemas.check(message.payload, inbox[message.type], path)


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


def _holder(entity: Entity) -> RunnerQuerySet:
    """The runner whose claim on the entity is active."""
    return Runner.objects.filter(claims__entity=entity, claims__status="active")


def _locked(entity: Entity) -> DispatchState:
    state = wakes.lock_of(entity.pk)
    if state is None:
        raise NotFound("The entity was deleted.")
    return state


def _first_runner(
    caller: Principal, runner_id: str | None, entity_type: EntityType | None
) -> Runner | None:
    if runner_id is not None:
        return runner_for(caller, runner_id)
    if entity_type is None or entity_type.default_runner_id is None:
        return None
    # Its registrar owned that runner, and so consented.
    default = Runner.objects.select_for_update(no_key=True)
    return default.filter(pk=entity_type.default_runner_id).first()


# --- Entity types -----------------------------------------------------------------------------


def register_type(caller: Principal, name: str, facts: JsonObject) -> EntityType:
    """Register a type, or update what is given of one and raise its revision.

    ``facts`` are fields of `EntityType`, and ``runner_id`` for its default runner (None: no
    default). Raises Forbidden for a type that is not the caller's to change, and for the runner
    what `runner_for` raises.
    """
    facts = dict(facts)
    with transaction.atomic():
        if "runner_id" in facts:
            runner_id = facts.pop("runner_id")
            facts["default_runner"] = (
                runner_for(caller, runner_id) if runner_id is not None else None
            )
        known = EntityType.objects.select_for_update(of=("self",)).filter(pk=name)
        registered = known.first()
        if registered is None:
            try:
                with transaction.atomic():
                    return EntityType.objects.create(name=name, registered_by=caller.url, **facts)
            except IntegrityError:  # another registration was first, so this one is an update
                registered = known.get()
        if not granted(registered, caller, MANAGE):
            raise Forbidden(f"The type {name} is another principal's.")
        known.update(revision=F("revision") + 1, updated_at=Now(), **facts)
        return EntityType.objects.get(pk=name)


def entities_of(principal: Principal) -> QuerySet[Entity]:
    """The principal's entities, newest first, with ``claimed``: whether a claim is active."""
    own = Entity.objects.filter(created_by=principal.url)
    return own.with_claimed().order_by("-pk")
