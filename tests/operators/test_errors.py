"""Errors are pages for a browser, and the contract's JSON for everybody else."""

import pytest

HTML = "text/html,application/xhtml+xml"


@pytest.mark.parametrize(
    ("who", "path", "status"),
    [
        ("viewer", "/admin/claims/consumerclaim/do/expire/?pk=1", 403),
        ("operator", "/admin/claims/consumerclaim/do/expire/", 404),
        ("viewer", "/admin/nowhere/", 404),
        ("nobody", "/admin/runners/runner/", 403),
    ],
)
def test_a_browser_is_shown_a_page(world, people, who, path, status):
    response = people[who].get(path, headers={"Accept": HTML})
    assert response.status_code == status
    assert response.headers["Content-Type"].startswith("text/html")
    assert "To the overview" in response.content.decode()


@pytest.mark.parametrize(
    ("path", "accept"), [("/nowhere", HTML), ("/admin/nowhere/", "*/*"), ("/_electric/x", HTML)]
)
def test_everybody_else_is_told_in_json(world, people, path, accept):
    response = people["viewer"].get(path, headers={"Accept": accept})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/admin/runners/runner/a%00/change/", None),
        ("/admin/dispatch/entity/?type=%00", None),
        ("/admin/dispatch/entitytype/?after=%00", None),
        ("/admin/dispatch/entity/?before=%00", None),
        ("/admin/live/?since=%00", None),
        ("/admin/runners/runner/views/", "remove=%00"),
        ("/admin/runners/runner/views/", "name=%00&query=a"),
        ("/admin/runners/runner/views/", {"remove": "\0"}),
    ],
)
def test_a_nul_is_no_error_of_the_server(world, people, path, form):
    """No page takes one; PostgreSQL has none in a text, and each of these was 500 there."""
    client = people["operator"]
    if form is None:
        response = client.get(path)
        page = client.get(path, headers={"Accept": HTML})
        assert (page.status_code, page.headers["Content-Type"]) == (400, "text/html; charset=utf-8")
    elif isinstance(form, str):
        kind = "application/x-www-form-urlencoded"
        response = client.post(path, form, content_type=kind)
    else:
        response = client.post(path, form)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "INVALID_REQUEST"


@pytest.mark.parametrize("row", ["abc", "9" * 30])
@pytest.mark.parametrize("kind", ["user", "group"])
def test_a_row_that_cannot_be_there_is_no_error_of_the_server(people, kind, row):
    """Django's own action takes it for a key; PostgreSQL compares with any number."""
    order = {"action": "delete_selected", "_selected_action": row}
    response = people["superuser"].post(f"/admin/auth/{kind}/", order)
    # On PostgreSQL it is a number, of no row: the page asks about nothing.
    assert response.status_code in (200, 302, 404)
