"""Shared states that are made, written to and deleted by several at once."""

import pytest

from dispatch.models import SharedState, SharedStateLink
from tests.races.conftest import Line, both_orders
from tests.support import Api

pytestmark = pytest.mark.postgres

S1 = "/_electric/shared-state/s1"


@pytest.fixture
def two(alice: Api) -> Api:
    """Alice's entities /agent/e1 and /agent/e2."""
    for name in ("e1", "e2"):
        alice.make_entity(f"/agent/{name}", None)
    return alice


def put(api: Api, name: str):
    return lambda: api("PUT", S1, Electric_Owner_Entity=f"/agent/{name}").status


def delete(api: Api, name: str):
    return lambda: api("DELETE", f"/_electric/entities/agent/{name}").status


def test_two_that_make_it_have_one(two: Api, line: Line):
    line.hold("shared name")
    first, second = line.join(put(two, "e1")), line.join(put(two, "e2"))
    line.let_go("shared name")
    assert {first.result(timeout=30), second.result(timeout=30)} == {200, 201}
    assert SharedState.objects.count() == 1
    assert SharedStateLink.objects.count() == 2


@both_orders("put", "delete")
def test_it_is_had_by_the_last_or_made_anew(order: tuple[str, ...], two: Api, line: Line):
    two.share("s1", "/agent/e1")
    two.post(S1, {"n": 1})
    answers = line.meet("shared state", order, put=put(two, "e2"), delete=delete(two, "e1"))
    assert answers == {"put": 200 if order[0] == "put" else 201, "delete": 204}
    assert len(two.get(S1).body) == (order[0] == "put")
    assert [each.entity.url for each in SharedStateLink.objects.all()] == ["/agent/e2"]


@both_orders("append", "delete")
def test_nothing_is_appended_to_what_is_gone(order: tuple[str, ...], two: Api, line: Line):
    two.share("s1", "/agent/e1")
    answers = line.meet(
        "shared state",
        order,
        append=lambda: two.post(S1, {"n": 1}).status,
        delete=delete(two, "e1"),
    )
    assert answers == {"append": 204 if order[0] == "append" else 404, "delete": 204}
    assert not SharedState.objects.exists()


def test_each_append_has_a_place_of_its_own(two: Api, line: Line):
    two.share("s1", "/agent/e1")
    line.hold("shared state")
    calls = [line.join(lambda: two.post(S1, [{"n": 1}, {"n": 2}]).status) for _ in range(4)]
    line.let_go("shared state")
    assert [call.result(timeout=30) for call in calls] == [204] * 4
    answer = two.get(S1)
    assert [each["n"] for each in answer.body] == [1, 2] * 4
    assert answer.headers["Stream-Next-Offset"].endswith("8")


def test_a_retry_that_meets_the_first_is_appended_once(two: Api, line: Line):
    two.share("s1", "/agent/e1")
    producer = {"Producer_Id": "p", "Producer_Epoch": "0", "Producer_Seq": "0"}
    answers = line.meet(
        "shared state",
        ("first", "second"),
        first=lambda: two.post(S1, {"n": 1}, **producer).status,
        second=lambda: two.post(S1, {"n": 1}, **producer).status,
    )
    assert answers == {"first": 200, "second": 204}
    assert len(two.get(S1).body) == 1
