"""From where the API may be called: with which Host, and from pages of which origins."""

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest
from rest_framework.permissions import SAFE_METHODS

from core.errors import Forbidden, InvalidRequest

PROBES = ("/livez", "/readyz")
"""Who asks for these may name the server in any way, for instance by its address."""


def require_own(request: HttpRequest) -> None:
    """Raise InvalidRequest for a foreign Host, Forbidden for a page of a foreign origin.

    The Host matters where callback URLs are made of it, and in development mode, where a name that
    an attacker points to this machine would open everything to their page. There, too, a call that
    changes something must not come from a page of another origin.
    """
    if (settings.PULLWAKE_PUBLIC_URL and not settings.DEVELOPMENT) or request.path_info in PROBES:
        return
    try:
        host = request.get_host()
    except DisallowedHost:
        raise InvalidRequest("The Host header is not one of ALLOWED_HOSTS.") from None
    if settings.DEVELOPMENT and request.method not in SAFE_METHODS and _is_foreign(request, host):
        raise Forbidden("A page of another origin may not call this server in development mode.")


def _is_foreign(request: HttpRequest, host: str) -> bool:
    origin = request.META.get("HTTP_ORIGIN")
    if origin is None:
        return request.META.get("HTTP_SEC_FETCH_SITE") == "cross-site"
    own = (f"{request.scheme}://{host}", settings.PULLWAKE_PUBLIC_URL)
    named = settings.PULLWAKE_CORS_ORIGINS
    return origin not in own and origin not in named and "*" not in named
