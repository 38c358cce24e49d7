"""Access tokens: issued once, stored hashed, cached for a moment, watched while in use."""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db.models import Q
from django.db.models.functions import Now

from core.identifiers import hash_secret, new_secret
from core.prepared import Param, Select
from core.principals import Principal
from core.rounds import Rounds
from runners.models import AccessToken

logger = logging.getLogger(__name__)

PREFIX = "pwa"
METRICS_PREFIX = "pwm"

REMEMBERED = timedelta(seconds=5)
"""How long a verified token is believed without asking; a revoked one is refused after that."""

USE_WRITTEN = timedelta(minutes=1)
"""A token's last use is written down at most this often."""

_CACHE_SIZE = 50_000
_VALID = Select(
    lambda: (
        AccessToken.objects.valid()
        .filter(token_hash=Param("token_hash"))
        .only("principal", "runner_id", "scope", "expires_at")
    )
)
_lock = threading.Lock()
_remembered: "dict[str, tuple[float, Credential]]" = {}
_uses: dict[str, str] = {}
"""From where each token was used that was verified since uses were last written down."""
_holders: dict[str, set[threading.Event]] = defaultdict(set)
"""What is to be set when a token is revoked, by its hash."""
_revoked: dict[str, float] = {}
"""When this process heard of each that was revoked, for as long as anything may be held open."""
_HELD_S = 900.0


@dataclass(frozen=True, slots=True)
class Credential:
    """A valid access token: whose it is, what it opens, and when it expires."""

    principal: Principal
    runner_id: str | None
    scope: str
    token_hash: str
    expires_at: datetime | None

    def seconds_left(self) -> float:
        """For how many seconds it is still valid, as far as this process knows."""
        if self.token_hash in _revoked:
            return 0.0
        if self.expires_at is None:
            return float("inf")
        return (self.expires_at - datetime.now(UTC)).total_seconds()


def issue(
    principal: Principal,
    *,
    label: str = "",
    expires_at: datetime | None = None,
    runner_id: str | None = None,
    scope: AccessToken.Scope = AccessToken.Scope.ALL,
) -> tuple[AccessToken, str]:
    """Issue a new token: the row, and its secret, which cannot be shown again.

    ``runner_id`` limits it to that runner of the principal's, which need not exist yet. With
    ``scope`` "metrics" it opens /metrics alone, and belongs to no runner.
    """
    secret = new_secret(METRICS_PREFIX if scope == AccessToken.Scope.METRICS else PREFIX)
    token = AccessToken.objects.create(
        principal=principal.url,
        token_hash=hash_secret(secret),
        label=label,
        expires_at=expires_at,
        runner_id=runner_id,
        scope=scope,
    )
    return token, secret


def revoke(token: AccessToken) -> bool:
    """Revoke a token: whether this call did it; it opens nothing after `REMEMBERED`."""
    return bool(AccessToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=Now()))


def revoke_at_once(token: AccessToken) -> bool:
    """Revoke a token, and return only when no server accepts it any more, `REMEMBERED` later."""
    revoked = revoke(token)
    time.sleep(REMEMBERED.total_seconds())
    return revoked


def verify(secret: str, address: str = "") -> Credential | None:
    """The valid token with this secret, or None. At most one statement.

    ``address``: from where it is used.
    """
    key = hash_secret(secret)
    known = _remembered.get(key)
    if known is not None and known[0] > time.monotonic():
        return known[1]
    token = _VALID.first(token_hash=key)
    if token is None:
        _remembered.pop(key, None)
        return None
    principal = Principal.parse(token.principal)
    credential = Credential(principal, token.runner_id, token.scope, key, token.expires_at)
    with _lock:
        if len(_remembered) >= _CACHE_SIZE:
            _remembered.clear()
        _remembered[key] = (time.monotonic() + REMEMBERED.total_seconds(), credential)
        _uses[key] = address
    return credential


def last_known(secret: str, address: str = "") -> Credential | None:
    """The token as this process last verified it, however long ago, or None.

    One that was revoked is forgotten by the next round of `Watch`.
    """
    key = hash_secret(secret)
    known = _remembered.get(key)
    if known is None or known[1].seconds_left() <= 0:
        return None
    with _lock:
        _uses[key] = address
    return known[1]


def forget() -> None:
    """Forget all cached tokens, so that the database is asked again; for tests."""
    _remembered.clear()
    _uses.clear()
    _revoked.clear()


# --- Beside the requests ----------------------------------------------------------------------


@contextmanager
def held_open(credential: Credential | None, revoked: threading.Event) -> Iterator[None]:
    """Sets ``revoked`` if the token is revoked while the block runs."""
    if credential is None:
        yield
        return
    with _lock:
        _holders[credential.token_hash].add(revoked)
    try:
        yield
    finally:
        with _lock:
            _holders[credential.token_hash].discard(revoked)
            if not _holders[credential.token_hash]:
                del _holders[credential.token_hash]


def note_uses() -> None:
    """Record which tokens were used since, and from where: one statement an address."""
    with _lock:
        used, by_address = dict(_uses), defaultdict(list)
        _uses.clear()
    for key, address in used.items():
        by_address[address].append(key)
    stale = Q(last_used_at=None) | Q(last_used_at__lt=Now() - USE_WRITTEN)
    for address, keys in by_address.items():
        AccessToken.objects.filter(stale, token_hash__in=keys).update(
            last_used_at=Now(), last_used_from=address or None
        )


def end_revoked(since: timedelta) -> None:
    """Forget the tokens that were revoked in this time, and end the streams that they hold open."""
    if not _remembered and not _holders:
        return
    revoked = AccessToken.objects.filter(revoked_at__gt=Now() - since)
    for key in revoked.values_list("token_hash", flat=True):
        with _lock:
            _remembered.pop(key, None)
            _revoked.setdefault(key, time.monotonic())
            holders = list(_holders.get(key, ()))
        for holder in holders:
            holder.set()
    long_ago = time.monotonic() - _HELD_S
    for key in [key for key, heard in _revoked.items() if heard < long_ago]:
        del _revoked[key]


class Watch(Rounds):
    """The thread of a server that ends what revoked tokens hold, and records last uses."""

    NAME = "tokens"
    EVERY_S = 2.0
    FAILED = "the tokens' watch failed, and tries again"
    MARGIN = timedelta(seconds=30)
    """How much further back a round looks: a revocation may be committed long after it began."""

    def __init__(self) -> None:
        super().__init__()
        self._asked = time.monotonic()

    def _round(self) -> None:
        began = time.monotonic()
        end_revoked(timedelta(seconds=began - self._asked) + self.MARGIN)
        self._asked = began
        note_uses()
