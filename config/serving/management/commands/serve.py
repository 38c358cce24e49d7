"""``manage.py serve``: bring the database up to date, say what to do next, and serve."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser
from django.db import connection
from django.urls import reverse

from config.serving import certificates, direct, startup
from core.version import VERSION
from operators import login

logger = logging.getLogger("pullwake.serve")

NEXT = """
Pullwake serves on {url} ({mode} mode, {database}).

  Admin      {admin}
  API        {url}/_electric/docs

Start a runner, in another terminal:

  {pullwake} run --url {url} --id my-laptop --exec 'cat'

Make an entity that is dispatched to it, and send it a message:

  curl -X PUT {url}/_electric/entities/agent/hello -H 'Content-Type: application/json' \\
       -d '{{"dispatch_policy": {{"targets": [{{"type": "runner", "runnerId": "my-laptop"}}]}}}}'
  curl -X POST {url}/_electric/entities/agent/hello/send -H 'Content-Type: application/json' \\
       -d '{{"payload": "Hello"}}'

See it done:

  curl {url}/agent/hello/main
"""

SERVING = (
    "Pullwake %(version)s serves the API at %(api)s and the admin at %(admin)s, listening on "
    "%(listening)s, with %(database)s (workers: %(workers)d)."
)
"""Production mode's first line, whose parts are its fields, too."""


class Command(BaseCommand):
    """Migrate, and serve with gunicorn."""

    help = "Bring the database up to date, say what to do next, and serve until stopped."

    def add_arguments(self, parser: CommandParser) -> None:
        """The options."""
        parser.add_argument(
            "--no-migrate",
            action="store_true",
            help="serve the database as it is: /readyz says 503 while migrations are missing",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Become gunicorn; raises `startup.CannotStart` where it could not serve."""
        startup.require_port()
        certificates.require()
        if not options["no_migrate"]:
            call_command("migrate", verbosity=0)
        elif not settings.SQLITE:
            direct.require(self.stderr)
        url = settings.PULLWAKE_PUBLIC_URL or f"http://{settings.HOST}:{settings.PORT}"
        if settings.DEVELOPMENT:
            again = "manage.py login_once gives another"
            self.stdout.write(
                NEXT.format(
                    url=url,
                    mode=settings.PULLWAKE_MODE,
                    database=startup.database(),
                    admin=f"{url}{login.one_time_path()}   (logs you in, once; {again})",
                    pullwake=_pullwake(),
                )
            )
        else:
            _retire_developer()
            facts = {
                "version": VERSION,
                "api": f"{url}/_electric",
                "admin": f"{url}{reverse('admin:index')}",
                "listening": f"{settings.HOST}:{settings.PORT}",
                "database": startup.database(),
                "workers": settings.WORKERS,
            }
            logger.info(SERVING, facts, extra=facts)
        self.stdout.flush()
        connection.close()
        os.chdir(settings.BASE_DIR)
        gunicorn = [
            sys.executable,
            "-m",
            "gunicorn",
            "-c",
            "config/serving/gunicorn.conf.py",
            "config.wsgi",
        ]
        os.execv(sys.executable, gunicorn)  # noqa: S606


def _pullwake() -> str:
    """The SDK's command: this environment's, or the plain name for the runner's machine."""
    beside = Path(sys.executable).with_name("pullwake")
    return os.path.relpath(beside) if beside.exists() else "pullwake"


def _retire_developer() -> None:
    """Remove the login of development mode's user, which has no password, outside that mode."""
    developer = get_user_model()._default_manager.filter(
        username=login.DEVELOPER, password="", is_active=True
    )
    if developer.exists():  # a standby takes no update
        developer.update(is_active=False)
