"""Times: the database's clock, which alone decides, and how times look on the wire."""

from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from django.db import connection, models
from django.db.models import Func
from django.db.models.functions import Now
from django.db.models.sql import Query


class ClockNow(Now):
    """The time at which a row is written, not at which its statement began to wait for a lock."""

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """``now()`` is the time of the statement, or of the transaction."""
        return self.as_sql(compiler, connection, template="CLOCK_TIMESTAMP()", **context)


class Milliseconds(Func):
    """A number of milliseconds as a duration."""

    output_field = models.DurationField()
    template = "(%(expressions)s * INTERVAL '1 millisecond')"

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """SQLite keeps durations in microseconds."""
        return self.as_sql(compiler, connection, template="(%(expressions)s * 1000)", **context)


Rows = TypeVar("Rows", bound="models.QuerySet[Any]")


def with_now(rows: Rows) -> Rows:
    """Add ``now`` to the rows: the database's time when the statement fetches them."""
    timed: Rows = rows.annotate(now=Now())
    return timed


def now_sql() -> str:
    """The database's time in its own SQL."""
    sql, _ = Query(None).get_compiler(connection=connection).compile(Now())
    return str(sql)


def iso(when: datetime) -> str:
    """ISO-8601 UTC with milliseconds and Z."""
    return when.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def from_iso(text: str) -> datetime:
    """Parse ISO-8601 text; a time without a zone is UTC. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("out of range") from None


def iso_or_none(when: datetime | None) -> str | None:
    """`iso`, or None for None."""
    return None if when is None else iso(when)


def epoch_ms(when: datetime) -> int:
    """Milliseconds since 1970-01-01T00:00Z."""
    return int(when.timestamp() * 1000)


def span_of(length: timedelta) -> str:
    """A duration in its largest unit, or two units for hours and days: 42 s, 5 min, 3 h 20 min."""
    seconds = abs(int(length.total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 100:
        return f"{seconds} s"
    if minutes < 100:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    return f"{days} d {hours % 24} h" if hours % 24 and days < 10 else f"{days} d"
