"""Logging in at an OpenID Connect provider: PULLWAKE_OIDC_ISSUER.

Authlib does the protocol: discovery, state, nonce, PKCE, and the ID token's signature and claims.
It is an extra: without that setting nothing of it is imported.
"""

import logging
from functools import cache
from typing import Any

import requests
from authlib.integrations.base_client import OAuthError
from authlib.integrations.django_client import OAuth
from django.conf import settings
from django.contrib import admin, auth
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_GET, require_POST
from joserfc.errors import JoseError

from core.errors import Forbidden, ServiceUnavailable, Unauthenticated
from operators import admission
from operators.admission import Person

logger = logging.getLogger(__name__)

PATIENCE_S = 10
"""For each answer of the provider's."""

_NEXT, _ID_TOKEN = "oidc_next", "oidc_id_token"


@cache
def _client() -> Any:
    return OAuth().register(
        "oidc",
        server_metadata_url=f"{settings.PULLWAKE_OIDC_ISSUER}/.well-known/openid-configuration",
        client_id=settings.PULLWAKE_OIDC_CLIENT_ID,
        client_secret=settings.PULLWAKE_OIDC_CLIENT_SECRET or None,
        client_kwargs={
            "scope": settings.PULLWAKE_OIDC_SCOPES,
            "code_challenge_method": "S256",
            "default_timeout": PATIENCE_S,
        },
    )


@require_GET
def begin(request: HttpRequest) -> HttpResponse:
    """Send the browser to the provider."""
    wanted = request.GET.get("next", "")
    if url_has_allowed_host_and_scheme(wanted, {request.get_host()}, request.is_secure()):
        request.session[_NEXT] = wanted
    try:
        found: HttpResponse = _client().authorize_redirect(request, _own(request, "oidc-callback"))
    except (requests.RequestException, ValueError, KeyError, RuntimeError):
        logger.exception("the OpenID Connect provider cannot be asked")
        problem = ServiceUnavailable("The login provider does not answer. Try again later.")
        return admission.error_page(request, problem, 503)
    return found


@require_GET
def callback(request: HttpRequest) -> HttpResponse:
    """The browser is back: admit the person it brings, or say why not."""
    wanted = request.session.pop(_NEXT, reverse("admin:index"))
    try:
        id_token, claims = _proven(request)
    except (OAuthError, JoseError, requests.RequestException, ValueError, KeyError, RuntimeError):
        logger.warning("a login at the OpenID Connect provider failed", exc_info=True)
        admission.refuse(request, "unknown")
        problem = Unauthenticated("The login provider did not confirm who you are. Try again.")
        return admission.error_page(request, problem, 401)
    try:
        admission.admit(request, _person(claims))
    except Forbidden as problem:
        return admission.error_page(request, problem, 403)
    request.session[_ID_TOKEN] = id_token
    return HttpResponseRedirect(wanted)


def _proven(request: HttpRequest) -> tuple[str, dict[str, Any]]:
    """The ID token and its claims, with those of the userinfo that it lacks."""
    client = _client()
    issuer = settings.PULLWAKE_OIDC_ISSUER
    expected = {
        "iss": {"essential": True, "value": client.load_server_metadata()["issuer"]},
        "aud": {"essential": True, "value": client.client_id},
    }
    if expected["iss"]["value"].rstrip("/") != issuer:
        raise ValueError(f"{issuer} names itself {expected['iss']['value']}")
    token = client.authorize_access_token(request, claims_options=expected)
    claims = dict(token["userinfo"])
    if settings.PULLWAKE_OIDC_GROUPS_CLAIM not in claims and "userinfo_endpoint" in (
        client.load_server_metadata()
    ):
        more = client.userinfo(token=token)
        if more.get("sub") != claims["sub"]:
            raise ValueError("the userinfo is another's")
        claims = {**more, **claims}
    return token["id_token"], claims


def _person(claims: dict[str, Any]) -> Person:
    def said(name: str) -> str:
        value = claims.get(name)
        return value if isinstance(value, str) else ""

    return Person(
        said(settings.PULLWAKE_OIDC_USERNAME_CLAIM),
        admission.groups_of(claims.get(settings.PULLWAKE_OIDC_GROUPS_CLAIM)),
        email=said("email"),
        full_name=said("name"),
    )


@require_POST
def logout(request: HttpRequest) -> HttpResponse:
    """Log out here, and, for a person who came from the provider, there too."""
    id_token = request.session.get(_ID_TOKEN)
    if id_token is None:
        return admin.site.logout(request)
    auth.logout(request)
    try:
        # Without `post_logout_redirect_uri` a provider that does not know it would refuse.
        ended: HttpResponse = _client().logout_redirect(
            request, id_token_hint=id_token, client_id=settings.PULLWAKE_OIDC_CLIENT_ID
        )
    except (requests.RequestException, ValueError, RuntimeError):  # it may have no such page
        return HttpResponseRedirect(reverse("admin:login"))
    return ended


def _own(request: HttpRequest, name: str) -> str:
    """The address of a page of ours, as the provider knows it."""
    if settings.PULLWAKE_PUBLIC_URL:
        return f"{settings.PULLWAKE_PUBLIC_URL}{reverse(name)}"
    return request.build_absolute_uri(reverse(name))
