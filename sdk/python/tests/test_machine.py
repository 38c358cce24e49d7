"""The table, pair by pair: a new state or event fails here until somebody has decided."""

from __future__ import annotations

import pytest

from pullwake.machine import OUTCOMES, TABLE, Action, Do, Event, Go, Ignore, State

# "-" ignores, "!x" does x and stays, anything else is the state that follows.
EXPECTED = {
    (State.STOPPED, Event.START): "connecting",
    (State.STOPPED, Event.STOP): "-",
    (State.STOPPED, Event.CONNECTED): "-",
    (State.STOPPED, Event.CONNECT_FAILED): "-",
    (State.STOPPED, Event.STREAM_RESET): "-",
    (State.STOPPED, Event.CLOCK_JUMP): "-",
    (State.STOPPED, Event.WAKE): "-",
    (State.STOPPED, Event.OFFSET): "-",
    (State.STOPPED, Event.STREAM_END): "-",
    (State.STOPPED, Event.BACKOFF_ELAPSED): "-",
    (State.STOPPED, Event.DRAINED): "-",
    (State.CONNECTING, Event.START): "!warn",
    (State.CONNECTING, Event.STOP): "stopping",
    (State.CONNECTING, Event.CONNECTED): "streaming",
    (State.CONNECTING, Event.CONNECT_FAILED): "reconnecting",
    (State.CONNECTING, Event.STREAM_RESET): "reconnecting",
    (State.CONNECTING, Event.CLOCK_JUMP): "connecting",
    (State.CONNECTING, Event.WAKE): "-",
    (State.CONNECTING, Event.OFFSET): "-",
    (State.CONNECTING, Event.STREAM_END): "-",
    (State.CONNECTING, Event.BACKOFF_ELAPSED): "-",
    (State.CONNECTING, Event.DRAINED): "-",
    (State.STREAMING, Event.START): "!warn",
    (State.STREAMING, Event.STOP): "stopping",
    (State.STREAMING, Event.CONNECTED): "-",
    (State.STREAMING, Event.CONNECT_FAILED): "-",
    (State.STREAMING, Event.STREAM_RESET): "reconnecting",
    (State.STREAMING, Event.CLOCK_JUMP): "connecting",
    (State.STREAMING, Event.WAKE): "!claim",
    (State.STREAMING, Event.OFFSET): "!commit",
    (State.STREAMING, Event.STREAM_END): "reconnecting",
    (State.STREAMING, Event.BACKOFF_ELAPSED): "-",
    (State.STREAMING, Event.DRAINED): "-",
    (State.RECONNECTING, Event.START): "!warn",
    (State.RECONNECTING, Event.STOP): "stopping",
    (State.RECONNECTING, Event.CONNECTED): "-",
    (State.RECONNECTING, Event.CONNECT_FAILED): "-",
    (State.RECONNECTING, Event.STREAM_RESET): "-",  # one is under way
    (State.RECONNECTING, Event.CLOCK_JUMP): "connecting",
    (State.RECONNECTING, Event.WAKE): "-",
    (State.RECONNECTING, Event.OFFSET): "-",
    (State.RECONNECTING, Event.STREAM_END): "-",
    (State.RECONNECTING, Event.BACKOFF_ELAPSED): "connecting",
    (State.RECONNECTING, Event.DRAINED): "-",
    (State.STOPPING, Event.START): "!warn",
    (State.STOPPING, Event.STOP): "-",
    (State.STOPPING, Event.CONNECTED): "-",
    (State.STOPPING, Event.CONNECT_FAILED): "-",
    (State.STOPPING, Event.STREAM_RESET): "-",
    (State.STOPPING, Event.CLOCK_JUMP): "-",
    (State.STOPPING, Event.WAKE): "-",
    (State.STOPPING, Event.OFFSET): "-",
    (State.STOPPING, Event.STREAM_END): "-",
    (State.STOPPING, Event.BACKOFF_ELAPSED): "-",
    (State.STOPPING, Event.DRAINED): "stopped",
}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_pair(state: State, event: Event) -> None:
    expected = EXPECTED[state, event]
    if expected == "-":
        assert TABLE[state, event] == Ignore()
    elif expected.startswith("!"):
        assert TABLE[state, event] == Do(Action(expected[1:]))
    else:
        assert TABLE[state, event] == Go(State(expected))


def test_the_table_has_no_pair_but_these() -> None:
    assert set(TABLE) == set(EXPECTED)


@pytest.mark.parametrize("state", [state for state in State if state is not State.STOPPED])
def test_the_end_of_a_states_work_leaves_the_state(state: State) -> None:
    """However it ends, so that no state stays behind without its work."""
    for event in (OUTCOMES[state].returned, OUTCOMES[state].raised):
        cell = TABLE[state, event]
        assert isinstance(cell, Go)
        assert cell.target is not state


def test_every_state_but_stopped_can_be_stopped() -> None:
    for state in (State.CONNECTING, State.STREAMING, State.RECONNECTING):
        assert TABLE[state, Event.STOP] == Go(State.STOPPING)
