"""Walks the table of `machine.py`, and owns the work of the state it is in.

Each state but `stopped` has one piece of work, a coroutine. Entering the state starts it; leaving
the state, for whatever reason, cancels it; and its end, by return or by exception, *is* an event
of the table. So no work outlives its state, and no state outlives its work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol

from .machine import OUTCOMES, TABLE, Action, Do, Event, Go, Ignore, State
from .tasks import ends_task

log = logging.getLogger("pullwake.runner")


class Scope:
    """One stay in one state. Events posted through it are dropped once the state was left."""

    __slots__ = ("_lifecycle", "state", "task")

    def __init__(self, lifecycle: Lifecycle, state: State) -> None:
        self._lifecycle = lifecycle
        self.state = state
        self.task: asyncio.Task[None] | None = None

    def post(self, event: Event, payload: object = None) -> None:
        self._lifecycle.post(event, payload, scope=self)


class Effects(Protocol):
    """What a runner does; the lifecycle decides when."""

    def entered(self, before: State, state: State, payload: object) -> None:
        """The state has changed; `payload` came with the event (an exception, a position)."""

    def work(self, scope: Scope, payload: object) -> Coroutine[Any, Any, object]:
        """The coroutine that is `scope.state`'s work."""

    def claim(self, payload: object) -> None:
        """A wake arrived."""

    def commit(self, payload: object) -> None:
        """The stream has been read up to this offset."""

    def warn(self, state: State, event: Event) -> None:
        """The event makes no sense in this state, and somebody should know."""


class Lifecycle:
    """The machine, running. Not thread-safe: post from the event loop's thread only."""

    def __init__(self, effects: Effects) -> None:
        self.state = State.STOPPED
        self._effects = effects
        self._scope = Scope(self, State.STOPPED)
        self._events: list[tuple[Event, object, Scope | None]] = []
        self._posting = False
        self._left: set[asyncio.Task[None]] = set()

    @property
    def left(self) -> frozenset[asyncio.Task[None]]:
        """Work that was cancelled because its state was left, and has not ended yet."""
        return frozenset(self._left)

    def post(self, event: Event, payload: object = None, *, scope: Scope | None = None) -> None:
        """Let `event` happen, now. One posted by an effect happens right after the present one."""
        self._events.append((event, payload, scope))
        if self._posting:
            return
        self._posting = True
        try:
            while self._events:
                self._take(*self._events.pop(0))
        finally:
            self._posting = False

    def _take(self, event: Event, payload: object, scope: Scope | None) -> None:
        if scope is not None and scope is not self._scope:
            return
        match TABLE[self.state, event]:
            case Go(target):
                self._go(target, payload)
            case Do(action):
                try:
                    self._do(action, event, payload)
                except Exception:  # an effect's mistake must not end the state's work
                    log.exception("the %s effect raised", action.value)
            case Ignore():
                pass

    def _do(self, action: Action, event: Event, payload: object) -> None:
        match action:
            case Action.CLAIM:
                self._effects.claim(payload)
            case Action.COMMIT:
                self._effects.commit(payload)
            case Action.WARN:
                self._effects.warn(self.state, event)

    def _go(self, target: State, payload: object) -> None:
        before, old = self.state, self._scope
        self.state = target
        self._scope = scope = Scope(self, target)
        if old.task is not None:
            self._left.add(old.task)
            old.task.add_done_callback(self._left.discard)
            old.task.cancel()
        if target is not State.STOPPED:
            scope.task = asyncio.create_task(
                self._run(scope, payload), name=f"runner {target.value}"
            )
        try:
            self._effects.entered(before, target, payload)
        except Exception:  # nor may it leave a state half entered
            log.exception("entering %s raised", target.value)

    async def _run(self, scope: Scope, payload: object) -> None:
        outcome = OUTCOMES[scope.state]
        result: object
        try:
            result = await self._effects.work(scope, payload)
            event = outcome.returned
        except BaseException as error:
            if ends_task(error):
                raise
            result, event = error, outcome.raised
        scope.task = None  # it ends by itself, so leaving the state has nothing to cancel
        scope.post(event, result)
