"""``manage.py revoke_token``: revoke an access token, and take back what it may hold."""

import sys
from typing import Any

from django.contrib.admin.models import CHANGE
from django.core.management.base import BaseCommand, CommandError, CommandParser

from claims import endings
from core import audit
from core.identifiers import hash_secret, is_number
from core.principals import Principal
from runners import tokens
from runners.models import AccessToken

STDIN = "-"
_MOST_DIGITS = 18


class Command(BaseCommand):
    """Revoke an access token."""

    help = (
        "Revoke an access token: it opens nothing within five seconds. With --fence, the claims of "
        "the runners that its bearer may be are then taken back, so that they write nothing more."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """The options."""
        parser.add_argument(
            "token", help="its number, from its page in the admin; or - to read the token itself"
        )
        parser.add_argument("--fence", action="store_true", help="also take back what it may hold")
        parser.add_argument("--dry-run", action="store_true", help="only say what would be done")

    def handle(self, *args: Any, **options: Any) -> None:
        """Say what was done."""
        token = _find(options["token"])
        fence = options["fence"]
        named = f"token {token.pk} of {Principal.parse(token.principal).key}"
        if token.label:
            named += f" ({token.label})"
        if options["dry_run"]:
            held = endings.held_with(token).count()
            fenced = f", and {_claims(held)} taken back" if fence else ""
            self.stdout.write(f"The {named} would be revoked{fenced}.")
            return
        taken = endings.revoke_and_take_back(token) if fence else tokens.revoke(token) or None
        if taken is None:
            raise CommandError(f"The {named} was revoked before.")
        fenced = f", and {_claims(taken)} taken back" if fence else ""
        audit.record(token, f"Revoked by manage.py revoke_token{fenced}.", flag=CHANGE)
        self.stdout.write(f"The {named} is revoked{fenced}.")


def _claims(number: int) -> str:
    return "1 claim" if number == 1 else f"{number} claims"


def _find(said: str) -> AccessToken:
    if said == STDIN:
        found = AccessToken.objects.filter(token_hash=hash_secret(sys.stdin.readline().strip()))
    elif is_number(said, _MOST_DIGITS):
        found = AccessToken.objects.filter(pk=int(said))
    else:
        raise CommandError("Name it by its number, or give the token itself on standard input (-).")
    token = found.first()
    if token is None:
        raise CommandError("There is no such token.")
    return token
