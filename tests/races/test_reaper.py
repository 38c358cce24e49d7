"""The reaper, and a wake stream that another holds for long: it goes on to the others."""

import time

import pytest
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext

from claims import reaper
from claims.models import ConsumerClaim
from dispatch.models import DispatchState
from runners.models import RunnerLiveness
from tests.races.conftest import Line, assert_every_wake_is_right
from tests.support import PAST, Api, Claim, end_delay, lapse

pytestmark = pytest.mark.postgres


@pytest.fixture
def claims(alice: Api) -> list[Claim]:
    """Of entities e1 and e2 of r1, and e3 of r2, all alice's."""
    runners = ("r1", "r1", "r2")
    for number, runner_id in enumerate(runners, start=1):
        alice.register(runner_id)
        alice.make_entity(f"/agent/e{number}", runner_id, initialMessage="hi")
    return [alice.claim(runner_id) for runner_id in runners]


def reap() -> reaper.Round:
    """A round that waits for no lock for long."""
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '100ms'")
        done = reaper.reap()
        cursor.execute("RESET lock_timeout")
    return done


def woken(api: Api) -> list[int]:
    return [len(api.wakes(runner_id)) for runner_id in ("r1", "r2")]


def test_a_retry_behind_a_stream_that_is_held_keeps_no_other_waiting(
    alice: Api, claims: list[Claim], line: Line
):
    for number, claim in enumerate(claims, start=1):
        claim.fail()
        end_delay(f"/agent/e{number}")
    line.hold("tail of r1")
    with CaptureQueriesContext(connection) as captured:
        assert reap().retried == 1
    # Not for e2, too: a round that waits for each of many is a long one.
    tried = [each for each in captured if 'UPDATE "runners_wakestream"' in each["sql"]]
    assert len(tried) == 2
    assert woken(alice) == [0, 1]
    line.let_go("tail of r1")
    assert reap().retried == 2
    assert_every_wake_is_right()


def test_nor_does_one_whose_expiry_is_counted_no_more(alice: Api, claims: list[Claim], line: Line):
    for runner_id in ("r1", "r2"):
        alice.post(f"/_electric/runners/{runner_id}/heartbeat")
    DispatchState.objects.update(failures=1)
    for claim in claims:
        lapse(claim)
    assert reap().expired == 3
    RunnerLiveness.objects.update(lease_expires_at=PAST)
    assert ConsumerClaim.objects.pardonable().count() == 3
    line.hold("tail of r1")
    assert reap().pardoned == 1
    assert woken(alice) == [0, 1]
    line.let_go("tail of r1")
    assert reap().pardoned == 2
    assert_every_wake_is_right()


def test_nor_do_expiries_which_wait_for_it_once_and_not_for_long(
    alice: Api, claims: list[Claim], line: Line
):
    for claim in claims:
        lapse(claim)
    line.hold("tail of r1")
    began = time.monotonic()
    assert reaper.reap().expired == 1
    assert time.monotonic() - began < settings.PULLWAKE_LOCK_TIMEOUT_MS / 1000
    assert woken(alice) == [0, 1]
    line.let_go("tail of r1")
    assert reaper.reap().expired == 2
    assert_every_wake_is_right()
