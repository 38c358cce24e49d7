"""Time that passes as soon as nobody has anything left to do: exact, and over in no time.

For tests without sockets: `@virtual` runs an async test in a loop whose clock only moves by
jumping to the next timer.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

from pullwake.clock import Clock


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__(_Selector(self))
        self.now = 1000.0

    def time(self) -> float:
        return self.now


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is None:
            raise AssertionError("everybody waits for something that cannot happen")
        self._loop.now += timeout
        return events


class VirtualClock(Clock):
    """The clocks of the running virtual loop; `stopped` is time that no timer saw, `asleep` such
    that only the lease and wall clocks did, and `set_by` what only the wall clock did."""

    def __init__(self) -> None:
        self.stopped = 0.0
        self.asleep = 0.0
        self.set_by = 0.0

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time() + self.stopped

    def lease(self) -> float:
        return self.monotonic() + self.asleep

    def wall(self) -> float:
        return 1_700_000_000.0 + self.lease() + self.set_by


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run
