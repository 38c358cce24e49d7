"""CORS, for the origins in PULLWAKE_CORS_ORIGINS; any OPTIONS is 204, as the wire contract says."""

from collections.abc import Callable

from corsheaders.middleware import CorsMiddleware
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase


class CrossOrigin(CorsMiddleware):
    """django-cors-headers', but for what it answers to an OPTIONS that is no preflight."""

    def check_preflight(self, request: HttpRequest) -> HttpResponseBase | None:
        """The answer to an OPTIONS for any address."""
        preflight = super().check_preflight(request)
        if request.method != "OPTIONS":
            return preflight
        return _nothing()


def without_origins(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Middleware in its place where no origin is named: nothing is allowed to any."""

    def answer(request: HttpRequest) -> HttpResponseBase:
        return _nothing() if request.method == "OPTIONS" else get_response(request)

    return answer


def _nothing() -> HttpResponse:
    answer = HttpResponse(status=204)
    del answer.headers["Content-Type"]
    return answer
