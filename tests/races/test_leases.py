"""A lease begins when the claim is made, whatever was waited for before."""

from datetime import timedelta

import pytest
from django.db import connection

from claims import lifecycle
from claims.models import ConsumerClaim
from runners import registry
from tests.races.conftest import Line
from tests.support import Api, wait_until

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize("what", ["state", "tail"])
def test_a_claim_that_waited_has_its_full_lease(alice: Api, line: Line, what: str):
    alice.register(max_concurrent_claims=1)
    alice.make_entity(initialMessage="hi")
    line.hold(what)
    waiting = line.join(alice.try_claim)
    assert line.waiting() == 1
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        ((let_go_at,),) = cursor.fetchall()
    line.let_go(what)
    assert waiting.result(timeout=30).status == 200
    claim = ConsumerClaim.objects.get()
    assert claim.claimed_at >= let_go_at
    # The clock is read for each of the two columns.
    assert abs(claim.lease_end - claim.claimed_at - claim.lease) < timedelta(milliseconds=100)


def test_a_heartbeat_waits_for_no_other_runner_that_reports_with_it(alice: Api, line: Line):
    for runner_id in ("r1", "r2"):
        alice.register(runner_id)
        alice.post(f"/_electric/runners/{runner_id}/heartbeat")
    line.hold("liveness of r1")
    batches = registry._note("last_seen_at", "lease_expires_at")._batches
    with batches._turn:
        waits, goes_on = (
            line.threads.submit(alice.post, f"/_electric/runners/{runner_id}/heartbeat")
            for runner_id in ("r1", "r2")
        )
        wait_until(lambda: len(batches._next.questions) == 2)
    assert goes_on.result(timeout=30).status == 200
    wait_until(lambda: line.waiting() == 1)
    line.let_go("liveness of r1")
    assert waits.result(timeout=30).status == 200


def test_nor_does_that_of_a_claim_wait_for_another_claim(alice: Api, line: Line):
    alice.register()
    alice.make_entity("/agent/e1", initialMessage="hi")
    alice.make_entity("/agent/e2", initialMessage="hi")
    held, free = alice.claim(), alice.claim()
    line.hold("claim of e1")
    batches = lifecycle._RENEW._batches
    with batches._turn:
        waits = line.threads.submit(held.heartbeat)
        goes_on = line.threads.submit(free.heartbeat)
        wait_until(lambda: len(batches._next.questions) == 2)
    assert goes_on.result(timeout=30).status == 200
    wait_until(lambda: line.waiting() == 1)
    line.let_go("claim of e1")
    assert waits.result(timeout=30).status == 200
    assert ConsumerClaim.objects.filter(last_heartbeat_at=None).count() == 0
