"""What stops a command from starting, in one sentence with a hint.

The exit status tells a supervisor what to do: a wrong setting needs a person, an absent database
needs patience.
"""

import errno
import re
import socket

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, DataError, IntegrityError, InterfaceError

BAD_SETTING = 78
"""EX_CONFIG of sysexits.h: starting again helps nothing."""

UNAVAILABLE = 69
"""EX_UNAVAILABLE of sysexits.h: the database, or the port, may be there later."""


class CannotStart(Exception):
    """Why a command cannot start, with a hint; ``status`` is its exit status."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


_MIGRATE = "run manage.py migrate first"

# Messages of libpq, PostgreSQL and SQLite: what to do about each, and the exit status.
_HINTS = (
    ("no such (table|column)|relation .* does not exist", _MIGRATE, BAD_SETTING),
    ("column .* does not exist", _MIGRATE, BAD_SETTING),
    (
        "password authentication failed|no password supplied",
        "check the password in DATABASE_URL",
        BAD_SETTING,
    ),
    ("role .* does not exist", "create the role, or check the user in DATABASE_URL", BAD_SETTING),
    (
        "database .* does not exist",
        "create the database, or check the name in DATABASE_URL",
        BAD_SETTING,
    ),
    (
        "invalid connection option|invalid .* value|bad value for|unrecognized .* parameter",
        "mend what follows the ? in DATABASE_URL",
        BAD_SETTING,
    ),
    ("no pg_hba.conf entry", "let this host and user in by the server's pg_hba.conf", BAD_SETTING),
    ("resolve host|translate host", "check the host in DATABASE_URL", UNAVAILABLE),
    ("permission denied", "grant its role what deploy/postgres-role.sql grants", BAD_SETTING),
    (
        "unable to open database file",
        "its folder must be there, and this user must be able to write to it",
        BAD_SETTING,
    ),
    (
        "too many clients|too many connections|connection slots",
        "close some of its connections, or raise its max_connections",
        UNAVAILABLE,
    ),
    (
        "file is not a database|image is malformed",
        "name another file, or restore a backup of this one",
        BAD_SETTING,
    ),
    ("(database or )?disk is full|disk I/O error", "look at the disk that it is on", UNAVAILABLE),
    ("database is locked", "end what holds its lock, or try again", UNAVAILABLE),
    ("readonly database", "let this user write to the file and its folder", BAD_SETTING),
    (
        "refused|time(d )?out|closed the connection|starting up|shutting down|unreachable",
        "start the database, or check the host and port in DATABASE_URL",
        UNAVAILABLE,
    ),
    ("^connection (failed|is bad)", "check DATABASE_URL", UNAVAILABLE),
)


def explain(exc: BaseException) -> CannotStart | None:
    """Explain what stopped a command; None if neither settings nor the database did."""
    match exc:
        case CannotStart():
            return exc
        case ImproperlyConfigured():
            return CannotStart(str(exc), BAD_SETTING)
        case IntegrityError() | DataError():
            return None  # of what was to be written
        case DatabaseError() | InterfaceError():
            text = " ".join(str(exc).split())
            for pattern, hint, status in _HINTS:
                if re.search(pattern, text):
                    return CannotStart(f"{database()}: {_reason(text)}; {hint}.", status)
    return None


def database() -> str:
    """The database's name for people, without its password."""
    config = settings.DATABASES["default"]
    if settings.SQLITE:
        return f"SQLite in {config['NAME']}"
    user = f"{config['USER']}@" if config["USER"] else ""
    port = f":{config['PORT']}" if config["PORT"] else ""
    return f"PostgreSQL at {user}{config['HOST'] or 'its socket'}{port}/{config['NAME']}"


def _reason(text: str) -> str:
    """A database's error without the address that libpq prefixes, and the position that follows."""
    reason = re.split(r"FATAL: +|failed: ", text)[-1]
    return re.sub(r"( Is the server running| LINE \d+:| Multiple connection).*$", "", reason)


def require_port() -> None:
    """Raise CannotStart where the server could not listen."""
    host, port = settings.HOST.strip("[]"), settings.PORT
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as exc:
        raise _cannot_listen(exc.errno, host, port) from None
    except UnicodeError:  # of a name that no resolver could be asked for
        raise _cannot_listen(None, host, port) from None


def _cannot_listen(number: int | None, host: str, port: int) -> CannotStart:
    match number:
        case errno.EADDRINUSE:
            return CannotStart(
                f"PORT {port} is taken on {host or 'this machine'}; stop what listens there, or "
                "set another.",
                UNAVAILABLE,
            )
        case errno.EACCES:
            return CannotStart(
                f"PORT {port} is not this user's to take; set one above 1023.", BAD_SETTING
            )
    return CannotStart(
        f"HOST is {host!r}, which is no address of this machine; 0.0.0.0 is all of its.",
        BAD_SETTING,
    )
