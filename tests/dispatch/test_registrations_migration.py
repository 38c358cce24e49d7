"""The migration that gives types their registration, and entities the one they were made under."""

from collections.abc import Iterator

import pytest

from tests.support import Database

CREATOR = "/principal/user%3Aalice"


@pytest.fixture(scope="module")
def template(template: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """As the version before left it: /agent/before, then the type agent, then /agent/since."""
    with template.copy(tmp_path_factory.mktemp("before")) as database:
        migrate(database, "dispatch", "0003_active_epoch")
        for number, (kind, name, year) in enumerate(
            [("agent", "before", 2024), ("agent", "since", 2026), ("open", "e1", 2026)], start=1
        ):
            database.execute(
                "INSERT INTO dispatch_entity (type, url, subscription_key, tags, spawn_args,"
                " parent, created_by, created_at) VALUES (%s, %s, %s, '{}', '{}', '', %s, %s)",
                *(kind, f"/{kind}/{name}", str(number), CREATOR, f"{year}-01-01 00:00:00+00:00"),
            )
        for name in ("agent", "job"):
            database.execute(
                "INSERT INTO dispatch_entitytype (name, description, permission_grants, revision,"
                " registered_by, created_at) VALUES (%s, '', '[]', 1, %s, %s)",
                *(name, CREATOR, "2025-01-01 00:00:00+00:00"),
            )
        yield database


def migrate(database: Database, *where: str) -> None:
    done = database.manage("migrate", "--verbosity=0", *where)
    assert done.returncode == 0, done.stderr


def test_what_was_made_after_its_type_counts_as_made_under_it(database):
    migrate(database)
    types = dict(database.execute("SELECT name, registration FROM dispatch_entitytype"))
    assert all(types.values())
    assert len(set(types.values())) == 2
    assert dict(database.execute("SELECT url, registration FROM dispatch_entity")) == {
        "/agent/before": "",
        "/agent/since": types["agent"],
        "/open/e1": "",
    }


def test_a_server_of_the_version_before_goes_on_beside_it(database):
    """It names no registration, and takes a default runner out of its type when that is deleted."""
    migrate(database)
    database.execute(
        "INSERT INTO dispatch_entitytype (name, description, permission_grants, revision,"
        " registered_by, default_runner_id) VALUES ('new', '', '[]', 1, %s, 'r1')",
        CREATOR,
    )
    database.execute("UPDATE dispatch_entitytype SET default_runner_id = NULL")
    database.execute(
        "INSERT INTO dispatch_entity (type, url, subscription_key, tags, spawn_args, parent,"
        " created_by) VALUES ('new', '/new/e1', '', '{}', '{}', '', %s)",
        CREATOR,
    )
    ((registration,),) = database.execute(
        "SELECT registration FROM dispatch_entity WHERE url = '/new/e1'"
    )
    assert registration == ""
