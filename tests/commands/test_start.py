"""Each bad setting ends a command at once, in one sentence with a hint."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from config.serving import startup
from core.version import VERSION
from tests.support import ROOT, Database, empty_database, free_port

pytestmark = pytest.mark.server

KEY = {
    "PULLWAKE_MODE": "production",
    "SECRET_KEY": os.environ["SECRET_KEY"],
    "ALLOWED_HOSTS": "wake.example",
}
LITE = {"DATABASE_URL": "sqlite:///:memory:"}
SETTING, AWAY = startup.BAD_SETTING, startup.UNAVAILABLE
SECRET = "s3cret-password"


@dataclass(frozen=True)
class Case:
    """A command that does not begin: what it is given, and what it says."""

    says: str
    env: dict[str, str] = field(default_factory=dict)
    status: int = SETTING
    command: str = "serve"


CASES = {
    "url": Case("DATABASE_URL is no URL; it must look like postgres://", {"DATABASE_URL": "db"}),
    "scheme": Case("DATABASE_URL begins with mysql://;", {"DATABASE_URL": "mysql://h/n"}),
    "port in it": Case(
        "DATABASE_URL cannot be read; a password's special characters must be percent-encoded",
        {"DATABASE_URL": f"postgres://u:{SECRET}/x@h/n"},
    ),
    "name in it": Case("DATABASE_URL names no database;", {"DATABASE_URL": "postgres://u@h"}),
    "listen": Case(
        "PULLWAKE_LISTEN_URL begins with sqlite://; it must look like postgres://",
        {"DATABASE_URL": "postgres://h/n", "PULLWAKE_LISTEN_URL": "sqlite:////x"},
    ),
    "level": Case(
        "PULLWAKE_LOG_LEVEL is 'loud'; it must be 'DEBUG'", {"PULLWAKE_LOG_LEVEL": "loud"}
    ),
    "number": Case("WEB_CONCURRENCY is 'lots'; it must be a number", {"WEB_CONCURRENCY": "lots"}),
    "yes": Case("PULLWAKE_NOTIFY is 'maybe'; it must be yes or no", {"PULLWAKE_NOTIFY": "maybe"}),
    "unknown": Case("did you mean PULLWAKE_LONG_POLL_MS?", {"PULLWAKE_LONG_POL_MS": "1"}),
    "short key": Case("SECRET_KEY is too short or too simple", {**KEY, "SECRET_KEY": "short"}),
    "network": Case("set PULLWAKE_MODE=production; if everybody", {"HOST": "0.0.0.0"}),  # noqa: S104
    "host": Case(
        "HOST is 'nowhere.invalid', which is no address", {**KEY, "HOST": "nowhere.invalid"}
    ),
    "folder": Case(
        "SQLite in /nowhere/x: unable to open database file; its folder must be there",
        {"DATABASE_URL": "sqlite:////nowhere/x"},
        command="migrate",
    ),
    "away": Case(
        "PostgreSQL at u@127.0.0.1:1/n: Connection refused; start the database",
        {"DATABASE_URL": f"postgres://u:{SECRET}@127.0.0.1:1/n"},
        status=AWAY,
    ),
    "away too": Case(
        "PostgreSQL at u@127.0.0.1:1/n: Connection refused; start the database",
        {"DATABASE_URL": f"postgres://u:{SECRET}@127.0.0.1:1/n"},
        status=AWAY,
        command="expire_claims",
    ),
}


def begin(case: Case, root: Path = ROOT) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "manage.py", case.command],
        cwd=root,
        env={**os.environ, "PORT": str(free_port()), **LITE, **case.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check(process: "subprocess.Popen[str]", case: Case) -> None:
    said, error = process.communicate(timeout=60)
    assert said == ""
    assert re.fullmatch(r"pullwake: .+\n", error), error
    assert case.says in error
    assert SECRET not in error
    assert process.returncode == case.status


@pytest.fixture(scope="module")
def begun() -> Iterator[dict[str, Any]]:
    """All of `CASES` at once: each spends a second on imports, before it finds out."""
    processes = {name: begin(case) for name, case in CASES.items()}
    yield processes
    for each in processes.values():
        with each:  # closes what nobody has read
            each.kill()


@pytest.mark.once  # each names its own database, or none
@pytest.mark.parametrize("name", CASES)
def test_a_bad_setting_is_a_sentence_with_a_hint(begun, name):
    check(begun[name], CASES[name])


@pytest.mark.once
def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        case = Case(f"PORT {port} is taken on 127.0.0.1; stop", {"PORT": str(port)}, AWAY)
        check(begin(case), case)


@pytest.mark.once
@pytest.mark.parametrize("env", [{}, KEY])
def test_a_folder_for_data_that_cannot_be_written_to(tmp_path, env):
    """In a copy whose var/ is where nobody can make a file, not even root."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    shutil.copy(ROOT / "manage.py", tmp_path)
    for name in ("core", "runners", "dispatch", "claims", "api", "operators", "templates"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "var").symlink_to("/proc")
    case = Case(
        f"{tmp_path}/var cannot be written to", {"DATABASE_URL": "", "SECRET_KEY": "", **env}
    )
    check(begin(case, tmp_path), case)


def test_a_database_without_tables(tmp_path):
    with empty_database(tmp_path) as database:
        case = Case(
            "run manage.py migrate", {"DATABASE_URL": database.url}, command="expire_claims"
        )
        check(begin(case), case)


@pytest.mark.postgres
def test_a_database_that_is_not_there_and_one_that_does_not_let_pullwake_in(database: Database):
    away = urlunsplit(urlsplit(database.url)._replace(path="/nowhere"))
    case = Case('database "nowhere" does not exist; create', {"DATABASE_URL": away})
    check(begin(case), case)

    ((file,),) = database.execute("SHOW hba_file")
    rules = Path(file).read_text()
    own = urlsplit(database.url)
    host = own.hostname or "127.0.0.1"
    url = f"postgres://locked:{SECRET}@{host}:{own.port}{own.path}"
    database.execute("CREATE ROLE locked LOGIN PASSWORD 'another'")
    try:
        Path(file).write_text(f"host all locked all scram-sha-256\n{rules}")
        database.execute("SELECT pg_reload_conf()")
        case = Case("password authentication failed for user", {"DATABASE_URL": url})
        check(begin(case), case)
    finally:
        Path(file).write_text(rules)
        database.execute("SELECT pg_reload_conf()")
        database.execute("DROP ROLE locked")


@pytest.mark.anew
def test_production_says_what_it_serves_where_with_what_and_how_many(database, start_server):
    server = start_server(
        PULLWAKE_MODE="production", PULLWAKE_PUBLIC_URL="https://wake.example", WEB_CONCURRENCY=3
    )
    lines = server.log.read_text().splitlines()
    said = json.loads(next(each for each in lines if '"pullwake.serve"' in each))
    assert said["event"] == (
        f"Pullwake {VERSION} serves the API at {said['api']} and the admin at {said['admin']}, "
        f"listening on {said['listening']}, with {said['database']} (workers: {said['workers']})."
    )
    assert said["api"] == "https://wake.example/_electric"
    assert said["admin"] == "https://wake.example/admin/"
    assert said["listening"] == server.url.removeprefix("http://")
    own = urlsplit(database.url)
    if database.path is None:
        assert said["database"].endswith(f"@{own.hostname}:{own.port}{own.path}")
        assert said["workers"] == 3
    else:
        assert said["database"] == f"SQLite in {database.path}"
        assert said["workers"] == 1
