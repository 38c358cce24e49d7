"""Waking the requests that wait for a stream: LISTEN on PostgreSQL, data_version on SQLite.

What arrives here is only a hint. NOTIFY is lossy: a listener that reconnects has missed some. So
whoever waits registers first, then looks at the database, waits, and looks again; and the listener
proves its connection every few seconds, and has everyone look after it had to reconnect. (For each
waiter to look every few seconds instead, ten thousand would ask thousands of times a second.)
"""

import logging
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Protocol

import psycopg
from django.conf import settings
from django.db import connection, transaction

from core import prepared

logger = logging.getLogger(__name__)

CHANNEL = "pullwake"

PROOF_S = 5.0
"""Seconds after which the listener proves that its connection still carries."""

_SQLITE_POLL_S = 0.02
_RECONNECT_S = 0.5


def wake_stream_key(runner_id: str) -> str:
    """The key of a runner's wake stream."""
    return f"r{runner_id}"


def entity_stream_key(entity_id: int) -> str:
    """The key of an entity's main stream."""
    return f"e{entity_id}"


def announce(key: str) -> None:
    """Tell every server's waiters, once the current transaction commits, that a stream grew."""
    if connection.vendor == "postgresql":
        with prepared.cursor(connection) as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, key])
    else:
        transaction.on_commit(partial(hub.wake, key))


class Hub:
    """The waiters of this process, by the key of the stream that they wait for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: dict[str, set[threading.Event]] = defaultdict(set)
        self._listener: threading.Thread | None = None
        self.closing = False

    @contextmanager
    def waiter(self, key: str) -> Iterator[threading.Event]:
        """An event that is set whenever the stream may have grown, or the server stops."""
        event = threading.Event()
        with self._lock:
            self._waiters[key].add(event)
            if self.closing:
                event.set()
            if self._listener is None or not self._listener.is_alive():
                self._listener = threading.Thread(
                    target=_listener(self).run, name="pullwake-listener", daemon=True
                )
                self._listener.start()
        try:
            yield event
        finally:
            with self._lock:
                self._waiters[key].discard(event)
                if not self._waiters[key]:
                    del self._waiters[key]

    def wake(self, key: str) -> None:
        """Set the events of those who wait for this stream."""
        with self._lock:
            events = list(self._waiters.get(key, ()))
        for event in events:
            event.set()

    def wake_all(self) -> None:
        """Set every event: hints may have been lost."""
        with self._lock:
            events = [event for waiters in self._waiters.values() for event in waiters]
        for event in events:
            event.set()

    def close(self) -> None:
        """Let every held request answer now; later ones do not wait at all."""
        self.closing = True
        self.wake_all()


class _Listener(Protocol):
    def run(self) -> None: ...


class _PostgresListener:
    """LISTEN on a connection of its own, for as long as the process lives."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def run(self) -> None:
        while not self.hub.closing:
            try:
                self._listen()
            except Exception as exc:  # noqa: BLE001  whatever it is, waiters need a listener
                logger.warning("listener lost its connection, reconnecting: %s", exc)
                threading.Event().wait(_RECONNECT_S)

    def _listen(self) -> None:
        with self._connect() as listening:
            listening.execute(f"LISTEN {CHANNEL}")
            # What was announced while nobody listened is in the database by now.
            self.hub.wake_all()
            while not self.hub.closing:
                for notification in listening.notifies(timeout=PROOF_S):
                    self.hub.wake(notification.payload)
                # A connection that died in silence fails here (tcp_user_timeout), not never.
                listening.execute("SELECT 1")

    def _connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        params: dict[str, Any] = {"conninfo": settings.PULLWAKE_LISTEN_URL}
        if not settings.PULLWAKE_LISTEN_URL:
            params = connection.get_connection_params()
            for not_libpq in ("pool", "cursor_factory", "context", "prepare_threshold"):
                params.pop(not_libpq, None)
        return psycopg.connect(**params, autocommit=True, tcp_user_timeout=int(PROOF_S * 1000))


class _SqliteListener:
    """Polls ``PRAGMA data_version`` (3 µs), which moves when another connection has committed.

    Then it looks which streams grew: most commits are heartbeats, and grow none.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.tails: dict[str, int] = {}
        self.newest_event = 0

    def run(self) -> None:
        pause = threading.Event()
        with closing(sqlite3.connect(settings.DATABASES["default"]["NAME"])) as polling:
            version = None
            self.newest_event = self._newest_event(polling)
            # What was committed before this look may have gone unseen.
            self.hub.wake_all()
            while not self.hub.closing:
                try:
                    newest = polling.execute("PRAGMA data_version").fetchone()
                    if newest != version:
                        self._wake_grown(polling)
                        version = newest
                except sqlite3.OperationalError as exc:
                    logger.warning("listener could not look, trying again: %s", exc)
                pause.wait(_SQLITE_POLL_S)

    def _newest_event(self, polling: sqlite3.Connection) -> int:
        return int(
            polling.execute("SELECT ifnull(max(id), 0) FROM dispatch_streamevent").fetchone()[0]
        )

    def _wake_grown(self, polling: sqlite3.Connection) -> None:
        for runner_id, tail in polling.execute("SELECT runner_id, tail FROM runners_wakestream"):
            if self.tails.get(runner_id) != tail:
                self.tails[runner_id] = tail
                self.hub.wake(wake_stream_key(runner_id))
        events = polling.execute(
            "SELECT entity_id, max(id) FROM dispatch_streamevent WHERE id > ? GROUP BY entity_id",
            [self.newest_event],
        )
        for entity_id, newest in events:
            self.newest_event = max(self.newest_event, newest)
            self.hub.wake(entity_stream_key(entity_id))


def _listener(hub: Hub) -> _Listener:
    return _PostgresListener(hub) if connection.vendor == "postgresql" else _SqliteListener(hub)


hub = Hub()
"""This process's."""
