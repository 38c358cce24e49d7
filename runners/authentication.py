"""Who is calling: a bearer token, a trusted proxy's header, or in development mode nobody."""

import ipaddress

from django.conf import settings
from django.http import HttpRequest
from rest_framework.authentication import BaseAuthentication

from config.errors import Forbidden, Unauthenticated
from config.principals import DEVELOPER, Principal
from runners import tokens


class PrincipalAuthentication(BaseAuthentication):
    """Every call that is made by a principal; ``request.user`` is a `Principal`."""

    def authenticate(self, request: HttpRequest) -> tuple[Principal, None]:
        """The caller. Raises Unauthenticated, or Forbidden when two credentials disagree."""
        return principal_of(request), None

    def authenticate_header(self, request: HttpRequest) -> str:
        """The challenge that goes with a 401."""
        return "Bearer"


def bearer(request: HttpRequest) -> str | None:
    """The secret in ``Authorization: Bearer``, or None without that header.

    Raises Unauthenticated when the header is there and says anything else.
    """
    header: str | None = request.META.get("HTTP_AUTHORIZATION")
    if header is None:
        return None
    scheme, _, secret = header.partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise Unauthenticated("The Authorization header must be Bearer and a token.")
    return secret


def principal_of(request: HttpRequest) -> Principal:
    """The principal that calls, by the rules of the wire contract's section Principals."""
    secret = bearer(request)
    if secret is None:
        return _unproven(request)
    principal = principal_behind(secret)
    named = _named(request)
    if named is not None and named != principal:
        raise Forbidden("Electric-Principal names another principal than the access token.")
    return principal


def principal_behind(secret: str) -> Principal:
    """Whose access token this is. Raises Unauthenticated."""
    principal = tokens.principal_of(secret)
    if principal is None:
        raise Unauthenticated("The access token is unknown, revoked or expired.")
    return principal


def _named(request: HttpRequest) -> Principal | None:
    header: str | None = request.META.get("HTTP_ELECTRIC_PRINCIPAL")
    if header is None:
        return None
    try:
        return Principal.parse(header)
    except ValueError as exc:
        raise Unauthenticated(f"Electric-Principal is not a principal: {exc}.") from None


def _unproven(request: HttpRequest) -> Principal:
    named = _named(request)
    if named is None:
        if settings.DEVELOPMENT:
            return DEVELOPER
        raise Unauthenticated
    if settings.DEVELOPMENT or _from_trusted_proxy(request):
        return named
    raise Unauthenticated("Electric-Principal is believed only from a trusted proxy.")


def _from_trusted_proxy(request: HttpRequest) -> bool:
    try:
        address = ipaddress.ip_address(request.META.get("REMOTE_ADDR", ""))
    except ValueError:
        return False
    return any(address in network for network in settings.PULLWAKE_TRUSTED_PROXIES)
