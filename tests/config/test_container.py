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


def test_the_database_is_nobodys_to_reach_but_the_servers():
    postgres = SERVICES["postgres"]
    assert "ports" not in postgres
    assert postgres["networks"] == ["database"]
    assert COMPOSE["networks"]["database"] == {"internal": True}
    assert postgres["user"] == "postgres"


def test_every_image_is_named_by_its_digest():
    dockerfile = (ROOT / "Dockerfile").read_text()
    images = re.findall(r"^(?:ARG PYTHON=|FROM (?!\$))(\S+)", dockerfile, re.MULTILINE)
    images += [each["image"] for each in SERVICES.values() if "image" in each]
    assert len(images) == 2
    assert all(DIGEST.search(image) for image in images)


def test_the_container_is_not_roots():
    assert re.search(r"^USER 10001$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


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
