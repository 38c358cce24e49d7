"""Threads that give way to requests, and the file that a server opens, on SQLite."""

import os
import sqlite3
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection

from core import database, sqlite
from core.database import in_turns
from dispatch.streams import waiters

pytestmark = pytest.mark.sqlite


def test_it_waits_as_long_as_it_worked_and_no_longer_where_turns_are_nested(monkeypatch):
    now, waited = 0.0, list[float]()

    def work():
        nonlocal now
        now += 1

    def sleep(seconds):
        nonlocal now
        now += seconds
        waited.append(seconds)

    monkeypatch.setattr(database, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    for _ in in_turns(["outer"]):
        for _ in in_turns(["first", "second"]):
            work()
        work()
    assert waited == [1, 1, 1]


def test_the_listener_makes_no_file_in_place_of_one_that_is_gone(monkeypatch, tmp_path):
    monkeypatch.setattr(sqlite, "_served", (str(tmp_path / "gone"), os.stat(tmp_path)))
    hub: Any = SimpleNamespace(closing=True, wake_all=lambda: None)
    with pytest.raises(sqlite.FileGone):
        waiters._SqliteListener(hub)._listen()


@pytest.mark.django_db(transaction=True)
def test_the_listener_looks_at_the_runners_that_are_waited_for(alice, monkeypatch):
    for runner_id in ("r1", "r2"):
        alice.register(runner_id)
    monkeypatch.setattr(waiters.Hub, "_start", lambda hub: None)
    hub = waiters.Hub()
    listener = waiters._SqliteListener(hub)
    file = connection.settings_dict["NAME"]
    with (
        closing(sqlite3.connect(file)) as polling,
        hub.waiter(waiters.wake_stream_key("r1")) as r1,
    ):
        listener._wake_grown(polling)
        assert listener.tails == {"r1": 0}
        r1.clear()
        listener._wake_grown(polling)
        assert not r1.is_set()
        alice.make_entity("/agent/e1", "r1", initialMessage="hi")
        listener._wake_grown(polling)
        assert r1.is_set()
