"""Tells other processes which streams grew: NOTIFY, after the commit and for many at once.

Within the writing transaction PostgreSQL would hold one lock of the whole cluster until the commit
is on the disk, and all writers would queue for it. So a process notifies on a connection of its
own, one NOTIFY at a time, for everything that grew while the last one ran. What need not be told at
once goes with the next one, which is a third of the NOTIFYs of a cycle. A process that ends between
a commit and its NOTIFY loses the hint, which costs one sweep (`dispatch.streams.waiters`).
"""

import atexit
import logging
import threading
import time
from typing import Any

import psycopg
from django.conf import settings
from django.db import connection

from core.database import cut, note_trouble

logger = logging.getLogger(__name__)

CHANNEL = "pullwake"

TCP_PATIENCE_S = 5
"""Seconds that a connection may take to be made, or leave what is sent to it unacknowledged."""

STUCK_S = 15.0
"""Seconds after which a NOTIFY that is not answered is given up, and its connection cut."""

LATER_S = 0.2
"""Seconds after a NOTIFY until there is one for nothing but what need not be told at once."""

_FAREWELL_S = 1.0

_NOTIFY = "SELECT pg_notify(%s, key) FROM unnest(%s::text[]) AS key"

Connection = psycopg.Connection[tuple[object, ...]]


def connect() -> Connection:
    """A connection to the database's own address that commits each statement."""
    params: dict[str, Any] = {"conninfo": settings.PULLWAKE_LISTEN_URL}
    if not settings.PULLWAKE_LISTEN_URL:
        params = connection.get_connection_params()
        for not_libpq in ("pool", "cursor_factory", "context", "prepare_threshold"):
            params.pop(not_libpq, None)
    deadlines = {"tcp_user_timeout": TCP_PATIENCE_S * 1000, "connect_timeout": TCP_PATIENCE_S}
    return psycopg.connect(**{**params, **deadlines}, autocommit=True)


class Announcer:
    """Tells other processes which streams grew, by key; on PostgreSQL."""

    pid: int | None = None
    """The database's process that notifies in this one's name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._keys: set[str] = set()
        self._is_urgent = False
        self._notified_at = 0.0
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._since: float | None = None
        self._closing = False

    def announce(self, key: str, *, urgent: bool = True) -> None:
        """Notify of this stream soon; if it is not ``urgent``, `LATER_S` after the last NOTIFY."""
        with self._lock:
            is_due = urgent or not self._keys
            self._is_urgent |= urgent
            self._keys.add(key)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="pullwake-announcer", daemon=True
                )
                self._thread.start()
                atexit.register(self.close)
        if is_due:
            self._due.set()

    def close(self) -> None:
        """Notify of what is left, and stop; waits only a moment for that."""
        self._closing = True
        self._due.set()
        if self._thread is not None:
            self._thread.join(_FAREWELL_S)

    def cut_if_stuck(self) -> None:
        """Give up a NOTIFY that has been running too long."""
        ours, since = self._connection, self._since
        if ours is not None and since is not None and time.monotonic() - since > STUCK_S:
            cut(ours)

    def _run(self) -> None:
        while not self._closing or self._keys:
            self._due.wait()
            self._due.clear()
            if not (self._is_urgent or self._closing):
                # Until then, or until something urgent is announced, or this ends.
                self._due.wait(max(self._notified_at + LATER_S - time.monotonic(), 0))
                self._due.clear()
            with self._lock:
                keys, self._keys = self._keys, set()
                self._is_urgent = False
            if keys:
                self._notify(keys)
        if self._connection is not None:
            self._connection.close()

    def _notify(self, keys: set[str]) -> None:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = connect()
                self.pid = self._connection.info.backend_pid
                # A hint need not survive a crash, so it does not wait for the disk.
                self._connection.execute("SET synchronous_commit = off")
            self._since = self._notified_at = time.monotonic()
            self._connection.execute(_NOTIFY, [CHANNEL, sorted(keys)])
        except Exception as exc:  # noqa: BLE001  whatever it is, sweeps find what was not announced
            note_trouble(logger, "could not announce, sweeps will find it", exc)
            if self._connection is not None:
                self._connection.close()
        finally:
            self._since = None
