"""Wakes the requests that wait for a stream: LISTEN on PostgreSQL, data_version on SQLite.

A hint that arrives here is only a hint, and may be lost anywhere. So a reader registers first, then
looks at the database, waits, and looks again. On PostgreSQL each process also sweeps every second:
one statement asks for the tails of all streams that are waited for, so a lost hint costs a second.
(Ten thousand waiters that each looked would ask thousands of times a second.) The listener proves
its connection every few seconds, and the connection is cut when that proof does not arrive.
"""

import logging
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Protocol

import msgspec
from django.conf import settings
from django.db import connection, transaction

from core.database import cut, note_trouble
from core.sqlite import require_file
from dispatch.metrics import LISTENER_LOSSES, LISTENER_UP
from dispatch.streams.announcer import CHANNEL, Announcer, Connection, connect

logger = logging.getLogger(__name__)

PROOF_S = 5.0
"""Seconds after which the listener proves that its connection still carries."""

PROOF_DEADLINE_S = 2 * PROOF_S + 5
"""Seconds without a sign of life after which its connection is cut, and another is made."""

SWEEP_S = 1.0
"""Seconds between sweeps."""

_SQLITE_POLL_S = 0.02
_RECONNECT_S = 0.5


_RUNNERS = "r"


def wake_stream_key(runner_id: str) -> str:
    """The key of a runner's wake stream."""
    return f"{_RUNNERS}{runner_id}"


def entity_stream_key(entity_id: int) -> str:
    """The key of an entity's main stream."""
    return f"e{entity_id}"


def shared_state_key(state_id: int) -> str:
    """The key of a shared state."""
    return f"s{state_id}"


RUNNER_FEED, ENTITY_FEED = "frunner", "fentity"
"""The keys of the feeds of all changes; `claims.feeds` tells their readers, and looks by itself.

It does so five times a second at the most, so that other processes may hear of them a little later.
"""


def announce(key: str) -> None:
    """Tell every server's waiters, once the current transaction commits, that a stream grew."""
    transaction.on_commit(partial(_announce, key))


def _announce(key: str) -> None:
    hub.wake(key)
    if connection.vendor == "postgresql" and settings.PULLWAKE_NOTIFY:
        announcer.announce(key, urgent=key not in (RUNNER_FEED, ENTITY_FEED))


class Waiter(threading.Event):
    """Set when the stream may have grown past ``after``, or the server stops."""

    after: int | None = None
    """The offset past which its owner waits; None while it does not wait."""


class Hub:
    """The waiters of this process, by the key of their stream."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: dict[str, set[Waiter]] = defaultdict(set)
        self._listener: threading.Thread | None = None
        self._sweeper: threading.Thread | None = None
        self.closing = False
        self.is_deaf = False
        """Whether its listener has lost the database, so that it goes by the sweeper alone."""

    @contextmanager
    def waiter(self, *keys: str) -> Iterator[Waiter]:
        """A waiter for these streams."""
        event = Waiter()
        with self._lock:
            for key in keys:
                self._waiters[key].add(event)
            if self.closing:
                event.set()
            self._start()
        try:
            yield event
        finally:
            with self._lock:
                for key in keys:
                    self._waiters[key].discard(event)
                    if not self._waiters[key]:
                        del self._waiters[key]

    def _start(self) -> None:
        """Start the threads that tell the waiters, at first and after a failure."""
        if self._listener is None or not self._listener.is_alive():
            listener = _listener(self)
            self._listener = threading.Thread(
                target=listener.run, name="pullwake-listener", daemon=True
            )
            self._listener.start()
            if isinstance(listener, _PostgresListener):
                self._sweeper = threading.Thread(
                    target=_Sweeper(self, listener).run, name="pullwake-sweeper", daemon=True
                )
                self._sweeper.start()

    def waited_for(self) -> dict[str, int]:
        """The streams that are waited for, each with the lowest offset that a reader waits past."""
        with self._lock:
            return {
                key: min(offsets)
                for key, waiters in self._waiters.items()
                if (offsets := [each.after for each in waiters if each.after is not None])
            }

    def runners(self) -> list[str]:
        """The runners whose wake streams are waited for."""
        with self._lock:
            return [key[1:] for key in self._waiters if key.startswith(_RUNNERS)]

    def wake(self, key: str) -> int:
        """Set the events of those who wait for this stream: how many."""
        with self._lock:
            events = list(self._waiters.get(key, ()))
        for event in events:
            event.set()
        return len(events)

    def wake_all(self) -> None:
        """Wake all readers: hints may have been lost."""
        with self._lock:
            events = [event for waiters in self._waiters.values() for event in waiters]
        for event in events:
            event.set()

    def close(self) -> None:
        """Let every held request answer now; later ones do not wait."""
        self.closing = True
        self.wake_all()


class _Listener(Protocol):
    def run(self) -> None: ...


class _PostgresListener:
    """LISTEN on a connection of its own, as long as the process lives."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._listening: Connection | None = None
        self._heard_at = time.monotonic()

    def run(self) -> None:
        while not self.hub.closing:
            try:
                self._listen()
            except Exception as exc:  # noqa: BLE001  whatever it is, waiters need a listener
                LISTENER_UP.set(0)
                LISTENER_LOSSES.inc()
                self.hub.is_deaf = True
                note_trouble(logger, "listener lost its connection, reconnecting", exc)
                threading.Event().wait(_RECONNECT_S)

    def cut_if_silent(self) -> None:
        """Cut a connection whose proof is overdue; `run` then opens another."""
        listening, silent_s = self._listening, time.monotonic() - self._heard_at
        if listening is not None and silent_s > PROOF_DEADLINE_S:
            self._listening = None
            cut(listening)

    def _listen(self) -> None:
        with connect() as listening:
            self._heard_at = time.monotonic()
            self._listening = listening
            listening.execute(f"LISTEN {CHANNEL}")
            LISTENER_UP.set(1)
            self.hub.is_deaf = False
            # Whatever was announced while nobody listened is in the database by now.
            self.hub.wake_all()
            while not self.hub.closing:
                for notification in listening.notifies(timeout=PROOF_S):
                    self._heard_at = time.monotonic()
                    if notification.pid != announcer.pid:  # this process knew it at once
                        self.hub.wake(notification.payload)
                # A connection that died silently fails here (tcp_user_timeout) instead of never.
                listening.execute("SELECT 1")
                self._heard_at = time.monotonic()


