"""Django's handlers for what no view answered: the API's errors, and pages for the admin."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from api.http_errors import error_response, status_of
from core.errors import Forbidden, InvalidRequest, NotFound, PullwakeError


def _answer(request: HttpRequest, error: PullwakeError) -> HttpResponse:
    """The error, as a page for whoever looks at the admin in a browser."""
    browser = "text/html" in request.headers.get("Accept", "")
    if browser and request.path_info.startswith("/admin/"):
        return render(request, "operators/error.html", {"error": error}, status=status_of(error))
    return error_response(error)


def page_not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler404."""
    return _answer(request, NotFound())


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler400."""
    return _answer(request, InvalidRequest())


def permission_denied(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler403."""
    return _answer(request, Forbidden())


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500; Django has logged the exception by then."""
    return _answer(request, PullwakeError())
