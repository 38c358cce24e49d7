"""Cron expressions, and the streams that stand for them, `/_cron/…`.

Nobody reads such a stream. Its path is what a subscriber registers at, and what its wakes name as
their source.
"""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from dispatch import zones

PREFIX = "/_cron/"
MAX_LENGTH = 256
"""Of an expression, in characters."""

_MAX_CODED = 2000

_NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
    "@minutely": "* * * * *",
    "@secondly": "* * * * * *",
    "@weekdays": "0 0 * * 1-5",
    "@weekends": "0 0 * * 0,6",
}
_DAYS = (-3, -1)
"""Where an expression has the day of the month, and that of the week: there ? means any."""


@dataclass(frozen=True, slots=True)
class Cron:
    """A schedule: an expression of 5 fields, or of 6 with seconds first, in a time zone.

    ``timezone`` is ICU's name. Raises ValueError for an invalid expression, or one that never
    ticks.
    """

    expression: str
    timezone: str

    @classmethod
    def parse(cls, expression: str, timezone: str = "UTC") -> "Cron":
        """The zone by any of its names. Raises ValueError."""
        cron = cls(expression, zones.canonical(timezone))
        cron.after(datetime.now(UTC))
        return cron

    @classmethod
    def of(cls, path: str) -> "Cron":
        """Parse a stream's path, whichever ICU named its zone. Raises ValueError."""
        coded = path.removeprefix(PREFIX)
        if len(coded) > _MAX_CODED:
            raise ValueError("too long for the path of a cron stream")
        try:
            text = urlsafe_b64decode(coded + "=" * (-len(coded) % 4))
            said = msgspec.json.decode(text, type=dict[str, str])
            return cls.parse(said["expression"], said["timezone"])
        except (binascii.Error, msgspec.DecodeError, KeyError, UnicodeError):
            raise ValueError("not the path of a cron stream") from None

    @property
    def path(self) -> str:
        """Its stream's path, as runtimes compute it: JSON without spaces, base64url, no padding."""
        said = {"expression": self.expression, "timezone": self.timezone}
        return PREFIX + urlsafe_b64encode(msgspec.json.encode(said)).rstrip(b"=").decode()

    def after(self, moment: datetime) -> datetime:
        """When it ticks next. Raises ValueError if it does not within 50 years."""
        zone = ZoneInfo(self.timezone)
        try:
            ticks = CronSim(_plain(self.expression), moment.astimezone(zone))
            # In an hour that the clock repeats, cronsim begins with those of its first time.
            return next(tick for tick in ticks if tick.astimezone(UTC) > moment)
        except CronSimError as exc:
            raise ValueError(f"not a cron expression: {exc}") from None
        except StopIteration:
            raise ValueError("a cron expression that never comes true") from None


def _plain(expression: str) -> str:
    """The expression without what cronsim does not know. Raises ValueError if it is too long."""
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"longer than {MAX_LENGTH} characters")
    named = _NAMED.get(expression.strip().lower())
    if named is not None:
        return named
    fields = expression.split()
    if len(fields) in (5, 6):
        for place in _DAYS:
            fields[place] = "*" if fields[place] == "?" else fields[place]
    if len(fields) == 6 and fields[0] in ("0", "00"):
        # With 5 fields what comes once a day does so, too, where a clock skips or repeats an hour.
        del fields[0]
    return " ".join(fields)
