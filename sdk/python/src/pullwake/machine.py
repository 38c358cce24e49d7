"""The runner's lifecycle as one table: which state follows which event, and nothing else.

The table decides *when*; the effects in `runner.py` do *what*; `lifecycle.py` walks the table and
owns the work of the state it is in. It is a literal table rather than a state machine package
because `(state, event) -> cell` reads at a glance, type-checks strictly, and moves synchronously,
so that nothing can happen between an event and its transition.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final


class State(Enum):
    """Where a runner is. The values are the `status` strings of its diagnostics."""

    STOPPED = "stopped"
    CONNECTING = "connecting"
    STREAMING = "streaming"
    RECONNECTING = "reconnecting"
    STOPPING = "stopping"


class Event(Enum):
    """What can happen to a runner."""

    START = "start"
    STOP = "stop"
    CONNECTED = "connected"
    CONNECT_FAILED = "connect_failed"
    STREAM_RESET = "stream_reset"
    """Two runner heartbeats in a row failed: whatever the stream looks like, it is not trusted."""
    CLOCK_JUMP = "clock_jump"
    """The wall clock moved against the monotonic one: the machine slept, connections are dead."""
    WAKE = "wake"
    OFFSET = "offset"
    STREAM_END = "stream_end"
    BACKOFF_ELAPSED = "backoff_elapsed"
    DRAINED = "drained"


class Action(Enum):
    """What an event does without leaving its state."""

    CLAIM = "claim"
    COMMIT = "commit"
    WARN = "warn"


@dataclass(frozen=True, slots=True)
class Go:
    """Leave the state (its work is cancelled) and enter `target` (its work is started)."""

    target: State


@dataclass(frozen=True, slots=True)
class Do:
    """Stay in the state, and do this."""

    action: Action


@dataclass(frozen=True, slots=True)
class Ignore:
    """Stay, do nothing: the event is late, or already dealt with."""


Cell = Go | Do | Ignore

_connecting = Go(State.CONNECTING)
_streaming_ = Go(State.STREAMING)
_reconnect_ = Go(State.RECONNECTING)
_stopping__ = Go(State.STOPPING)
_stopped___ = Go(State.STOPPED)
_claim_____ = Do(Action.CLAIM)
_commit____ = Do(Action.COMMIT)
_warn______ = Do(Action.WARN)
__________ = Ignore()

COLUMNS: Final = (
    State.STOPPED,
    State.CONNECTING,
    State.STREAMING,
    State.RECONNECTING,
    State.STOPPING,
)

# fmt: off
ROWS: Final[dict[Event, tuple[Cell, Cell, Cell, Cell, Cell]]] = {
    #                       stopped      connecting   streaming    reconnecting stopping
    Event.START:           (_connecting, _warn______, _warn______, _warn______, _warn______),
    Event.STOP:            (__________,  _stopping__, _stopping__, _stopping__, __________),
    Event.CONNECTED:       (__________,  _streaming_, __________,  __________,  __________),
    Event.CONNECT_FAILED:  (__________,  _reconnect_, __________,  __________,  __________),
    Event.STREAM_RESET:    (__________,  _reconnect_, _reconnect_, __________,  __________),
    Event.CLOCK_JUMP:      (__________,  _connecting, _connecting, _connecting, __________),
    Event.WAKE:            (__________,  __________,  _claim_____, __________,  __________),
    Event.OFFSET:          (__________,  __________,  _commit____, __________,  __________),
    Event.STREAM_END:      (__________,  __________,  _reconnect_, __________,  __________),
    Event.BACKOFF_ELAPSED: (__________,  __________,  __________,  _connecting, __________),
    Event.DRAINED:         (__________,  __________,  __________,  __________,  _stopped___),
}
# fmt: on

TABLE: Final = MappingProxyType(
    {
        (state, event): cell
        for event, cells in ROWS.items()
        for state, cell in zip(COLUMNS, cells, strict=True)
    }
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The events that the end of a state's work is, so that no state outlives its work."""

    returned: Event
    raised: Event


OUTCOMES: Final = MappingProxyType(
    {
        State.CONNECTING: Outcome(returned=Event.CONNECTED, raised=Event.CONNECT_FAILED),
        State.STREAMING: Outcome(returned=Event.STREAM_END, raised=Event.STREAM_END),
        State.RECONNECTING: Outcome(returned=Event.BACKOFF_ELAPSED, raised=Event.BACKOFF_ELAPSED),
        State.STOPPING: Outcome(returned=Event.DRAINED, raised=Event.DRAINED),
    }
)
