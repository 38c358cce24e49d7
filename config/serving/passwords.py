"""Logins must not stall other requests: passwords are hashed in another thread, one at a time."""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache, partial

from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from gevent import monkey
from gevent.threadpool import ThreadPool

from config.error_pages import crowded
from core.addresses import client_address

_NICE = 10
"""Hashing takes what the loop leaves of a processor: no heartbeat waits for a login."""


@lru_cache
def _pool() -> ThreadPool:
    """One thread: several at once would take every processor from the loop."""
    return ThreadPool(1)


class Hasher(PBKDF2PasswordHasher):
    """Django's own hasher and hashes; in a gevent worker they are computed in another thread."""

    def encode(self, password: str, salt: str, iterations: int | None = None) -> str:
        """The hash, as it is stored."""
        encode = partial(super().encode, password, salt, iterations)
        if not monkey.is_module_patched("threading"):
            return encode()
        return str(_pool().apply(_give_way, (encode,)))


def _give_way(encode: "partial[str]") -> str:
    if sys.platform == "linux":  # there 0 is this thread, and elsewhere the whole process
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    return encode()


PATIENCE_S = 10.0
"""How long a login waits for those before it, until it is refused."""
REST_S = 0.5
"""How long a process rests from logins after each, also after one that was refused."""


class LoginTurns:
    """Middleware: a process handles logins one after another, with a rest after each.

    django-axes looks at the failures so far, and counts the next one after checking its password,
    so several at once would each be a free guess; and their pages and hashes slow heartbeats down.
    Those of one address wait for each other first, so that who tries many stands once in the line
    that everybody waits in. A waiting login holds no connection to the database.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response
        self._of_address = [threading.Lock() for _ in range(256)]
        self._turn = threading.Lock()
        self._rests_until = 0.0

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """The answer, when it is this login's turn."""
        if request.method != "POST" or request.path_info != reverse("admin:login"):
            return self._get_response(request)
        number = hash(client_address(request)) % len(self._of_address)
        with ExitStack() as held:
            for lock in (self._of_address[number], self._turn):
                if not lock.acquire(timeout=PATIENCE_S):
                    return crowded(request)
                held.callback(lock.release)
            time.sleep(max(self._rests_until - time.monotonic(), 0))
            try:
                return self._get_response(request)
            finally:
                self._rests_until = time.monotonic() + REST_S
