"""What the lifecycle promises whatever the effects do: work and state end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from pullwake.lifecycle import Lifecycle, Scope
from pullwake.machine import Event, State


class Effects:
    """Each state's work waits until the test ends it, and says how it went."""

    def __init__(self) -> None:
        self.entries: list[tuple[State, State, object]] = []
        self.done: list[tuple[str, object]] = []
        self.cancelled: list[State] = []
        self.scopes: dict[State, Scope] = {}
        self.ends: dict[State, asyncio.Future[object]] = {}
        self.raises: dict[State, BaseException] = {}
        self.lifecycle = Lifecycle(self)

    def entered(self, before: State, state: State, payload: object) -> None:
        self.entries.append((before, state, payload))

    def work(self, scope: Scope, payload: object) -> Coroutine[Any, Any, object]:
        self.scopes[scope.state] = scope
        self.ends[scope.state] = asyncio.get_running_loop().create_future()
        return self._work(scope.state)

    async def _work(self, state: State) -> object:
        try:
            result = await asyncio.shield(self.ends[state])
        except asyncio.CancelledError:
            self.cancelled.append(state)
            raise
        if state in self.raises:
            raise self.raises[state]
        return result

    def claim(self, payload: object) -> None:
        self.done.append(("claim", payload))

    def commit(self, payload: object) -> None:
        self.done.append(("commit", payload))

    def warn(self, state: State, event: Event) -> None:
        self.done.append(("warn", (state, event)))

    @property
    def state(self) -> State:
        return self.lifecycle.state

    async def reach(self, state: State) -> None:
        """From stopped, by the shortest way."""
        self.lifecycle.post(Event.START)
        await settle()
        if state is State.CONNECTING:
            return
        if state is State.RECONNECTING:
            self.lifecycle.post(Event.CONNECT_FAILED)
        elif state is State.STOPPING:
            self.lifecycle.post(Event.STOP)
        else:
            self.ends[State.CONNECTING].set_result("position")
        await settle()
        assert self.state is state

    async def finish(self) -> None:
        self.lifecycle.post(Event.STOP)
        await settle()
        if State.STOPPING in self.ends and not self.ends[State.STOPPING].done():
            self.ends[State.STOPPING].set_result(None)
        await settle()


async def settle() -> None:
    """Let everything that can happen now happen."""
    for _ in range(10):
        await asyncio.sleep(0)


LEAVING = [
    (State.CONNECTING, Event.STREAM_RESET, State.RECONNECTING),
    (State.CONNECTING, Event.CLOCK_JUMP, State.CONNECTING),
    (State.CONNECTING, Event.STOP, State.STOPPING),
    (State.STREAMING, Event.STREAM_RESET, State.RECONNECTING),
    (State.STREAMING, Event.CLOCK_JUMP, State.CONNECTING),
    (State.STREAMING, Event.STOP, State.STOPPING),
    (State.RECONNECTING, Event.CLOCK_JUMP, State.CONNECTING),
    (State.RECONNECTING, Event.STOP, State.STOPPING),
]


@pytest.mark.parametrize(("state", "event", "target"), LEAVING)
async def test_leaving_a_state_cancels_its_work(state: State, event: Event, target: State) -> None:
    effects = Effects()
    await effects.reach(state)
    before = effects.cancelled.count(state)
    effects.lifecycle.post(event)
    assert effects.state is target
    await settle()
    assert effects.cancelled.count(state) == before + 1
    assert not effects.lifecycle.left
    await effects.finish()


OUTCOMES = [
    (State.CONNECTING, "position", State.STREAMING),
    (State.CONNECTING, OSError("refused"), State.RECONNECTING),
    (State.STREAMING, None, State.RECONNECTING),
    (State.STREAMING, OSError("cut"), State.RECONNECTING),
    (State.RECONNECTING, None, State.CONNECTING),
    (State.RECONNECTING, OSError("odd"), State.CONNECTING),
    (State.STOPPING, None, State.STOPPED),
    (State.STOPPING, OSError("odd"), State.STOPPED),
]


@pytest.mark.parametrize(("state", "end", "target"), OUTCOMES)
async def test_the_end_of_the_work_moves_on(state: State, end: object, target: State) -> None:
    effects = Effects()
    await effects.reach(state)
    if isinstance(end, Exception):
        effects.ends[state].set_exception(end)
    else:
        effects.ends[state].set_result(end)
    await settle()
    assert effects.state is target
    assert effects.entries[-1] == (state, target, end)
    await effects.finish()


class Odd(BaseException):
    """No Exception, and no reason to stop."""


@pytest.mark.parametrize("odd", [asyncio.CancelledError(), SystemExit(1), Odd()], ids=repr)
async def test_however_work_ends_it_has_ended(odd: BaseException) -> None:
    """A library's stray CancelledError must not leave `streaming` behind with nobody reading."""
    effects = Effects()
    await effects.reach(State.STREAMING)
    effects.raises[State.STREAMING] = odd
    effects.ends[State.STREAMING].set_result(None)
    await settle()
    assert effects.state is State.RECONNECTING
    await effects.finish()


async def test_what_left_work_still_posts_is_dropped() -> None:
    effects = Effects()
    await effects.reach(State.STREAMING)
    late = effects.scopes[State.STREAMING]
    effects.lifecycle.post(Event.STREAM_RESET)
    effects.lifecycle.post(Event.BACKOFF_ELAPSED)
    await settle()
    effects.ends[State.CONNECTING].set_result("again")
    await settle()
    assert effects.state is State.STREAMING
    late.post(Event.WAKE, "stale")
    late.post(Event.STREAM_END)
    assert effects.state is State.STREAMING
    assert effects.done == []
    effects.scopes[State.STREAMING].post(Event.WAKE, "fresh")
    assert effects.done == [("claim", "fresh")]
    await effects.finish()


async def test_an_event_posted_by_an_effect_comes_after_the_present_one() -> None:
    effects = Effects()
    entered = effects.entered
    seen: list[State] = []

    def stop_at_once(before: State, state: State, payload: object) -> None:
        entered(before, state, payload)
        if state is State.CONNECTING:
            effects.lifecycle.post(Event.STOP)
            seen.append(effects.state)

    setattr(effects, "entered", stop_at_once)  # noqa: B010
    effects.lifecycle.post(Event.START)
    assert seen == [State.CONNECTING]
    assert effects.state is State.STOPPING
    await effects.finish()


async def test_an_effect_that_raises_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    effects = Effects()

    def broken(*_: object) -> None:
        raise RuntimeError("broken effect")

    for effect in ("entered", "claim"):
        setattr(effects, effect, broken)
    await effects.reach(State.STREAMING)
    effects.lifecycle.post(Event.WAKE, "w")
    assert effects.state is State.STREAMING
    assert State.STREAMING in effects.ends
    assert len([record for record in caplog.records if record.exc_info]) == 3
    await effects.finish()


async def test_starting_twice_is_one_start() -> None:
    effects = Effects()
    await effects.reach(State.STREAMING)
    effects.lifecycle.post(Event.START)
    assert effects.done == [("warn", (State.STREAMING, Event.START))]
    assert effects.state is State.STREAMING
    await effects.finish()
