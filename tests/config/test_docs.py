"""The pages: what they tell one to run is run here, or says why it is not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.version import VERSION
from tests.support import ROOT, Database, block

PAGES = sorted((ROOT / "docs").glob("*.md"))


def shell(script: str, **env: str) -> str:
    """What it prints; the test fails unless it succeeds."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=ROOT,
        env={**os.environ, "PATH": path, **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", [each.name for each in PAGES])
def test_every_block_of_commands_is_run_by_a_test_or_says_why_not(page):
    lines = (ROOT / "docs" / page).read_text().splitlines()
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for before, line in zip(["", *lines], lines, strict=False):
        if re.fullmatch(r"```(sh|bash|shell|console)", line):
            assert re.fullmatch(r"<!-- (run: [\w-]+|not run: .+) -->", before), f"{before}\n{line}"
        if found := re.fullmatch(r"<!-- run: ([\w-]+) -->", before):
            assert f'block("{page}", "{found[1]}")' in tests, before


@pytest.mark.server
def test_a_secret_key_is_one_that_production_mode_takes():
    key = shell(block("production.md", "secret-key")).strip()
    shell("python manage.py check --deploy", SECRET_KEY=key, PULLWAKE_MODE="production")


def test_the_first_users_and_tokens(database: Database):
    said = shell(block("production.md", "first-users"), DATABASE_URL=database.url)
    assert len(re.findall(r"\bpw[am]_[\w-]+", said)) == 2
    superusers = "SELECT username FROM auth_user WHERE is_superuser AND is_active"
    assert database.execute(superusers) == [("alice",)]


def test_the_newest_release_of_the_changelog_is_this_version():
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(\d[^]]*)\]", changes, re.MULTILINE)[0] == VERSION
