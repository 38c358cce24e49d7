"""GET /_electric/runners/:id/health."""

from copy import copy
from datetime import timedelta
from typing import Any

import pytest
from django.db.models import F
from django.db.models.functions import Now

from claims.models import ConsumerClaim
from claims.reports import with_health
from core.clock import with_now
from dispatch.models import Entity
from runners.models import Runner, RunnerLiveness
from tests.factories import (
    ConsumerClaimFactory,
    RunnerFactory,
    RunnerLivenessFactory,
    WakeFactory,
    ago,
    handle,
)
from tests.support import PAST

PATH = "/_electric/runners/r1"
HEALTHY = {"status": "streaming", "stream_connected": True, "last_heartbeat_ok": True}


@pytest.fixture
def health(alice):
    """The health report of Alice's runner r1."""

    def report():
        answer = alice.get(f"{PATH}/health")
        assert answer.status == 200, answer
        return answer.body

    return report


def beat(api, **diagnostics):
    answer = api.post(f"{PATH}/heartbeat", {"diagnostics": diagnostics})
    assert answer.status == 200, answer


def lapse_liveness(seconds):
    RunnerLiveness.objects.update(lease_expires_at=Now() - timedelta(seconds=seconds))


def lapse_claims():
    ConsumerClaim.objects.active().update(
        claimed_at=F("claimed_at") - timedelta(hours=1), lease_expires_at=Now()
    )


def work(api, *names, runner_id="r1"):
    """Make entities that are dispatched to the runner and have work."""
    for name in names:
        api.make_entity(f"/agent/{name}", runner_id)
        api.send(f"/agent/{name}")


# --- The runner, its liveness, its client -----------------------------------------------------


def test_what_has_no_value_is_null(alice, health):
    alice.register()
    report = health()
    assert report == {
        "runner": {
            "id": "r1",
            "admin_status": "enabled",
            "liveness_status": "offline",
            "lease_expires_at": None,
            "lease_remaining_ms": None,
            "wake_stream": "/runners/r1/wake",
            "wake_stream_offset": None,
            "last_seen_at": None,
            "created_at": alice.get(PATH).body["created_at"],
        },
        "client": None,
        "claims": {"active_count": 0, "active": []},
        "dispatch": {
            "entities_with_active_claim": 0,
            "entities_with_outstanding_wake": 0,
            "entities_with_pending_work": 0,
        },
        "health": {"status": "degraded", "issues": ["Runner has never sent a heartbeat"]},
    }


def test_it_shows_what_the_runner_reported(alice, health):
    alice.register()
    alice.post(
        f"{PATH}/heartbeat",
        {"lease_ms": 90_000, "wake_stream_offset": "-1", "diagnostics": HEALTHY},
    )
    report, runner = health(), alice.get(PATH).body

    assert report["client"] == HEALTHY
    assert report["health"] == {"status": "healthy", "issues": []}
    assert report["runner"]["liveness_status"] == "online"
    assert report["runner"]["lease_expires_at"] == runner["liveness_lease_expires_at"]
    assert report["runner"]["wake_stream_offset"] == "-1"
    assert report["runner"]["last_seen_at"] == runner["last_seen_at"]
    assert 80_000 < report["runner"]["lease_remaining_ms"] <= 90_000


def test_after_its_lease_it_is_expired(alice, health):
    alice.register()
    beat(alice, **HEALTHY)
    lapse_liveness(42)

    report = health()
    assert report["runner"]["liveness_status"] == "expired"
    assert report["runner"]["lease_remaining_ms"] == 0


@pytest.mark.parametrize("seen", ["never", "live", "lapsed"])
def test_disabled_is_offline_whatever_its_lease(alice, health, seen):
    alice.register()
    if seen != "never":
        beat(alice, **HEALTHY)
    if seen == "lapsed":
        lapse_liveness(42)
    alice.post(f"{PATH}/disable")

    report = health()
    assert report["runner"]["admin_status"] == "disabled"
    assert report["runner"]["liveness_status"] == "offline"
    assert report["health"] == {"status": "unhealthy", "issues": ["Runner is disabled"]}


# --- The issues -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("diagnostics", "issues"),
    [
        (HEALTHY, []),
        ({"stream_connected": False}, ["Client reports stream disconnected"]),
        ({"last_heartbeat_ok": False}, ["Client reports last heartbeat failed"]),
        ({"reconnect_count": 5}, []),
        ({"reconnect_count": 6}, ["Client has reconnected 6 times"]),
        (
            {"stream_connected": False, "last_heartbeat_ok": False, "reconnect_count": 99},
            [
                "Client reports stream disconnected",
                "Client reports last heartbeat failed",
                "Client has reconnected 99 times",
            ],
        ),
        ({}, ["No client diagnostics available"]),
    ],
)
def test_it_says_what_the_client_reports(alice, health, diagnostics, issues):
    alice.register()
    beat(alice, **diagnostics)
    status = "degraded" if issues else "healthy"
    assert health()["health"] == {"status": status, "issues": issues}


