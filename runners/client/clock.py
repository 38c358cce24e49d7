"""Time, as a runner needs it: one clock for waiting, one for leases, one for people."""

from __future__ import annotations

import time
from datetime import UTC, datetime

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
