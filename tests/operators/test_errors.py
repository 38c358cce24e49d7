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