def test_it_says_since_when_the_lease_is_over(alice, health):
    seen = {"online": True, "diagnostics": HEALTHY, "lease_expires_at": ago(seconds=42.5)}
    RunnerLivenessFactory.create(runner__id="r1", **seen)
    assert health()["health"] == {
        "status": "unhealthy",
        "issues": ["Heartbeat lease expired 42s ago"],
    }


def test_the_worst_issue_decides_and_comes_first(alice, health):
    alice.register()
    beat(alice, stream_connected=False)
    lapse_liveness(7)
    assert health()["health"] == {
        "status": "unhealthy",
        "issues": ["Heartbeat lease expired 7s ago", "Client reports stream disconnected"],
    }


@pytest.mark.parametrize(
    ("claims", "issue"),
    [(1, "1 active claim has a lapsed lease"), (2, "2 active claims have a lapsed lease")],
)
def test_a_claim_past_its_lease_is_an_issue(alice, health, claims, issue):
    r1 = RunnerFactory.create(id="r1", online=True, liveness__diagnostics=HEALTHY)
    ConsumerClaimFactory.create_batch(claims, entity__runner=r1)
    assert health()["health"]["issues"] == []

    lapse_claims()

    assert health()["health"] == {"status": "degraded", "issues": [issue]}


def test_being_at_its_limit_is_an_issue(alice, health):
    r1 = RunnerFactory.create(
        id="r1", max_concurrent_claims=2, online=True, liveness__diagnostics=HEALTHY
    )
    claim = handle(alice, entity__runner=r1)
    assert health()["health"]["status"] == "healthy"
    ConsumerClaimFactory.create(entity__runner=r1)

    assert health()["health"] == {
        "status": "degraded",
        "issues": ["Runner holds 2 of at most 2 claims"],
    }
    claim.done()
    assert health()["health"]["status"] == "healthy"


# --- The claims -------------------------------------------------------------------------------


def test_it_lists_the_active_claims_oldest_first(alice, health):
    alice.register()
    work(alice, "e1", "e2", "e3")
    first, ended, second = alice.claim(), alice.claim(), alice.claim()
    ended.done()
    second.heartbeat()

    claims = health()["claims"]

    assert claims["active_count"] == 2
    rows = [ConsumerClaim.objects.get(consumer_id=c.body["consumerId"]) for c in (first, second)]
    assert [each["consumer_id"] for each in claims["active"]] == [r.consumer_id for r in rows]
    one, other = claims["active"]
    assert set(one) == {
        "consumer_id",
        "epoch",
        "entity_url",
        "stream_path",
        "claimed_at",
        "last_heartbeat_at",
        "lease_expires_at",
    }
    assert (one["epoch"], one["entity_url"], one["stream_path"]) == (
        1,
        "/agent/e1",
        "/agent/e1/main",
    )
    assert one["last_heartbeat_at"] is None
    assert one["claimed_at"] < one["lease_expires_at"]
    assert other["claimed_at"] <= other["last_heartbeat_at"] < other["lease_expires_at"]


# --- The dispatch counts ----------------------------------------------------------------------


def counts(report):
    return tuple(
        report["dispatch"][f"entities_with_{what}"]
        for what in ("active_claim", "outstanding_wake", "pending_work")
    )


def test_it_counts_through_the_life_of_a_message(alice, health):
    """With a claim; with a wake; with work and no claim."""
    alice.register()
    alice.make_entity()
    assert counts(health()) == (0, 0, 0)
    alice.send()
    assert counts(health()) == (0, 1, 1)
    claim = alice.claim()
    assert counts(health()) == (1, 0, 0)
    alice.send()
    assert counts(health()) == (1, 0, 0)
    claim.done()
    assert counts(health()) == (0, 1, 1)
    alice.claim().done()
    assert counts(health()) == (0, 0, 0)


def test_work_that_waits_without_a_wake_is_counted(alice, health):
    """A paused entity's, and a failed one's during its delay."""
    alice.register()
    work(alice, "e1", "e2")
    alice.claim().fail()
    alice.signal("/agent/e2", "SIGSTOP")
    assert counts(health()) == (0, 0, 2)


