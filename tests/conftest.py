"""Fixtures for every test: an API client in process, and real servers on real databases."""

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection, transaction
from django.test import TransactionTestCase

from dispatch.streams import waiters
from runners import tokens
from tests.proxies import PROGRAMS, found
from tests.support import Api, Database, Server, Servers, migrated_template

# Else each client of the pages first reads through all static files: longer than a test takes.
settings.WHITENOISE_AUTOREFRESH = True

PROCESSES = {"template", "database", "upgraded", "chromium", "client"}
"""Fixtures at the root of every process that tests start: its database, or itself."""


NOTES: list[Path] = []
"""The file of `--note-passed`, in the one process that writes it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """How `make test` runs what is marked `once` on one of its two databases."""
    group = parser.getgroup("pullwake")
    group.addoption(
        "--note-passed", type=Path, help="name there each test marked `once` that passes"
    )
    group.addoption(
        "--passed", type=Path, help="leave out tests marked `once` that are named there"
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what passed; with workers, theirs come to the process that started them, too."""
    if NOTES and "once" in report.keywords and report.when == "call" and report.passed:
        with NOTES[0].open("a") as notes:
            notes.write(f"{report.nodeid}\n")


def pytest_configure(config: pytest.Config) -> None:
    """Begin the notes anew."""
    # Nothing that is collected is garbage, and there is much to look through.
    gc.disable()
    notes = config.getoption("note_passed")
    if notes is not None and not hasattr(config, "workerinput"):
        notes.write_text("")
        NOTES.append(notes)


def _leave_out_passed(config: pytest.Config, items: list[pytest.Item]) -> None:
    notes = config.getoption("passed")
    if notes is None or not notes.exists():
        return
    passed = set(notes.read_text().splitlines())
    left_out = [each for each in items if each.nodeid in passed and each.get_closest_marker("once")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [each for each in items if each not in left_out]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what tests need by the fixtures they use; skip what this machine or run cannot do."""
    _leave_out_passed(config, items)
    lacks = {
        "postgres": settings.SQLITE and "needs PostgreSQL (make test-postgres)",
        "sqlite": not settings.SQLITE and "needs SQLite (make test-sqlite)",
        "browser": not shutil.which("chromium") and "needs Chromium",
        # Where CI comes without them, they fail.
        "proxy": not (os.environ.get("CI") or all(map(found, PROGRAMS)))
        and f"needs {', '.join(PROGRAMS)}",
        "promtool": not (os.environ.get("CI") or shutil.which("promtool")) and "needs promtool",
        # The API is one on both databases.
        "clients": not (
            settings.SQLITE
            and Path(f"{sys.prefix}-clients/.ready").exists()
            and all(map(shutil.which, ("java", "node", "npm", "jq")))
        )
        and "needs `make clients`, Java, Node.js, npm and jq, and SQLite",
        "interop": not (shutil.which("node") and shutil.which("npm")) and "needs Node.js and npm",
    }
    for item in items:
        starts = PROCESSES.intersection(getattr(item, "fixturenames", ()))
        if starts or item.get_closest_marker("promtool"):
            item.add_marker("server")
        for marker, reason in lacks.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=str(reason)))
    # Files that wait for processes first, so that no worker is left alone with them at the end; and
    # in each those tests last that meet what stands for all of them (tests/standing.py).
    waiting = {item.path for item in items if item.get_closest_marker("server")}
    places = {path: place for place, path in enumerate(dict.fromkeys(item.path for item in items))}
    items.sort(
        key=lambda item: (
            item.path not in waiting,
            places[item.path],
            sum(name.startswith("standing_") for name in getattr(item, "fixturenames", ())),
        )
    )


def pytest_collection_finish() -> None:
    """Look for garbage again, but rarely, and through nothing of what is there to stay."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """The tests' database; it cannot be dropped while a reader's listener is connected to it."""
    yield
    waiters.hub.close()
    waiters.announcer.close()
    for thread in (waiters.hub._listener, waiters.hub._sweeper):
        if thread is not None:
            thread.join()


MADE_BY_MIGRATE = {
    "django_migrations",
    "django_content_type",
    "auth_permission",
    "auth_group",
    "auth_group_permissions",
}


@pytest.fixture(scope="session", autouse=True)
def _quick_flush() -> Iterator[None]:
    """What a test has committed is deleted after it, and nothing else.

    Django truncates every table, and makes all permissions and roles anew: longer than most tests.
    """

    def flush(*_: object) -> None:
        tables = set(connection.introspection.django_table_names(only_existing=True))
        with transaction.atomic(), connection.cursor() as cursor:
            for table in sorted(tables - MADE_BY_MIGRATE):
                cursor.execute(f"DELETE FROM {table}")  # noqa: S608

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", flush)
        yield


@pytest.fixture(autouse=True)
def _no_remembered_tokens() -> Iterator[None]:
    """A token that one test issued is unknown to the next."""
    tokens.forget()
    yield
    tokens.forget()


@pytest.fixture
def alice(db: None) -> Api:
    """The API as user:alice calls it, in process."""
    return Api("user:alice")


@pytest.fixture
def bob(db: None) -> Api:
    """The API as user:bob calls it, in process."""
    return Api("user:bob")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database with every migration and no rows, for `database` to copy."""
    with migrated_template(tmp_path_factory.mktemp("template")) as database:
        yield database


@pytest.fixture
def database(template: Database, tmp_path: Path) -> Iterator[Database]:
    """A database of the test's own, for server processes; of the kind that this run is on."""
    with template.copy(tmp_path) as copy:
        yield copy


@pytest.fixture
def start_server(
    database: Database, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Any]:
    """Start server processes on `database`: ``start_server(PULLWAKE_LONG_POLL_MS=500)``."""
    servers: list[Server] = []
    forked = request.node.get_closest_marker("anew") is None

    def start(**env: object) -> Server:
        log = tmp_path / f"server-{len(servers)}.log"
        settings = {name: str(value) for name, value in env.items()}
        server = Server(database.url, log, settings, forked=forked)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def all_servers(template: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Those of `servers`, of which one outlives its module."""
    shared = Servers(template, tmp_path_factory.mktemp("servers"))
    yield shared
    shared.close()


@pytest.fixture(scope="module")
def servers(all_servers: Servers) -> Iterator[Servers]:
    """Server processes that tests share: ``servers.lend(PULLWAKE_LONG_POLL_MS=500)``."""
    yield all_servers
    all_servers.close_rare()


@pytest.fixture
def server(servers: Servers) -> Server:
    """A server with the default settings, in development mode; other tests use it, too."""
    return servers.lend()


@pytest.fixture
def mortal(start_server: Any) -> Server:
    """The same, the test's own: it may end it, or what it needs."""
    started: Server = start_server()
    return started
