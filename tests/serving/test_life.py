"""What /livez says of a process whose threads have ended; test_database_away.py has the other."""

import threading

import pytest

from config.serving import life
from tests.support import Api


def test_livez_names_the_threads_that_have_ended(alice: Api, monkeypatch: pytest.MonkeyPatch):
    over = threading.Event()
    alive = threading.Thread(target=over.wait, name="pullwake-alive")
    ended = threading.Thread(target=int, name="pullwake-ended")
    for thread in (alive, ended):
        thread.start()
    ended.join()
    monkeypatch.setattr(life, "needed", [alive])
    assert alice.get("/livez").status == 200
    life.needed.append(ended)
    answer = alice.get("/livez")
    over.set()
    assert (answer.status, answer.error) == (503, "SERVICE_UNAVAILABLE")
    assert "without pullwake-ended" in answer.body["error"]["message"]
