"""What an open page is told of: that something it shows has changed."""

import socket
from typing import Any

import pytest
from django.test import Client

from dispatch.models import Entity
from dispatch.streams import waiters
from operators import live
from tests.operators.conftest import make_world, person
from tests.support import Api

LIVE = "/admin/live/"


@pytest.fixture(autouse=True)
def brief(settings: Any) -> None:
    settings.PULLWAKE_LONG_POLL_MS = 100


def wait() -> None:
    raise AssertionError("it waits")


def ask(client: Client, since: str = "", entity: Any = "") -> Any:
    answer = client.get(LIVE, {"since": since, "entity": entity})
    assert answer.status_code == 200
    return answer.json()


@pytest.mark.django_db(transaction=True)  # what other transactions wrote is settled, not its own
def test_a_page_is_told_of_rows_and_of_its_own_stream(alice: Api):
    make_world(alice)
    viewer = person("viewer", group="viewers")
    one, other = Entity.objects.filter(url__in=["/agent/e1", "/agent/e4"]).order_by("url")
    lists, page, elsewhere = ask(viewer), ask(viewer, entity=one.pk), ask(viewer, entity=other.pk)
    assert lists["changed"] == []
    assert ask(viewer, lists["mark"]) == lists
    alice.send("/agent/e1")
    assert "stream" in ask(viewer, page["mark"], one.pk)["changed"]
    assert ask(viewer, elsewhere["mark"], other.pk) == elsewhere
    alice.register("another")
    told = ask(viewer, lists["mark"])
    assert told["changed"] == ["rows"]
    assert ask(viewer, elsewhere["mark"], other.pk)["changed"] == ["rows"]
    assert ask(viewer, told["mark"]) == {**told, "changed": []}


@pytest.mark.parametrize(
    "since", ["x", "1.2.3.4", "1.2.3.4.-5", "9" * 40 + ".1.1.1.1", "9" * 30 + ".1.1.1.1", "²" * 9]
)
def test_a_mark_that_was_not_given_here_is_answered_with_one(people: Any, since: str):
    assert ask(people["viewer"], since)["changed"] == []


def test_who_may_not_see_is_not_told(people: Any):
    assert people["nobody"].get(LIVE).status_code == 403
    assert people["stranger"].get(LIVE).status_code == 302
    assert people["viewer"].post(LIVE).status_code == 405
    for entity in ("0", "x", "9" * 30):
        assert people["viewer"].get(LIVE, {"entity": entity}).status_code == 404


def test_it_holds_no_more_than_it_may_and_ends_with_the_server(
    people: Any, settings: Any, monkeypatch: Any
):
    viewer = people["viewer"]
    told = ask(viewer)
    settings.PULLWAKE_LONG_POLL_MS = 600_000
    monkeypatch.setattr(live, "hand_back", wait)
    monkeypatch.setattr(waiters.hub, "closing", True)
    assert ask(viewer, told["mark"]) == told
    monkeypatch.setattr(live, "MOST_HELD", 0)
    answer = viewer.get(LIVE, {"since": told["mark"]})
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "10")


def test_a_page_that_was_left_holds_nothing(people: Any, settings: Any, monkeypatch: Any):
    settings.PULLWAKE_LONG_POLL_MS = 600_000
    monkeypatch.setattr(live, "hand_back", wait)
    viewer = people["viewer"]
    told = ask(viewer)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        page = socket.create_connection(listening.getsockname())
        connected, _ = listening.accept()
    with connected:
        page.close()
        answer = viewer.get(LIVE, {"since": told["mark"]}, **{"gunicorn.socket": connected})
    assert answer.json() == told