def test_it_counts_the_entities_dispatched_to_this_runner(alice, health):
    r1, r2 = RunnerFactory.create(id="r1"), RunnerFactory.create(id="r2")
    WakeFactory.create_batch(2, entity__runner=r1)
    WakeFactory.create(entity__runner=r2)
    ConsumerClaimFactory.create(entity__runner=r2)
    WakeFactory.create(entity__runner__owner_principal="/principal/user%3Abob")
    assert counts(health()) == (0, 2, 2)
    assert counts(alice.get("/_electric/runners/r2/health").body) == (1, 1, 1)


def test_a_claim_stays_where_it_is_when_its_entity_moves_on(alice, health):
    """The claims are the runner's own, the counts those of its entities."""
    alice.register()
    alice.register("r2")
    work(alice, "e1")
    alice.claim()
    policy = {"targets": [{"type": "runner", "runnerId": "r2"}]}
    alice("PATCH", "/_electric/entities/agent/e1", {"dispatch_policy": policy})

    assert (health()["claims"]["active_count"], *counts(health())) == (1, 0, 0, 0)
    other = alice.get("/_electric/runners/r2/health").body
    assert (other["claims"]["active_count"], *counts(other)) == (0, 1, 0, 0)


# --- Who may look -----------------------------------------------------------------------------


def test_it_refuses_anothers_runner(alice, bob):
    bob.register()
    answer = alice.get(f"{PATH}/health")
    assert (answer.status, answer.error) == (403, "UNAUTHORIZED")


def test_it_does_not_find_an_unknown_runner(alice):
    answer = alice.get(f"{PATH}/health")
    assert (answer.status, answer.error) == (404, "NOT_FOUND")


# --- What failed ------------------------------------------------------------------------------


def ended(*, failed=0, released=0, hours=0):
    runner = Runner.objects.get()
    for trait, number in (("failed", failed), ("released", released)):
        for _ in range(number):
            claim = ConsumerClaimFactory.create(entity__runner=runner, **{trait: True})
            if hours:
                then = ago(hours=hours)
                ConsumerClaim.objects.filter(pk=claim.pk).update(claimed_at=then, ended_at=then)


@pytest.mark.parametrize(
    ("claims", "issues"),
    [
        ({"failed": 3}, ["3 of its last 3 claims failed"]),
        ({"failed": 4, "released": 4}, ["4 of its last 8 claims failed"]),
        ({"failed": 4, "released": 5}, []),
        ({"failed": 2}, []),
        ({"failed": 22}, ["20 of its last 20 claims failed"]),
        ({"failed": 5, "hours": 2}, []),
    ],
)
def test_a_runner_whose_claims_fail_is_degraded(alice, health, claims, issues):
    alice.register()
    beat(alice, **HEALTHY)
    ended(**claims)
    report = health()["health"]
    assert report == {"status": "degraded" if issues else "healthy", "issues": issues}
    row: Any = with_now(with_health(Runner.objects.select_related("liveness"))).get()
    assert row.health_status == report["status"]


@pytest.mark.parametrize(
    ("old", "failed", "issue"),
    [
        ({"released": 30}, 12, "12 of its last 20 claims failed"),
        # As its entities wait longer each time, few fail in an hour.
        ({"released": 15, "hours": 2}, 4, "4 of its last 4 claims failed"),
    ],
)
def test_old_claims_do_not_hide_that_the_newest_failed(alice, health, old, failed, issue):
    alice.register()
    beat(alice, **HEALTHY)
    ended(**old)
    ended(failed=failed)
    assert health()["health"]["issues"] == [issue]
    row: Any = with_now(with_health(Runner.objects.select_related("liveness"))).get()
    assert row.health_status == "degraded"


def test_it_lists_the_oldest_thousand_claims_and_counts_all(alice, health):
    alice.register()
    work(alice, "e1")
    alice.claim()
    one = ConsumerClaim.objects.get()
    entities = Entity.objects.bulk_create(
        Entity(
            type="agent",
            url=f"/agent/n{n}",
            subscription_key=f"{n}",
            created_by="/principal/user%3Aalice",
        )
        for n in range(1_001)
    )
    more = [copy(one) for _ in entities]
    for claim, entity in zip(more, entities, strict=True):
        claim.pk, claim.entity, claim.entity_url = None, entity, entity.url
        claim.consumer_id = f"w_{entity.pk}"
    ConsumerClaim.objects.bulk_create(more)
    ConsumerClaim.objects.order_by("-pk").filter(pk__gt=one.pk + 999).update(lease_expires_at=PAST)
    report = health()
    assert report["claims"]["active_count"] == 1_002
    listed = [each["entity_url"] for each in report["claims"]["active"]]
    assert listed == ["/agent/e1", *(f"/agent/n{n}" for n in range(999))]
    assert "2 active claims have a lapsed lease" in report["health"]["issues"]
