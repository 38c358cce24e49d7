"""The WSGI application: pages go through all of MIDDLEWARE, the API through `API_MIDDLEWARE`.

No session, message or CSRF work is done for a call of the API, and what is held of the thousands
that wait is a seventh less. Each part goes through Django's own handler.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from django.conf import settings
from django.core.handlers.exception import convert_exception_to_response
from django.http import HttpRequest
from django.utils.module_loading import import_string

from config.serving.requests import ObservedHandler

API_MIDDLEWARE = ("django.middleware.security.SecurityMiddleware",)
"""What calls of the API go through, the outermost first; none of it looks at views."""

# An entity type may be named admin, too: its streams are the API's.
_PAGE = re.compile(r"/(admin|static)/(?![^/]+/main$)")


class ApiHandler(ObservedHandler):
    """Django's handler with a chain of its own.

    It uses parts of `django.core.handlers.base.BaseHandler` that no documentation promises: what
    `load_middleware` sets, and `_get_response`; tests/serving/test_application.py has a test of it.
    """

    def load_middleware(self, is_async: bool = False) -> None:
        """Make the chain of `API_MIDDLEWARE`, and CORS where origins are named."""
        self._view_middleware: list[Any] = []
        self._template_response_middleware: list[Any] = []
        self._exception_middleware: list[Any] = []
        chain = convert_exception_to_response(self._get_response)  # type: ignore[attr-defined]
        cors = (
            ("config.serving.cross_origin.CrossOrigin",) if settings.PULLWAKE_CORS_ORIGINS else ()
        )
        for name in reversed((*API_MIDDLEWARE, *cors)):
            chain = convert_exception_to_response(import_string(name)(chain))
        self._middleware_chain = chain


class PageHandler(ObservedHandler):
    """Django's handler with all of MIDDLEWARE."""

    def route(self, request: HttpRequest) -> str:
        """The admin has hundreds of addresses, and is one."""
        return "/static/" if request.path.startswith("/static/") else "/admin/"


class Application:
    """Gives each request to the handler that it is for."""

    def __init__(self) -> None:
        self._pages = PageHandler()
        self._api = ApiHandler()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer."""
        is_page = _PAGE.match(environ.get("PATH_INFO", "")) is not None
        return (self._pages if is_page else self._api)(environ, start_response)
