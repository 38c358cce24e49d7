"""POST /_electric/runners/:id/claim: what is checked, in this order, and what is answered."""

import hashlib
import re
from datetime import timedelta

import pytest

from claims.models import ConsumerClaim
from runners.models import Runner
from tests.support import Api, lapse


def subscription(url="/agent/e1", runner_id="r1"):
    """What a wake event says of the entity that it is for."""
    return {
        "subscription_id": f"runner:{runner_id}:{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    }


@pytest.fixture
def woken(alice):
    """Alice's /agent/e1 waits for her r1."""
    alice.register()
    alice.make_entity()
    alice.send()
    return alice


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"subscription_id": 1}', b'"x"'])
def test_it_refuses_a_bad_body_before_all_else(alice, body):
    answer = alice.post("/_electric/runners/unknown/claim", body)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")


def test_it_does_not_know_the_runner(alice):
    answer = alice.try_claim("unknown")
    assert (answer.status, answer.error) == (404, "NOT_FOUND")


def test_it_is_for_the_owner_even_of_a_disabled_runner(woken, bob):
    woken.post("/_electric/runners/r1/disable")
    answer = bob.try_claim("r1", {"subscription_id": "runner:r2:x"})
    assert (answer.status, answer.error) == (403, "UNAUTHORIZED")


def test_a_disabled_runner_claims_nothing_whatever_it_asks_for(woken):
    woken.post("/_electric/runners/r1/disable")
    answer = woken.try_claim("r1", {"subscription_id": "runner:r2:x"})
    assert (answer.status, answer.error) == (409, "NOT_RUNNING")
    woken.post("/_electric/runners/r1/enable")
    assert woken.claim().epoch == 1


@pytest.mark.parametrize(
    "other", ["runner:r2:0123456789abcdef", "runner:r2", "r1", "runner:r10:x", "x:runner:r1:y"]
)
def test_it_refuses_the_subscription_of_another_runner(woken, other):
    answer = woken.try_claim("r1", {"subscription_id": other})
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert answer.body["error"]["details"][0]["path"] == "/subscription_id"


def test_it_refuses_the_subscription_of_a_runner_whose_id_begins_with_its_own(woken):
    woken.register("r1:b")
    woken.make_entity("/agent/e2", "r1:b")
    answer = woken.try_claim("r1", subscription("/agent/e2", "r1:b"))
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    woken.send("/agent/e2")
    assert woken.claim("r1:b", subscription("/agent/e2", "r1:b")).epoch == 1


def test_it_has_nothing_for_a_hash_of_no_entity(woken):
    answer = woken.try_claim("r1", {"subscription_id": "runner:r1:0123456789abcdef"})
    assert (answer.status, answer.content) == (204, b"")


def test_it_has_nothing_for_an_entity_of_another_runner(woken):
    woken.register("r2")
    assert woken.try_claim("r2", subscription(runner_id="r2")).status == 204


@pytest.mark.parametrize("signal", ["SIGSTOP", "SIGTERM", "SIGKILL"])
def test_it_has_nothing_to_do_for_an_entity_that_is_not_awake(woken, signal):
    woken.signal("/agent/e1", signal)
    answer = woken.try_claim("r1", subscription())
    assert (answer.status, answer.body) == (200, {"done": True})
    assert woken.try_claim("r1", {}).status == 204


def test_it_has_nothing_to_do_for_an_entity_that_is_stopping(woken):
    woken.claim()
    woken.signal("/agent/e1", "SIGTERM")
    answer = woken.try_claim("r1", subscription())
    assert (answer.status, answer.body) == (200, {"done": True})
    assert woken.status() == "stopping"


def test_it_is_held_until_the_claim_ends_after_which_it_pauses(woken):
    held = woken.claim()
    woken.signal("/agent/e1", "SIGSTOP")
    answer = woken.try_claim("r1", subscription())
    assert (answer.status, answer.error) == (409, "ALREADY_CLAIMED")
    assert (held.heartbeat().status, woken.status()) == (200, "running")
    lapse(held)
    answer = woken.try_claim("r1", subscription())
    assert (answer.status, answer.body) == (200, {"done": True})
    assert (held.heartbeat().error, woken.status()) == ("FENCED", "paused")


