"""Saved views of lists: a name for filters, for all who may see the list."""

import pytest
from django.test import Client

from operators.kit import views
from operators.models import SavedView

LIST = "/admin/dispatch/entity/"
FILTERS = "age=older-day&tag=team%3Dsearch"


def save(client: Client, name: str, query: str = FILTERS):
    return client.post(f"{LIST}views/", {"name": name, "query": query}, follow=True)


def test_a_view_is_saved_and_opened_by_others(people: dict[str, Client]):
    page = people["viewer"].get(f"{LIST}?tag=team%3Dsearch&age=older-day&after=7&order=oldest")
    assert f'name="query" value="{FILTERS.replace("&", "&amp;")}"' in page.content.decode()
    saved = save(people["viewer"], "old of search")
    assert "Saved as old of search." in saved.content.decode()
    assert saved.redirect_chain == [(f"{LIST}?{FILTERS}", 302)]
    shown = people["operator"].get(LIST).content.decode()
    assert f'href="?{FILTERS.replace("&", "&amp;")}"' in shown
    assert "old of search" not in people["operator"].get("/admin/dispatch/wake/").content.decode()


def test_only_who_saved_it_removes_it(people: dict[str, Client]):
    save(people["viewer"], "mine")
    body = {"remove": "mine"}
    assert "Remove mine" not in people["operator"].get(f"{LIST}?{FILTERS}").content.decode()
    said = people["operator"].post(f"{LIST}views/", body, follow=True).content.decode()
    assert "The view mine is not yours." in said
    assert "Remove mine" in people["viewer"].get(f"{LIST}?{FILTERS}").content.decode()
    people["viewer"].post(f"{LIST}views/", body)
    assert not SavedView.objects.exists()
    save(people["viewer"], "left behind")
    people["superuser"].post(f"{LIST}views/", {"remove": "left behind"})
    assert not SavedView.objects.exists()


@pytest.mark.parametrize(("name", "query"), [("", "a=1"), ("x" * 65, "a=1"), ("x", "")])
def test_what_is_no_view_is_refused(people: dict[str, Client], name: str, query: str):
    assert "A view needs a name" in save(people["viewer"], name, query).content.decode()
    assert not SavedView.objects.exists()


def test_a_name_stands_for_one_view_and_is_text(people: dict[str, Client], monkeypatch):
    name = "<script>alert(1)</script>"
    save(people["viewer"], name)
    said = save(people["operator"], name, "age=hour").content.decode()
    assert "remove that one first" in said
    assert name not in said
    assert SavedView.objects.get().query == FILTERS
    monkeypatch.setattr(views, "MOST", 1)
    assert "has 1 views already" in save(people["viewer"], "one more").content.decode()


def test_it_is_of_those_who_may_see_the_list(people: dict[str, Client]):
    assert people["nobody"].post(f"{LIST}views/", {"name": "x", "query": "a=1"}).status_code == 403
    assert people["viewer"].get(f"{LIST}views/").status_code == 405
    assert people["stranger"].post(f"{LIST}views/").status_code == 302
