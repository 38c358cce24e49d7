"""Signals to entities, as POSIX names them; `claims.endings.kill` is the one that ends a claim.

SIGSTOP pauses, SIGCONT resumes, SIGTERM stops, each once an active claim has ended. The others are
work for the handler, and change nothing here.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from django.db import transaction
from django.db.models.functions import Now

from core.bodies import JsonObject
from core.clock import iso
from core.errors import InvalidSignal
from core.identifiers import new_id
from dispatch import entities, wakes
from dispatch.models import DispatchState, Entity
from dispatch.streams import log

HANDLERS = ("SIGINT", "SIGHUP", "SIGUSR")
"""Signals that change nothing here and are work for the handler."""


@dataclass(frozen=True, slots=True)
class Signal:
    """What is signalled; ``sender`` is a principal's URL."""

    name: str
    sender: str
    reason: str | None = None
    payload: Any = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Signalled:
    """What a signal did: the entity's status before and after it."""

    previous_state: str
    new_state: str
    created_at: datetime
    txid: str


def send(entity: Entity, signal: Signal) -> Signalled:
    """Signal an entity, and append that to its stream; SIGKILL is `claims.endings.kill`.

    Raises InvalidSignal for a stopped or killed entity, NotFound for a deleted one.
    """
    with transaction.atomic():
        state = entities.lock(entity)
        if state.ended:
            raise InvalidSignal
        before = state.status
        if signal.name in HANDLERS:
            state.retry_at = None
            signalled = record(entity, state, signal, before=before)
        else:
            changed = _change(state, signal.name)
            signalled = record(entity, state, signal, before=before, changed=changed)
        wakes.settle(state)
    return signalled


def _change(state: DispatchState, name: str) -> bool:
    """Whether the signal changed anything; stopping an unclaimed entity is left to `settle`."""
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


def record(
    entity: Entity,
    state: DispatchState,
    signal: Signal,
    *,
    before: str,
    changed: bool | None = None,
) -> Signalled:
    """Append a signal to the stream of an entity whose locked state this is; the caller saves it.

    ``before`` is the status it met; ``changed`` whether it changed it, None for one of `HANDLERS`.
    """
    stopped = state.stop_requested and not state.claimed
    after = DispatchState.End.STOPPED.value if stopped else state.status
    value: JsonObject = {"signal": signal.name, "status": "unhandled"}
    if changed is not None:
        value |= {
            "status": "handled",
            "outcome": "transitioned" if changed else "ignored",
            "previous_state": before,
            "new_state": after,
        }
    value |= {"sender": signal.sender, "timestamp": iso(state.now)}
    if signal.reason is not None:
        value["reason"] = signal.reason
    if signal.payload is not msgspec.UNSET:
        value["payload"] = signal.payload
    txid = str(uuid.uuid4())
    headers = {"operation": "insert", "timestamp": iso(state.now), "txid": txid}
    event = {"type": "signal", "key": new_id("sig"), "value": value, "headers": headers}
    log.append(state, [event], work=changed is None)
    Entity.objects.filter(pk=entity.pk).update(updated_at=Now())
    return Signalled(before, after, state.now, txid)
