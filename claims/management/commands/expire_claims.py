"""``manage.py expire_claims``: one round of the reaper, or one after another."""

import signal
import threading
from argparse import ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import OperationalError, connection

from claims import reaper
from core.clock import iso


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def positive_int(text: str) -> int:
    """A whole number above 0."""
    value = positive(text)
    if value != int(value):
        raise ArgumentTypeError(f"{text!r} is not a whole number")
    return int(value)


class Command(BaseCommand):
    """Expire lapsed claims, emit stale wakes again, and wake entities whose delay is over."""

    help = (
        "Expire claims whose lease has lapsed, free their entities and wake those with work left; "
        "emit wakes again that stayed unclaimed. Servers do this by themselves: this is for "
        "looking (--dry-run), for doing it now, and for doing it elsewhere (--loop)."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """The options."""
        parser.add_argument("--loop", action="store_true", help="go on until SIGTERM or SIGINT")
        parser.add_argument("--interval", type=positive, default=5.0, help="seconds between rounds")
        parser.add_argument(
            "--limit", type=positive_int, default=reaper.BATCH, help="rows of a kind in a round"
        )
        parser.add_argument("--dry-run", action="store_true", help="say what would be expired")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run a round, or with --loop rounds."""
        stopped = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        self._round(options)
        while options["loop"] and not stopped.wait(options["interval"]):
            self._round(options, go_on=True)

    def _round(self, options: dict[str, Any], *, go_on: bool = False) -> None:
        try:
            away_since = reaper.servers_away_since()
            if away_since is not None:
                self.stdout.write(
                    f"No server since {iso(away_since)}: nobody could renew, nothing is expired."
                )
            if options["dry_run"]:
                self._say(options["limit"])
                return
            done = reaper.reap(limit=options["limit"])
            self.stdout.write(
                f"expired {done.expired}, emitted again {done.reemitted}, retried {done.retried}"
            )
        except OperationalError as exc:
            if not (options["loop"] and go_on):
                raise
            self.stderr.write(f"the database is away, trying again: {exc}")
        finally:
            connection.close()
            self.stdout.flush()

    def _say(self, limit: int) -> None:
        claims = list(reaper.expirable()[:limit])
        for claim in claims:
            self.stdout.write(
                f"{claim.consumer_id} epoch {claim.epoch} of {claim.entity_url} "
                f"on {claim.runner_name}, lapsed since {claim.lease_expires_at:%Y-%m-%dT%H:%M:%SZ}"
            )
        self.stdout.write(f"would expire {len(claims)}")
