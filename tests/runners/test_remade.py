"""A runner that is deleted, and registered by another, while a call of its owner's is under way."""

import pytest

from tests.support import interrupted

R1, FOUND = "/_electric/runners/r1", '"runners_runner"'


@pytest.fixture
def remake(alice, bob):
    """Have Alice's r1 deleted, and registered by Bob with an entity that it has to wake."""
    alice.register()

    def act() -> None:
        assert alice("DELETE", R1).status == 204
        bob.register()
        bob.make_entity("/agent/bobs", initialMessage="a secret")

    return act


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/claim", 204),
        ("POST", "/disable", 404),
        ("DELETE", "", 404),
    ],
)
def test_a_call_of_its_former_owner_does_nothing_to_anothers(
    alice, bob, remake, method, path, expected
):
    with interrupted(remake, by=FOUND):
        answer = alice(method, f"{R1}{path}")
    assert answer.status == expected, answer
    assert bob.get(R1).body["admin_status"] == "enabled"
    assert [each["stream"] for each in bob.wakes()] == ["agent/bobs/main"]
    assert bob.status("/agent/bobs") == "idle"


def test_its_former_owner_claims_no_entity_of_anothers_by_its_wake(alice, bob, remake):
    alice.make_entity("/agent/bobs", initialMessage="hi")
    (event,) = alice.wakes()

    def act() -> None:
        assert alice("DELETE", "/_electric/entities/agent/bobs").status == 204
        remake()

    with interrupted(act, by=FOUND):
        assert alice.try_claim(event=event).status == 204
    assert bob.status("/agent/bobs") == "idle"


def test_a_child_is_not_given_to_anothers(alice, bob, remake):
    alice.make_entity("/agent/parent")
    with interrupted(remake, by=FOUND):
        answer = alice("PUT", "/_electric/entities/agent/child", {"parent": "/agent/parent"})
    assert answer.error == "UNAUTHORIZED"
    assert bob.get("/_electric/entities/agent/child").status == 404
    assert [each["stream"] for each in bob.wakes()] == ["agent/bobs/main"]


def test_a_heartbeat_says_nothing_of_anothers(alice, bob, remake):
    told = {"diagnostics": {"status": "streaming", "last_error": "a secret"}}
    with interrupted(remake, by=FOUND):
        answer = alice.post(f"{R1}/heartbeat", told)
    assert answer.status == 404, answer
    assert not bob.get(R1).body.keys() & {"last_seen_at", "diagnostics"}
    assert bob.post(f"{R1}/heartbeat", told).status == 200
