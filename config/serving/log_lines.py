"""Lines of the log, of which none can be forged by what a caller sends.

In production mode they are JSON, as structlog writes it, for about half of its CPU: each call
leaves one or two, which with structlog's formatter took a tenth of what a heartbeat does.
"""

import json
import logging
import time
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from core import log_facts

_OF_EVERY_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
_encode = msgspec.json.Encoder(enc_hook=repr).encode


def escape(logger: Any, name: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor for lines that a terminal shows: what would control it is written as an escape.

    Any page in a developer's browser can have an address of its own choice refused, and so logged.
    """
    for key, value in line.items():
        if key != "exception" and isinstance(value, str) and not value.isprintable():
            line[key] = "".join(map(_printable, value))
    return line


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def is_news(record: logging.LogRecord) -> bool:
    """Whether Django's line for an answer says what no other line does.

    Of a 503 its reason was logged, and the access log has a line of each: a line of Django's for
    each would only fill the log while the database is away.
    """
    return getattr(record, "status_code", None) != 503


class NowAndThen(logging.Filter):
    """Lets a line of each kind, which is its text without its arguments, pass every so often.

    For a library that logs each of its attempts.
    """

    EVERY_S = 10.0

    def __init__(self) -> None:
        super().__init__()
        self._passed_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it passes."""
        now = time.monotonic()
        if now - self._passed_at.get(str(record.msg), -self.EVERY_S) < self.EVERY_S:
            return False
        self._passed_at[str(record.msg)] = now
        return True


class JsonLines(logging.Formatter):
    """A record, what is known of the request that is being answered, and its ``extra``."""

    def __init__(self) -> None:
        super().__init__()
        # What no line says need not be found out for each: logging's documented savings.
        logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = log_facts.known()
        line["event"] = record.getMessage()
        line["level"] = record.levelname.lower()
        line["logger"] = record.name
        line["timestamp"] = moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
        extra = vars(record).items()
        line.update((name, value) for name, value in extra if name not in _OF_EVERY_RECORD)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return _encode(line).decode()
        except ValueError:  # half a surrogate pair, which JSON can write as an escape alone
            return json.dumps(line, default=repr)
