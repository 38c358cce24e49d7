"""Appending what others wrote; a retry of an idempotent producer is appended once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dispatch.models import DispatchState, SharedState
from dispatch.streams import log, producers


@dataclass(frozen=True, slots=True)
class Appended:
    """Whether the events were new, and the stream's tail after them."""

    is_new: bool
    tail: int


def append(
    state: DispatchState,
    events: Sequence[Any],
    sequence: producers.Sequence | None = None,
    objections: Mapping[int, str] | None = None,
) -> Appended:
    """Append a handler's events to the stream of an entity whose locked state this is.

    The caller saves it. ``sequence`` comes from an idempotent producer, ``objections`` are those of
    `log.append`. Raises what `producers.advance` raises.
    """
    is_new = sequence is None or producers.advance(state.entity, sequence)
    if is_new:
        log.append(state, events, by_handler=True, objections=objections)
    return Appended(is_new, state.tail)


def append_shared(
    state: SharedState, events: Sequence[Any], sequence: producers.Sequence | None = None
) -> Appended:
    """Append to a locked shared state; the caller saves its tail."""
    is_new = sequence is None or producers.advance(state, sequence)
    if is_new:
        log.append_shared(state, events)
    return Appended(is_new, state.tail)
