"""Times on the wire."""

from datetime import datetime


def iso(when: datetime) -> str:
    """ISO-8601 UTC with milliseconds and Z."""
    return when.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def iso_or_none(when: datetime | None) -> str | None:
    """`iso`, or None for None."""
    return None if when is None else iso(when)


def epoch_ms(when: datetime) -> int:
    """Milliseconds since 1970-01-01T00:00Z."""
    return int(when.timestamp() * 1000)
