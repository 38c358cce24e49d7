"""A runner that is deleted, and registered by another, while a call of its owner's is under way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection

R1 = "/_electric/runners/r1"


@contextmanager
def once_found(act: Callable[[], object]) -> Iterator[None]:
    """Acts once, just after a call of the block has found its runner."""
    waits = [act]

    def watch(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        answer = execute(sql, *args)
        if waits and '"runners_runner"' in sql:
            waits.pop()()
        return answer

    with connection.execute_wrapper(watch):
        yield
    assert not waits, "nobody looked for a runner"


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
    with once_found(remake):
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

    with once_found(act):
        assert alice.try_claim(event=event).status == 204
    assert bob.status("/agent/bobs") == "idle"


def test_a_child_is_not_given_to_anothers(alice, bob, remake):
    alice.make_entity("/agent/parent")
    with once_found(remake):
        answer = alice("PUT", "/_electric/entities/agent/child", {"parent": "/agent/parent"})
    assert answer.error == "UNAUTHORIZED"
    assert bob.get("/_electric/entities/agent/child").status == 404
    assert [each["stream"] for each in bob.wakes()] == ["agent/bobs/main"]
