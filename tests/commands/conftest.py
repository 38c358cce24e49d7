"""What the tests of commands begin with: rows in a database of their own, and processes on it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import ROOT, Database, wait_until

SEED = """
from datetime import timedelta
from django.db.models import F
from django.db.models.functions import Now
from claims.models import ConsumerClaim, ServerPulse
from dispatch.models import DispatchState, StreamEvent, Wake, subscription_key
from tests.support import Api

api = Api("user:alice")

def work(*names, **runner):
    api.register(**runner)
    for name in names:
        api.make_entity(f"/agent/{name}")
        api.send(f"/agent/{name}")

def claim(*names, lapsed_h=None):
    work(*names)
    for name in names:
        api.claim(event={"subscription_id": f"runner:r1:{subscription_key(f'/agent/{name}')}"})
    if lapsed_h is not None:
        ConsumerClaim.objects.filter(entity_url__in=[f"/agent/{name}" for name in names]).update(
            claimed_at=Now() - timedelta(hours=lapsed_h + 1),
            lease_expires_at=Now() - timedelta(hours=lapsed_h),
        )
"""


@pytest.fixture
def seed(database: Database) -> Callable[[str], None]:
    """Run Python on the test's database, with `SEED` before it."""

    def run(code: str) -> None:
        done = database.manage(
            "shell", "--no-imports", "-c", SEED + code, PULLWAKE_PUBLIC_URL="http://127.0.0.1"
        )
        assert done.returncode == 0, done.stderr

    return run


class Process:
    """A manage.py command that goes on until it is told to stop."""

    def __init__(self, database: Database, output: Path, *args: str) -> None:
        self.output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", *args],
                cwd=ROOT,
                env={**os.environ, "DATABASE_URL": database.url},
                stdout=file,
                stderr=file,
            )

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
