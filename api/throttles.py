"""How often a principal may call, and how many streams it may hold, in each worker process.

Both are counted in memory, without a statement; so a principal gets these limits from each worker
of each server.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from rest_framework.throttling import BaseThrottle

from api.metrics import HELD_READS, HELD_READS_ENDED
from core.errors import RateLimited

BURST_S = 10
"""This many seconds' worth of calls may be made as fast as the caller can."""

_MOST_KNOWN = 10_000
_LONGEST_KEY = 64
"""Characters: no token is longer."""

_buckets: dict[str, tuple[float, float]] = {}
"""By caller: the calls that were left, and when that was."""


def caller_key(request: HttpRequest) -> str:
    """Who calls: a principal's URL, or the token of a claim, which stands for its handler.

    Whoever calls in another's name is the caller, not the other: anybody can say a name.
    """
    user: Any = request.user
    principal = getattr(user, "owner", None) or getattr(user, "principal", user)
    if principal is not None and getattr(user, "claim", None) is None:
        return str(principal.url)
    meta = request.META
    sent = str(meta.get("HTTP_ELECTRIC_CLAIM_TOKEN") or meta.get("HTTP_AUTHORIZATION") or "")
    # However "Bearer" is written before it; made-up ones may be as long as a header.
    return "".join(sent.split()[-1:])[:_LONGEST_KEY]


class CallerThrottle(BaseThrottle):
    """A token bucket for each caller; PULLWAKE_RATE_PER_S fills it."""

    _wait_s = 0.0

    def allow_request(self, request: HttpRequest, view: Any) -> bool:
        """Whether the caller has a call left; takes it."""
        rate = settings.PULLWAKE_RATE_PER_S
        key = caller_key(request) if rate else ""
        if not key:
            return True
        now = monotonic()
        left, since = _buckets.get(key, (rate * BURST_S, now))
        left = min(left + (now - since) * rate, rate * BURST_S)
        if left < 1:
            self._wait_s = (1 - left) / rate
            return False
        if len(_buckets) >= _MOST_KNOWN and key not in _buckets:
            _buckets.clear()  # each starts anew with a full bucket, as much as it may have
        _buckets[key] = (left - 1, now)
        return True

    def wait(self) -> float:
        """Seconds until the next call is left."""
        return self._wait_s


def refuse(wait_s: float | None) -> RateLimited:
    """The error for a caller that calls too often."""
    return RateLimited(retry_after_s=max(1, math.ceil(wait_s or 0)))


_held: Counter[str] = Counter()


class Hold:
    """A place among the streams that a caller holds; raises RateLimited when none is free.

    ``mode``: long-poll or sse.
    """

    def __init__(self, key: str, mode: str) -> None:
        most = settings.PULLWAKE_MAX_STREAMS
        if most and _held[key] >= most:
            raise RateLimited(f"The caller holds {most} streams already.", retry_after_s=10)
        self._key: str | None = key
        self._mode = mode
        _held[key] += 1
        HELD_READS.labels(mode).inc()

    def release(self) -> None:
        """Give the place back; a second call does nothing."""
        key, self._key = self._key, None
        if key is not None:
            _held[key] -= 1
            HELD_READS.labels(self._mode).dec()
            HELD_READS_ENDED.labels(self._mode).inc()
            if not _held[key]:
                del _held[key]


@contextmanager
def held(key: str, mode: str) -> Iterator[None]:
    """Hold a stream for as long as the block takes. Raises RateLimited."""
    place = Hold(key, mode)
    try:
        yield
    finally:
        place.release()


class Released(Iterator[str]):
    """Iterates a stream, and gives its place back when it ends or is closed, even unread."""

    def __init__(self, said: Iterator[str], place: Hold) -> None:
        self._said = said
        self._place = place

    def __next__(self) -> str:
        try:
            return next(self._said)
        except BaseException:
            self._place.release()
            raise

    def close(self) -> None:
        """Called by the server when the answer is over."""
        self._said.close()  # type: ignore[attr-defined]
        self._place.release()
