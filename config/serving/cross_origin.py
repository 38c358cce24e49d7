"""CORS, for the origins in PULLWAKE_CORS_ORIGINS."""

from corsheaders.middleware import CorsMiddleware
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase


class CrossOrigin(CorsMiddleware):
    """django-cors-headers', but any OPTIONS is answered with 204, as the wire contract says."""

    def check_preflight(self, request: HttpRequest) -> HttpResponseBase | None:
        """The answer to an OPTIONS for any address."""
        preflight = super().check_preflight(request)
        if request.method != "OPTIONS":
            return preflight
        answer = HttpResponse(status=204)
        del answer.headers["Content-Type"]
        return answer
