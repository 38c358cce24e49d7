"""Checks, at `manage.py check` and every start, of settings that start but then fail users."""

from typing import Any

from django.conf import settings
from django.core import checks


@checks.register()
def check_hosts(**kwargs: Any) -> list[checks.CheckMessage]:
    """A production server that would refuse all callers, or hand out claims without a way back."""
    if settings.DEVELOPMENT or settings.HOSTS_ARE_NAMED:
        return []
    return [
        checks.Warning(
            "Neither PULLWAKE_PUBLIC_URL nor ALLOWED_HOSTS is set: only callers on this machine, "
            "by the name of localhost, are answered.",
            hint="Set PULLWAKE_PUBLIC_URL to where runners reach this server, for instance "
            "https://wake.example.com: callback URLs are made of it.",
            id="pullwake.W001",
        )
    ]


@checks.register()
def check_proxies(**kwargs: Any) -> list[checks.CheckMessage]:
    """A production server that believes whoever reaches it."""
    proxies = settings.PULLWAKE_TRUSTED_PROXIES
    if settings.DEVELOPMENT or not any(network.prefixlen == 0 for network in proxies):
        return []
    return [
        checks.Warning(
            "PULLWAKE_TRUSTED_PROXIES names every address: whoever reaches this server may be any "
            "principal, without a token.",
            hint="Name the proxy's own address.",
            id="pullwake.W006",
        )
    ]


@checks.register()
def check_logins(**kwargs: Any) -> list[checks.CheckMessage]:
    """External logins that admit nobody, or everybody."""
    found: list[checks.CheckMessage] = []
    elsewhere = settings.PULLWAKE_OIDC_ISSUER or settings.PULLWAKE_REMOTE_USER_HEADER
    if elsewhere and not settings.PULLWAKE_OPERATOR_GROUPS:
        found.append(
            checks.Warning(
                "Operators are to log in elsewhere, and PULLWAKE_OPERATOR_GROUPS is not set: none "
                "of them is let in.",
                hint="Say which of their groups are operators here, and which viewers, for "
                "instance PULLWAKE_OPERATOR_GROUPS=platform=operators,support=viewers.",
                id="pullwake.W003",
            )
        )
    if settings.PULLWAKE_OIDC_ISSUER.startswith("http:") and not settings.DEVELOPMENT:
        found.append(
            checks.Warning(
                "PULLWAKE_OIDC_ISSUER is plain HTTP: whoever is on the way can log in as anybody.",
                hint="Use the provider's https address.",
                id="pullwake.W004",
            )
        )
    if settings.PULLWAKE_OIDC_ISSUER and not (settings.PULLWAKE_PUBLIC_URL or settings.DEVELOPMENT):
        found.append(
            checks.Warning(
                "PULLWAKE_OIDC_ISSUER is set without PULLWAKE_PUBLIC_URL: where the provider sends "
                "browsers back to is made of each request's Host.",
                hint="Set PULLWAKE_PUBLIC_URL, and register its /admin/oidc/callback/ there.",
                id="pullwake.W005",
            )
        )
    if settings.PULLWAKE_REMOTE_USER_HEADER and any(
        network.prefixlen == 0 for network in settings.PULLWAKE_REMOTE_USER_PROXIES
    ):
        found.append(
            checks.Error(
                "PULLWAKE_REMOTE_USER_PROXIES names every address: whoever reaches this server may "
                "say who they are.",
                hint="Name the proxy's own address.",
                id="pullwake.E002",
            )
        )
    return found
