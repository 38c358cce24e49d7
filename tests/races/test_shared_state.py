"""Shared states that are made, written to and deleted by several at once."""

import pytest

from dispatch import due
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


def watch(api: Api, name: str):
    body = {"subscriberUrl": f"/agent/{name}", "sourceUrl": S1, "condition": {"on": "change"}}
    return lambda: api.post("/_electric/wake", body).status


def manifest(api: Api):
    """As `watch`, by a manifest event of the handler of /agent/e1."""
    api.register()
    policy = {"targets": [{"type": "runner", "runnerId": "r1"}]}
    assert api("PATCH", "/_electric/entities/agent/e1", {"dispatch_policy": policy}).status == 200
    api.send()
    claim = api.claim()
    token = claim.mint()
    value = {"kind": "source", "sourceType": "db", "sourceRef": "s1", "wake": {"on": "change"}}
    event = {"type": "manifest", "key": "k", "value": value, "headers": {"operation": "insert"}}
    return lambda: claim.append(event, token=token).status


@pytest.mark.parametrize("waits", [lambda api: watch(api, "e1"), manifest], ids=["call", "event"])
def test_who_waits_for_it_is_told_of_what_was_not_there_to_be_read(waits, two: Api, line: Line):
    """A write that was under way without seeing who waits is over before that is answered."""
    two.share("s1", "/agent/e1")
    watch(two, "e2")()
    call = waits(two)
    line.hold("registrations of e2")
    append = line.join(lambda: two.post(S1, {"type": "x", "key": "1"}).status)
    watched = line.join(call)
    assert not watched.done()
    line.let_go("registrations of e2")
    assert (append.result(timeout=30), watched.result(timeout=30)) == (204, 204)
    assert len(two.get(S1).body) == 1
    two.post(S1, {"type": "x", "key": "2"})
    while due.run():
        pass
    (wake,) = [each for each in two.events("/agent/e1") if each["type"] == "wake"]
    assert [each["key"] for each in wake["value"]["changes"]] == ["2"]
