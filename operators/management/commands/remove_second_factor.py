"""``manage.py remove_second_factor``: for whoever lost both authenticator and recovery codes."""

from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser

if settings.PULLWAKE_TOTP != "off":
    from operators import second_factor


class Command(BaseCommand):
    """Take an operator's second factor away: the next login takes the password alone."""

    help = "Take an operator's second factor away; where one is required, it is asked for anew."

    def add_arguments(self, parser: CommandParser) -> None:
        """Whose."""
        parser.add_argument("username")

    def handle(self, *args: Any, **options: Any) -> None:
        """Say whether there was one."""
        if settings.PULLWAKE_TOTP == "off":
            raise CommandError("PULLWAKE_TOTP is off: nobody is asked for a second factor.")
        users = get_user_model()._default_manager
        user = users.filter(username=options["username"]).first()
        if user is None:
            raise CommandError(f"There is no user {options['username']}.")
        said = "is gone" if second_factor.remove(user) else "was not there"
        self.stdout.write(f"The second factor of {options['username']} {said}.")
