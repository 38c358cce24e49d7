"""Every page, as it is read: by whom, with how many statements, and never with a COUNT."""

import html
import re
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.operators.conftest import World

PAGES = [
    "overview",
    *(
        f"{label} list"
        for label in (
            "runners.runner",
            "runners.accesstoken",
            "claims.consumerclaim",
            "claims.deadletter",
            "dispatch.entity",
            "dispatch.dispatchstate",
            "dispatch.wake",
            "dispatch.timer",
            "dispatch.sharedstate",
            "dispatch.entitytype",
            "admin.logentry",
        )
    ),
    "runner",
    "claim",
    "ended claim",
    "dead letter",
    "entity",
    "wake",
    "timer",
    "shared state",
    "entity type",
    "token",
    "issue",
]


# Statements of each page, two for the session and the user among them.
STATEMENTS = {
    "overview": 25,  # two only until a first slice of claims is counted
    "runners.runner list": 4,
    "runners.accesstoken list": 4,
    "claims.consumerclaim list": 4,
    "claims.deadletter list": 4,
    "dispatch.entity list": 4,
    "dispatch.dispatchstate list": 4,
    "dispatch.wake list": 4,
    "dispatch.timer list": 4,
    "dispatch.sharedstate list": 4,
    "dispatch.entitytype list": 4,
    "admin.logentry list": 4,
    "runner": 9,
    "claim": 6,
    "ended claim": 8,
    "dead letter": 4,
    "entity": 16,
    "wake": 5,
    "timer": 3,
    "shared state": 5,
    "entity type": 3,
    "token": 3,
    "issue": 2,
}


@pytest.mark.parametrize("page", PAGES)
def test_it_asks_so_many_statements(world: World, people, page):
    path = world.paths()[page]
    people["superuser"].get(path)  # content types are asked for once
    with CaptureQueriesContext(connection) as asked:
        assert people["superuser"].get(path).status_code == 200
    assert len(asked) == STATEMENTS[page], [query["sql"][:150] for query in asked]


LISTS = [page for page in PAGES if page.endswith("list")]


@pytest.mark.parametrize("page", LISTS)
def test_every_filter_and_search_costs_as_many_statements(world: World, people, page):
    """Each word of each filter, each filter for a value, and a search."""
    app, _, model = page.removesuffix(" list").partition(".")
    model_admin = admin.site.get_model_admin(apps.get_model(app, model))
    asked = ["q=/agent/e1"]
    filters: Any = model_admin.list_filter
    for each in filters:
        words = getattr(each, "words", ["user:alice"])
        asked += [f"{each.parameter_name}={word}" for word in words]
    path = world.paths()[page]
    people["superuser"].get(path)
    for query in asked:
        with CaptureQueriesContext(connection) as statements:
            answer = people["superuser"].get(f"{path}?{query}")
        assert answer.status_code == 200, query
        assert len(statements) == STATEMENTS[page], query


# Statements of the page that asks for a confirmation, however many rows; two for who asks.
CONFIRMATIONS = {
    "claims/consumerclaim/do/expire": 3,
    "claims/consumerclaim/do/expire-and-move": 5,
    "claims/deadletter/do/redrive": 3,
    **{
        f"dispatch/entity/do/{verb}": 3
        for verb in ("wake", "send", "pause", "resume", "stop", "kill")
    },
    "dispatch/entity/do/move": 5,  # the runners that are offered, and the one that is proposed
    **{f"runners/runner/do/{verb}": 3 for verb in ("enable", "disable", "expire-claims", "delete")},
    "runners/runner/do/move-entities": 5,
    "runners/runner/do/drain": 5,
    "dispatch/wake/do/wake": 3,
    "dispatch/wake/do/move": 5,
    "runners/accesstoken/do/revoke": 3,
}


@pytest.mark.parametrize("verb", CONFIRMATIONS)
def test_a_confirmation_asks_as_many_statements_for_many_rows(world: World, people, verb):
    rows = apps.get_model(*verb.split("/")[:2]).objects.values_list("pk", flat=True)
    query = "&".join(f"pk={pk}" for pk in rows)
    people["superuser"].get("/admin/runners/accesstoken/issue/")
    with CaptureQueriesContext(connection) as asked:
        page = people["superuser"].get(f"/admin/{verb}/?{query}")
    assert page.content.decode().count('data-label="What will happen"') == len(rows)
    assert len(asked) == CONFIRMATIONS[verb], [query["sql"][:150] for query in asked]


