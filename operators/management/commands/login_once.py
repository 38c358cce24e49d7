"""``manage.py login_once``: another address that logs the developer in, once."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from operators.login import one_time_path


class Command(BaseCommand):
    """Print it."""

    help = "Print an address of the admin that logs the developer in, once; in development mode."

    def handle(self, *args: Any, **options: Any) -> None:
        """Make one, as a server does when it starts."""
        if not settings.DEVELOPMENT:
            raise CommandError("This is for development mode. Use createsuperuser, and log in.")
        url = settings.PULLWAKE_PUBLIC_URL or f"http://{settings.HOST}:{settings.PORT}"
        self.stdout.write(f"{url}{one_time_path()}")
