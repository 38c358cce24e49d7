"""What many threads ask at the same moment is asked in one statement, and answered to each."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Event, current_thread
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction
from django.db.models import F

from core.prepared import ByKey, Param, UpdateByKey
from core.prepared.batches import Batches
from runners.models import Runner, RunnerLiveness
from tests.factories import RunnerFactory
from tests.support import wait_until

pytestmark = pytest.mark.postgres


class Crowd:
    """Threads that ask while the turn of a first batch, of "x" and "y", is held."""

    def __init__(self, many: Callable[[dict[str, str]], dict[str, str]]) -> None:
        self.together: list[set[str]] = []
        self.alone: list[str] = []
        self._held, self._let_go = Event(), Event()
        self._many = many
        self.batches = Batches(self._one, self._first_then)
        self._threads = ThreadPoolExecutor(32)

    def _one(self, key: str, question: str) -> str:
        self.alone.append(key)
        if question == "bad":
            raise ValueError(key)
        return f"{question} alone"

    def _first_then(self, asked: dict[str, str]) -> dict[str, str]:
        if not self._held.is_set():
            self._held.set()
            assert self._let_go.wait(10)
            return asked
        self.together.append(set(asked))
        return self._many(asked)

    def ask(self, *asked: tuple[str, str]) -> "list[Future[str]]":
        """What each thread is answered that asks meanwhile."""
        batches = self.batches
        with batches._turn:
            first = [self._threads.submit(batches.ask, key, key) for key in "xy"]
            wait_until(lambda: len(batches._next.questions) == 2)
        assert self._held.wait(10)
        futures = []
        for key, question in asked:
            futures.append(self._threads.submit(batches.ask, key, question))
            wait_until(lambda key=key: key in batches._next.questions)
        self._let_go.set()
        assert [each.result(10) for each in first] == ["x", "y"]
        self._threads.shutdown()
        return futures


def test_who_asks_while_others_are_answered_is_answered_together():
    crowd = Crowd(lambda asked: {key: f"{each} together" for key, each in asked.items()})
    answers = crowd.ask(*((key, key.upper()) for key in "abcde"))
    assert [each.result() for each in answers] == [f"{each} together" for each in "ABCDE"]
    assert crowd.together == [set("abcde")]
    assert crowd.alone == []


def test_who_asks_alone_is_answered_alone_and_holds_nobody_up():
    inside, leave = Event(), Event()

    def one(key: str, question: None) -> str:
        if key == "slow":
            inside.set()
            assert leave.wait(10)
        return key

    batches = Batches(one, lambda asked: {})
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(batches.ask, "slow", None)
        assert inside.wait(10)
        assert batches.ask("quick", None) == "quick"
        assert not slow.done()
        leave.set()
        assert slow.result(10) == "slow"


def test_what_is_not_answered_together_is_asked_alone():
    crowd = Crowd(lambda asked: {"a": "answered"})
    answers = crowd.ask(("a", "A"), ("b", "B"), ("c", "bad"))
    assert answers[0].result() == "answered"
    assert answers[1].result() == "B alone"
    with pytest.raises(ValueError, match="c"):
        answers[2].result()
    assert sorted(crowd.alone) == ["b", "c"]


def test_one_of_a_batch_that_fails_fails_alone(caplog):
    def many(asked: dict[str, str]) -> dict[str, str]:
        raise ValueError("a value that no column takes")

    crowd = Crowd(many)
    good, bad = crowd.ask(("a", "A"), ("b", "bad"))
    assert good.result() == "A alone"
    with pytest.raises(ValueError, match="b"):
        bad.result()
    assert "a batch of statements failed" in caplog.text


def test_nobody_tries_again_while_the_database_is_away():
    def many(asked: dict[str, str]) -> dict[str, str]:
        raise OperationalError("the connection is lost")

    crowd = Crowd(many)
    for each in crowd.ask(("a", "A"), ("b", "B")):
        with pytest.raises(OperationalError, match="lost"):
            each.result()
    assert crowd.alone == []


def test_nobody_waits_for_one_that_is_ended_before_it_asks_for_them(monkeypatch):
    """As a greenlet is that is killed."""

    def end(seconds: float) -> None:
        raise SystemExit

    batches: Batches[None, str] = Batches(lambda key, _: f"{key} alone", lambda asked: {})
    with ThreadPoolExecutor(2) as threads:
        with batches._turn:
            answers = []
            for key in "ab":
                answers.append(threads.submit(batches.ask, key, None))
                wait_until(lambda key=key: key in batches._next.questions)
            monkeypatch.setattr("core.prepared.batches.time", SimpleNamespace(sleep=end))
        with pytest.raises(SystemExit):
            answers[0].result(10)
        assert answers[1].result(10) == "b alone"
        monkeypatch.undo()
        assert batches.ask("c", None) == "c alone"


def test_two_that_ask_of_one_row_have_an_answer_each():
    crowd = Crowd(lambda asked: {key: f"{each} together" for key, each in asked.items()})
    answers = crowd.ask(("a", "A"), ("b", "B"), ("a", "another"))
    assert [each.result() for each in answers] == ["A together", "B together", "another alone"]


def test_nobody_holds_a_connection_while_others_ask(transactional_db):
    """Or they could hold all of the pool's, and who asks for them would wait for one in vain."""
    batches: Batches[None, str] = Batches(
        lambda key, _: key, lambda asked: dict.fromkeys(asked, "together")
    )
    held = []

    def asks(key: str) -> str:
        database = connections["default"]
        database.ensure_connection()
        held.append(database)
        try:
            return batches.ask(key, None)
        finally:
            database.close()

    with ThreadPoolExecutor(2) as threads:
        with batches._turn:
            answers = [threads.submit(asks, key) for key in "ab"]
            wait_until(lambda: len(batches._next.questions) == 2)
            wait_until(lambda: all(each.connection is None for each in held))
        assert [each.result(10) for each in answers] == ["together"] * 2


