"""Progress a person can read, or JSON lines for a machine; on standard error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

Form = Literal["text", "json"]

context: ContextVar[Mapping[str, Any]] = ContextVar("pullwake wake", default={})  # noqa: B039
"""Of the wake that is being worked on: its entity, epoch and runner."""


class WakeContext(logging.Filter):
    """Gives each record the `entity`, `epoch` and `runner` of the wake that it was logged in.

    For a handler of logging's: `handler.addFilter(WakeContext())`. `pullwake run` has it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in context.get().items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Readable(logging.Formatter):
    """`09:30:01 message`, with the level where it is out of the ordinary."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        entity, message = getattr(record, "entity", None), record.getMessage()
        # The runner's own records of what becomes of one begin with it.
        where = f"{entity} | " if entity and not message.startswith(entity) else ""
        line = f"{time} {level}{where}{message}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonLines(logging.Formatter):
    """One object a record: time, level, message, and what the call gave as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= {k: v for k, v in vars(record).items() if k not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(form: Form = "text", level: int = logging.INFO) -> None:
    """Have a program's logging show what its runners do, on standard error.

    Each record names the wake that it was logged in. Of other libraries only warnings are shown.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(WakeContext())
    handler.setFormatter(JsonLines() if form == "json" else Readable())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("pullwake.runner").setLevel(level)
