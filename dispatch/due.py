"""What is due by the clock: each kind in batches, by any number of servers at once.

Every process of a server runs a `Timekeeper`. Rows say when something of theirs is due, in an
index; whoever locks one first does it, and the others go round it.
"""

import logging
import threading

from django.conf import settings
from django.db import connection

from core.database import is_passing
from dispatch import firing

logger = logging.getLogger(__name__)

EVERY_S = 0.5
"""Seconds between looks: nothing is later than that for having been waited for."""


def run() -> int:
    """Do what is due, a batch of each kind: how much."""
    return firing.fire_due()


class Timekeeper(threading.Thread):
    """The thread of a server that does what is due."""

    def __init__(self) -> None:
        super().__init__(name="pullwake-timekeeper", daemon=True)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Begin no further round."""
        self._stopped.set()

    def run(self) -> None:
        """Work until stopped; trouble with the database is logged, and tried again."""
        while not self._stopped.is_set():
            pause = EVERY_S
            try:
                while not self._stopped.is_set() and run():
                    pass
            except Exception as exc:
                pause = settings.PULLWAKE_REAPER_INTERVAL_MS / 1000
                logger.log(
                    logging.WARNING if is_passing(exc) else logging.ERROR,
                    "what is due could not be done, and is tried again: %s",
                    exc,
                    exc_info=not is_passing(exc),
                )
            connection.close()
            self._stopped.wait(pause)
