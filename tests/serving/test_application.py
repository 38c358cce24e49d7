"""The API goes past the middleware of pages, and pages through all of it."""

import httpx2
import pytest
from django.core.handlers.base import BaseHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import RequestFactory

from config.serving.application import _PAGE, ApiHandler


@pytest.mark.parametrize("path", ["/admin/", "/admin/main", "/admin/login/", "/static/a.css"])
def test_it_is_a_page(path):
    assert _PAGE.match(path)


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/admin/a1/main", "/_electric/runners", "/administrator/"]
)
def test_it_is_the_apis(path):
    assert not _PAGE.match(path)


def test_it_sets_what_djangos_own_handler_sets():
    own, djangos = ApiHandler(), WSGIHandler()
    names = {
        name for name in vars(BaseHandler) if name.startswith("_") and name.endswith("middleware")
    }
    assert names == {"_view_middleware", "_template_response_middleware", "_exception_middleware"}
    assert set(vars(own)) == set(vars(djangos)) == {*names, "_middleware_chain"}


def test_the_api_has_the_security_headers_and_no_frame_or_cookie_ones(server):
    api = httpx2.get(f"{server.url}/livez")
    assert api.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "X-Frame-Options" not in api.headers
    page = httpx2.get(f"{server.url}/admin/login/")
    assert page.headers["X-Frame-Options"] == "DENY"
    assert "csrftoken" in page.headers["Set-Cookie"]


def test_a_path_of_the_admin_that_ends_like_a_stream_is_a_page(server):
    assert httpx2.get(f"{server.url}/admin/main").status_code in (302, 404)


ORIGIN = "http://app.example"
EXPOSED = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "*",
}


@pytest.fixture
def cross_origin(settings):
    """Calls what a server serves where every origin is named: (status, headers)."""
    settings.PULLWAKE_CORS_ORIGINS = ["*"]
    settings.CORS_ALLOW_ALL_ORIGINS = True
    handler = ApiHandler()

    def call(method, path, **headers):
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        request = RequestFactory().generic(method, path, headers={"Origin": ORIGIN, **said})
        answer = handler.get_response(request)
        answer.close()
        return answer.status_code, answer.headers

    return call


@pytest.mark.django_db
@pytest.mark.parametrize(
    "path", ["/_electric/entities/agent/e1/send", "/agent/e1/main", "/nowhere", "/livez"]
)
@pytest.mark.parametrize("preflight", [True, False])
def test_options_is_204_anywhere(cross_origin, path, preflight):
    asked = {"Access_Control_Request_Method": "PATCH"} if preflight else {}
    status, headers = cross_origin("OPTIONS", path, **asked)
    assert (status, headers["Access-Control-Allow-Origin"]) == (204, "*")
    methods = {each.strip() for each in headers["Access-Control-Allow-Methods"].split(",")}
    assert methods >= {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
    allowed = {each.strip() for each in headers["Access-Control-Allow-Headers"].split(",")}
    electric = {f"electric-{name}" for name in ("claim-token", "owner-entity", "principal")}
    assert allowed >= {"content-type", "authorization", *electric}


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/livez", 200),
        ("GET", "/_electric/webhook-sources", 200),
        ("GET", "/nowhere", 404),
        ("GET", "/_electric/entities/agent/nobody", 404),
        ("PUT", "/_electric/webhook-sources", 405),
        ("GET", "/_electric/entities?status=odd", 400),
        ("POST", "/agent/nobody/main", 401),
    ],
)
def test_every_answer_lets_a_page_of_a_named_origin_read_it(cross_origin, method, path, status):
    answered, headers = cross_origin(method, path)
    assert answered == status
    assert {name: headers[name] for name in EXPOSED} == EXPOSED
