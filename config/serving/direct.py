"""The database's own address on PostgreSQL, past any proxy that pools its sessions.

For what a session must keep, and for what may take long. The connection for LISTEN is a separate
one, in `dispatch.streams.waiters`.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.management.base import OutputWrapper, SystemCheckError
from django.db import DEFAULT_DB_ALIAS, OperationalError, connection, connections


def connect() -> Any:
    """A connection of Django's that the caller closes; it connects when first used."""
    default = connections[DEFAULT_DB_ALIAS]
    return type(default)({**default.settings_dict, **settings.DIRECT_DATABASE}, DEFAULT_DB_ALIAS)


@contextmanager
def as_default() -> Iterator[None]:
    """Send this thread's statements there."""
    default = connections[DEFAULT_DB_ALIAS]
    with closing(connect()) as own:
        connections[DEFAULT_DB_ALIAS] = own
        try:
            yield
        finally:
            connections[DEFAULT_DB_ALIAS] = default


def require(stderr: OutputWrapper) -> None:
    """Raise SystemCheckError where it is a pooling proxy's; warn about sessions without limits.

    It is not one of Django's checks, since commands that need no database run those.
    """
    if _is_pooled():
        error = checks.Error(
            "The address for LISTEN and migrations is that of a pooling proxy: no wake would be "
            "heard of, and locks would be left behind.",
            hint="Set PULLWAKE_LISTEN_URL to the database's own address, as DATABASE_URL is "
            "written; DATABASE_URL stays the proxy's.",
            id="pullwake.E001",
        )
        raise SystemCheckError(str(error))
    for name in _limits_unset() if settings.PULLWAKE_LISTEN_URL else ():
        warning = checks.Warning(
            f"Sessions behind DATABASE_URL have no {name}: a server that vanishes keeps what it "
            "holds.",
            hint="Set it where the proxy makes its sessions: docs/running.md.",
            id="pullwake.W002",
        )
        stderr.write(str(warning))


def _is_pooled() -> bool:
    """Whether another server process answers than the one that the connection began with."""
    with closing(connect()) as asking:
        try:
            with asking.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                ((pid,),) = cursor.fetchall()
        except OperationalError as exc:
            # PgBouncer's, of the limits that a session begins with.
            if "unsupported startup parameter" in str(exc):
                return True
            raise
        return bool(pid != asking.connection.info.backend_pid)


def _limits_unset() -> list[str]:
    """Which limits the sessions of requests should have, and lack."""
    wanted = {
        "lock_timeout": settings.PULLWAKE_LOCK_TIMEOUT_MS,
        "statement_timeout": settings.PULLWAKE_STATEMENT_TIMEOUT_MS,
        "idle_in_transaction_session_timeout": settings.PULLWAKE_IDLE_TRANSACTION_TIMEOUT_MS,
    }
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM pg_settings WHERE setting = '0'")
        unlimited = {name for (name,) in cursor.fetchall()}
    return [name for name, limit in wanted.items() if limit and name in unlimited]