def test_it_is_held_already(woken):
    held = woken.claim()
    woken.send()
    answer = woken.try_claim("r1", subscription())
    assert (answer.status, answer.error) == (409, "ALREADY_CLAIMED")
    assert held.heartbeat().status == 200


def test_it_is_held_already_also_when_the_runner_is_at_its_limit(woken):
    woken.register(max_concurrent_claims=1)
    woken.claim()
    assert woken.try_claim("r1", subscription()).error == "ALREADY_CLAIMED"


def test_it_has_no_pending_work(woken):
    woken.claim().done()
    answer = woken.try_claim("r1", subscription())
    assert (answer.status, answer.error) == (409, "NO_PENDING_WORK")
    assert woken.try_claim("r1", {}).status == 204


def test_it_has_no_pending_work_also_when_the_runner_is_at_its_limit(woken):
    woken.register(max_concurrent_claims=1)
    woken.claim()
    woken.make_entity("/agent/e2")
    assert woken.try_claim("r1", subscription("/agent/e2")).error == "NO_PENDING_WORK"


def test_it_answers_all_that_a_handler_needs(alice):
    alice.register(sandbox_profiles=[{"name": "p", "label": "P"}])
    alice.make_entity(
        "/agent/e1", args={"model": "m"}, tags={"team": "a"}, sandbox={"profile": "p"}
    )
    alice.send()
    answer = alice.try_claim("r1", alice.wakes()[0])
    body = answer.body
    consumer_id, token = body["consumerId"], body["claimToken"]
    assert re.fullmatch(r"w_[0-9a-f]{24}", consumer_id)
    assert len(token) > 40
    assert body == {
        "consumerId": consumer_id,
        "epoch": 1,
        "wakeId": consumer_id,
        "streamPath": "/agent/e1/main",
        "streams": [
            {
                "path": "/agent/e1/main",
                "offset": "0000000000000000_0000000000000001_1",
            }
        ],
        "callback": f"http://testserver/_electric/wake-callbacks/{consumer_id}",
        "claimToken": token,
        "triggerEvent": "message_received",
        "attempt": 1,
        "entity": {
            "type": "agent",
            "status": "idle",
            "url": "/agent/e1",
            "streams": {"main": "/agent/e1/main"},
            "tags": {"team": "a"},
            "spawnArgs": {"model": "m"},
            "sandbox": {"profile": "p"},
            "createdBy": "/principal/user%3Aalice",
        },
        "principal": {
            "url": "/principal/user%3Aalice",
            "key": "user:alice",
            "kind": "user",
            "id": "alice",
        },
    }


def test_it_says_null_for_an_entity_without_a_sandbox(claim):
    assert claim.body["entity"]["sandbox"] is None


def test_it_names_the_creator_and_not_the_runners_owner(alice, bob):
    alice.register()
    default = {"targets": [{"type": "runner", "runnerId": "r1"}]}
    grant = {"subject_kind": "principal", "subject_value": "user:bob", "permission": "spawn"}
    alice.post(
        "/_electric/entity-types",
        {
            "name": "agent",
            "description": "",
            "default_dispatch_policy": default,
            "permission_grants": [grant],
        },
    )
    bob.make_entity(runner_id=None, initialMessage="hi")
    assert alice.claim().body["principal"]["key"] == "user:bob"


def test_it_gives_a_callback_at_the_public_address(woken, settings):
    settings.PULLWAKE_PUBLIC_URL = "https://wake.example.com"
    body = woken.claim().body
    assert body["callback"] == (
        f"https://wake.example.com/_electric/wake-callbacks/{body['consumerId']}"
    )


def test_only_the_subscription_of_an_event_selects(woken):
    old = {**woken.wakes()[0], "stream": "other/x/main", "generation": 99, "ts": 0, "type": "?"}
    claim = woken.claim("r1", old)
    assert (claim.epoch, claim.body["entity"]["url"]) == (1, "/agent/e1")


