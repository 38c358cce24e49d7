"""The API goes past the middleware of pages, and pages through all of it."""

import httpx2
import pytest
from django.core.handlers.base import BaseHandler
from django.core.handlers.wsgi import WSGIHandler

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
