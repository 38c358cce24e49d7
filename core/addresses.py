"""Where a request comes from: the peer's address, or the one that a trusted proxy names."""

import ipaddress
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from django.conf import settings
from django.http import HttpRequest

Network = IPv4Network | IPv6Network


def is_among(address: str, networks: Iterable[Network]) -> bool:
    """Whether it is an IP address of one of these networks."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)


def is_trusted_proxy(address: str) -> bool:
    """Whether PULLWAKE_TRUSTED_PROXIES names it."""
    return is_among(address, settings.PULLWAKE_TRUSTED_PROXIES)


def client_address(request: HttpRequest) -> str:
    """The IP address of the caller, "" where there is none (a Unix socket's peer).

    In ``X-Forwarded-For`` it is the last one that is not a trusted proxy's: a caller can make up
    those before it. Without trusted proxies the header counts for nothing.
    """
    address: str = request.META.get("REMOTE_ADDR", "")
    if settings.PULLWAKE_TRUSTED_PROXIES:
        forwarded = request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")
        while is_trusted_proxy(address) and forwarded:
            named = forwarded.pop().strip()
            try:
                address = str(ipaddress.ip_address(named))
            except ValueError:
                break
    # After a % comes an interface's name, or whatever a caller wrote: no database takes it.
    return address.partition("%")[0]
