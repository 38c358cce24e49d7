"""Work that is due by the clock: each kind in batches, by any number of servers at once.

Every process of a server runs a `Timekeeper`. Rows say when they are due, in an index; whichever
process locks a row first does it, and the others skip it.
"""

from django.conf import settings

from core.database import in_turns
from core.rounds import Rounds
from dispatch import deliveries, firing
from dispatch.streams import registrations


def run(*, limit: int = firing.BATCH) -> int:
    """Do what is due, at most ``limit`` rows of each kind: how many. More waits for the next."""
    return deliveries.deliver_due(limit=limit) + firing.fire_due(limit=limit)


class Timekeeper(Rounds):
    """The thread of a server that does what is due: soon, where something says that it is."""

    NAME = "timekeeper"
    EVERY_S = 0.5
    FAILED = "what is due could not be done, and is tried again"

    def __init__(self) -> None:
        super().__init__()
        self.REST_S = settings.PULLWAKE_REAPER_INTERVAL_MS / 1000

    def stop(self) -> None:
        """Begin no further round."""
        super().stop()
        registrations.nudged.set()

    def _round(self) -> None:
        registrations.nudged.clear()
        for _ in in_turns(iter(run, 0)):
            if self._stopped.is_set():
                break

    def _pause(self) -> None:
        registrations.nudged.wait(self.EVERY_S)
