"""Signals to entities, named as in POSIX; `claims.endings.kill` is the one that ends a claim.

SIGSTOP pauses, SIGCONT resumes, SIGTERM stops. The other signals change nothing here and are work
for the handler, as is a SIGCONT that resumes: it starts the queue again. A SIGSTOP or SIGTERM that
arrives during a claim stays unhandled, for its handler to see, and is not work: `complete` records
at the end of the claim what it did.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from django.db import transaction

from core.bodies import JsonObject
from core.clock import iso
from core.errors import InvalidSignal
from core.identifiers import new_id, new_txid
from dispatch import entities, wakes
from dispatch.models import DispatchState, Entity, StreamEvent
from dispatch.streams import log
from dispatch.streams.scan import scan

HANDLERS = ("SIGINT", "SIGHUP", "SIGUSR")
"""Signals that change nothing here."""
CLOSING = ("SIGSTOP", "SIGTERM")
"""Signals that have a handler come to its end."""
SERVER = "/_electric/server"
"""Who handled a signal that no handler did."""


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal to be sent; ``sender`` is a principal's URL."""

    name: str
    sender: str
    reason: str | None = None
    payload: Any = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Signalled:
    """The effect of a signal: the entity's status before and after it."""

    previous_state: str
    new_state: str
    created_at: datetime
    txid: int


def send(entity: Entity, signal: Signal) -> Signalled:
    """Signal an entity, and append that to its stream; SIGKILL is `claims.endings.kill`.

    Raises InvalidSignal for a stopped or killed entity, NotFound for a deleted one.
    """
    with transaction.atomic():
        state = entities.lock(entity)
        if state.ended:
            raise InvalidSignal
        entities.touch(state)
        before = state.status
        resumes = before == "paused" and signal.name == "SIGCONT"
        changed = signal.name not in HANDLERS and _change(state, signal.name)
        if signal.name in HANDLERS or resumes:
            signalled = record(state, signal, before=before)
        elif state.claimed and signal.name in CLOSING:
            state.signals_open = True
            signalled = record(state, signal, before=before)
        else:
            signalled = record(state, signal, before=before, changed=changed)
        wakes.settle(state)
    return signalled


def _change(state: DispatchState, name: str) -> bool:
    """Apply the signal: whether it changed anything. `settle` stops an unclaimed entity."""
    if state.stop_requested:
        return False
    if name == "SIGTERM":
        state.stop_requested = True
        return True
    pause = name == "SIGSTOP"
    changed = state.paused != pause
    state.paused = pause
    return changed


def record(
    state: DispatchState,
    signal: Signal,
    *,
    before: str,
    changed: bool | None = None,
) -> Signalled:
    """Append a signal to the stream of an entity whose locked state this is; the caller saves it.

    ``before`` is the status in which it found the entity; ``changed`` is whether it changed that,
    None if it is unhandled.
    """
    stopped = state.stop_requested and not state.claimed
    after = DispatchState.End.STOPPED.value if stopped else state.status
    value: JsonObject = {"signal": signal.name, "status": "unhandled"}
    if changed is not None:
        value |= _handled(state, changed=changed, before=before, after=after)
    value |= {"sender": signal.sender, "timestamp": iso(state.now)}
    if signal.reason is not None:
        value["reason"] = signal.reason
    if signal.payload is not msgspec.UNSET:
        value["payload"] = signal.payload
    txid = new_txid()
    headers = {"operation": "insert", "timestamp": iso(state.now), "txid": txid}
    event = {"type": "signal", "key": new_id("sig"), "value": value, "headers": headers}
    log.append(state, [event])
    return Signalled(before, after, state.now, txid)


def _handled(state: DispatchState, *, changed: bool, before: str, after: str) -> JsonObject:
    return {
        "status": "handled",
        "handled_at": iso(state.now),
        "handled_by": SERVER,
        "outcome": "transitioned" if changed else "ignored",
        "previous_state": before,
        "new_state": after,
    }


def complete(state: DispatchState, since: int) -> None:
    """At the end of a claim: record the effect of SIGSTOPs and SIGTERMs left unhandled.

    They lie past the offset ``since``, and exist only where ``signals_open``. Without this the next
    handler would obey them.
    """
    state.signals_open = False
    left: dict[str, str] = {}
    written = StreamEvent.objects.filter(
        entity_id=state.entity_id, offset__gt=since, data__contains='"signal"'
    )
    for _, data in scan(written):
        match msgspec.json.decode(data):
            case {
                "type": "signal",
                "key": str(key),
                "value": {"signal": str(name), "status": "unhandled"},
            } if name in CLOSING:
                left[key] = name
            case {"type": "signal", "key": str(key), "value": {"status": "handled"}}:
                left.pop(key, None)
    stops, pauses = state.stop_requested, state.paused
    headers = {"operation": "update", "timestamp": iso(state.now)}
    events = []
    for key, name in left.items():
        came = stops or (pauses and name == "SIGSTOP")
        after = "stopped" if stops else "paused" if pauses else "idle"
        value = _handled(state, changed=came, before="running", after=after)
        events.append({"type": "signal", "key": key, "value": value, "headers": headers})
    if events:
        log.append(state, events)
