"""manage.py migrate: at the database's own address, one process at a time, in nobody's way."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from config.serving.management.commands.migrate import LOCK
from tests.support import ROOT, Database, empty_database, wait_until

pytestmark = pytest.mark.postgres


@contextmanager
def migrating(
    database: Database, log: Path, *arguments: str
) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "migrate", *arguments],
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": database.url},
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_it_waits_for_another_that_migrates_and_says_so(tmp_path: Path):
    log = tmp_path / "log"
    with empty_database(tmp_path) as database, psycopg.connect(database.url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        with migrating(database, log) as process:
            wait_until(lambda: "Another process migrates" in log.read_text())
            assert process.poll() is None
            assert database.execute("SELECT to_regclass('django_migrations')") == [(None,)]
            other.rollback()
            assert process.wait(60) == 0, log.read_text()
        assert database.execute("SELECT count(*) > 20 FROM django_migrations") == [(True,)]


def test_nobody_waits_for_long_behind_one_that_waits_for_a_lock(database: Database, tmp_path: Path):
    """And it goes on where it was."""
    log = tmp_path / "log"
    assert database.manage("migrate", "claims", "0003").returncode == 0
    waits = psycopg.connect(database.url, options="-c lock_timeout=5000", autocommit=True)
    with psycopg.connect(database.url) as report, waits:
        report.execute("SELECT FROM claims_consumerclaim")
        with migrating(database, log) as process:
            wait_until(database.waiting)
            # As long as the migration waits for the report, whoever comes waits for both.
            waits.execute("SELECT FROM claims_consumerclaim")
            wait_until(lambda: "it is tried again" in log.read_text())
            assert process.poll() is None
            report.rollback()
            assert process.wait(60) == 0, log.read_text()


def test_what_takes_long_is_not_cut_short(database: Database, tmp_path: Path):
    """Requests have their limits; a migration that fills a column has none."""
    assert database.manage("migrate", "claims", "0003").returncode == 0
    done = database.manage("migrate", PULLWAKE_STATEMENT_TIMEOUT_MS="1")
    assert done.returncode == 0, done.stderr


def test_an_index_is_added_while_others_write_and_again_after_it_was_broken_off(
    database: Database, tmp_path: Path
):
    log = tmp_path / "log"
    assert database.manage("migrate", "dispatch", "0001").returncode == 0
    assert indexes(database, "wake_oldest") == ""
    # As one leaves it that was broken off: there, and used by nobody.
    database.execute("CREATE INDEX wake_oldest ON dispatch_wake (id)")
    with psycopg.connect(database.url) as writing:
        writing.execute("LOCK TABLE dispatch_wake IN ROW EXCLUSIVE MODE")
        with migrating(database, log, "dispatch", "0002") as process:
            wait_until(database.waiting)
            # Were it to lock the table against writers, this would wait, too.
            database.execute("DELETE FROM dispatch_wake")
            writing.rollback()
            assert process.wait(60) == 0, log.read_text()
    assert "runner_id" in indexes(database, "wake_oldest")


def indexes(database: Database, name: str) -> str:
    found = database.execute("SELECT indexdef FROM pg_indexes WHERE indexname = %s", name)
    return "".join(definition for (definition,) in found)
