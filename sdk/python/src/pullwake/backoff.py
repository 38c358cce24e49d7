"""Waiting longer each time, and never all at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from .clock import Clock
from .errors import RunnerError
from .timing import Timing

T = TypeVar("T")


class Backoff:
    """Delays that double from `backoff_min` to `backoff_max`, each drawn from its upper half."""

    def __init__(
        self,
        timing: Timing,
        *,
        longest: float | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._timing = timing
        self._longest = timing.backoff_max if longest is None else longest
        self._draw = draw
        self._failures = 0

    def reset(self) -> None:
        self._failures = 0

    def next(self, retry_after: float | None = None) -> float:
        """Seconds to wait now. What the server asked for is a floor, jittered upwards."""
        timing = self._timing
        # The exponent is bounded, since a runner may fail for months.
        full = min(self._longest, timing.backoff_min * 2.0 ** min(self._failures, 32))
        self._failures += 1
        delay = full * (0.5 + self._draw() / 2)
        if retry_after is None:
            return delay
        floor = min(max(retry_after, 0.0), timing.retry_after_max)
        return max(delay, floor + timing.backoff_min * self._draw())


async def insist(
    call: Callable[[], Awaitable[T]],
    *,
    timing: Timing,
    clock: Clock,
    during: float,
    longest: float | None = None,
    failed: Callable[[RunnerError], None] = lambda error: None,
) -> T:
    """Call until it succeeds, trying again after transient errors for `during` seconds.

    Raises the last error; one that is not transient at once. `failed` hears of each.
    """
    backoff = Backoff(timing, longest=longest)
    end = clock.monotonic() + during
    while True:
        try:
            return await call()
        except RunnerError as error:
            failed(error)
            delay = backoff.next(error.retry_after)
            if not error.transient or clock.monotonic() + delay > end:
                raise
            await asyncio.sleep(delay)
