"""What a browser may do with a page of ours, and the API's own page."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerSplitView

# Who came from a login provider logs out there, too, whither the form's answer sends the browser.
_PROVIDER = urlsplit(settings.PULLWAKE_OIDC_ISSUER)
_FORMS = f"'self' {_PROVIDER.scheme}://{_PROVIDER.netloc}" if _PROVIDER.netloc else "'self'"
# The admin's theme has its templates' expressions evaluated, and hides by inline styles.
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    f"form-action {_FORMS}; base-uri 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy: nothing of another origin, and no script within a page."""


def with_policy(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: every page has the policy."""

    def answer(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    return answer


class Closable:
    """A view of the API's description, which PULLWAKE_API_DOCS closes."""

    http_method_names = ("get", "head")

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """The view's answer, or 404."""
        if not settings.PULLWAKE_API_DOCS:
            raise Http404
        response: HttpResponse = super().dispatch(request, *args, **kwargs)  # type: ignore[misc]
        response.headers["Content-Security-Policy"] = POLICY
        return response


class SchemaView(Closable, SpectacularJSONAPIView):  # type: ignore[misc]
    """The description itself, OpenAPI."""


class DocsView(Closable, SpectacularSwaggerSplitView):  # type: ignore[misc]
    """A page to read it and to try it; its script is fetched, as the policy has none within."""
