"""Python's garbage collector, which stops a worker's every call while it looks."""

import gc

from core.rounds import Rounds


class Collector(Rounds):
    """The thread of a worker that collects what is young each second, which takes milliseconds.

    Python itself does so when many more objects have been made than freed. Where as many held
    requests end as begin that is hardly ever: all that are held are young then, and with ten
    thousand of them one collection took 0.3 s.
    """

    NAME = "collector"
    EVERY_S = 1.0

    def start(self) -> None:
        """Begin; all that is needed is imported."""
        # What was loaded stays, and requests leave no garbage: there is little to collect, and each
        # full collection would go through everything that ten thousand held requests hold. It comes
        # every few hours. While these arrive, many small ones: one of 100 000 objects stops
        # everything for half a second.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 2, 10_000)
        super().start()

    def _round(self) -> None:
        gc.collect(1)
