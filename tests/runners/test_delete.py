"""DELETE /_electric/runners/:id."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from claims.models import ConsumerClaim
from dispatch.models import DispatchState, Wake
from runners.models import Runner, RunnerLiveness, WakeStream

PATH = "/_electric/runners/r1"


@pytest.fixture
def working(alice):
    """Alice's runner r1 holding /agent/e1, with the wake of /agent/e2 outstanding."""
    alice.register()
    for url in ("/agent/e1", "/agent/e2"):
        alice.make_entity(url)
        alice.send(url)
    claim = alice.claim()
    assert claim.body["entity"]["url"] == "/agent/e1"
    return claim


def test_it_is_gone(alice):
    alice.register()
    answer = alice("DELETE", PATH)

    assert (answer.status, answer.content) == (204, b"")
    for path in (PATH, f"{PATH}/health", "/runners/r1/wake?offset=-1"):
        assert (alice.get(path).status, alice.get(path).error) == (404, "NOT_FOUND")
    assert alice.get("/_electric/runners").body == []
    for rows in (Runner, RunnerLiveness, WakeStream):
        assert not rows.objects.exists()


def test_it_refuses_anothers_runner(alice, bob):
    bob.register()
    answer = alice("DELETE", PATH)
    assert (answer.status, answer.error) == (403, "UNAUTHORIZED")
    assert bob.get(PATH).status == 200


def test_it_does_not_find_an_unknown_runner(alice):
    answer = alice("DELETE", PATH)
    assert (answer.status, answer.error) == (404, "NOT_FOUND")


def test_its_claims_expire_and_their_entities_are_freed(alice, working):
    alice("DELETE", PATH)

    claim = ConsumerClaim.objects.get()
    assert (claim.status, claim.runner, claim.runner_name) == ("expired", None, "r1")
    assert claim.ended_at is not None
    assert alice.status("/agent/e1") == "idle"


@pytest.mark.parametrize("call", ["heartbeat", "done", "fail", "mint"])
def test_a_callback_on_its_claims_is_fenced(alice, working, call):
    alice("DELETE", PATH)
    body = {"mint": {"wakeId": working.body["wakeId"]}, "fail": {"failed": True}}
    answer = working.call(body.get(call, {"done": True} if call == "done" else {}))
    assert (answer.status, answer.error) == (409, "FENCED")


def test_the_write_token_of_its_claims_is_dead(alice, working):
    token = working.mint()
    alice("DELETE", PATH)
    answer = working.append({"a": 1}, token=token)
    assert (answer.status, answer.error) == (401, "UNAUTHORIZED")


def test_its_entities_keep_their_work_and_have_no_runner(alice, working):
    alice("DELETE", PATH)

    assert not Wake.objects.outstanding().exists()
    for url in ("/agent/e1", "/agent/e2"):
        assert "dispatch_policy" not in alice.get(f"/_electric/entities{url}").body
    assert DispatchState.objects.pending().filter(runner=None).count() == 2


def test_work_goes_on_at_the_runner_that_they_are_given(alice, working):
    alice("DELETE", PATH)
    alice.register("r2")
    alice.send("/agent/e1", "more")
    assert alice.wakes("r2") == []

    policy = {"targets": [{"type": "runner", "runnerId": "r2"}]}
    for url in ("/agent/e1", "/agent/e2"):
        changed = alice("PATCH", f"/_electric/entities{url}", {"dispatch_policy": policy})
        assert changed.status == 200
    assert [(each["stream"], each["generation"]) for each in alice.wakes("r2")] == [
        ("agent/e1/main", 2),
        ("agent/e2/main", 2),
    ]


def test_who_registers_the_id_later_inherits_nothing(alice, bob, working):
    alice("DELETE", PATH)

    runner = bob.register("r1")

    assert not set(runner) & {"last_seen_at", "wake_stream_offset", "diagnostics"}
    assert bob.wakes() == []
    assert bob.try_claim().status == 204
    health = bob.get(f"{PATH}/health").body
    assert health["claims"] == {"active_count": 0, "active": []}
    assert set(health["dispatch"].values()) == {0}
    alice.send("/agent/e1", "more")
    assert bob.wakes() == []
    assert bob.get("/_electric/entities/agent/e1").status == 403
    assert working.heartbeat().status == 409


def test_a_claim_of_an_entity_that_moved_on_expires_and_its_work_goes_on_there(alice, working):
    alice.register("r2")
    policy = {"targets": [{"type": "runner", "runnerId": "r2"}]}
    alice("PATCH", "/_electric/entities/agent/e1", {"dispatch_policy": policy})
    assert alice.wakes("r2") == []

    alice("DELETE", PATH)

    assert [each["stream"] for each in alice.wakes("r2")] == ["agent/e1/main"]
    assert alice.claim("r2").epoch == 2
    assert working.done().status == 409


def test_what_other_runners_hold_is_untouched(alice, working):
    alice.register("r2")
    alice.make_entity("/agent/e3", "r2")
    alice.send("/agent/e3")
    other = alice.claim("r2")
    alice("DELETE", PATH)
    assert other.done().body["entity_cleared"] is True


def test_a_type_that_names_it_makes_nothing_until_it_is_there_again(alice):
    alice.register()
    policy = {"targets": [{"type": "runner", "runnerId": "r1"}]}
    made = alice.post(
        "/_electric/entity-types",
        {"name": "agent", "description": "", "default_dispatch_policy": policy},
    )
    assert made.body["default_dispatch_policy"] == policy

    alice("DELETE", PATH)

    assert alice("PUT", "/_electric/entities/agent/e1", {}).status == 404
    alice.register()
    assert alice.make_entity("/agent/e1", None)["dispatch_policy"] == policy


def test_many_entities_lose_it_in_as_few_statements_as_two(alice):
    asked = {}
    for number in (1, 2, 12):  # the first makes the audit log's author
        alice.register()
        for name in range(number):
            alice.make_entity(f"/agent/of-{number}-{name}", initialMessage="hi")
        with CaptureQueriesContext(connection) as captured:
            assert alice("DELETE", PATH).status == 204
        asked[number] = len(captured)
    assert asked[2] == asked[12]
    assert not Wake.objects.outstanding().exists()
    states = DispatchState.objects.all()
    assert states.filter(runner=None, outstanding_wake=None).count() == states.count() == 15
    alice.register("r2")
    policy = {"targets": [{"type": "runner", "runnerId": "r2"}]}
    for state in states.select_related("entity"):
        path = f"/_electric/entities{state.entity.url}"
        assert alice("PATCH", path, {"dispatch_policy": policy}).status == 200
    assert len(alice.wakes("r2")) == 15
