"""SQLite connections that wait for a lock without stopping the process.

SQLite's own wait blocks the whole process, and with it all requests of a gevent worker. So it is
off, and what meets the lock of another process is tried again after a pause, in which a worker
serves others.

A server opens one file only: one that took its place since would know nothing of what this process
has acknowledged, and SQLite would make an empty one where there is none.
"""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

from django.conf import settings
from django.db.backends.sqlite3.base import SQLiteCursorWrapper

T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.025
"""The pauses double. SQLite's own grow longer: beside a busy server a rare caller waits long."""


class FileGone(sqlite3.OperationalError):
    """The database's file was removed or replaced: put it back, or restart the server."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


_served: tuple[str, os.stat_result] | None = None


def serve(path: str) -> None:
    """From now on open no other file than the one that is there now."""
    global _served  # noqa: PLW0603  one for the process
    _served = path, os.stat(path)


def require_file() -> None:
    """Raise FileGone where the file that is served is not where it was."""
    if _served is None:
        return
    path, file = _served
    try:
        if os.path.samestat(file, os.stat(path)):
            return
    except OSError:
        pass
    raise FileGone


class Cursor(SQLiteCursorWrapper):
    """Django's cursor, whose statements wait for a lock for PULLWAKE_LOCK_TIMEOUT_MS."""

    def execute(self, query: str, params: Any = None) -> Any:
        """Raises sqlite3.OperationalError where the lock is not given in that time."""
        return _patiently(partial(super().execute, query, params))


class Connection(sqlite3.Connection):
    """A connection that waits, whatever is asked of it in Django's way."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require_file()
        super().__init__(*args, **kwargs)

    def cursor(self, factory: Any = Cursor) -> Any:
        """A cursor that waits; Django asks for its own."""
        return super().cursor(Cursor)

    def commit(self) -> None:
        """Commit; raises sqlite3.OperationalError, and may be repeated."""
        _patiently(super().commit)

    def require_writable(self) -> None:
        """Raise sqlite3.OperationalError where no write can be made, for all but a lock."""
        # BEGIN IMMEDIATE succeeds where the file is read-only.
        with closing(sqlite3.Connection.cursor(self)) as trying:
            try:
                trying.execute("DELETE FROM django_migrations WHERE 0")
            except sqlite3.OperationalError as exc:
                if not _is_refused(exc):
                    raise


def _patiently(act: Callable[[], T]) -> T:
    """What ``act`` returns, once no other process holds a lock that it needs.

    A statement that meets a lock has done nothing, and a commit that does is still to be made.
    """
    first_refused_at, pause_s = 0.0, _FIRST_PAUSE_S
    while True:
        try:
            return act()
        except sqlite3.OperationalError as exc:
            if not _is_refused(exc):
                raise
            now = time.monotonic()
            first_refused_at = first_refused_at or now
            if 0 < settings.PULLWAKE_LOCK_TIMEOUT_MS <= (now - first_refused_at) * 1000:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _is_refused(exc: sqlite3.OperationalError) -> bool:
    """Whether a lock may be given later; a snapshot that others have written past stays old."""
    code = getattr(exc, "sqlite_errorcode", 0)  # some are Python's own, and have none
    return code & 0xFF == sqlite3.SQLITE_BUSY and code != sqlite3.SQLITE_BUSY_SNAPSHOT
