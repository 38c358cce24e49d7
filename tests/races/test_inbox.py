"""Edits of one message that meet."""

import pytest

from tests.races.conftest import Line, assert_every_wake_is_right, both_orders
from tests.support import Api

pytestmark = pytest.mark.postgres

INBOX = "/_electric/entities/agent/e1/inbox/m1"


@pytest.fixture
def queued(alice: Api) -> Api:
    """A message in the queue of Alice's /agent/e1, dispatched to r1."""
    alice.register()
    alice.make_entity()
    alice.send(key="m1", mode="queued")
    return alice


@both_orders("edit", "delete")
def test_what_was_deleted_is_not_edited(order: tuple[str, ...], queued: Api, line: Line):
    answers = line.meet(
        "state",
        order,
        edit=lambda: queued("PATCH", INBOX, {"mode": "immediate"}).status,
        delete=lambda: queued("DELETE", INBOX).status,
    )
    assert answers == {"edit": 200 if order[0] == "edit" else 404, "delete": 200}
    operations = [each["headers"]["operation"] for each in queued.events()[2:]]
    assert operations == (["update", "delete"] if order[0] == "edit" else ["delete"])
    assert queued.wakes() == []
    assert_every_wake_is_right()


def test_two_edits_are_of_what_the_first_left(queued: Api, line: Line):
    line.meet(
        "state",
        ("first", "second"),
        first=lambda: queued("PATCH", INBOX, {"payload": "new"}).status,
        second=lambda: queued("PATCH", INBOX, {"mode": "immediate"}).status,
    )
    assert queued.events()[-1]["value"]["payload"] == "new"
