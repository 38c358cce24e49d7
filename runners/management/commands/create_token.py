"""``manage.py create_token``: issue an access token."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.admin.models import ADDITION
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils import timezone
from django.utils.dateparse import parse_datetime, parse_duration

from core import audit
from core.clock import iso
from core.identifiers import is_id
from core.principals import Principal
from runners import tokens
from runners.models import AccessToken

MAX_LABEL = 256
NEVER = "never"


class Command(BaseCommand):
    """Issue an access token for a principal, and show it this once."""

    help = "Issue an access token. It is shown this once; only its hash is stored."

    def add_arguments(self, parser: CommandParser) -> None:
        """The options."""
        parser.add_argument("principal", help="kind:id, for instance user:alice")
        parser.add_argument("--label", default="", help="what it is for, shown in the admin")
        parser.add_argument(
            "--runner", help="id of the one runner that it is for, which need not exist yet"
        )
        parser.add_argument(
            "--metrics",
            action="store_true",
            help="it is for /metrics alone, and the principal for the log: system:prometheus",
        )
        parser.add_argument(
            "--expires",
            help="days (30), a duration (P30D, 12:00:00), a time (2027-01-31T00:00Z), or never; "
            "default: PULLWAKE_TOKEN_DAYS",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the token on standard output, and all else on standard error."""
        try:
            principal = Principal.parse(options["principal"])
        except ValueError as exc:
            raise CommandError(f"{options['principal']!r} is not a principal: {exc}.") from None
        if len(options["label"]) > MAX_LABEL:
            raise CommandError(f"--label is longer than {MAX_LABEL} characters.")
        runner_id = options["runner"]
        if runner_id is not None and not is_id(runner_id):
            raise CommandError(f"{runner_id!r} is not the id of a runner.")
        if runner_id is not None and options["metrics"]:
            raise CommandError("A token is for a runner (--runner) or for metrics (--metrics).")
        scope = AccessToken.Scope.METRICS if options["metrics"] else AccessToken.Scope.ALL
        expires = options["expires"] or str(settings.PULLWAKE_TOKEN_DAYS or NEVER)
        expires_at = None if expires == NEVER else _expiry(expires)
        with transaction.atomic():
            token, secret = tokens.issue(
                principal,
                label=options["label"],
                expires_at=expires_at,
                runner_id=runner_id,
                scope=scope,
            )
            said = f"Issued for {principal.key} by manage.py create_token."
            audit.record(token, said, flag=ADDITION)
        until = f"until {iso(expires_at)}" if expires_at else "until it is revoked"
        self.stderr.write(f"A token for {principal.key}, valid {until}; it is not shown again:")
        self.stdout.write(secret)


def _expiry(text: str) -> Any:
    now = timezone.now()
    try:
        if text.isdecimal():
            expires_at = now + timedelta(days=int(text))
        elif (duration := parse_duration(text)) is not None:
            expires_at = now + duration
        else:
            expires_at = parse_datetime(text) or now
    except (ValueError, OverflowError):
        expires_at = now
    if timezone.is_naive(expires_at):
        expires_at = timezone.make_aware(expires_at)
    if expires_at <= now:
        raise CommandError(f"--expires {text!r} is not a time to come.")
    return expires_at
