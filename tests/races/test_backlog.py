"""Ten thousand wakes that wait for a runner: it registers at little cost, and in nobody's way."""

import pytest
from django.db import connection

from tests.api.test_query_counts import cost
from tests.factories import RunnerFactory, WakeFactory
from tests.races.conftest import Line
from tests.support import Api

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

WAITING = 10_000
R1 = {"id": "r1", "label": "r1"}
COPIES = """
WITH numbers AS (SELECT i FROM generate_series(2, %s) AS i), entities AS (
    INSERT INTO dispatch_entity (type, url, subscription_key, tags, spawn_args, parent, created_by)
    SELECT type, '/agent/b' || i, i::text, tags, spawn_args, parent, created_by
    FROM dispatch_entity, numbers RETURNING id
)
INSERT INTO dispatch_wake (wake_id, entity_id, generation, runner_id, status, "offset", emissions)
SELECT 'w_' || e.id, e.id, generation, runner_id, status, "offset" + e.id, emissions
FROM dispatch_wake, entities AS e
"""
"""More of the one wake that there is, each of an entity of its own."""


@pytest.fixture
def waiting(alice: Api) -> Api:
    """Runner r1, for which many wakes wait, and runner r2, both at work."""
    r1 = RunnerFactory.create(id="r1", online=True)
    WakeFactory.create(entity__url="/agent/e1", entity__runner=r1)
    RunnerFactory.create(id="r2", online=True)
    with connection.cursor() as cursor:
        cursor.execute(COPIES, [WAITING])
        cursor.execute("UPDATE runners_wakestream SET tail = 10 * %s", [WAITING])
    return alice


def test_registering_emits_them_all_in_the_statements_of_one(waiting: Api):
    many = cost(lambda: waiting.post("/_electric/runners", R1), status=201)
    with connection.cursor() as cursor:
        cursor.execute(
            'SELECT count(*), count(DISTINCT "offset"), min(emissions), max(emissions)'
            " FROM dispatch_wake"
        )
        assert cursor.fetchall() == [(WAITING, WAITING, 2, 2)]
        cursor.execute("DELETE FROM dispatch_wake WHERE id > (SELECT min(id) FROM dispatch_wake)")
    assert many == cost(lambda: waiting.post("/_electric/runners", R1), status=201)


def test_heartbeats_of_others_go_on_meanwhile(waiting: Api, line: Line):
    """It has locked all its wakes, and is yet to move them."""
    line.hold("tail")
    registering = line.join(lambda: waiting.post("/_electric/runners", R1))
    assert line.waiting() == 1
    for runner_id in ("r1", "r2"):
        beating = line.threads.submit(
            waiting.post, f"/_electric/runners/{runner_id}/heartbeat", {"lease_ms": 90_000}
        )
        assert beating.result(timeout=30).status == 200
    assert not registering.done()
    line.let_go("tail")
    assert registering.result(timeout=60).status == 201
