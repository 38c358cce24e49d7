"""Every page has a policy that lets nothing in, and the API's own page can be closed."""

import pytest
from django.template.response import SimpleTemplateResponse
from django.test import Client

from config.serving.pages import POLICY
from tests.support import Api

HTML = {"Accept": "text/html"}
DOCS = ("/_electric/docs", "/_electric/docs?script=", "/_electric/openapi.json")


@pytest.mark.parametrize("path", ["/admin/", "/admin/login/", "/admin/nowhere/", *DOCS])
def test_every_page_has_the_policy(db, path):
    response = Client(headers=HTML).get(path)
    assert response.headers["Content-Security-Policy"] == POLICY
    assert "<script>" not in response.content.decode()


def test_calls_that_came_meanwhile_go_before_a_page_is_rendered_and_after(db, monkeypatch):
    happened = []
    render = SimpleTemplateResponse.render

    def noted(response: SimpleTemplateResponse) -> SimpleTemplateResponse:
        happened.append("render")
        return render(response)

    monkeypatch.setattr(SimpleTemplateResponse, "render", noted)
    monkeypatch.setattr("time.sleep", happened.append)
    Client(headers=HTML).get("/admin/login/")
    assert happened == [0, "render", 0]


def test_the_policy_lets_no_script_in():
    (scripts,) = [each for each in POLICY.split("; ") if each.startswith("script-src")]
    assert scripts == "script-src 'self' 'unsafe-eval'"
    assert POLICY.startswith("default-src 'none'; ")


@pytest.mark.parametrize("path", DOCS)
def test_the_apis_page_can_be_closed(db, settings, path):
    assert Client().get(path).status_code == 200
    settings.PULLWAKE_API_DOCS = False
    assert Api().get(path).error == "NOT_FOUND"
