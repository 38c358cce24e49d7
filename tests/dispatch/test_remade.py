"""An entity that is deleted, and made by another, while a call about it is under way."""

import pytest

from dispatch import entities
from tests.api.endpoints import bearer
from tests.support import interrupted

X = "/agent/x"
PATH = f"/_electric/entities{X}"
FOUND = '"dispatch_entity"'


@pytest.fixture
def remake(alice, bob):
    """Have Alice's entity deleted, and another made by Bob at its URL."""
    alice.make_entity(X, None)
    alice.make_entity("/agent/y", None)
    alice.send(X, key="m1")

    def act():
        assert alice("DELETE", PATH).status == 204
        bob.make_entity(X, None, tags={"whose": "Bob's"})

    return act


FUTURE = {"scheduleType": "future_send", "payload": 1, "fireAt": "2100-01-01"}
CALLS = {
    "send": ("POST", f"{PATH}/send", {"payload": 1}),
    "edit": ("PATCH", f"{PATH}/inbox/m1", {"payload": 2}),
    "signal": ("POST", f"{PATH}/signal", {"signal": "SIGSTOP"}),
    "kill": ("POST", f"{PATH}/signal", {"signal": "SIGKILL"}),
    "tag": ("POST", f"{PATH}/tags/a", {"value": "b"}),
    "change": ("PATCH", PATH, {"tags": {"a": "b"}}),
    "delete": ("DELETE", PATH, None),
    "schedule": ("PUT", f"{PATH}/schedules/s", FUTURE),
    "watch": (
        "POST",
        "/_electric/wake",
        {"subscriberUrl": X, "sourceUrl": "/agent/y", "condition": {"on": "change"}},
    ),
    "child": ("PUT", "/_electric/entities/agent/child", {"parent": X}),
    "read": ("GET", f"{X}/main", None),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_does_nothing_to_anothers(alice, bob, remake, call):
    method, path, body = CALLS[call]
    with interrupted(remake, by=FOUND):
        answer = alice(method, path, body)
    assert answer.status == 404, answer
    assert [each["type"] for each in bob.events(X)] == ["entity_created"]
    there = bob.get(PATH).body
    assert (there["status"], there["tags"]) == ("idle", {"whose": "Bob's"})
    assert bob.get("/_electric/entities/agent/child").status == 404


@pytest.mark.parametrize("call", ["tag", "change"])
def test_what_changed_is_not_answered_with_anothers(alice, remake, call):
    method, path, body = CALLS[call]
    with interrupted(remake, by=FOUND, since='UPDATE "dispatch_entity"'):
        answer = alice(method, path, body)
    assert answer.error == "NOT_FOUND"


def test_one_that_exists_as_it_is_made_is_said_to_though_it_is_deleted_then(alice):
    alice.make_entity(X, None)
    deletes = interrupted(
        lambda: alice("DELETE", PATH), by=FOUND, since='INSERT INTO "dispatch_entity"'
    )
    with deletes:
        answer = alice("PUT", PATH, {})
    assert answer.error == "DUPLICATE_URL"
    assert alice.get(PATH).status == 404


def test_what_a_runners_owner_may_do_to_the_former_is_not_done_to_the_next(settings, db):
    settings.DEVELOPMENT = False
    alice, bob = bearer("user:alice"), bearer("user:bob")
    alice.register()
    bob.make_entity(X, None, initialMessage="hi")
    entities.move(entities.find("agent", "x"), "r1")
    alice.claim()

    def remake():
        assert bob("DELETE", PATH).status == 204
        bob.make_entity(X, None)

    def tag():
        return alice("POST", f"{PATH}/tags/a", {"value": "b"}, Electric_Principal="user:bob")

    assert tag().status == 200
    with interrupted(remake, by="dispatch_entity"):
        assert tag().status in (403, 404)
    assert bob.get(PATH).body["tags"] == {}
