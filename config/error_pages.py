"""Django's handlers for requests that no view answered: the API's errors, and admin pages."""

import sys
from typing import Any

from django.conf import settings
from django.core.exceptions import SuspiciousOperation
from django.http import HttpRequest, HttpResponse

from api.http_errors import error_response, translate
from core import audit
from core.database import is_passing
from core.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    PullwakeError,
    RateLimited,
)
from operators.admission import error_page
from operators.kit.verbs import acting_as


def _answer(request: HttpRequest, error: PullwakeError, *, again: bool = False) -> HttpResponse:
    """The error, as a page for a person who uses the admin in a browser.

    ``again``: the failed action can be repeated, from the page at this address.
    """
    browser = "text/html" in request.headers.get("Accept", "")
    if browser and request.path_info.startswith("/admin/"):
        response = error_response(error)
        where = request.get_full_path() if again else ""
        page = error_page(request, error, response.status_code, where)
        if "Retry-After" in response.headers:
            page.headers["Retry-After"] = response.headers["Retry-After"]
        return page
    return error_response(error)


def page_not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler404."""
    return _answer(request, NotFound())


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler400."""
    if isinstance(exception, SuspiciousOperation):
        return _answer(request, translate(exception))
    return _answer(request, InvalidRequest())


def too_large(request: HttpRequest) -> HttpResponse:
    """The answer to a body past PULLWAKE_MAX_BODY_BYTES, which is not read."""
    return _answer(request, PayloadTooLarge())


def permission_denied(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler403: of an operator, since the API answers its own."""
    user: Any = request.user
    match = request.resolver_match
    verb = match.kwargs.get("name") or match.url_name if match else request.method
    key = acting_as(user.get_username()).key
    audit.note(request, principal=key, verb=str(verb), answer=403, refused=True)
    return _answer(request, Forbidden())


def stale_form(request: HttpRequest, reason: str = "") -> HttpResponse:
    """CSRF_FAILURE_VIEW: mostly a form that stayed open while its reader logged in again."""
    return _answer(request, Forbidden("This form is out of date. Nothing was done."), again=True)


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500, called while the exception is handled; Django logs it.

    A database that is away is no error of ours: 503.
    """
    exc = sys.exc_info()[1]
    if exc is not None and is_passing(exc):
        return _answer(request, translate(exc))
    return _answer(request, PullwakeError())


def crowded(request: HttpRequest) -> HttpResponse:
    """The answer to a login whose turn did not come in time."""
    sentence = "Too many logins wait for their turn. Try again in a minute."
    return _answer(request, RateLimited(sentence, retry_after_s=60))


def locked_out(request: HttpRequest, *refused: object) -> HttpResponse:
    """The answer after too many wrong passwords; django-axes calls it, too."""
    wait_s = int(settings.AXES_COOLOFF_TIME.total_seconds())
    sentence = f"Too many passwords were tried. Try again in {wait_s // 60} minutes."
    return _answer(request, RateLimited(sentence, retry_after_s=wait_s))
