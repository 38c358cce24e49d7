"""The WSGI application: pages go through all of MIDDLEWARE, the API through `API_MIDDLEWARE`.

So a call of the API does no session, message or CSRF work, and a held request takes a seventh less
memory. Each part goes through Django's own handler.
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

# An entity type may be named "admin", too: its streams belong to the API.
_PAGE = re.compile(r"/(admin|static)/(?![^/]+/main$)")


class ApiHandler(ObservedHandler):
    """Django's handler with a middleware chain of its own.

    It uses undocumented parts of `django.core.handlers.base.BaseHandler`: what `load_middleware`
    sets, and `_get_response`; tests/serving/test_application.py tests them.
    """

    def load_middleware(self, is_async: bool = False) -> None:
        """Make the chain of `API_MIDDLEWARE`, and of CORS."""
        self._view_middleware: list[Any] = []
        self._template_response_middleware: list[Any] = []
        self._exception_middleware: list[Any] = []
        chain = convert_exception_to_response(self._get_response)  # type: ignore[attr-defined]
        cors = "CrossOrigin" if settings.PULLWAKE_CORS_ORIGINS else "without_origins"
        for name in reversed((*API_MIDDLEWARE, f"config.serving.cross_origin.{cors}")):
            chain = convert_exception_to_response(import_string(name)(chain))
        self._middleware_chain = chain


class PageHandler(ObservedHandler):
    """Django's handler with all of MIDDLEWARE."""

    def route(self, request: HttpRequest) -> str:
        """The admin has hundreds of addresses, and counts as one."""
        return "/static/" if request.path.startswith("/static/") else "/admin/"


class Application:
    """Passes each request to the handler responsible for it."""

    def __init__(self) -> None:
        self._pages = PageHandler()
        self._api = ApiHandler()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer."""
        is_page = _PAGE.match(environ.get("PATH_INFO", "")) is not None
        return (self._pages if is_page else self._api)(environ, start_response)
