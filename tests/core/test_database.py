"""Threads that give way to requests, and the file that a server opens, on SQLite."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

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
