"""What a process of the server does besides answering requests."""

from django.conf import settings
from django.db import connection
from django.http import HttpResponse

from api.http_errors import error_response, translate
from claims.reaper import Housekeeper
from config.serving import life, probes
from config.serving.collector import Collector
from config.serving.cooperative import Watchdog
from config.serving.sampler import Sampler
from core import sqlite, tracing
from core.rounds import Rounds
from dispatch.due import Timekeeper
from dispatch.streams.waiters import announcer, hub
from runners.tokens import Watch

if settings.PULLWAKE_TRACES:
    from config.serving.spans import Spans
if settings.SENTRY_DSN:
    from config.serving import error_reports


class Process:
    """The threads of one worker, from its start to its stop."""

    def __init__(self) -> None:
        self._needed: list[Rounds] = [Housekeeper(), Timekeeper(), Watch()]
        if not settings.SQLITE:
            watchdog = Watchdog(settings.PULLWAKE_STATEMENT_TIMEOUT_MS / 1000)
            self._needed += [life.self_check, watchdog]
        self._threads = [Collector(), Sampler(), *self._needed]

    def start(self) -> None:
        """Begin; Django is set up and all that is needed is imported."""
        if settings.SQLITE:
            # When the last connection closes, SQLite syncs the disk four times (a heartbeat: 2.0 ms
            # rather than 0.95 ms, seconds on a busy disk): one stays open.
            connection.ensure_connection()
            sqlite.serve(settings.DATABASES["default"]["NAME"])
        if settings.PULLWAKE_TRACES:
            tracing.tracer = self._spans = Spans()
        life.needed += self._needed
        for thread in self._threads:
            thread.start()

    def answer(self, exc: BaseException) -> HttpResponse:
        """The answer to a failure before there was a request."""
        return error_response(translate(exc))

    @property
    def peer_timeout_s(self) -> int:
        """Seconds that a peer has for its request, and for each part of its answer."""
        patience_s: int = settings.PULLWAKE_PEER_TIMEOUT_S
        return patience_s

    def drain(self) -> int:
        """Report this server as not ready: for how many seconds it still serves."""
        probes.draining.set()
        drain_s: int = settings.PULLWAKE_DRAIN_S
        return drain_s

    def stop(self) -> None:
        """Begin no further round, answer held requests, and send the last announcements."""
        life.needed.clear()
        for thread in self._threads:
            thread.stop()
        hub.close()
        announcer.close()

    def flush(self) -> None:
        """Send the spans and errors that are left; the caller decides how long to wait."""
        if settings.PULLWAKE_TRACES:
            self._spans.flush()
        if settings.SENTRY_DSN:
            error_reports.flush()
