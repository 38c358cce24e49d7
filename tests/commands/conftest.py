"""What the tests of commands begin with: rows in a database of their own, and processes on it."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests import forks
from tests.support import Database, wait_until

SEED = """
from datetime import timedelta
from django.db import transaction
from django.db.models.functions import Now
from claims.models import ConsumerClaim
from dispatch.models import Entity, StreamEvent, Wake
from runners.models import Runner
from tests.factories import (
    ConsumerClaimFactory, DeadLetterFactory, EntityFactory, RunnerFactory, ServerPulseFactory,
    WakeFactory, ago
)

r1 = Runner.objects.filter(pk="r1").first() or RunnerFactory.create(id="r1", online=True)

@transaction.atomic  # a loop that runs already would expire what is half made
def claim(name, lapsed_h=None, **facts):
    if lapsed_h is not None:
        facts["claimed_at"] = ago(hours=lapsed_h + 1)
        facts["lease_expires_at"] = ago(hours=lapsed_h)
    ConsumerClaimFactory.create(entity__runner=r1, entity__url=f"/agent/{name}", **facts)
"""


def fill(database: Database, code: str) -> None:
    """Run Python on a database, with `SEED` before it: what it makes with the factories is there.

    In a process, as this one's ORM is connected to another database.
    """
    done = database.manage("shell", "--no-imports", "-c", SEED + code)
    assert done.returncode == 0, done.stderr


@contextmanager
def filled(template: Database, folder: Path, code: str) -> Iterator[Database]:
    """A copy of a template in which `fill` has made rows."""
    with template.copy(folder) as database:
        fill(database, code)
        yield database


@pytest.fixture
def seed(database: Database) -> Callable[[str], None]:
    """`fill` the test's database."""
    return partial(fill, database)


class Process:
    """A manage.py command that goes on until it is told to stop."""

    def __init__(self, database: Database, output: Path, *args: str) -> None:
        self.output = output
        with output.open("wb") as file:
            self.process = forks.start(args, {**os.environ, "DATABASE_URL": database.url}, file)

    @property
    def said(self) -> str:
        """All its output so far."""
        return self.output.read_text()

    def says(self, text: str) -> None:
        """Wait until it has said this."""
        wait_until(lambda: text in self.said or self.process.poll() is not None, timeout=30)
        assert text in self.said

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit status after a signal."""
        self.process.send_signal(number)
        return self.process.wait(15)

    def is_at(self, database: Database) -> bool:
        """Whether it uses the database: on PostgreSQL, whether it waits for a lock there."""
        assert self.process.poll() is None, self.said
        if database.path is not None:
            opened = psutil.Process(self.process.pid).open_files()
            return any(each.path == str(database.path) for each in opened)
        return database.waiting() > 0


@pytest.fixture
def start(database: Database, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start a command on the test's database."""
    started: list[Process] = []

    def run(*args: str) -> Process:
        started.append(Process(database, tmp_path / f"command-{len(started)}.log", *args))
        return started[-1]

    yield run
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