@pytest.mark.parametrize(
    "event",
    [{}, {"subscription_id": "runner:r1"}, {"subscription_id": "runner:r1:"}, {"generation": 7}],
)
def test_it_takes_the_oldest_wake_without_an_entity_part(woken, event):
    for url in ("/agent/e2", "/agent/e3"):
        woken.make_entity(url)
        woken.send(url)
    urls = [woken.claim("r1", event).body["entity"]["url"] for _ in range(3)]
    assert urls == ["/agent/e1", "/agent/e2", "/agent/e3"]
    assert woken.try_claim("r1", event).status == 204


def test_the_oldest_is_the_one_that_waits_longest_also_when_emitted_again(woken):
    woken.make_entity("/agent/e2")
    woken.send("/agent/e2")
    woken.register()  # emits both again
    assert woken.claim().body["entity"]["url"] == "/agent/e1"


def test_its_lease_is_the_runners(woken):
    woken.register(claim_lease_ms=600_000)
    claim = woken.claim()
    row = ConsumerClaim.objects.get(consumer_id=claim.body["consumerId"])
    assert row.lease_expires_at == row.claimed_at + timedelta(minutes=10)
    assert row.last_heartbeat_at is None


def test_its_lease_is_the_settings_for_a_runner_that_names_none(settings, woken):
    settings.PULLWAKE_CLAIM_LEASE_MS = 45_000
    woken.register("r2")
    woken.make_entity("/agent/e2", "r2", initialMessage="hi")
    row = ConsumerClaim.objects.get(consumer_id=woken.claim("r2").body["consumerId"])
    assert row.lease == timedelta(seconds=45)


def test_it_keeps_no_token_in_the_clear(claim):
    stored = str(ConsumerClaim.objects.values())
    assert claim.body["claimToken"] not in stored
    assert claim.mint() not in str(ConsumerClaim.objects.values())


def test_epochs_go_up_by_one(woken):
    epochs = []
    for _ in range(3):
        claim = woken.claim()
        epochs.append(claim.epoch)
        claim.done()
        woken.send()
    assert epochs == [1, 2, 3]


# --- Over a claim that lapsed -----------------------------------------------------------------


def test_it_expires_the_lapsed_claim_that_it_meets(claim):
    lapse(claim)
    newer = claim.api.claim("r1", subscription())
    assert newer.epoch == claim.epoch + 1
    assert newer.body["consumerId"] != claim.body["consumerId"]
    assert claim.heartbeat().error == "FENCED"
    assert newer.done().body["entity_cleared"] is True
    statuses = ConsumerClaim.objects.order_by("epoch").values_list("status", flat=True)
    assert list(statuses) == ["expired", "released"]


def test_it_expires_the_lapsed_claim_also_when_no_work_is_left(claim):
    assert claim.heartbeat(acks=[{"path": "/agent/e1/main", "offset": claim.tail}]).status == 200
    lapse(claim)
    assert claim.api.try_claim("r1", subscription()).error == "NO_PENDING_WORK"
    assert claim.heartbeat().error == "FENCED"
    assert claim.api.status() == "idle"


def test_it_does_not_wait_out_the_delay_after_expiries(claim):
    for _ in range(4):
        lapse(claim)
        claim = claim.api.claim("r1", subscription())
    assert claim.epoch == 5


def test_it_takes_over_from_the_former_runner_once_that_ones_claim_has_lapsed(claim):
    alice = claim.api
    alice.register("r2")
    target = {"targets": [{"type": "runner", "runnerId": "r2"}]}
    alice("PATCH", "/_electric/entities/agent/e1", {"dispatch_policy": target})
    assert alice.try_claim("r2", subscription(runner_id="r2")).error == "ALREADY_CLAIMED"
    lapse(claim)
    newer = alice.claim("r2", subscription(runner_id="r2"))
    assert newer.epoch == claim.epoch + 1
    assert alice.wakes("r2") == alice.wakes("r1") == []


def test_a_runner_of_one_owner_is_nobody_elses(woken):
    stranger = Api("service:alice")
    assert stranger.try_claim("r1").status == 403
    assert Runner.objects.get().owner_principal == "/principal/user%3Aalice"


def test_no_body_at_all_means_an_empty_one(woken):
    assert woken.post("/_electric/runners/r1/claim", b"").body["epoch"] == 1
