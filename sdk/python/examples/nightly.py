"""A job that is done every night at three, and by whoever asks for it.

    python nightly.py
    pullwake spawn nightly/backup --runner nightly --message start
    pullwake observe nightly/backup

Nothing waits for the night but a row in the server's database: no process has to stay up for it.
"""

import asyncio
import os
from datetime import UTC, datetime, timedelta

from pullwake import PullWakeRunner, RetryAfter, SyncWake, logs

URL = os.environ.get("PULLWAKE_URL", "http://127.0.0.1:8000")
runner = PullWakeRunner(URL, "nightly", token=os.environ.get("PULLWAKE_TOKEN"))


def next_night(now: datetime) -> datetime:
    three = now.replace(hour=3, minute=0, second=0, microsecond=0)
    return three if three > now else three + timedelta(days=1)


def work() -> str:
    """What there is to do; it may take its time, and go wrong."""
    return "backed up"


@runner.on("nightly")
def nightly(wake: SyncWake) -> None:
    now = datetime.now(UTC)
    night = next_night(now)
    # A key for each night: however many ask today, the next night comes once.
    wake.sleep_until(night, "night", key=f"night-{night:%Y-%m-%d}")
    try:
        done = work()
    except OSError as error:
        raise RetryAfter(600, f"the disk is away: {error}") from error
    value = {"text": f"{now:%Y-%m-%d %H:%M} {done}"}
    wake.append({"type": "output", "key": f"done-{wake.epoch}", "value": value})


if __name__ == "__main__":
    logs.configure()
    asyncio.run(runner.run())