_TAILS = """
SELECT 'r' || runner_id, tail FROM runners_wakestream WHERE runner_id = ANY(%s)
UNION ALL
SELECT 'e' || entity_id, tail FROM dispatch_dispatchstate WHERE entity_id = ANY(%s::bigint[])
UNION ALL
SELECT 's' || id, tail FROM dispatch_sharedstate WHERE id = ANY(%s::bigint[])
"""


class _Sweeper:
    """Finds what hints missed, whatever lost them."""

    def __init__(self, hub: Hub, listener: _PostgresListener) -> None:
        self.hub = hub
        self.listener = listener

    def run(self) -> None:
        pause = threading.Event()
        while not self.hub.closing:
            pause.wait(SWEEP_S)
            self.listener.cut_if_silent()
            announcer.cut_if_stuck()
            try:
                self._sweep()
            except Exception as exc:  # noqa: BLE001  the next sweep may do better
                note_trouble(logger, "sweep failed, trying again", exc)
            connection.close()

    def _sweep(self) -> None:
        waited_for = self.hub.waited_for()
        if not waited_for:
            return
        ids = [[key[1:] for key in waited_for if key.startswith(kind)] for kind in "res"]
        with connection.cursor() as cursor:
            cursor.execute(_TAILS, ids)
            tails = cursor.fetchall()
        for key, tail in tails:
            if tail > waited_for[key]:
                self.hub.wake(key)


_GROWING = {
    "dispatch_streamevent": ("entity_id", entity_stream_key),
    "dispatch_sharedstateevent": ("state_id", shared_state_key),
}
"""Tables of events: the column that says of which stream, and that one's key."""


_WAKE_STREAMS = """
SELECT runner_id, tail FROM runners_wakestream WHERE runner_id IN (SELECT value FROM json_each(?))
"""

_CHANGED = 'SELECT max("transaction") FROM runners_change WHERE kind = ?'


class _SqliteListener:
    """Polls ``PRAGMA data_version`` (3 µs), which changes when another connection has committed.

    Then it looks which streams grew: most commits are heartbeats, which grow none.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.tails: dict[str, int] = {}
        self.changed: dict[str, int] = {}
        self.newest = dict.fromkeys(_GROWING, 0)

    def run(self) -> None:
        while not self.hub.closing:
            try:
                self._listen()
            except sqlite3.Error as exc:
                note_trouble(logger, "listener could not look, trying again", exc)
                threading.Event().wait(_RECONNECT_S)

    def _listen(self) -> None:
        pause, version = threading.Event(), None
        require_file()  # or SQLite would make one
        # Without a wait for locks, which would be the whole process's.
        with closing(sqlite3.connect(settings.DATABASES["default"]["NAME"], timeout=0)) as polling:
            for table in _GROWING:
                newest = polling.execute(f"SELECT ifnull(max(id), 0) FROM {table}")  # noqa: S608
                (self.newest[table],) = newest.fetchone()
            # A commit before this look may have gone unseen.
            self.hub.wake_all()
            while not self.hub.closing:
                seen = polling.execute("PRAGMA data_version").fetchone()
                if seen != version:
                    self._wake_grown(polling)
                    version = seen
                pause.wait(_SQLITE_POLL_S)

    def _wake_grown(self, polling: sqlite3.Connection) -> None:
        # Not all: there may be a hundred thousand, and this is asked after each commit.
        asked = msgspec.json.encode(self.hub.runners()).decode()
        known, self.tails = self.tails, dict(polling.execute(_WAKE_STREAMS, [asked]))
        for runner_id, tail in self.tails.items():
            if known.get(runner_id) != tail:
                self.hub.wake(wake_stream_key(runner_id))
        for kind in ("runner", "entity"):
            (tail,) = polling.execute(_CHANGED, [kind]).fetchone()
            if tail is not None and self.changed.get(kind) != tail:
                self.changed[kind] = tail
                self.hub.wake(f"f{kind}")
        for table, (stream, key_of) in _GROWING.items():
            events = polling.execute(
                f"SELECT {stream}, max(id) FROM {table} WHERE id > ? GROUP BY {stream}",  # noqa: S608
                [self.newest[table]],
            )
            for stream_id, newest in events:
                self.newest[table] = max(self.newest[table], newest)
                self.hub.wake(key_of(stream_id))


def _listener(hub: Hub) -> _Listener:
    return _PostgresListener(hub) if connection.vendor == "postgresql" else _SqliteListener(hub)


hub = Hub()
"""This process's."""

announcer = Announcer()
"""This process's."""
