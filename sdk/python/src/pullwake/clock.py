"""Time, as a runner needs it: one clock for waiting, one for leases, one for people."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

from .timing import Timing

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


async def watch(
    clock: Clock,
    timing: Timing,
    jumped: Callable[[float], None],
    held_up: Callable[[float], None],
) -> None:
    """Tell of time that no timer has counted, until cancelled.

    `jumped` gets the seconds by which the wall clock moved against the monotonic one: the machine
    slept, or its clock was set. `held_up` gets the seconds for which nothing ran: the process was
    stopped, or something blocks the event loop.
    """
    wall, monotonic = clock.wall(), clock.monotonic()
    while True:
        await asyncio.sleep(timing.clock_tick)
        walked, passed = clock.wall() - wall, clock.monotonic() - monotonic
        wall, monotonic = wall + walked, monotonic + passed
        if abs(walked - passed) >= timing.clock_jump:
            jumped(walked - passed)
        elif passed - timing.clock_tick >= timing.clock_jump:
            held_up(passed - timing.clock_tick)
