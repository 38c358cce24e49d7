"""Runners for tests: with durations that are short, and deadlines that are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from pullwake import PullWakeRunner, Timing, Wake
from pullwake.clock import Clock
from pullwake.handlers import AnyHandler
from pullwake.testing import PATIENCE, FakeServer

FAST = Timing(
    heartbeat_interval=30.0,
    heartbeat_gap=0.05,
    heartbeat_timeout=10.0,
    request_timeout=10.0,
    connect_timeout=30.0,
    long_poll_deadline=30.0,
    sse_idle_deadline=30.0,
    backoff_min=0.05,
    backoff_max=0.2,
    stable_after=300.0,
    clock_tick=0.02,
    stop_grace=5.0,
    claim_settle=0.2,
    cancel_grace=0.5,
    farewell_timeout=1.0,
)
"""For tests in which only what they do themselves may take time."""


def fast(**durations: float) -> Timing:
    return replace(FAST, **durations)


class TestClock(Clock):
    """The machine's clocks; the wall clock can be moved, and time can be made to have passed."""

    __test__ = False

    def __init__(self) -> None:
        self.moved = 0.0
        self.passed = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.passed

    def wall(self) -> float:
        return super().wall() + self.passed + self.moved


class Handled:
    """A handler that reads its messages, and waits for `proceed` if it was made to."""

    def __init__(self, *, waits: bool = False) -> None:
        self.wakes: list[Wake] = []
        self.payloads: list[Any] = []
        self.cancelled: list[Wake] = []
        self.began = asyncio.Event()
        self.proceed = asyncio.Event()
        if not waits:
            self.proceed.set()

    async def __call__(self, wake: Wake) -> None:
        self.wakes.append(wake)
        self.payloads += [message.payload for message in await wake.messages()]
        self.began.set()
        try:
            await self.proceed.wait()
        except asyncio.CancelledError:
            self.cancelled.append(wake)
            raise


def make(server: FakeServer, handler: AnyHandler | None = None, **options: Any) -> PullWakeRunner:
    options.setdefault("timing", FAST)
    return PullWakeRunner(server.url, "r", handler or Handled(), **options)


@asynccontextmanager
async def running(
    server: FakeServer, handler: AnyHandler | None = None, **options: Any
) -> AsyncIterator[PullWakeRunner]:
    """A runner that is started, connected, and stopped at the end."""
    runner = make(server, handler, **options)
    await runner.start()
    try:
        async with asyncio.timeout(PATIENCE):
            await runner.connected()
        yield runner
    finally:
        await runner.stop(grace=0.0)


async def until(
    condition: Callable[[], Any], what: str | Callable[[], str] = "", *, every: float = 0.005
) -> None:
    """Wait until a condition on what has no event to wait for is true, looking `every` so often."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110  any condition, not one that has an event
                await asyncio.sleep(every)
    except TimeoutError:
        told = what() if callable(what) else what or condition
        raise AssertionError(f"waited in vain for {told}") from None
