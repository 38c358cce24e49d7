"""What a database's refusal means, and how long statements run and commits wait."""

import logging
import os
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from django.conf import settings
from django.db import (
    DEFAULT_DB_ALIAS,
    DatabaseError,
    InterfaceError,
    OperationalError,
    connection,
    connections,
)
from django.db.models import BooleanField, Func
from psycopg.errors import (
    FeatureNotSupported,
    IdleInTransactionSessionTimeout,
    LockNotAvailable,
    ReadOnlySqlTransaction,
    UndefinedColumn,
    UndefinedTable,
)
from psycopg_pool import PoolTimeout

from core.sqlite import FileGone

T = TypeVar("T")

_OUTAGES = (
    *(PoolTimeout, OperationalError, InterfaceError),
    # Of connections that are not Django's.
    *(psycopg.OperationalError, psycopg.InterfaceError, sqlite3.OperationalError),
)

_PASSING = (FeatureNotSupported, IdleInTransactionSessionTimeout, ReadOnlySqlTransaction)
"""Other errors that pass: they are this session's or this server's, not the statement's.

A standby refuses writes until it is promoted; a session that was idle in a transaction for too
long, of a process that was frozen meanwhile, has been ended; and what a session had prepared before
a migration changed a column is refused once.
"""


def hand_back() -> None:
    """Give the connection back to the pool, unless a transaction still needs it.

    Call it before anything that a caller can prolong: enough slow callers would hold every
    connection.
    """
    # Looked up once: each use of `django.db.connection` asks which thread this is.
    database = connections[DEFAULT_DB_ALIAS]
    if database.connection is not None and not database.in_atomic_block:
        database.close_if_unusable_or_obsolete()


_NOT_MIGRATED = "The database's tables are not this version's: run manage.py migrate."
_NO_TABLE = re.compile("no such (table|column)|has no column named")
_DAMAGED = "The database's file is damaged: restore it."
_SQLITE_ADVICE = {
    sqlite3.SQLITE_READONLY: "The database's file is read-only: let this server write to it.",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}


def advice(exc: BaseException) -> str | None:
    """What a person must do about the database, a sentence; None where nobody must, or can."""
    match _cause(exc):
        case UndefinedTable() | UndefinedColumn():
            return _NOT_MIGRATED
        case FileGone() as gone:
            return str(gone)
        case sqlite3.DatabaseError() as cause:
            if _NO_TABLE.search(str(cause)):
                return _NOT_MIGRATED
            return _SQLITE_ADVICE.get(getattr(cause, "sqlite_errorcode", 0) & 0xFF)
    return None


def is_passing(exc: BaseException) -> bool:
    """Whether the database fails, and not we: it is away, busy, a standby, or not migrated yet."""
    if isinstance(exc, _OUTAGES) or advice(exc) is not None:
        return True
    return isinstance(exc, DatabaseError | psycopg.Error) and isinstance(_cause(exc), _PASSING)


class Undone(psycopg.OperationalError):
    """The connection was lost before the commit was sent: nothing of the transaction was done."""


def was_undone(exc: BaseException) -> bool:
    """Whether the session ended in a transaction: as we stood still, or it was lost."""
    return isinstance(_cause(exc), IdleInTransactionSessionTimeout | Undone)


class _Commits(threading.local):
    count = 0


commits = _Commits()
"""How many transactions this thread has committed on PostgreSQL."""


REPEATED_S = 10.0
"""For how long `note_trouble` only counts what it has already logged."""

_noted: dict[tuple[str, str, str], tuple[float, int]] = {}
"""When each kind of trouble was last logged, and how often it has happened since."""
_noting = threading.Lock()


def note_trouble(logger: logging.Logger, what: str, exc: BaseException) -> None:
    """Log trouble with the database: a line with its reason, where `is_passing`.

    An outage meets every request and every thread. So of one kind, which is ``what`` and the
    error's class, a process writes a line at once and then one in `REPEATED_S` at the most, which
    says how many were left out. Anything else is an error of ours, with its traceback.
    """
    if not is_passing(exc):
        logger.error("%s", what, exc_info=exc)
        return
    kind = (logger.name, what, type(_cause(exc) or exc).__name__)
    now = time.monotonic()
    with _noting:
        logged_at, left_out = _noted.get(kind, (-REPEATED_S, 0))
        if now - logged_at < REPEATED_S:
            _noted[kind] = (logged_at, left_out + 1)
            return
        _noted[kind] = (now, 0)
    more = f" ({left_out} more since the last such line)" if left_out else ""
    reason, hint = " ".join(str(exc).split()), advice(exc)
    if hint is not None and hint not in reason:
        reason = f"{reason}. {hint}"
    logger.warning("%s: %s%s", what, reason, more)