def test_a_transaction_asks_by_itself(transactional_db):
    def many(asked: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("asked outside of the transaction")

    batches = Batches(lambda key, _: current_thread().name, many)
    with transaction.atomic(), batches._turn:
        assert batches.ask("a", None) == current_thread().name


# --- The statements -----------------------------------------------------------------------------

LONG_AGO = datetime(2020, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC)


@pytest.fixture
def runners(db):
    """Four runners with a report each."""
    made = RunnerFactory.create_batch(4, online=True)
    RunnerLiveness.objects.update(diagnostics={"status": "starting"}, wake_stream_offset="-1")
    return [each.pk for each in made]


def test_it_finds_each_row_that_many_ask_for(runners, django_assert_num_queries):
    by_key = ByKey(lambda: Runner.objects.select_related("liveness"))
    with django_assert_num_queries(1):
        found = by_key._batches._many(dict.fromkeys([*runners[:3], "nobody"]))
    assert found == {pk: Runner.objects.get(pk=pk) for pk in runners[:3]}
    assert all(each is not None and each.liveness.pk == pk for pk, each in found.items())


def reported(end: datetime, **told: Any) -> dict[str, Any]:
    return {"end": end, "diagnostics": told, "offset": "it's 100% %s"}


REPORT = UpdateByKey(
    lambda: RunnerLiveness.objects.filter(
        runner=Param("runner"), wake_stream_offset=Param("before"), diagnostics__isnull=False
    ),
    "runner",
    returning=["lease_expires_at", "last_seen_at", "diagnostics"],
    lease_expires_at=Param("end", RunnerLiveness._meta.get_field("lease_expires_at")),
    last_seen_at=F("lease_expires_at"),
    diagnostics=Param("diagnostics", RunnerLiveness._meta.get_field("diagnostics")),
    wake_stream_offset=Param("offset"),
)


def test_it_updates_for_many_what_it_updates_for_each(runners, django_assert_num_queries):
    former = {each.pk: each.lease_expires_at for each in RunnerLiveness.objects.all()}
    told = {
        "status": 'a "quoted" \\ text, and ü',
        "reconnect_count": 10**30,
        "events_received": 0.5,
    }
    asked = {pk: {"runner": pk, "before": "-1", **reported(LONG_AGO, **told)} for pk in runners[:3]}
    asked[runners[1]]["before"] = "0"  # refused
    asked["nobody"] = {**asked[runners[0]], "runner": "nobody"}
    with django_assert_num_queries(1):
        done = dict(REPORT._batches._many(asked))
    for pk in (runners[0], runners[2]):
        assert done.pop(pk) == [(pk, LONG_AGO, former[pk], told)]
        row = RunnerLiveness.objects.get(pk=pk)
        assert (row.lease_expires_at, row.last_seen_at) == (LONG_AGO, former[pk])
        assert (row.diagnostics, row.wake_stream_offset) == (told, "it's 100% %s")
    assert done == {}
    for pk in (runners[1], runners[3]):
        assert RunnerLiveness.objects.get(pk=pk).lease_expires_at == former[pk]


def test_it_says_what_it_changed_of_one(runners):
    told = {"runner": runners[0], "before": "-1", **reported(LONG_AGO, status="streaming")}
    ((end, _, diagnostics),) = REPORT.returned(**told)
    assert (end, diagnostics) == (LONG_AGO, {"status": "streaming"})
    assert REPORT.count(**told) == 0
    assert REPORT.count(**{**told, "runner": "nobody"}) == 0
