"""``manage.py prune``: delete what is past its retention."""

import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from claims import retention
from claims.management.commands.expire_claims import positive_int


class Command(BaseCommand):
    """Delete what is past its retention."""

    help = (
        "Delete ended claims, past wakes, failed timers, events of ended entities, and what the "
        "audit log has of callers of the API, that are older than PULLWAKE_RETENTION_DAYS; and of "
        "living entities the acked events that their types do not keep. Servers do this "
        "hourly by themselves."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """The options."""
        parser.add_argument(
            "--batch", type=positive_int, default=retention.BATCH, help="rows in a transaction"
        )
        parser.add_argument("--dry-run", action="store_true", help="count, and delete nothing")

    def handle(self, *args: Any, **options: Any) -> None:
        """Delete in batches; SIGTERM finishes the batch."""
        stopped = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        if options["dry_run"]:
            for name, count in retention.counted():
                self.stdout.write(f"would delete {count} {name}")
            return
        for name, batches in retention.pruning(options["batch"]):
            deleted = 0
            for count in batches:
                deleted += count
                if stopped.is_set():
                    break
            self.stdout.write(f"deleted {deleted} {name}")
            if stopped.is_set():
                return
