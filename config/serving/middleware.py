"""Django's middleware for pages, passed by for the API: no session, message or CSRF work there.

It is one layer. Each layer is three frames deep, and ten thousand held long-polls keep theirs.
"""

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.module_loading import import_string

Handler = Callable[[HttpRequest], HttpResponseBase]

PAGES = (
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
)
"""What pages go through, the outermost first."""


def is_page(request: HttpRequest) -> bool:
    """Whether this is a page or its static file; an entity type may be named admin, too."""
    path = request.path_info
    return path.startswith(("/admin/", "/static/")) and not path.endswith("/main")


class PagesMiddleware:
    """`PAGES`, for pages alone."""

    def __init__(self, get_response: Handler) -> None:
        self._api = get_response
        self._view_checks: list[Callable[..., Any]] = []
        layers: Handler = get_response
        for name in reversed(PAGES):
            layer = import_string(name)(layers)
            if hasattr(layer, "process_view"):
                self._view_checks.insert(0, layer.process_view)
            layers = layer
        self._pages = layers

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer."""
        return self._pages(request) if is_page(request) else self._api(request)

    def process_view(self, request: HttpRequest, *view: Any) -> HttpResponseBase | None:
        """What the layers have to say to a page's view: that a form's CSRF token is wrong."""
        if not is_page(request):
            return None
        answers = (check(request, *view) for check in self._view_checks)
        return next((answer for answer in answers if answer is not None), None)
