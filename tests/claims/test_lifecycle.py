"""The state table of `claims.lifecycle`, walked: every state, every event, either epoch."""

import inspect
import re
from dataclasses import replace
from datetime import timedelta

import pytest
from django.db import transaction

from claims import endings, lifecycle
from claims.models import ConsumerClaim
from core.errors import Fenced
from dispatch import wakes
from dispatch.models import DispatchState, StreamEvent, Wake
from tests.support import lapse

Status = ConsumerClaim.Status


def expire(claim):
    """Let the lease be over, and expire the claim."""
    lapse(claim)
    expiry = lifecycle.expire(row(claim))
    assert expiry is not None
    return expiry


def fence(claim):
    """Put the gate to the test by itself, with what a kill asks of it."""
    with transaction.atomic():
        state = wakes.lock_of(claim.entity_id)
        assert state is not None
        return lifecycle.end(claim, state, Status.FENCED)


# How a claim gets into each state; all but a fence leave the entity to a newer claim.
PREPARED = {
    "active": lambda claim: None,
    "released": lambda claim: claim.done(),
    "failed": lambda claim: claim.fail(),
    "expired": expire,
    "fenced": lambda claim: claim.api.signal("/agent/e1", "SIGKILL"),
}
# Each with the claim and its credentials.
EVENTS = {
    "mint": lambda claim, proof: lifecycle.mint(proof),
    "renew": lambda claim, proof: lifecycle.renew(proof),
    "release": lambda claim, proof: lifecycle.release(proof),
    "fail": lambda claim, proof: lifecycle.fail(proof),
    "give_up": lambda claim, proof: lifecycle.give_up(proof),
    "end": lambda claim, proof: (
        lifecycle.expire(row(claim, epoch=proof.epoch)),
        endings.take_back(row(claim, epoch=proof.epoch)),
        fence(row(claim, epoch=proof.epoch)),
    ),
}
NOTHING_ENDED = (None, None, False)


def table():
    """The docstring's table: {(state, event): what comes of it}."""
    rows = [
        re.split(r"\s{2,}", line)
        for line in (lifecycle.__doc__ or "").splitlines()
        if re.match(r"(state|[a-z]+)\s{2,}\S", line)
    ]
    (_, *events), *states = rows
    return {
        (state, event): outcome
        for state, *outcomes in states
        for event, outcome in zip(events, outcomes, strict=True)
    }


TABLE = table()


def row(claim, **changed):
    """The claim's row, as somebody saw it who may have seen it wrong."""
    found = ConsumerClaim.objects.get(consumer_id=claim.body["consumerId"])
    for name, value in changed.items():
        setattr(found, name, value)
    return found


def proof_of(claim):
    return lifecycle.Credentials(claim.body["consumerId"], claim.epoch, claim.body["claimToken"])


def everything():
    """Every row that a transition may write."""
    models = (ConsumerClaim, DispatchState, Wake, StreamEvent)
    return [list(model.objects.order_by("pk").values()) for model in models]


def changes(before, after):
    """The columns of claims that differ."""
    return {
        name
        for old, new in zip(before[0], after[0], strict=True)
        for name in old
        if old[name] != new[name]
    }


@pytest.fixture
def prepared(claim, state):
    """The claim in this state; where the entity lives on, a newer claim holds it."""
    PREPARED[state](claim)
    if state in ("released", "failed", "expired"):
        claim.api.send()
        newer = claim.api.claim()
        newer.mint()
    return claim


def test_it_decides_for_every_state():
    assert {state for state, _ in TABLE} == set(Status.values) == set(PREPARED)


def test_it_decides_for_every_event():
    verbs = {
        name
        for name, verb in inspect.getmembers(lifecycle, inspect.isfunction)
        if verb.__module__ == lifecycle.__name__ and not name.startswith("_")
    }
    assert {event for _, event in TABLE} == set(EVENTS)
    # acquire makes a claim, take_over those that ended elsewhere, authenticate only looks at one,
    # pardon leaves it as it ended, redate active; the others wake, not end.
    making = {"acquire", "take_over", "authenticate", "pardon", "redate"}
    others = making | {"reemit_refused", "wake_next"}
    assert verbs - others - {"expire"} == set(EVENTS)


@pytest.mark.parametrize(("state", "event"), TABLE)
def test_it_goes_by_the_table(prepared, state, event):
    before = everything()

    def happens():
        return EVENTS[event](prepared, proof_of(prepared))

    match TABLE[state, event]:
        case "Fenced":
            with pytest.raises(Fenced):
                happens()
            assert everything() == before
        case "—":
            assert happens() == NOTHING_ENDED
            assert everything() == before
        case "released ¹":
            again = happens()
            assert (again.entity_cleared, again.next_wake) == (False, None)
            assert everything() == before
        case outcome:
            happens()
            assert row(prepared).status in outcome.split(" or ")
            assert everything() != before


@pytest.mark.parametrize(("state", "event"), TABLE)
@pytest.mark.parametrize("other", [-1, 1])
def test_it_changes_nothing_with_another_epoch(prepared, state, event, other):
    lapsed = event == "end" and state == "active"
    if lapsed:
        lapse(prepared)
    before = everything()
    proof = replace(proof_of(prepared), epoch=prepared.epoch + other)
    if event == "end":
        assert EVENTS[event](prepared, proof) == NOTHING_ENDED
    else:
        with pytest.raises(Fenced):
            EVENTS[event](prepared, proof)
    assert everything() == before


@pytest.mark.parametrize(
    ("event", "columns"),
    [
        ("mint", {"write_token_hash"}),
        ("renew", {"last_heartbeat_at", "lease_expires_at"}),
        ("release", {"status", "ended_at", "acked_streams"}),
        ("fail", {"status", "ended_at"}),
        ("end", {"status", "ended_at", "error"}),
    ],
)
def test_it_writes_only_what_the_event_is_about(claim, event, columns):
    before = everything()
    EVENTS[event](claim, proof_of(claim))
    assert changes(before, everything()) == columns


def test_it_does_not_expire_a_claim_whose_lease_runs(claim):
    before = everything()
    assert lifecycle.expire(row(claim)) is None
    assert everything() == before


def test_it_expires_a_lapsed_claim(claim):
    next_wake = expire(claim).next_wake
    assert row(claim).status == "expired"
    assert next_wake is not None
    assert next_wake.generation == claim.epoch + 1


@pytest.mark.parametrize("event", ["mint", "renew", "release", "fail"])
def test_it_is_its_holders_until_somebody_expires_it(claim, event):
    lapse(claim)
    EVENTS[event](claim, proof_of(claim))
    outcomes = {"release": "released", "fail": "failed"}
    assert row(claim).status == outcomes.get(event, "active")


@pytest.mark.parametrize("state", [state for state in PREPARED if state != "active"])
def test_it_ends_although_the_clock_stepped_back(state, claim):
    later = ConsumerClaim.objects.get().claimed_at + timedelta(hours=1)
    ConsumerClaim.objects.update(claimed_at=later)
    PREPARED[state](claim)
    ended = row(claim)
    assert (ended.status, ended.ended_at) == (state, later)
