"""The pages: what they tell one to run is run here, or says why it is not."""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class

from core.version import VERSION
from pullwake.__main__ import add_commands
from tests.support import ROOT, Database, Server, block, wait_until

PAGES = ["../README.md", "../CONTRIBUTING.md", *sorted(p.name for p in ROOT.glob("docs/*.md"))]
BIN = Path(sys.executable).parent

FENCE = re.compile(r"(?: {4})?```(.*)")
"""In a list by four spaces: else the site begins another list after it."""

SHELLS = {"sh", "bash", "shell", "console"}
TONGUES = {"go", "ini", "json", "promql", "py", "python", "sql", "text", "toml", "ts", "typescript"}
"""Languages of blocks that are no commands."""


def lines(page: str) -> list[str]:
    return (ROOT / "docs" / page).read_text().splitlines()


def shell(script: str, server: Server | None = None, **env: str) -> str:
    """What it prints; the test fails unless it succeeds."""
    done = subprocess.run(
        ["bash", "-euc", as_here(script, server)],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_here(script: str, server: Server | None) -> str:
    """The script with this environment's programs, and at this server."""
    script = script.replace(".venv/bin/", f"{BIN}/")
    return script if server is None else script.replace("http://127.0.0.1:8000", server.url)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_commands_is_run_by_a_test_or_says_why_not(page):
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    inside = False
    before = ""
    for line in lines(page):
        fence = FENCE.fullmatch(line)
        assert fence or "```" not in line, line
        if fence and not inside:
            assert fence[1] in SHELLS | TONGUES, line
            if fence[1] in SHELLS:
                mark = r" *<!-- (run: [\w-]+|not run: .+) -->"
                assert re.fullmatch(mark, before), f"{before}\n{line}"
        # The other form of a block says nothing of its language.
        assert inside or before or not re.match(" {4}(?!<!--|```)", line), line
        if found := re.fullmatch(r"<!-- run: ([\w-]+) -->", before):
            assert f'block("{page}", "{found[1]}")' in tests, before
        inside ^= fence is not None
        before = line


SPAN = re.compile(r"`([^`\n]+)`")
NAMED = re.compile(r"(?:^|[;&(/] ?|\b(?=manage))(manage\.py|make|pullwake) ([a-z][\w-]*)([^|;&]*)")
"""A command, and what it is given; not where the word is another command's argument."""


def commands_of(page: str) -> Iterator[tuple[str, str, str]]:
    """Each that its blocks of commands and its sentences name."""
    inside = False
    for line in lines(page):
        if fence := FENCE.fullmatch(line):
            inside = not inside and fence[1] in SHELLS
        for code in [line] if inside else SPAN.findall(line):
            yield from NAMED.findall(code)


def options_of(parser: Any) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}


def test_every_command_that_a_page_names_is_there_and_takes_what_it_is_given():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: ([\w-]+)$", makefile, re.MULTILINE))
    of_people = add_commands(argparse.ArgumentParser())
    apps = get_commands()
    for page in PAGES:
        for program, name, given in commands_of(page):
            if program == "make":
                assert name in targets, f"{page}: make {name}"
                continue
            if program == "manage.py":
                assert name in apps, f"{page}: manage.py {name}"
                command = load_command_class(apps[name], name)
                known = options_of(command.create_parser("manage.py", name))
            else:
                assert name in of_people, f"{page}: pullwake {name}"
                known = options_of(of_people[name])
            assert set(re.findall(r" (--[\w-]+)", given)) <= known, f"{page}: {name}{given}"


@pytest.mark.server
def test_a_secret_key_is_one_that_production_mode_takes():
    key = shell(block("production.md", "secret-key")).strip()
    shell("python manage.py check --deploy", SECRET_KEY=key, PULLWAKE_MODE="production")


@pytest.mark.once
def test_the_first_users_and_tokens(database: Database):
    pages = (
        block("production.md", "first-users"),
        block("running.md", "tokens"),
        block("metrics.md", "metrics-token"),
    )
    said = shell("".join(pages), DATABASE_URL=database.url)
    assert len(re.findall(r"\bpw[am]_[\w-]+", said)) == 6
    superusers = "SELECT username FROM auth_user WHERE is_superuser AND is_active"
    assert database.execute(superusers) == [("alice",)]


@pytest.mark.once
def test_the_beginning_of_the_readme(server: Server):
    script = as_here(block("../README.md", "runner"), server)
    command = ["bash", "-euc", f"exec {script}"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as runner:
        try:
            wait_until(lambda: server.client(None).get("/_electric/runners").body)
            shell(block("../README.md", "hello"), server)

            def told() -> list[Any]:
                events = json.loads(shell(block("../README.md", "stream"), server))
                return [each["value"]["text"] for each in events if each["type"] == "output"]

            (text,) = wait_until(told)
            assert json.loads(text)["messages"][0]["value"]["payload"] == "Hello"
        finally:
            runner.terminate()
    assert runner.returncode == 0


@pytest.mark.once
def test_an_app_of_electric_agents_in_five_minutes(server: Server):
    made = json.loads(shell(block("electric-agents.md", "runner"), server))
    assert made["wake_stream"] == "/runners/my-app/wake"
    types, _, health = shell(block("electric-agents.md", "look"), server).partition("]")
    assert types == "["
    assert json.loads(health)["runner"]["id"] == "my-app"
    said = shell(block("electric-agents.md", "spawn"), server)
    assert '"url":"/chat/one"' in said
    assert '"payload":"Hello"' in said


def test_the_newest_release_of_the_changelog_is_this_version():
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(\d[^]]*)\]", changes, re.MULTILINE)[0] == VERSION
