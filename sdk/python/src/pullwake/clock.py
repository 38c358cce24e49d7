"""Time, as a runner needs it: one clock for waiting, one for leases, one for people."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from .timing import Timing

log = logging.getLogger("pullwake.runner")

# Leases run while the machine sleeps. Linux's CLOCK_MONOTONIC stands still then, its BOOTTIME
# does not; elsewhere CLOCK_MONOTONIC is the best there is.
_LEASE_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


class Clock:
    """The machine's clocks. Tests replace it to make time pass."""

    def monotonic(self) -> float:
        """Seconds that never go back, and may stand still while the machine sleeps."""
        return time.monotonic()

    def lease(self) -> float:
        """Seconds that never go back and, where the platform can, go on while it sleeps."""
        return time.monotonic() if _LEASE_CLOCK is None else time.clock_gettime(_LEASE_CLOCK)

    def wall(self) -> float:
        """Seconds since 1970; jumps when it is set, and when the machine wakes up."""
        return time.time()

    def stamp(self) -> str:
        """Now, in the wire's form: ISO-8601 UTC with milliseconds and `Z`."""
        now = datetime.fromtimestamp(self.wall(), UTC)
        return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")


CLOCK = Clock()
"""The one that runners share unless they are given another."""

Told = Callable[[float], None]


def watch(clock: Clock, timing: Timing, jumped: Told, held_up: Told) -> Callable[[], None]:
    """Tell of time that no timer has counted, until what this returns is called.

    `jumped` gets the seconds by which the wall clock moved against the monotonic one: the machine
    slept, or its clock was set. `held_up` gets the seconds for which nothing ran: the process was
    stopped, or something blocks the event loop. What they raise is logged.

    Runners of one event loop share one timer, since a thousand of them would tick a thousand times.
    """
    loop = asyncio.get_running_loop()
    for key in [key for key in _watches if key[0].is_closed()]:
        del _watches[key]
    key = (loop, clock, timing.clock_tick, timing.clock_jump)
    shared = _watches.get(key)
    if shared is None:
        shared = _watches[key] = _Watch(*key)
    told = (jumped, held_up)
    shared.watchers.append(told)

    def end() -> None:
        if told in shared.watchers:
            shared.watchers.remove(told)
        if not shared.watchers and _watches.get(key) is shared:
            del _watches[key]
            shared.timer.cancel()

    return end


class _Watch:
    """The timer of those who watch the same clock in the same event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Clock, tick: float, jump: float
    ) -> None:
        self.watchers: list[tuple[Told, Told]] = []
        self._loop, self._clock, self._tick, self._jump = loop, clock, tick, jump
        self._wall, self._monotonic = clock.wall(), clock.monotonic()
        self.timer = loop.call_later(tick, self._look)

    def _look(self) -> None:
        self.timer = self._loop.call_later(self._tick, self._look)
        walked = self._clock.wall() - self._wall
        passed = self._clock.monotonic() - self._monotonic
        self._wall, self._monotonic = self._wall + walked, self._monotonic + passed
        jumped, held_up = walked - passed, passed - self._tick
        if abs(jumped) >= self._jump:
            self._tell([(each, jumped) for each, _ in self.watchers])
        elif held_up >= self._jump:
            self._tell([(each, held_up) for _, each in self.watchers])

    def _tell(self, calls: list[tuple[Told, float]]) -> None:
        for call, seconds in calls:
            try:
                call(seconds)
            except Exception:  # one watcher's mistake must not keep it from the others
                log.exception("the clock watch failed")


_watches: dict[tuple[asyncio.AbstractEventLoop, Clock, float, float], _Watch] = {}
