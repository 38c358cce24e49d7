"""PostgreSQL connections that wait on gevent's loop.

psycopg by itself waits through gevent's emulation of ``poll``, which creates a watcher and a timer
for each wait; docs/performance.md has the cost. Here a connection keeps its watchers, and a
`Watchdog` supervises all that wait.
"""

import logging
import math
import threading
import time
from contextlib import suppress
from typing import Any, TypeVar

import gevent
import psycopg
from django.db import DEFAULT_DB_ALIAS, connections
from gevent import monkey
from psycopg.abc import PQGen
from psycopg.errors import IdleInTransactionSessionTimeout, ReadOnlySqlTransaction

from core.database import Undone, commits, cut
from core.prepared.psycopg_parts import KeptStatements
from core.rounds import Rounds

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Connection(psycopg.Connection[Any]):
    """psycopg's connection, which waits the gevent way in a gevent worker."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepared = KeptStatements()
        self._watchers: dict[int, Any] = {}
        self.waiting_since = 0.0
        self._was_idle = False
        self._is_committing = False
        self.add_notice_handler(self._hear)

    def commit(self) -> None:
        """Commit; if the connection is lost meanwhile, nobody knows whether it did."""
        self._is_committing = True
        try:
            super().commit()
        finally:
            self._is_committing = False
        commits.count += 1

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """The result of the operation ``gen``; times in seconds. See `psycopg.Connection.wait`."""
        if timeout is not None or not monkey.is_module_patched("select"):
            try:
                return super().wait(gen, interval, timeout)
            except psycopg.Error as exc:
                if self._is_lost(exc):
                    self._raise_idle(exc)
                    self._raise_undone(exc)
                raise
        self.waiting_since = time.monotonic()
        _waiting.add(self)
        try:
            awaited = next(gen)
            while True:
                gevent.get_hub().wait(self._watcher(awaited))
                # Where both were awaited it tries both, and finds out which was ready.
                awaited = gen.send(awaited)
        except StopIteration as ended:
            _answered()
            result: T = ended.value
            return result
        except psycopg.Error as exc:
            if exc.sqlstate is not None:  # which the database sends
                _answered()
            if self._is_lost(exc):
                self._raise_idle(exc)
                _lost.set()
                self._raise_undone(exc)
            raise
        finally:
            _waiting.discard(self)

    def _hear(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.sqlstate == IdleInTransactionSessionTimeout.sqlstate:
            self._was_idle = True

    def _raise_idle(self, lost: psycopg.Error) -> None:
        """Raise IdleInTransactionSessionTimeout if that is why the connection is lost.

        Where the answer to a statement arrives together with that, psycopg says only that it is.
        """
        with suppress(psycopg.Error):
            while self.pgconn.get_result() is not None:
                pass
        if self._was_idle:
            raise IdleInTransactionSessionTimeout(str(lost)) from lost

    def _raise_undone(self, lost: psycopg.Error) -> None:
        """Raise Undone if a transaction was lost whose commit was not sent yet."""
        if lost.sqlstate == ReadOnlySqlTransaction.sqlstate:
            return  # it is of no use, but there
        if not (self.autocommit or self._is_committing):
            raise Undone(str(lost)) from lost

    def _is_lost(self, exc: psycopg.Error) -> bool:
        """Whether others may be lost as this connection is: it broke, or the database ended it."""
        if exc.sqlstate is None:
            return self.broken
        return exc.sqlstate.startswith(_ENDED)

    def _watcher(self, awaited: int) -> Any:
        # Reading is 1 and writing 2, here and there.
        if awaited not in self._watchers:
            self._watchers[awaited] = gevent.get_hub().loop.io(self.pgconn.socket, awaited)
        return self._watchers[awaited]


_ENDED = ("57P", "25006")
"""Of PostgreSQL's errors, those of a database that shuts down, crashes or starts, and of a session
that is read-only: it may stay so when the database is not any more.
"""

_waiting: set[Connection] = set()
_lost = threading.Event()
"""Set where a connection was lost, until those that wait in the pool are given up, too."""

_answered_at = time.monotonic()


def _answered() -> None:
    global _answered_at  # noqa: PLW0603  one for the process, and asked for at every statement
    _answered_at = time.monotonic()


def answered_at() -> float:
    """When the database last answered on any of these connections, by the monotonic clock."""
    return _answered_at


class Watchdog(Rounds):
    """The thread of a server that gives up connections that are of no more use.

    Those on which the database does not answer: it would have ended the statement by itself. A
    frozen host, or a proxy in front of a vanished one, acknowledges what it is sent: no TCP timeout
    ends the wait, and the pool would stay empty for good.

    And where one was lost, those that wait in the pool: otherwise each would be found out by a
    request of its own, which waits in vain.
    """

    NAME = "watchdog"
    EVERY_S = 0.5
    MARGIN_S = 1.0

    def __init__(self, statement_s: float) -> None:
        super().__init__()
        self._patience_s = statement_s + self.MARGIN_S if statement_s else math.inf

    def _round(self) -> None:
        long_ago = time.monotonic() - self._patience_s
        for silent in [each for each in _waiting if each.waiting_since < long_ago]:
            logger.warning("a connection is given up: the database does not answer on it")
            _waiting.discard(silent)
            cut(silent)
        if _lost.is_set():
            _lost.clear()
            logger.warning("a connection was lost, and all that wait in the pool are replaced")
            database: Any = connections[DEFAULT_DB_ALIAS]
            database.pool.drain()
