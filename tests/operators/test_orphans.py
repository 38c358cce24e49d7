"""Orphaned claims and runners' health: told in SQL as they are told in words."""

from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from django.db.models import F
from django.db.models.functions import Now

from claims.models import ConsumerClaim, OrphanReason
from claims.reports import with_failures, with_held, with_presence
from core.clock import with_now
from runners.health import health, liveness, presence
from runners.models import Runner, RunnerLiveness
from tests.factories import ConsumerClaimFactory, RunnerFactory, handle
from tests.support import PAST, lapse

LATER = Now() + timedelta(minutes=1)


@pytest.fixture
def claim(alice):
    """A claim whose runner lives."""
    return handle(alice)


def never_seen():
    RunnerLiveness.objects.update(last_seen_at=None, lease_expires_at=None)


def silent():
    RunnerLiveness.objects.update(lease_expires_at=PAST)


def disabled():
    Runner.objects.update(admin_status="disabled")


def gone():
    ConsumerClaim.objects.update(runner=None)


def lapsed():
    ConsumerClaim.objects.update(lease_expires_at=PAST)


def ended():
    ConsumerClaim.objects.update(status="released", ended_at=F("claimed_at"))


@pytest.mark.parametrize(
    ("happened", "reason"),
    [
        ((), ""),
        ((lapsed,), "lease_lapsed"),
        ((silent,), "runner_expired"),
        ((never_seen,), "runner_never_seen"),
        ((disabled,), "runner_disabled"),
        ((gone,), "runner_gone"),
        ((silent, lapsed), "runner_expired"),
        ((disabled, silent, lapsed), "runner_disabled"),
        ((disabled, never_seen), "runner_disabled"),
        ((gone, lapsed), "runner_gone"),
        ((ended, silent, lapsed), ""),
    ],
)
def test_it_tells_why_a_claim_is_orphaned(claim, happened, reason):
    for change in happened:
        change()
    found: Any = ConsumerClaim.objects.with_orphan_reason().get()
    assert found.orphan_reason == reason
    assert (found.orphaned_since is not None) == bool(reason)
    assert ConsumerClaim.objects.orphaned().exists() == bool(reason)


def test_it_tells_since_when(claim):
    lapse(claim)
    lapsed_claim: Any = ConsumerClaim.objects.with_orphan_reason().get()
    assert lapsed_claim.orphaned_since == lapsed_claim.claimed_at  # not before it began
    ConsumerClaim.objects.update(claimed_at=PAST - timedelta(hours=1))
    lapsed_claim = ConsumerClaim.objects.with_orphan_reason().get()
    assert lapsed_claim.orphaned_since == lapsed_claim.lease_expires_at
    silent()
    claim_of_silent: Any = ConsumerClaim.objects.with_orphan_reason().get()
    assert claim_of_silent.orphaned_since == RunnerLiveness.objects.get().lease_expires_at


@pytest.mark.parametrize("reason", OrphanReason)
def test_the_list_is_filtered_by_reason(claim, people, reason):
    {
        "runner_gone": gone,
        "runner_disabled": disabled,
        "runner_never_seen": never_seen,
        "runner_expired": silent,
        "lease_lapsed": lapsed,
    }[reason.value]()
    for other in ("any", *OrphanReason.values):
        page = people["viewer"].get(f"/admin/claims/consumerclaim/?orphaned={other}")
        assert page.content.decode().count('class="data-row') == (other in ("any", reason.value))


DIAGNOSTICS = [
    None,
    {"status": "streaming"},
    {"status": "stopped"},
    {"stream_connected": False},
    {"stream_connected": True, "last_heartbeat_ok": False},
    {"reconnect_count": 5},
    {"reconnect_count": 6},
    {"reconnect_count": 5.5, "last_error": "x"},
]


def test_health_in_sql_is_health_in_words(db):
    """Over every combination of what it is made of, each another runner's with one claim."""
    cases = {}
    for status, seen, diagnostics, limit, lease in product(
        ("enabled", "disabled"),
        ((None, None), (PAST, PAST), (PAST, LATER)),
        DIAGNOSTICS,
        (None, 1, 2),
        (PAST, LATER),
    ):
        runner = RunnerFactory.create(
            admin_status=status,
            max_concurrent_claims=limit,
            liveness__last_seen_at=seen[0],
            liveness__lease_expires_at=seen[1],
            liveness__diagnostics=diagnostics,
        )
        ConsumerClaimFactory.create(entity__runner=runner, lease_expires_at=lease)
        cases[runner.pk] = (status, seen, diagnostics, limit, lease)
    rows: Any = with_now(
        with_failures(with_held(with_presence(Runner.objects.select_related("liveness"))))
    )
    assert len(rows) == len(cases) == 288
    for row in rows:
        told = health(
            row,
            claims=row.held,
            lapsed=row.lapsed,
            failed=row.failed,
            ended=row.ended,
            now=row.now,
        )
        case = cases[row.pk]
        assert (row.held, row.lapsed) == (1, case[-1] is PAST), case
        seen_as = presence(row, claims=row.held, now=row.now)
        assert (row.health_status, row.presence) == (told.status, seen_as), case
        assert seen_as == liveness(row, row.now), case  # it holds a claim


def test_one_that_stopped_and_holds_nothing_has_stopped(claim):
    """The protocol has it expired, and so unhealthy; operators need not look after it."""
    ConsumerClaim.objects.all().delete()
    for status, said, lease in product(
        ("enabled", "disabled"), ("stopped", "streaming"), (None, PAST, LATER)
    ):
        Runner.objects.update(admin_status=status)
        RunnerLiveness.objects.update(lease_expires_at=lease, diagnostics={"status": said})
        row: Any = with_now(
            with_failures(with_held(with_presence(Runner.objects.select_related("liveness"))))
        ).get()
        stopped = (status, said, lease) == ("enabled", "stopped", PAST)
        assert row.presence == presence(row, claims=0, now=row.now)
        assert (row.presence == "stopped") == (row.condition == "stopped") == stopped
