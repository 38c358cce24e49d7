"""``manage.py after_restore``: run it first on a database that was restored from a backup."""

from typing import Any

from django.core.management.base import BaseCommand

from claims import restore


class Command(BaseCommand):
    """Raise every generation past all that was handed out, and fence the active claims."""

    help = (
        "After a restore and before any server starts: raise every generation past all that may "
        "have been handed out since the backup, and fence the claims that were active in it."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        """Say what was done."""
        recovery = restore.recover()
        self.stdout.write(f"fenced {recovery.fenced} claims, woke {recovery.woken} entities")
