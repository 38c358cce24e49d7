"""What other processes need not hear of at once goes with what they are told anyway."""

import time
from queue import Queue

import pytest

from dispatch.streams import announcer as announcing
from dispatch.streams.announcer import LATER_S, Announcer

FEED, STREAM = "fentity", "e1"
PATIENCE_S = 10


class Noted(Announcer):
    """Notes what it would notify of, and when."""

    def __init__(self):
        super().__init__()
        self.batches: Queue[tuple[float, set[str]]] = Queue()

    def _notify(self, keys):
        self._notified_at = time.monotonic()
        self.batches.put((self._notified_at, keys))


@pytest.fixture
def announcer():
    noted = Noted()
    yield noted
    noted.close()


def test_it_tells_of_a_feed_at_most_so_often(announcer):
    announcer.announce(FEED, urgent=False)
    first, _ = announcer.batches.get(timeout=PATIENCE_S)
    for _ in range(3):
        announcer.announce(FEED, urgent=False)
    second, keys = announcer.batches.get(timeout=PATIENCE_S)
    assert keys == {FEED}
    assert second - first >= LATER_S * 0.9
    assert announcer.batches.empty()


def test_it_tells_of_a_feed_with_a_stream(announcer):
    announcer.announce(FEED, urgent=False)
    announcer.batches.get(timeout=PATIENCE_S)
    announcer.announce(FEED, urgent=False)
    began = time.monotonic()
    announcer.announce(STREAM)
    told, keys = announcer.batches.get(timeout=PATIENCE_S)
    assert keys == {FEED, STREAM}
    assert told - began < LATER_S / 2


def test_it_ends_without_waiting_for_what_is_not_urgent(announcer, monkeypatch):
    """A server that stopped waited for a fifth of a second, for nothing."""
    monkeypatch.setattr(announcing, "LATER_S", 600)
    announcer.announce(FEED, urgent=False)
    announcer.batches.get(timeout=PATIENCE_S)
    announcer.close()
    assert not announcer._thread.is_alive()