@pytest.mark.parametrize("page", LISTS)
def test_it_counts_no_table(world: World, people, page):
    path = world.paths()[page]
    with CaptureQueriesContext(connection) as asked:
        people["superuser"].get(path)
    assert not [query for query in asked if query["sql"].startswith("SELECT COUNT")]


def test_it_asks_as_many_statements_of_a_long_list(world: World, people):
    for number in range(60):
        world.api.make_entity(f"/agent/more-{number}")
    path = world.paths()["dispatch.entity list"]
    with CaptureQueriesContext(connection) as asked:
        page = people["superuser"].get(path)
    assert len(asked) == STATEMENTS["dispatch.entity list"]
    assert page.content.decode().count('class="data-row') == 50


def test_it_loads_nothing_large_for_a_list(world: World, people):
    unseen = ('"message"', "spawn_args", "acked_streams", "token_hash", "creation_schema", '"data"')
    for page in LISTS:
        path = world.paths()[page]
        with CaptureQueriesContext(connection) as asked:
            people["superuser"].get(path)
        selected = " ".join(query["sql"].partition(" FROM ")[0] for query in asked)
        assert not [name for name in unseen if name in selected], page


def test_pages_of_a_list_follow_one_another(world: World, people):
    """Each row once, forth and back, whatever was inserted in between."""
    for number in range(120):
        world.api.make_entity(f"/agent/more-{number:03}")
    viewer, path = people["viewer"], world.paths()["dispatch.entity list"]
    pages = [shown(viewer.get(path))]
    while link := next_of(viewer.get(path)):
        world.api.make_entity(f"/agent/late-{len(pages)}")
        path = world.paths()["dispatch.entity list"] + link
        pages.append(shown(viewer.get(path)))
    assert [len(page) for page in pages] == [50, 50, 24]
    seen = [url for page in pages for url in page]
    assert len(set(seen)) == len(seen) == 124
    back = previous_of(viewer.get(path))
    assert shown(viewer.get(world.paths()["dispatch.entity list"] + back)) == pages[1]


def shown(response):
    """The entities of a list's page, in its order."""
    return re.findall(r"<code>(/agent/[^<]+)</code>", response.content.decode())


def next_of(response):
    return _link(response, "next")


def previous_of(response):
    return _link(response, "prev")


def _link(response, rel):
    found = re.search(rf'href="([^"]+)" rel="{rel}"', response.content.decode())
    return html.unescape(found[1]) if found else ""


@pytest.mark.parametrize("place", ["after=x", "after=9" + "9" * 30])
def test_a_list_takes_any_place(world: World, people, place):
    response = people["viewer"].get(f"/admin/dispatch/entity/?{place}", follow=True)
    assert response.status_code == 200


def test_a_row_that_is_gone_leads_back(world: World, people):
    response = people["viewer"].get("/admin/runners/runner/nobody/change/")
    assert (response.status_code, response.headers["Location"]) == (302, "/admin/")


@pytest.mark.parametrize("runner_id", ["gpu_40", "gpu+1", "a.b:c@d~e"])
def test_a_runner_is_reached_whatever_its_id(alice, people, runner_id):
    """An id may hold what an address or Django's own quoting means otherwise."""
    alice.register(runner_id)
    alice.make_entity("/agent/e+1", runner_id)
    alice.send("/agent/e+1")
    claim = alice.claim(runner_id)
    seen: set[str] = set()
    ask = ["/admin/runners/runner/"]
    while ask:
        path = ask.pop()
        page = people["operator"].get(path)
        assert page.status_code == 200, path
        seen.add(path)
        links = re.findall(r'href="(/admin/[^"]*(?:change/|[?][^"]*))"', page.content.decode())
        ask += sorted({html.unescape(link) for link in links} - seen - set(ask))
        if "/consumerclaim/?" in path and "status" not in path:
            assert claim.body["consumerId"] in page.content.decode(), path
    assert any("/do/disable/" in path for path in seen)
    assert any("/dispatch/wake/" in path for path in seen)
