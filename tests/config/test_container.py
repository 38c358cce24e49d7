"""The container and compose.yaml keep to the hardening lists; the app's role is no superuser."""

import os
import re
import subprocess
from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest
import yaml

from tests.postgres import psql
from tests.support import ROOT, Database

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}\b")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_writes_nothing_gains_nothing_and_takes_no_more_than_its_share(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"pids_limit", "mem_limit", "cpus"} <= set(service)


@pytest.mark.parametrize("name", ["postgres", "pgbouncer"])
def test_the_database_is_nobodys_to_reach_but_the_servers(name):
    service = SERVICES[name]
    assert "ports" not in service
    assert service["networks"] == ["database"]
    assert COMPOSE["networks"]["database"] == {"internal": True}


def test_two_servers_that_only_the_proxy_lets_reach():
    first, second = (SERVICES[f"pullwake-{number}"] for number in (1, 2))
    assert first == second
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]
    assert SERVICES["proxy"]["environment"]["PULLWAKE_SERVERS"] == "pullwake-1:8000 pullwake-2:8000"


def test_servers_go_to_the_database_by_pgbouncer():
    environment = SERVICES["pullwake-1"]["environment"]
    recipe = (ROOT / "deploy" / "pgbouncer.ini").read_text()
    (port,) = re.findall(r"^listen_port = (\d+)$", recipe, re.MULTILINE)
    assert environment["DATABASE_URL"].endswith(f"@pgbouncer:{port}/pullwake")
    assert environment["PULLWAKE_LISTEN_URL"].endswith("@postgres:5432/pullwake")


def test_pgbouncer_is_told_the_password_and_where_postgres_is(tmp_path):
    """As its container does it, with a `pgbouncer` that shows what it was given."""
    (tmp_path / "pgbouncer").write_text('#!/bin/sh\ncat "$1"\n')
    (tmp_path / "pgbouncer").chmod(0o700)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PULLWAKE_PASSWORD": "c0ffee"}
    script = ROOT / "deploy" / "pgbouncer.sh"
    done = subprocess.run(
        ["/bin/sh", script], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, check=True
    )
    given = (ROOT / "deploy" / "pgbouncer.ini").read_text()
    assert done.stdout.decode() == given.replace("postgres.example", "postgres")
    users = tmp_path / "userlist.txt"
    assert users.read_text() == '"pullwake" "c0ffee"\n'
    assert users.stat().st_mode & 0o077 == 0


def test_every_image_is_named_by_its_digest():
    files = [ROOT / "Dockerfile", *(ROOT / "deploy").glob("*.Dockerfile")]
    built = "".join(file.read_text() for file in files)
    images = re.findall(r"^(?:ARG PYTHON=|FROM (?!\$))(\S+)", built, re.MULTILINE)
    images += [each["image"] for each in SERVICES.values() if "image" in each]
    assert len(images) == 4
    assert len(set(images)) == 2  # PostgreSQL's is PgBouncer's, too, and the server's the proxy's
    assert all(DIGEST.search(image) for image in images)


def test_the_container_is_not_roots():
    assert re.search(r"^USER 10001$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for other in (ROOT / "deploy").glob("*.Dockerfile"):
        assert re.search(r"^USER [1-9]\d*$", other.read_text(), re.MULTILINE)
    assert SERVICES["postgres"]["user"] == "postgres"


@pytest.fixture
def app_database() -> Iterator[Database]:
    """The database as the postgres container makes it, and Pullwake's own role opens it."""
    superuser = os.environ["DATABASE_URL"]
    script = ROOT / "deploy" / "postgres-role.sql"
    command = [str(psql()), "-v", "ON_ERROR_STOP=1", "-X", "-f", str(script), superuser]
    subprocess.run(command, env={**os.environ, "PULLWAKE_PASSWORD": "it's"}, check=True)
    own = urlsplit(superuser)
    yield Database(f"postgres://pullwake:it%27s@{own.hostname}:{own.port}/pullwake")
    with psycopg.connect(superuser, autocommit=True) as connection:
        connection.execute("DROP DATABASE pullwake WITH (FORCE)")
        connection.execute("DROP ROLE pullwake")


@pytest.mark.postgres
def test_its_role_has_what_it_needs_and_is_no_superuser(app_database):
    done = app_database.manage("migrate", "--verbosity=0")
    assert done.returncode == 0, done.stderr
    rights = "SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = %s"
    assert app_database.execute(rights, "pullwake") == [(False, False, False)]
