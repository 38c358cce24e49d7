"""The runner's own heartbeat: that it lives, how far it has read, and how it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from .clock import Clock
from .errors import RunnerError
from .timing import Timing

RESET_AFTER = 2
"""Failed heartbeats in a row after which the stream is not trusted either."""


class Heartbeats:
    """One every interval, and one a gap after something changed; never two at once."""

    def __init__(
        self,
        send: Callable[[], Awaitable[None]],
        failed: Callable[[RunnerError], None],
        reset: Callable[[RunnerError], None],
        timing: Timing,
        clock: Clock,
    ) -> None:
        self._send = send
        self._failed = failed
        self._reset = reset
        self._timing = timing
        self._clock = clock
        self._failures = 0
        self._sent_at: float | None = None
        self._wanted_at: float | None = None
        """When the next early heartbeat is due."""
        self._not_before = 0.0
        """The server has asked to be left alone until then."""
        self._woken = asyncio.Event()
        self._armed = False

    def changed(self) -> None:
        """Something is to be reported: in a gap from now, with whatever else changes till then."""
        if self._armed:
            self._want(self._clock.monotonic() + self._timing.heartbeat_gap)

    def arm(self) -> None:
        """The server knows the runner: from here on changes are reported, the first at once."""
        if not self._armed:
            self._armed = True
            self.now()

    def now(self) -> None:
        """Report as soon as the gap since the last one allows."""
        self._want(self._clock.monotonic())

    def _want(self, at: float) -> None:
        if self._sent_at is not None:
            at = max(at, self._sent_at + self._timing.heartbeat_gap)
        if self._wanted_at is None or at < self._wanted_at:
            self._wanted_at = at
            self._woken.set()

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        regular_at = self._clock.monotonic() + self._timing.heartbeat_interval
        while True:
            due = regular_at if self._wanted_at is None else min(regular_at, self._wanted_at)
            due = max(due, self._not_before)
            self._woken.clear()
            try:
                async with asyncio.timeout(max(0.0, due - self._clock.monotonic())):
                    await self._woken.wait()
                continue
            except TimeoutError:
                pass
            regular_at = self._clock.monotonic() + self._timing.heartbeat_interval
            await self._beat()

    async def _beat(self) -> None:
        # Cleared before: what changes while it is in flight is for the next one.
        self._wanted_at, self._sent_at = None, self._clock.monotonic()
        try:
            await self._send()
        except RunnerError as error:
            self._failures += 1
            self._failed(error)
            if self._failures >= RESET_AFTER:
                self._failures = 0
                self._reset(error)
            wait = min(error.retry_after or 0.0, self._timing.retry_after_max)
            self._not_before = self._clock.monotonic() + wait
        else:
            self._failures = 0
