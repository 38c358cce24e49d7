"""``manage.py import_electric_agents``: take over what the existing server has in its database."""

import json
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from core.principals import Principal
from moving import source
from moving.importer import Importer


def _principal(text: str) -> Principal:
    try:
        return Principal.parse(text)
    except ValueError as problem:
        raise ArgumentTypeError(f"{text!r} is not a principal: {problem}") from None


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise ArgumentTypeError(f"{text!r} is not a directory")
    return path


class Command(BaseCommand):
    """Take over runners, types, entities and what they wait for; report what was not taken."""

    help = (
        "Take over runners, entity types, entities, claims, schedules and wake registrations from "
        "the PostgreSQL database of an Electric Agents server, which is only read. Stop that "
        "server first. It may be run again: what is here stays as it is. Ends with a report; exit "
        "status 1 if nothing could be read."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """The options."""
        parser.add_argument(
            "database_url",
            metavar="DATABASE_URL",
            help="the existing server's; without its password where PGPASSWORD or ~/.pgpass has it",
        )
        parser.add_argument("--dry-run", action="store_true", help="change nothing, and report")
        parser.add_argument("--tenant", default="default", help="whose rows (default: default)")
        parser.add_argument(
            "--streams",
            type=_folder,
            metavar="DIR",
            help="main streams: in <type>/<id>/main.json the array that a GET of it answers, or in "
            "main.jsonl an event a line; without, each begins with its entity's creation",
        )
        parser.add_argument(
            "--owner",
            type=_principal,
            metavar="PRINCIPAL",
            help="of types and entities that name nobody, as user:alice",
        )
        parser.add_argument("--json", action="store_true", help="the report as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Take over, and report on standard output."""
        _require_migrated()
        try:
            with source.opened(options["database_url"], options["tenant"]) as opened:
                report = Importer(
                    opened,
                    owner=options["owner"],
                    folder=options["streams"],
                    dry_run=options["dry_run"],
                ).run()
        except source.Unreadable as problem:
            raise CommandError(str(problem)) from None
        if options["json"]:
            self.stdout.write(json.dumps(msgspec.to_builtins(report.as_json()), indent=2))
        else:
            self.stdout.write("\n".join(report.lines()))


def _require_migrated() -> None:
    try:
        executor = MigrationExecutor(connection)
        missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except DatabaseError as problem:
        raise CommandError(f"Pullwake's own database cannot be used: {problem}") from None
    if missing:
        raise CommandError(
            "Pullwake's own database (DATABASE_URL in its environment) is not migrated: run "
            "manage.py migrate first."
        )
