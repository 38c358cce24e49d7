"""Shared states, as operators see them: in their list, on their page, and on their entity's."""

import pytest

from dispatch.models import Entity, SharedState
from tests.factories import EntityFactory, SharedStateFactory, SharedStateLinkFactory


@pytest.fixture
def board(db):
    """/agent/e1 has "board", which /agent/e2 observes, and /agent/e1 one that is yet to come."""
    one, other = (EntityFactory.create(url=f"/agent/{name}") for name in ("e1", "e2"))
    board = SharedStateFactory.create(name="board", link__entity=one)
    SharedStateLinkFactory.create(entity=other, name="board", manifest="0" * 64)
    SharedStateLinkFactory.create(entity=one, name="coming", manifest="0" * 64)
    SharedStateFactory.create(name="another")
    return board


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("", {"board", "another"}),
        ("entity=/agent/e1", {"board"}),
        ("entity=/agent/e2", {"board"}),
        ("entity=/agent/e3", set()),
        ("q=another", {"another"}),
    ],
)
def test_the_list(board, people, query, shown):
    page = people["viewer"].get(f"/admin/dispatch/sharedstate/?{query}").content.decode()
    paths = {
        each.name: f"/admin/dispatch/sharedstate/{each.pk}/change/"
        for each in SharedState.objects.all()
    }
    assert {name for name, path in paths.items() if path in page} == shown


def test_the_page_of_one_has_its_entities_and_what_was_written(board, people):
    page = people["viewer"].get(f"/admin/dispatch/sharedstate/{board.pk}/change/").content.decode()
    having, _, observing = page.partition("Observed by")
    assert "/agent/e1" in having
    assert "/agent/e2" in observing
    assert "state:board" in observing


def test_its_entitys_page_leads_to_it(board, people):
    entity = Entity.objects.get(url="/agent/e1")
    page = people["viewer"].get(f"/admin/dispatch/entity/{entity.pk}/change/").content.decode()
    assert f"/admin/dispatch/sharedstate/{board.pk}/change/" in page
    assert "yet to come" in page
