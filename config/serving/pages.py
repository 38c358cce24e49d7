"""What a browser may do with our pages, and the page about the API."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import SimpleTemplateResponse
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerSplitView

from api import origins
from config.error_pages import bad_request, too_large

# Whoever logged in at a provider also logs out there, where the form's answer sends the browser.
_PROVIDER = urlsplit(settings.PULLWAKE_OIDC_ISSUER)
_FORMS = f"'self' {_PROVIDER.scheme}://{_PROVIDER.netloc}" if _PROVIDER.netloc else "'self'"
# The admin's theme evaluates its templates' expressions, and hides elements by inline styles.
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    f"form-action {_FORMS}; base-uri 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy: nothing of another origin, and no script within a page."""


def with_policy(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware that gives every page the policy."""

    def answer(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    return answer


def with_whole_request(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware that has what the caller sends, before anything is held or looked up for it.

    A body that drips would otherwise hold the turn of its login, and Django would write the files
    of a form to the disk, however large, for anybody.
    """

    def answer(request: HttpRequest) -> HttpResponse:
        if int(request.META.get("CONTENT_LENGTH") or 0) > settings.PULLWAKE_MAX_BODY_BYTES:
            return too_large(request)
        # Quoted, a cookie can hold a NUL, which no database takes for a session's key.
        request.COOKIES = {
            name: value for name, value in request.COOKIES.items() if "\0" not in value
        }
        request.body  # noqa: B018  read here, and kept
        if _holds_nul(request):
            return bad_request(request)
        return get_response(request)

    return answer


class GivesWay:
    """Middleware that lets the calls go first that came in while a page was looked up.

    To render it takes as long again, and calls wait for each other in a worker.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """The page, once others had their turn."""
        answer = self._get_response(request)
        time.sleep(0)
        return answer

    def process_template_response(
        self, request: HttpRequest, response: SimpleTemplateResponse
    ) -> SimpleTemplateResponse:
        """The same response, unrendered, once others had their turn."""
        time.sleep(0)
        return response


def _holds_nul(request: HttpRequest) -> bool:
    """Whether its address or form holds a NUL: no page takes one, and PostgreSQL none at all."""
    form = b"\0" if request.content_type == "multipart/form-data" else b"%00"
    query = request.META.get("QUERY_STRING", "")
    return "\0" in request.path_info or "%00" in query or form in request.body


class Closable:
    """A view of the API's description, which PULLWAKE_API_DOCS can close."""

    http_method_names = ("get", "head")

    def initial(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        """Raise InvalidRequest for a foreign Host, as every other address does."""
        origins.require_own(request)
        super().initial(request, *args, **kwargs)  # type: ignore[misc]

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """The view's answer, or 404."""
        if not settings.PULLWAKE_API_DOCS:
            raise Http404
        response: HttpResponse = super().dispatch(request, *args, **kwargs)  # type: ignore[misc]
        response.headers["Content-Security-Policy"] = POLICY
        return response


@cache
def _description() -> dict[str, Any]:
    """The same for everybody; made once a process, in time that it serves nobody else."""
    generator: Any = SchemaGenerator
    described: dict[str, Any] = generator().get_schema(public=True)
    return described


class _Made(SchemaGenerator):
    """In place of a generator, what it made."""

    def get_schema(self, request: object = None, public: bool = False) -> dict[str, Any]:
        """The description."""
        return _description()


class SchemaView(Closable, SpectacularJSONAPIView):  # type: ignore[misc]
    """The description itself, OpenAPI."""

    generator_class = _Made


class DocsView(Closable, SpectacularSwaggerSplitView):  # type: ignore[misc]
    """A page to read and try the API; its script is a file, since the policy allows none inline."""
