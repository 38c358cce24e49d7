"""Django's middleware for pages, passed by for the API: no session, message or CSRF work there."""

from typing import Any

from django.contrib.auth.middleware import AuthenticationMiddleware as _Authentication
from django.contrib.messages.middleware import MessageMiddleware as _Message
from django.contrib.sessions.middleware import SessionMiddleware as _Session
from django.http import HttpRequest
from django.middleware.common import CommonMiddleware as _Common
from django.middleware.csrf import CsrfViewMiddleware as _Csrf
from whitenoise.middleware import WhiteNoiseMiddleware as _WhiteNoise


def is_page(request: HttpRequest) -> bool:
    """Whether this is a page or its static file; an entity type may be named admin, too."""
    path = request.path_info
    return path.startswith(("/admin/", "/static/")) and not path.endswith("/main")


class _PagesOnly:
    def __call__(self, request: HttpRequest) -> Any:
        if is_page(request):
            return super().__call__(request)  # type: ignore[misc]
        return self.get_response(request)  # type: ignore[attr-defined]


class SessionMiddleware(_PagesOnly, _Session):
    """Sessions, for pages."""


class CommonMiddleware(_PagesOnly, _Common):
    """Slashes and Host checks, for pages."""


class CsrfViewMiddleware(_PagesOnly, _Csrf):
    """CSRF protection, for pages."""

    def process_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Check the token of a page's form."""
        return super().process_view(request, *args, **kwargs) if is_page(request) else None


class AuthenticationMiddleware(_PagesOnly, _Authentication):
    """The logged-in operator, for pages."""


class MessageMiddleware(_PagesOnly, _Message):
    """Flash messages, for pages."""


class WhiteNoiseMiddleware(_PagesOnly, _WhiteNoise):  # type: ignore[misc]
    """Static files."""
