"""Threads of a server that work in rounds."""

import logging
import random
import threading

from django.db import connection

from core.database import note_trouble


class Rounds(threading.Thread):
    """A thread that works in rounds until it is stopped, whatever goes wrong in one."""

    NAME: str
    EVERY_S: float
    FAILED = "a round failed, and is tried again"
    REST_S = 0.0
    """What it waits besides after a round that failed."""

    def __init__(self) -> None:
        super().__init__(name=f"pullwake-{self.NAME}", daemon=True)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Begin no further round."""
        self._stopped.set()

    def run(self) -> None:
        """Work until stopped; trouble is logged, and tried again."""
        while not self._stopped.is_set():
            try:
                self._round()
            except Exception as exc:  # noqa: BLE001  the next round may do better
                note_trouble(logging.getLogger(type(self).__module__), self.FAILED, exc)
                self._stopped.wait(self.REST_S)
            connection.close()
            self._pause()

    def _round(self) -> None:
        raise NotImplementedError

    def _pause(self) -> None:
        """Wait for the next round: servers that started together need not work together."""
        self._stopped.wait(self.EVERY_S * random.uniform(0.8, 1.0))  # noqa: S311
