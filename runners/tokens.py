"""Access tokens: issued once, stored hashed, remembered for a moment."""

import threading
import time
from datetime import datetime, timedelta

from django.db.models.functions import Now

from core.identifiers import hash_secret, new_secret
from core.prepared import Param, Update
from core.principals import Principal
from runners.models import AccessToken

PREFIX = "pwa"

REMEMBERED = timedelta(seconds=5)
"""How long a verified token is believed without asking; a revoked one is refused after that."""

_CACHE_SIZE = 50_000
_remembered: dict[str, tuple[float, Principal]] = {}

_USE = Update(
    lambda: AccessToken.objects.valid().filter(token_hash=Param("token_hash")),
    returning=["principal"],
    last_used_at=Now(),
)
_lock = threading.Lock()


def issue(
    principal: Principal, *, label: str = "", expires_at: datetime | None = None
) -> tuple[AccessToken, str]:
    """A new token and its secret, which is never to be had again."""
    secret = new_secret(PREFIX)
    token = AccessToken.objects.create(
        principal=principal.url, token_hash=hash_secret(secret), label=label, expires_at=expires_at
    )
    return token, secret


def revoke(token: AccessToken) -> bool:
    """Whether this call revoked it; it opens nothing from `REMEMBERED` from now on."""
    return bool(AccessToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=Now()))


def principal_of(secret: str) -> Principal | None:
    """Whose valid token this is, or None. At most one statement."""
    key = hash_secret(secret)
    known = _remembered.get(key)
    if known is not None and known[0] > time.monotonic():
        return known[1]
    rows = _USE.returned(token_hash=key)
    if not rows:
        _remembered.pop(key, None)
        return None
    principal = Principal.parse(rows[0][0])
    with _lock:
        if len(_remembered) >= _CACHE_SIZE:
            _remembered.clear()
        _remembered[key] = (time.monotonic() + REMEMBERED.total_seconds(), principal)
    return principal


def forget() -> None:
    """Ask the database again for every token; for tests."""
    _remembered.clear()
