"""Who calls: by a bearer token, a proxy's header, or (development mode) nothing; or a handler.

A handler proves itself with the claim or write token of its entity's active claim, in
``Electric-Claim-Token`` or ``Authorization: Bearer``; `api.acting` defines what it may do for
others.
"""

from typing import Any

from django.conf import settings
from django.http import HttpRequest
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import SAFE_METHODS

from core.addresses import client_address, is_trusted_proxy
from core.errors import Forbidden, PullwakeError, Unauthenticated
from core.principals import DEVELOPER, Principal
from runners import tokens


class Authentication(BaseAuthentication):
    """What all kinds of authentication share."""

    def authenticate_header(self, request: HttpRequest) -> str:
        """The challenge that goes with a 401."""
        return "Bearer"


class PrincipalAuthentication(Authentication):
    """Calls made by a principal; ``request.user`` is a `Principal`."""

    def authenticate(self, request: HttpRequest) -> tuple[Principal, None]:
        """The caller. Raises Unauthenticated, or Forbidden when two credentials disagree."""
        return principal_of(request), None


class RunnerAuthentication(Authentication):
    """The same, also by a token limited to one runner; ``request.auth`` is that runner's id."""

    def authenticate(self, request: HttpRequest) -> tuple[Principal, str | None]:
        """The caller. Raises Unauthenticated, or Forbidden when two credentials disagree."""
        return reader_of(request)


class ReaderAuthentication(Authentication):
    """The same, for a stream that handlers read, too: they are the view's to let in."""

    def authenticate(self, request: HttpRequest) -> tuple[Principal, str | None] | None:
        """The caller, or None for a claim's token. Raises what `RunnerAuthentication` raises."""
        is_read = request.method in SAFE_METHODS
        return reader_of(request) if is_read and claim_token(request) is None else None


class MetricsAuthentication(Authentication):
    """By a metrics token; in development mode like any call."""

    def authenticate(self, request: HttpRequest) -> tuple[Principal, None]:
        """The caller. Raises Unauthenticated, and Forbidden for a token of another scope."""
        secret = bearer(request)
        if secret is not None and secret.startswith(f"{tokens.METRICS_PREFIX}_"):
            return _scraper(request, secret), None
        principal = principal_of(request)
        if not settings.DEVELOPMENT:
            raise Forbidden("Metrics are for metrics tokens alone.")
        return principal, None


def _scraper(request: HttpRequest, secret: str) -> Principal:
    address = client_address(request)
    # A token that this process let in before is not looked up: while the database is away that
    # would take as long as Prometheus waits.
    token = tokens.last_known(secret, address) or tokens.verify(secret, address)
    if token is None:
        raise Unauthenticated(NOT_VALID)
    return token.principal


def bearer(request: HttpRequest) -> str | None:
    """The secret in ``Authorization: Bearer``, or None without that header.

    Raises Unauthenticated for any other content of the header.
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


NOT_VALID = "The access token is unknown, revoked or expired."


FOR_METRICS = "The access token is for /metrics, and opens nothing else."


FOR_ONE_RUNNER = "The access token is for one runner, and opens nothing else."


def principal_of(request: HttpRequest) -> Principal:
    """The principal that calls, by the rules of the wire contract's section Principals.

    Raises Forbidden for a token that is limited to one runner.
    """
    principal, runner_id = reader_of(request)
    if runner_id is not None:
        raise Forbidden(FOR_ONE_RUNNER)
    return principal


def reader_of(request: HttpRequest) -> tuple[Principal, str | None]:
    """The principal that calls, and the runner that its token is limited to, if any."""
    principal, named, runner_id = proven_and_named(request)
    if named != principal:
        raise Forbidden(NAMES_ANOTHER)
    return principal, runner_id


def proven_and_named(request: HttpRequest) -> tuple[Principal, Principal, str | None]:
    """The principal that calls, the one that it names, and the runner that its token is limited to.

    Only `api.acting` lets them differ.
    """
    secret = bearer(request)
    if secret is None:
        principal = _unproven(request)
        return principal, principal, None
    token = _behind(request, secret)
    return token.principal, _named(request) or token.principal, token.runner_id


def access_token(request: HttpRequest) -> tokens.Credential | None:
    """The access token of an authenticated caller, if it has one."""
    secret = bearer(request)
    if secret is None or secret.startswith((CLAIM_TOKEN_PREFIX, WRITE_TOKEN_PREFIX)):
        return None
    return _behind(request, secret)


HANDLER = "handler"
"""Who calls, for the log, where a claim's own token says no more."""


def caller_name(request: HttpRequest, who: Any, status: int) -> str:
    """Who calls, for the log: the principal's key, and for whom; "unknown" with a bad credential.

    ``who``: the authenticated user, if the view authenticates.
    """
    if who is not None:
        principal, owner = getattr(who, "principal", who), getattr(who, "owner", None)
        if owner is not None:
            return f"{owner.key} for {principal.key}"
        handler = getattr(who, "claim", None) is not None
        return f"handler of {who.url} for {principal.key}" if handler else str(principal.key)
    if status == 401:
        return "unknown"
    try:
        if claim_token(request) is not None:
            return HANDLER
        return proven_and_named(request)[0].key
    except PullwakeError:
        return "unknown"


def _behind(request: HttpRequest, secret: str) -> tokens.Credential:
    token = tokens.verify(secret, client_address(request))
    if token is None:
        raise Unauthenticated(NOT_VALID)
    if token.scope:
        raise Forbidden(FOR_METRICS)
    return token


def _named(request: HttpRequest) -> Principal | None:
    header: str | None = request.META.get("HTTP_ELECTRIC_PRINCIPAL")
    if header is None:
        return None
    if "," in header:  # how servers join two such headers; a comma in an id arrives encoded
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

    Raises Unauthenticated when two headers carry different tokens.
    """
    held = bearer(request)
    header: str | None = request.META.get("HTTP_ELECTRIC_CLAIM_TOKEN")
    if held is not None and not held.startswith((CLAIM_TOKEN_PREFIX, WRITE_TOKEN_PREFIX)):
        if header is not None:
            # A bad Bearer is refused whatever else is sent. Electric-Principal proves nothing: a
            # handler names its entity's creator there, and its runner's owner by its access token.
            _behind(request, held)
        return header
    if held is not None and header not in (None, held):
        raise Unauthenticated("Two different claim tokens were sent.")
    return header or held