def is_lock_refused(exc: BaseException) -> bool:
    """Whether another transaction held a lock for longer than PULLWAKE_LOCK_TIMEOUT_MS."""
    return isinstance(_cause(exc), LockNotAvailable)


def can_skip_locked() -> bool:
    """Whether rows that another transaction holds can be passed over; SQLite locks no rows."""
    return connection.features.has_select_for_update_skip_locked


def leave(logger: logging.Logger, what: str, exc: Exception) -> None:
    """Log that ``what`` failed and is left to the next round, so that the others have their turn.

    Raises ``exc`` where the database is away, for this one and for all others.
    """
    if is_lock_refused(exc):
        logger.warning("%s is left to the next round: %s", what, exc)
    elif is_passing(exc):
        raise exc
    else:
        logger.error("%s is left to the next round", what, exc_info=exc)


def lock_name(*names: str) -> None:
    """Make others that lock one of these names wait until this transaction ends.

    For rows that do not exist yet, which nobody can lock. SQLite has one writer at a time anyway.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended(name, 0))"
                " FROM unnest(%s::text[]) AS name",
                [sorted(names)],
            )


def take_as_long_as_needed() -> None:
    """Let this transaction's statements take any time: for commands, not for requests."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
                cursor.execute(f"SET LOCAL {name} = 0")


def cut(silent: "psycopg.Connection[Any]") -> None:
    """Close a connection that another thread is waiting on, so that its wait fails.

    A frozen peer goes on acknowledging what it is sent, so no TCP timeout ends such a wait.
    """
    with (
        suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(silent.pgconn.socket)) as cutting,
    ):
        cutting.shutdown(socket.SHUT_RDWR)


_turn = threading.local()
"""When each thread began to work since it last waited: where turns are nested, too."""


def in_turns(rows: Iterable[T]) -> Iterator[T]:
    """These, for a thread that runs a transaction or more for each.

    A worker's threads take turns where they wait, and no statement of SQLite's does: nothing else
    would run meanwhile. So on SQLite the thread waits after each for as long as it worked.
    """
    _turn.began = time.monotonic()
    for row in rows:
        yield row
        if connection.vendor == "sqlite":
            time.sleep(time.monotonic() - _turn.began)
            _turn.began = time.monotonic()


class Unflushed(Func):
    """A condition that is always true; the commit of its statement does not wait for the disk.

    For what is repeated anyway: a crash of the database may lose the last second of it.
    """

    output_field = BooleanField()

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """The setting lasts as long as the transaction."""
        return "SET_CONFIG('synchronous_commit', 'off', TRUE) = 'off'", []

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """SQLite's commits wait for no disk as it is."""
        return "1", []


BRIEFLY = 6
"""By what `HeldBriefly` divides PULLWAKE_IDLE_TRANSACTION_TIMEOUT_MS, half a second by default, and
`WaitsBriefly` PULLWAKE_LOCK_TIMEOUT_MS.
"""


class WaitsBriefly(Func):
    """A condition that always holds: from then on its transaction waits for each lock only briefly.

    For a round over many rows, which leaves what is held to the next one. That is a little longer
    than an idle session may hold what it locked by `HeldBriefly`.
    """

    output_field = BooleanField()

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """The setting lasts as long as the transaction."""
        if not settings.PULLWAKE_LOCK_TIMEOUT_MS:
            return "TRUE", []  # what holds is the role's own limit, if it has one
        wait_ms = max(settings.PULLWAKE_LOCK_TIMEOUT_MS // BRIEFLY, 1)
        return f"SET_CONFIG('lock_timeout', '{wait_ms}', TRUE) IS NOT NULL", []

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """SQLite locks no rows."""
        return "1", []


class HeldBriefly(Func):
    """A condition that always holds: what its statement locks is needed by many, and soon.

    From then on until the transaction ends, PostgreSQL ends the session sooner where it is idle,
    as that of a frozen server is; one that may be idle for ever still may.
    """

    output_field = BooleanField()

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """The setting lasts as long as the transaction."""
        if not settings.PULLWAKE_IDLE_TRANSACTION_TIMEOUT_MS:
            return "TRUE", []  # what holds is the role's own limit, if it has one
        name = "idle_in_transaction_session_timeout"
        idle_ms = max(settings.PULLWAKE_IDLE_TRANSACTION_TIMEOUT_MS // BRIEFLY, 1)
        wanted = f"CASE CURRENT_SETTING('{name}') WHEN '0' THEN '0' ELSE '{idle_ms}' END"
        return f"SET_CONFIG('{name}', {wanted}, TRUE) IS NOT NULL", []

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """SQLite has one writer, which holds all there is."""
        return "1", []


def _cause(exc: BaseException) -> BaseException | None:
    """The driver's error behind Django's."""
    return exc if isinstance(exc, psycopg.Error | sqlite3.Error) else exc.__cause__
