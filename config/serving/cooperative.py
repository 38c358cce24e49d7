"""PostgreSQL connections that wait on gevent's loop.

psycopg by itself waits through gevent's emulation of ``poll``, which makes a watcher and a timer
for each wait; docs/performance.md has what that costs. Here a connection keeps its watchers.
"""

from typing import Any, TypeVar

import gevent
import psycopg
from gevent import monkey
from psycopg.abc import PQGen

T = TypeVar("T")


class Connection(psycopg.Connection[Any]):
    """psycopg's connection, which in a gevent worker waits as gevent does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watchers: dict[int, Any] = {}

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """What the operation ``gen`` returns; seconds. See `psycopg.Connection.wait`."""
        if timeout is not None or not monkey.is_module_patched("select"):
            return super().wait(gen, interval, timeout)
        try:
            awaited = next(gen)
            while True:
                gevent.get_hub().wait(self._watcher(awaited))
                # It tries both where both were awaited, and finds out which was ready.
                awaited = gen.send(awaited)
        except StopIteration as ended:
            result: T = ended.value
            return result

    def _watcher(self, awaited: int) -> Any:
        # Reading is 1 and writing 2, here and there.
        if awaited not in self._watchers:
            self._watchers[awaited] = gevent.get_hub().loop.io(self.pgconn.socket, awaited)
        return self._watchers[awaited]
