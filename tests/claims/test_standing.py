"""Why an entity stands: one sentence, and what would help."""

from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from claims import standing
from claims.standing import Reason, Remedy
from dispatch.models import DispatchState, Entity
from runners.models import Runner, RunnerLiveness
from tests.factories import (
    ConsumerClaimFactory,
    DeadLetterFactory,
    EntityFactory,
    RunnerFactory,
    WakeFactory,
    ago,
    ahead,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def entity() -> Any:
    """With work, woken three minutes ago, on the runner ci-17, which is online."""
    runner = RunnerFactory.create(id="ci-17", online=True)
    wake = WakeFactory.create(entity__runner=runner, created_at=ago(minutes=3, seconds=5))
    return wake.entity


def states(entity: Any) -> Any:
    return DispatchState.objects.filter(pk=entity.pk)


def find_of(claim: Any) -> standing.Standing | None:
    return standing.find(claim.entity_id)


def disable(entity: Any) -> None:
    Runner.objects.update(admin_status="disabled")


def never_seen(entity: Any) -> None:
    RunnerLiveness.objects.update(last_seen_at=None, lease_expires_at=None)


def expired(entity: Any) -> None:
    RunnerLiveness.objects.update(lease_expires_at=Now() - timedelta(minutes=40, seconds=1))


def full(entity: Any) -> None:
    Runner.objects.update(max_concurrent_claims=1)
    other = EntityFactory.create(pending=True, runner=Runner.objects.get(pk="ci-17"))
    ConsumerClaimFactory.create(entity=other)


def gone(entity: Any) -> None:
    states(entity).update(outstanding_wake=None, runner=None)


def paused(entity: Any) -> None:
    states(entity).update(outstanding_wake=None, paused=True)


def delayed(entity: Any) -> None:
    states(entity).update(outstanding_wake=None, failures=3, retry_at=ahead(minutes=10, seconds=30))


def fails_others(entity: Any) -> None:
    for _ in range(3):
        ConsumerClaimFactory.create(entity__runner=Runner.objects.get(pk="ci-17"), failed=True)


def not_woken(entity: Any) -> None:
    states(entity).update(outstanding_wake=None)


MOVE, WAKE = Remedy.MOVE, Remedy.WAKE
WAITS = "it waits 10 min more, after 3 failures in a row"


@pytest.mark.parametrize(
    ("happened", "reason", "says", "remedies"),
    [
        ((disable,), Reason.RUNNER_DISABLED, "ci-17 is disabled", [MOVE, Remedy.ENABLE]),
        ((never_seen,), Reason.RUNNER_NEVER_SEEN, "ci-17 has never been seen", [MOVE]),
        ((expired,), Reason.RUNNER_EXPIRED, "ci-17 has been expired for 40 min", [MOVE]),
        ((full,), Reason.RUNNER_FULL, "ci-17 is full, with 1 of at most 1 claims", [MOVE]),
        ((gone,), Reason.NO_RUNNER, "it has no runner", [MOVE]),
        ((paused,), Reason.PAUSED, "it is paused", [Remedy.RESUME]),
        ((delayed,), Reason.DELAYED, WAITS, [WAKE]),
        (
            (delayed, fails_others),
            Reason.DELAYED,
            f"{WAITS}; 3 of the last 3 claims of ci-17 failed",
            [MOVE, WAKE],
        ),
        ((not_woken,), Reason.NOT_WOKEN, "it is about to be woken", [WAKE]),
        (
            (),
            Reason.UNCLAIMED,
            "ci-17 was woken 3 min ago and has not claimed it since",
            [WAKE, MOVE],
        ),
        # What no wake helps against is told before what passes by itself.
        ((delayed, disable), Reason.RUNNER_DISABLED, "ci-17 is disabled", [MOVE, Remedy.ENABLE]),
        ((delayed, full), Reason.DELAYED, WAITS, [WAKE]),
        ((paused, expired), Reason.PAUSED, "it is paused", [Remedy.RESUME]),
    ],
)
def test_it_says_why_it_stands_and_what_would_help(entity, happened, reason, says, remedies):
    for change in happened:
        change(entity)
    found = standing.find(entity.pk)
    assert found is not None
    assert (found.reason, found.says, list(found.remedies)) == (reason, says, remedies)
    assert found.since is not None
    assert found.sentence(found.since + timedelta(minutes=40)) == (
        f"Stands for 40 min: {found.says}."
    )


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_what_has_ended_does_not_stand(entity, how):
    states(entity).update(outstanding_wake=None, ended=how)
    assert standing.find(entity.pk) is None


def test_what_has_nothing_to_do_does_not_stand():
    assert standing.find(EntityFactory.create().pk) is None
    assert standing.find(0) is None


def test_it_says_that_work_was_given_up():
    letter = DeadLetterFactory.create()
    found = standing.find(letter.entity.pk)
    assert found is not None
    assert (found.reason, found.says) == (Reason.GIVEN_UP, "its handler gave up a message")
    assert list(found.remedies) == [Remedy.REDRIVE]
    assert found.sentence(letter.given_up_at) == "Stands: its handler gave up a message."


def test_what_is_worked_on_does_not_stand():
    assert find_of(ConsumerClaimFactory.create()) is None


@pytest.mark.parametrize(
    ("facts", "says", "first"),
    [
        ({"orphaned": True}, "has been expired for", Remedy.TAKE_BACK_AND_MOVE),
        ({"lapsed": True}, "its claim's lease lapsed 30 min ago", Remedy.TAKE_BACK),
        ({"runner": None}, "ci-17, which claimed it, is gone", Remedy.TAKE_BACK_AND_MOVE),
    ],
)
def test_it_says_that_its_claim_is_orphaned(facts, says, first):
    claim = ConsumerClaimFactory.create(entity__runner__id="ci-17", runner_name="ci-17", **facts)
    found = find_of(claim)
    assert found is not None
    assert (found.reason, found.claim) == (Reason.ORPHANED, claim)
    assert says in found.says
    assert found.remedies[0] == first
    assert found.since is not None


def test_a_disabled_runner_that_lives_works_its_claim_off():
    """As one that is drained does."""
    claim = ConsumerClaimFactory.create()
    Runner.objects.update(admin_status="disabled")
    assert find_of(claim) is None


def test_an_heir_is_online_of_the_same_owner_and_kind_and_has_room():
    dead = RunnerFactory.create(id="dead", kind="ci", silent=True)
    RunnerFactory.create(id="another-kind", online=True)
    RunnerFactory.create(id="silent", kind="ci", silent=True)
    RunnerFactory.create(id="bobs", kind="ci", online=True, owner_principal="/principal/user%3Abob")
    RunnerFactory.create(id="off", kind="ci", online=True, disabled=True)
    failing = RunnerFactory.create(id="failing", kind="ci", online=True)
    for _ in range(3):
        ConsumerClaimFactory.create(entity__runner=failing, failed=True)
    full = RunnerFactory.create(id="full", kind="ci", online=True, max_concurrent_claims=1)
    busy = RunnerFactory.create(id="busy", kind="ci", online=True)
    for holder in (full, busy):
        ConsumerClaimFactory.create(entity__runner=holder)
    heir = standing.heir_of(dead.owner_principal, "ci", ["dead"])
    assert heir is not None
    assert heir.pk == "busy"
    RunnerFactory.create(id="idle", kind="ci", online=True)
    heir = standing.heir_of(dead.owner_principal, "ci", ["dead"])
    assert heir is not None
    assert heir.pk == "idle"
    assert standing.heir_of("/principal/user%3Acarol", None) is None


def test_the_api_says_it(alice):
    runner = RunnerFactory.create(id="ci-17", disabled=True)
    EntityFactory.create(url="/agent/e1", pending=True, runner=runner)
    body = alice.get("/_electric/entities/agent/e1").body
    assert abs(body["standing"].pop("since") - body["created_at"]) < 10_000
    assert body["standing"] == {"reason": "runner_disabled", "message": "ci-17 is disabled"}


def test_the_api_leaves_it_out_of_what_does_not_stand(alice):
    EntityFactory.create(url="/agent/e1")
    assert "standing" not in alice.get("/_electric/entities/agent/e1").body
    assert Entity.objects.count() == 1
