"""Entities that watch each other, registrations that meet appends, and timekeepers that meet."""

import itertools
from collections.abc import Callable

import pytest
from django.db import connection

from dispatch import due
from dispatch.models import Registration
from tests.races.conftest import Line, assert_every_wake_is_right, both_orders
from tests.support import Api

pytestmark = pytest.mark.postgres

E1, E2 = "/agent/e1", "/agent/e2"


@pytest.fixture
def api(alice: Api) -> Api:
    """Two entities on r1."""
    alice.register()
    for url in (E1, E2):
        alice.make_entity(url)
    return alice


def watch(api: Api, subscriber: str, source: str) -> None:
    body = {"subscriberUrl": subscriber, "sourceUrl": source, "condition": {"on": "change"}}
    answer = api.post("/_electric/wake", body)
    assert answer.status == 204, answer


def changes(api: Api, url: str) -> list[str]:
    """The keys of the changes that an entity was told of."""
    while due.run():
        pass
    told = [each["value"]["changes"] for each in api.events(url) if each["type"] == "wake"]
    return [each["key"] for changes in told for each in changes]


def sends(api: Api, url: str, key: str) -> Callable[[], object]:
    return lambda: api.send(url, key=key)


@pytest.mark.parametrize("held", ["registrations", "state", "tail"])
@both_orders("first", "second")
def test_two_that_watch_each_other_change_at_once(
    order: tuple[str, ...], held: str, api: Api, line: Line
):
    watch(api, E1, E2)
    watch(api, E2, E1)
    before = [] if held == "tail" else ["m0"]  # what is woken already touches no tail
    for url, key in itertools.product((E1, E2), before):
        api.send(url, key=key)
    line.meet(
        held,
        (*order, "timekeeper", "another"),
        first=sends(api, E1, "m1"),
        second=sends(api, E2, "m1"),
        timekeeper=due.run,
        another=due.run,
    )
    assert changes(api, E1) == changes(api, E2) == [*before, "m1"]
    assert_every_wake_is_right()


def test_two_that_watch_each_other_are_killed_at_once(api: Api, line: Line):
    watch(api, E1, E2)
    watch(api, E2, E1)
    line.meet(
        "registrations",
        ("first", "second"),
        first=lambda: api.signal(E1, "SIGKILL"),
        second=lambda: api.signal(E2, "SIGKILL"),
    )
    while due.run():
        pass
    assert not Registration.objects.exists()


def test_two_timekeepers_tell_it_once(api: Api, line: Line):
    watch(api, E1, E2)
    api.send(E2, key="m1")
    line.meet("registrations", ("one", "other"), one=due.run, other=due.run)
    assert changes(api, E1) == ["m1"]


@both_orders("watch", "send")
def test_what_comes_after_a_registration_is_told(order: tuple[str, ...], api: Api, line: Line):
    line.meet(
        "state of e2",
        order,
        watch=lambda: watch(api, E1, E2),
        send=sends(api, E2, "m1"),
    )
    assert changes(api, E1) == (["m1"] if order[0] == "watch" else [])
    api.send(E2, key="m2")
    assert changes(api, E1)[-1:] == ["m2"]


def test_one_that_is_being_made_is_watched_from_then_on(api: Api, line: Line):
    line.hold("tail")
    made = line.join(lambda: api.make_entity("/agent/new", initialMessage="hi"))
    watched = line.join(lambda: watch(api, E1, "/agent/new"))
    assert not watched.done()
    line.let_go("tail")
    made.result(timeout=30)
    watched.result(timeout=30)
    api.send("/agent/new", key="m1")
    assert changes(api, E1) == ["m1"]


def test_one_that_is_made_while_it_is_registered_is_watched_from_its_birth(api: Api, line: Line):
    line.hold("entity e1")
    watched = line.join(lambda: watch(api, E1, "/agent/new"))
    made = line.join(lambda: api.make_entity("/agent/new"))
    assert not made.done()
    line.let_go("entity e1")
    watched.result(timeout=30)
    made.result(timeout=30)
    assert changes(api, E1) == ["entity-created"]


@both_orders("manifest", "send")
def test_what_comes_after_a_manifest_event_is_told(order: tuple[str, ...], api: Api, line: Line):
    api.send(E1)
    claim = api.claim()
    token = claim.mint()
    value = {"kind": "child", "entity_url": E2, "wake": {"on": "change"}}
    event = {"type": "manifest", "key": "k", "value": value, "headers": {"operation": "insert"}}
    line.meet(
        "state of e2",
        order,
        manifest=lambda: claim.append(event, token=token),
        send=sends(api, E2, "m1"),
    )
    # The append was answered after the send: it does not matter on which side of it that lies.
    assert changes(api, E1) in ([], ["m1"])
    api.send(E2, key="m2")
    assert changes(api, E1)[-1:] == ["m2"]


def test_whoever_may_not_read_a_source_keeps_nobody_from_it(api: Api, line: Line):
    bob = Api("user:bob")
    bob.register("r2")
    bob.make_entity("/agent/bobs", "r2")
    line.hold("entity e1")
    watched = line.join(lambda: watch(api, E1, "/agent/bobs"))
    assert not watched.done()
    assert line.join(lambda: bob.send("/agent/bobs")).done()
    line.let_go("entity e1")
    watched.result(timeout=30)


def test_a_subscriber_that_is_deleted_meanwhile_is_registered_for_nothing(api: Api, line: Line):
    line.hold("state of e2")
    watched = line.join(
        lambda: api.post(
            "/_electric/wake",
            {"subscriberUrl": E1, "sourceUrl": E2, "condition": "runFinished"},
        )
    )
    assert api("DELETE", f"/_electric/entities{E1}").status == 204
    line.let_go("state of e2")
    assert watched.result(timeout=30).error == "NOT_FOUND"
    assert not Registration.objects.exists()
    connection.check_constraints()


@both_orders("watch", "delete")
def test_a_subscriber_that_is_deleted_as_it_is_registered_takes_that_along(
    order: tuple[str, ...], api: Api, line: Line
):
    body = {"subscriberUrl": E1, "sourceUrl": E2, "condition": "runFinished"}
    answers = line.meet(
        "entity e1",
        order,
        watch=lambda: api.post("/_electric/wake", body),
        delete=lambda: api("DELETE", f"/_electric/entities{E1}"),
    )
    assert answers["delete"].status == 204
    assert answers["watch"].status == (204 if order[0] == "watch" else 404)
    assert not Registration.objects.exists()
