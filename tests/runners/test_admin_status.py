"""POST /_electric/runners/:id/enable and /disable."""

import pytest

PATH = "/_electric/runners/r1"


@pytest.mark.parametrize(("verb", "status"), [("enable", "enabled"), ("disable", "disabled")])
@pytest.mark.parametrize("before", ["enabled", "disabled"])
def test_it_sets_the_status_whatever_it_was(alice, verb, status, before):
    registered = alice.register(admin_status=before)
    answer = alice.post(f"{PATH}/{verb}")

    assert (answer.status, answer.body["admin_status"]) == (200, status)
    assert answer.body == alice.get(PATH).body
    changing = ("admin_status", "updated_at")
    assert {k: v for k, v in answer.body.items() if k not in changing} == {
        k: v for k, v in registered.items() if k not in changing
    }


@pytest.mark.parametrize("verb", ["enable", "disable"])
def test_it_refuses_anothers_runner(alice, bob, verb):
    before = bob.register()
    answer = alice.post(f"{PATH}/{verb}")
    assert (answer.status, answer.error) == (403, "UNAUTHORIZED")
    assert bob.get(PATH).body == before


@pytest.mark.parametrize("verb", ["enable", "disable"])
def test_it_does_not_find_an_unknown_runner(alice, verb):
    answer = alice.post(f"{PATH}/{verb}")
    assert (answer.status, answer.error) == (404, "NOT_FOUND")


def test_a_disabled_runner_claims_nothing_and_keeps_what_it_holds(alice):
    alice.register()
    for url in ("/agent/e1", "/agent/e2"):
        alice.make_entity(url)
        alice.send(url)
    held = alice.claim()
    alice.post(f"{PATH}/disable")

    answer = alice.try_claim()
    assert (answer.status, answer.error) == (409, "NOT_RUNNING")
    assert held.heartbeat().status == 200
    assert held.done().body["entity_cleared"] is True


def test_enabling_emits_the_unclaimed_wakes_again(alice):
    alice.register()
    alice.make_entity()
    alice.send()
    alice.post(f"{PATH}/disable")
    read = alice.get("/runners/r1/wake?offset=-1").headers["Stream-Next-Offset"]

    alice.post(f"{PATH}/enable")

    assert [each["generation"] for each in alice.wakes(offset=read)] == [1]
    assert alice.claim().epoch == 1


def test_disabling_emits_nothing(alice):
    alice.register()
    alice.make_entity()
    alice.send()
    read = alice.get("/runners/r1/wake?offset=-1").headers["Stream-Next-Offset"]
    alice.post(f"{PATH}/disable")
    assert alice.wakes(offset=read) == []
