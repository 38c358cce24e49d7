"""A claim whose answer was lost is answered again to the runner that asks again; so is a mint."""

import pytest
from django.db.models import F
from django.db.models.functions import Now

from claims.models import ConsumerClaim
from core.identifiers import hash_secret
from tests.support import Claim, lapse


@pytest.fixture
def runner(alice):
    """Alice's runner r1, which may hold one claim, with two entities that wait for it."""
    alice.register(max_concurrent_claims=1)
    alice.make_entity(initialMessage="hi")
    alice.make_entity("/agent/e2", initialMessage="hi")
    return alice


def ask(api, event, nonce="n1", runner_id="r1"):
    headers = {"Pullwake_Claim_Nonce": nonce} if nonce else {}
    return api.post(f"/_electric/runners/{runner_id}/claim", event, **headers)


@pytest.fixture(params=["wake", "oldest"])
def event(request, runner):
    return runner.wakes()[0] if request.param == "wake" else {}


def test_the_same_request_gets_the_same_claim(runner, event):
    lost = ask(runner, event)
    again = ask(runner, event)
    assert again.status == 200
    assert again.body == lost.body
    assert again.headers["Pullwake-Cursor"] == lost.headers["Pullwake-Cursor"]
    assert ConsumerClaim.objects.count() == 1
    assert Claim(runner, again.body).done().body["entity_cleared"] is True


def test_a_request_that_arrives_late_takes_the_claim_from_nobody(runner, event):
    """A server was frozen with it; the runner asked another meanwhile, and is at work."""
    answered = Claim(runner, ask(runner, event).body)
    ask(runner, event)
    assert answered.done().body["entity_cleared"] is True


def test_no_two_claims_have_one_token(runner, settings):
    claim = Claim(runner, ask(runner, {}).body)
    claim.done()
    other = ask(runner, {}).body["claimToken"]
    assert claim.body["claimToken"] != other
    settings.SECRET_KEY = "another"
    moved = ask(runner, {}).body
    assert moved["claimToken"] != other
    assert Claim(runner, moved).done().body["entity_cleared"] is True


def test_its_lease_is_a_full_one_though_it_had_lapsed(runner, event):
    lapse(Claim(runner, ask(runner, event).body))
    again = ask(runner, event)
    assert again.status == 200
    assert not ConsumerClaim.objects.lapsed().exists()
    left = ConsumerClaim.objects.filter(lease_expires_at__gt=Now() + F("lease") / 2)
    assert left.count() == 1


def test_it_delivers_what_it_delivered_before(runner, event):
    lost = ask(runner, event).body
    runner.send()
    again = ask(runner, event)
    assert again.body["streams"] == lost["streams"]
    assert Claim(runner, again.body).done().body["next_wake"] is True


@pytest.mark.parametrize("use", ["mint", "heartbeat"])
def test_a_claim_that_is_in_use_is_nobody_elses(runner, use):
    event = runner.wakes()[0]
    claim = Claim(runner, ask(runner, event).body)
    getattr(claim, use)()
    assert ask(runner, event).error == "ALREADY_CLAIMED"
    assert claim.done().status == 200


@pytest.mark.parametrize("nonce", ["", "n2"])
def test_another_request_does_not_get_it(runner, nonce):
    event = runner.wakes()[0]
    ask(runner, event)
    assert ask(runner, event, nonce).error == "ALREADY_CLAIMED"


def test_another_runner_does_not_get_it(runner):
    ask(runner, runner.wakes()[0])
    runner.register("r2")
    policy = {"targets": [{"type": "runner", "runnerId": "r2"}]}
    runner("PATCH", "/_electric/entities/agent/e1", {"dispatch_policy": policy})
    assert ask(runner, {}, runner_id="r2").status == 204


def test_a_nonce_that_is_too_long_is_refused(runner, event):
    assert ask(runner, event, "n" * 129).error == "INVALID_REQUEST"


def test_only_its_hash_is_stored(runner, event):
    ask(runner, event, "a-nonce")
    assert len(ConsumerClaim.objects.get().nonce_hash) == 64


# --- The write token --------------------------------------------------------------------------


@pytest.fixture
def mint(claim):
    """Mints a write token for a claim by this nonce."""
    body = {"epoch": claim.epoch, "wakeId": claim.body["wakeId"]}
    path = f"/_electric/wake-callbacks/{claim.body['consumerId']}"
    return lambda nonce: claim.api.post(
        path,
        body,
        Electric_Claim_Token=claim.body["claimToken"],
        Pullwake_Claim_Nonce=nonce,
    )


def test_a_mint_that_arrives_late_voids_no_token(claim, mint):
    answered = mint("n1").body["writeToken"]
    assert mint("n1").body["writeToken"] == answered
    assert claim.append({"n": 1}, token=answered).status == 204
    assert ConsumerClaim.objects.filter(write_token_hash=hash_secret(answered)).count() == 1


def test_another_nonce_mints_another_token(claim, mint):
    former, newer = mint("n1").body["writeToken"], mint("n2").body["writeToken"]
    assert claim.append({"n": 1}, token=former).status == 401
    assert claim.append({"n": 1}, token=newer).status == 204


def test_a_write_token_is_no_claim_token_and_none_of_another_claim(claim, mint):
    former = mint("n1").body["writeToken"]
    claim.fail()
    assert mint("n1").error == "FENCED"
    claim.api.send()
    newer = ask(claim.api, {}, "n1")
    assert former not in (newer.body["claimToken"], Claim(claim.api, newer.body).mint())
    assert claim.append({"n": 1}, token=former).status == 401


def test_a_nonce_to_mint_by_is_not_too_long_either(mint):
    assert mint("n" * 129).error == "INVALID_REQUEST"
