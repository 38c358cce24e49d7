"""The process's signals, for as many runners as run in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence

log = logging.getLogger("pullwake.runner")

_callbacks: dict[tuple[asyncio.AbstractEventLoop, int], list[Callable[[], None]]] = {}


@contextlib.contextmanager
def on_signals(numbers: Sequence[int], callback: Callable[[], None]) -> Iterator[None]:
    """Have each of these signals call `callback`, beside those of others.

    Only the main thread is told of signals: in another one they stay whose they were.
    """
    loop = asyncio.get_running_loop()
    if threading.current_thread() is not threading.main_thread():
        if numbers:
            log.info("not in the main thread: signals are left to the rest of the program")
        yield
        return
    added = [number for number in numbers if _add(loop, number, callback)]
    try:
        yield
    finally:
        for number in added:
            _remove(loop, number, callback)


def _add(loop: asyncio.AbstractEventLoop, number: int, callback: Callable[[], None]) -> bool:
    callbacks = _callbacks.setdefault((loop, number), [])
    if not callbacks:
        try:
            loop.add_signal_handler(number, _tell, callbacks)
        except NotImplementedError:  # Windows: Ctrl-C cancels at once
            del _callbacks[loop, number]
            return False
    callbacks.append(callback)
    return True


def _remove(loop: asyncio.AbstractEventLoop, number: int, callback: Callable[[], None]) -> None:
    callbacks = _callbacks[loop, number]
    callbacks.remove(callback)
    if not callbacks:
        del _callbacks[loop, number]
        loop.remove_signal_handler(number)


def _tell(callbacks: list[Callable[[], None]]) -> None:
    for callback in list(callbacks):
        callback()
