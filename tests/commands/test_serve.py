"""manage.py serve: what `make run` runs."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import pytest

from config.serving.management.commands import serve
from tests.support import ROOT, Database, Server, wait_until


def fresh(database, folder):
    """A database without any table."""
    if database.path is not None:
        return Database(f"sqlite:///{folder / 'fresh.sqlite3'}")
    database.execute("DROP SCHEMA public CASCADE")
    database.execute("CREATE SCHEMA public")
    return database


@pytest.fixture
def first(database, tmp_path):
    """A server that was started on a database without any table."""
    server = Server(fresh(database, tmp_path).url, tmp_path / "server.log", {})
    server.start()
    yield server
    server.close()


def login_url(server):
    return re.findall(r"\S+/admin/login-once/\S+", server.log.read_text())[-1]


def log_in(url):
    """Whether this address leads into the admin, and the status it answers."""
    page = httpx2.get(url, follow_redirects=True)
    inside = page.status_code == 200 and "/admin/logout/" in page.text
    return inside, (page.history or [page])[0].status_code


def test_it_serves_from_nothing_says_what_to_do_and_finds_its_data_again(first):
    said = first.log.read_text()
    assert f"Pullwake serves on {first.url} (development mode" in said
    pullwake = os.path.relpath(Path(sys.executable).with_name("pullwake"), ROOT)
    assert f"\n  {pullwake} run --url {first.url} --id my-laptop --exec 'cat'\n" in said

    # The addresses that it names are right: what its curl lines send is what happens here.
    api = first.client(None)
    assert f"curl -X PUT {first.url}/_electric/entities/agent/hello " in said
    assert f"curl -X POST {first.url}/_electric/entities/agent/hello/send " in said
    assert f"curl {first.url}/agent/hello/main" in said
    api.register("my-laptop")
    api.make_entity("/agent/hello", "my-laptop")
    api.send("/agent/hello", "Hello")
    assert api.get("/_electric/docs").status == 200
    first.stop()

    first.start()
    assert api.claim("my-laptop").body["entity"]["url"] == "/agent/hello"
    first.stop()


def test_it_names_a_command_that_is_there(tmp_path, monkeypatch):
    """The container has none: there the runner's machine brings its own."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert serve._pullwake() == "pullwake"
    (tmp_path / "pullwake").touch()
    assert serve._pullwake() == os.path.relpath(tmp_path / "pullwake")


def test_its_login_works_exactly_once(first):
    url = login_url(first)
    assert log_in(url) == (True, 302)
    assert log_in(url) == (False, 404)
    assert log_in(f"{first.url}/admin/login-once/nonsense/") == (False, 404)

    first.stop()
    first.start()
    assert login_url(first) != url
    assert log_in(url) == (False, 404)
    assert log_in(login_url(first)) == (True, 302)


@pytest.mark.anew
def test_production_mode_knows_no_login_without_a_password(database, start_server):
    server = start_server(PULLWAKE_MODE="production", ALLOWED_HOSTS="127.0.0.1")
    assert "login-once" not in server.log.read_text()
    assert log_in(f"{server.url}/admin/login-once/nonsense/") == (False, 404)


def test_production_mode_without_a_secret_key_is_an_error_with_a_hint(database):
    env = {name: value for name, value in os.environ.items() if name != "SECRET_KEY"}
    done = subprocess.run(
        [sys.executable, "manage.py", "serve"],
        cwd=ROOT,
        env={**env, "PULLWAKE_MODE": "production", "DATABASE_URL": database.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 78
    assert "SECRET_KEY is not set" in done.stderr
    assert "secrets.token_urlsafe" in done.stderr


@pytest.mark.postgres
def test_two_that_start_together_both_serve(database, tmp_path):
    """They migrate one after the other."""
    empty = fresh(database, tmp_path)
    servers = [Server(empty.url, tmp_path / f"server-{n}.log", {}) for n in range(2)]
    try:
        starting = [threading.Thread(target=server.start) for server in servers]
        for thread in starting:
            thread.start()
        for thread in starting:
            thread.join()
        servers[0].client().register()
        assert servers[1].client().get("/_electric/runners/r1").status == 200
    finally:
        for server in servers:
            server.close()


def test_without_migrating_it_serves_and_is_ready_once_another_has(database, tmp_path, monkeypatch):
    assert database.manage("migrate", "claims", "0003").returncode == 0
    server = Server(database.url, tmp_path / "server.log", {}, arguments=("--no-migrate",))
    monkeypatch.setattr(server, "_ready", lambda: readiness(server) == 503)
    try:
        server.start()
        assert "Migrations are missing" in httpx2.get(f"{server.url}/readyz").text
        migrated = database.manage("migrate", "--verbosity=0")
        assert migrated.returncode == 0, migrated.stderr
        wait_until(lambda: readiness(server) == 200)
    finally:
        server.close()


def readiness(server):
    try:
        return httpx2.get(f"{server.url}/readyz").status_code
    except httpx2.TransportError:
        return None
