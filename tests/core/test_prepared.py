"""Statements that are compiled once do what the query that they are written as does."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now

from core.clock import with_now
from core.prepared import Insert, Param, SaveChanged, Select, Update, Values
from dispatch.models import DispatchState, Wake
from runners.models import Runner, RunnerLiveness

LONG_AGO = datetime(2020, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC)


@pytest.fixture
def runner(alice):
    """Alice's runner r1, and r2 whose label a careless statement would stumble over."""
    alice.register()
    alice.register("r2", label="it's 100% %s")
    return Runner.objects.get(pk="r1")


def test_it_selects_what_its_query_selects(runner):
    query = with_now(Runner.objects.select_related("liveness")).filter(pk=Param("id"))
    select = Select(lambda: query)
    for name in ("r1", "r2"):
        found = select.first(id=name)
        expected = Runner.objects.select_related("liveness").get(pk=name)
        assert found == expected
        assert {**vars(found), "now": None, "_state": None} == {
            **vars(expected),
            "now": None,
            "_state": None,
        }
        assert found.liveness == expected.liveness
        assert isinstance(found.now, datetime)
        assert not found._state.adding
    assert select.first(id="r3") is None
    assert select.all(id="r3") == []


def test_threads_may_compile_it_at_the_same_time():
    """A worker's first requests come together, and looking at the database lets others go on."""
    threads = 4
    begin = threading.Barrier(threads)

    def compiled(select):
        begin.wait()
        return select._compiled()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(50):
                query = Runner.objects.select_related("liveness").filter(pk=Param("id"))
                select = Select(query.all)
                made = [pool.submit(compiled, select) for _ in range(threads)]
                assert len({each.result()._sql for each in made}) == 1
    finally:
        sys.setswitchinterval(before)


def test_it_is_compiled_by_its_first_run_alone(runner):
    built = []

    def build():
        built.append(True)
        return Runner.objects.filter(pk=Param("id"))

    select = Select(build)
    assert [row.label for name in ("r1", "r2", "r1") for row in select.all(id=name)] == [
        "r1",
        "it's 100% %s",
        "r1",
    ]
    assert built == [True]


def test_it_tells_values(runner):
    labels = Values(lambda: Runner.objects.filter(id=Param("id")).values_list("label", "pk"))
    assert labels.all(id="r2") == [("it's 100% %s", "r2")]
    assert labels.first(id="r3") is None


def test_what_is_the_same_in_each_run_is_written_out(runner):
    label = "it's 100% %s"
    select = Select(lambda: Runner.objects.filter(label=label, pk=Param("id")))
    assert [row.label for row in select.all(id="r2")] == [label]
    assert select.all(id="r1") == []


def test_an_update_says_how_many_rows_it_changed(runner):
    end = RunnerLiveness._meta.get_field("lease_expires_at")
    update = Update(
        lambda: RunnerLiveness.objects.filter(runner=Param("runner")),
        last_seen_at=Now(),
        lease_expires_at=Param("end", end),
    )
    assert update.count(runner="r1", end=LONG_AGO) == 1
    assert update.count(runner="r3", end=LONG_AGO) == 0
    assert RunnerLiveness.objects.get(pk="r1").lease_expires_at == LONG_AGO
    assert RunnerLiveness.objects.get(pk="r2").lease_expires_at is None


def test_an_update_returns_what_it_wrote(runner):
    RunnerLiveness.objects.update(lease_expires_at=LONG_AGO, diagnostics={"status": "streaming"})
    update = Update(
        lambda: RunnerLiveness.objects.filter(runner=Param("runner")),
        returning=["lease_expires_at", "diagnostics"],
        lease_expires_at=F("lease_expires_at") + timedelta(seconds=1),
    )
    later = LONG_AGO + timedelta(seconds=1)
    assert update.returned(runner="r1") == [(later, {"status": "streaming"})]
    assert update.returned(runner="r3") == []


def test_an_insert_gives_the_key(alice):
    alice.register()
    alice.make_entity()
    state = DispatchState.objects.get()
    wake = Wake(
        wake_id="w_it's",
        entity_id=state.entity_id,
        generation=7,
        runner_id="r1",
        status=Wake.Status.CLAIMED,
        offset=3,
        created_at=LONG_AGO,
        emitted_at=LONG_AGO,
    )
    Insert(Wake).add(wake)
    stored = Wake.objects.get(pk=wake.pk)
    assert {**vars(stored), "_state": None} == {**vars(wake), "_state": None}


def test_what_changed_is_written_back_and_nothing_else(alice, django_assert_num_queries):
    alice.register()
    alice.make_entity()
    state = DispatchState.objects.get()
    kept, before = vars(state).copy(), vars(DispatchState.objects.get())
    save = SaveChanged(DispatchState).save
    DispatchState.objects.update(failures=0, tail=before["tail"] + 5)
    before["tail"] += 5
    state.paused, state.runner, state.retry_at = True, None, LONG_AGO
    with django_assert_num_queries(1):
        save(state, kept)
        save(state, kept)
    changed = {"paused": True, "runner_id": None, "retry_at": LONG_AGO}
    assert {**vars(DispatchState.objects.get()), "_state": None} == {
        **before,
        **changed,
        "_state": None,
    }


@pytest.mark.postgres
def test_postgresql_prepares_it_by_its_first_run_and_plans_it_once(runner):
    select = Select(
        lambda: Runner.objects.enabled().filter(pk=Param("id"), label="only of this test")
    )
    select.first(id="r1")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT statement, custom_plans FROM pg_prepared_statements"
            " WHERE statement LIKE '%only of this%'"
        )
        ((statement, plans_of_one_run),) = cursor.fetchall()
    assert plans_of_one_run == 0
    # A plan for any status could not use an index of the enabled alone.
    assert "= 'enabled'" in statement
    assert "$1" in statement
    assert "$2" not in statement
