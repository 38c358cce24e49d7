"""Work that is due by the clock: each kind in batches, by any number of servers at once.

Every process of a server runs a `Timekeeper`. Rows say when they are due, in an index; whichever
process locks a row first does it, and the others skip it.
"""

import logging

from django.conf import settings
from django.db import connection

from core.database import in_turns, note_trouble
from core.rounds import Rounds
from dispatch import deliveries, firing
from dispatch.streams import registrations

logger = logging.getLogger(__name__)

EVERY_S = 0.5
"""Seconds between looks: nothing is later than that for having been waited for."""


def run(*, limit: int = firing.BATCH) -> int:
    """Do what is due, at most ``limit`` rows of each kind: how many. More waits for the next."""
    return deliveries.deliver_due(limit=limit) + firing.fire_due(limit=limit)


class Timekeeper(Rounds):
    """The thread of a server that does what is due: soon, where something says that it is."""

    NAME = "timekeeper"

    def stop(self) -> None:
        """Begin no further round."""
        super().stop()
        registrations.nudged.set()

    def run(self) -> None:
        """Work until stopped; trouble with the database is logged, and tried again."""
        while not self._stopped.is_set():
            registrations.nudged.clear()
            try:
                for _ in in_turns(iter(run, 0)):
                    if self._stopped.is_set():
                        break
            except Exception as exc:  # noqa: BLE001  the next round may do better
                note_trouble(logger, "what is due could not be done, and is tried again", exc)
                self._stopped.wait(settings.PULLWAKE_REAPER_INTERVAL_MS / 1000)
            connection.close()
            registrations.nudged.wait(EVERY_S)
