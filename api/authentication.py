"""Who calls: a bearer token, a trusted proxy's header, in development mode nobody; or a handler.

A handler proves itself with the claim or write token of its entity's active claim, in
``Electric-Claim-Token`` or ``Authorization: Bearer``; `api.acting` has what it may do for others.
"""

from django.conf import settings
from django.http import HttpRequest
from rest_framework.authentication import BaseAuthentication

from core.addresses import is_trusted_proxy
from core.errors import Forbidden, Unauthenticated
from core.principals import DEVELOPER, Principal
from runners import tokens


class Authentication(BaseAuthentication):
    """What all kinds of authentication share."""

    def authenticate_header(self, request: HttpRequest) -> str:
        """The challenge that goes with a 401."""
        return "Bearer"


class PrincipalAuthentication(Authentication):
    """Every call that is made by a principal; ``request.user`` is a `Principal`."""

    def authenticate(self, request: HttpRequest) -> tuple[Principal, None]:
        """The caller. Raises Unauthenticated, or Forbidden when two credentials disagree."""
        return principal_of(request), None


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


NAMES_ANOTHER = "Electric-Principal names another principal than the access token."


def principal_of(request: HttpRequest) -> Principal:
    """The principal that calls, by the rules of the wire contract's section Principals."""
    principal, named = proven_and_named(request)
    if named != principal:
        raise Forbidden(NAMES_ANOTHER)
    return principal


def proven_and_named(request: HttpRequest) -> tuple[Principal, Principal]:
    """The principal that calls, and the one that it names: only `api.acting` takes another."""
    secret = bearer(request)
    if secret is None:
        principal = _unproven(request)
        return principal, principal
    principal = principal_behind(secret)
    return principal, _named(request) or principal


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
    if "," in header:  # what a server makes of two such headers; one in an id comes encoded
        raise Unauthenticated("Electric-Principal was sent more than once.")
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
    if settings.DEVELOPMENT or is_trusted_proxy(request.META.get("REMOTE_ADDR", "")):
        return named
    raise Unauthenticated("Electric-Principal is believed only from a trusted proxy.")


# --- Handlers ---------------------------------------------------------------------------------

CLAIM_TOKEN_PREFIX = "pwc_"  # noqa: S105
WRITE_TOKEN_PREFIX = "pww_"  # noqa: S105


def claim_token(request: HttpRequest) -> str | None:
    """The claim or write token that the request carries, or None.

    Raises Unauthenticated when two headers carry two tokens.
    """
    held = bearer(request)
    header: str | None = request.META.get("HTTP_ELECTRIC_CLAIM_TOKEN")
    if held is not None and not held.startswith((CLAIM_TOKEN_PREFIX, WRITE_TOKEN_PREFIX)):
        if header is not None:
            # A bad Bearer is refused whatever else is sent. Electric-Principal says nothing here: a
            # handler names its entity's creator there, and its runner's owner by its access token.
            principal_behind(held)
        return header
    if held is not None and header not in (None, held):
        raise Unauthenticated("Two different claim tokens were sent.")
    return header or held
