"""A standby: it answers 503 until it is promoted, and then it serves without a restart."""

import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import psycopg
import pytest

from tests import postgres
from tests.support import Server, free_port, migrated_template, wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


class Standby:
    """A hot standby of the tests' PostgreSQL."""

    def __init__(self, primary: str, folder: Path) -> None:
        self.package = postgres._package()
        self.user: int | None = None
        if os.geteuid() == 0:
            self.user = pwd.getpwnam("nobody").pw_uid
            self.package = postgres._copy(self.package, folder)
        self.binaries = self.package / f"pginstall{postgres.POSTGRES_VERSION}" / "bin"
        self.data = folder / "standby"
        self.port = free_port()
        self.folder = folder
        if self.user is not None:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self.user, -1, follow_symlinks=False)
        self._run(
            "pg_basebackup", "-d", primary, "-D", self.data, "-R", "-c", "fast", "-X", "stream"
        )
        self.process = subprocess.Popen(
            [self.binaries / "postgres", "-D", self.data, f"--port={self.port}",
             "--listen_addresses=127.0.0.1", "--unix_socket_directories=", "--fsync=off",
             "--max_connections=300"],
            cwd=folder, user=self.user, start_new_session=True,
        )  # fmt: skip

    def _run(self, command: str, *args: object) -> None:
        done = subprocess.run(
            [self.binaries / command, *map(str, args)],
            cwd=self.folder,
            user=self.user,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    def promote(self) -> None:
        self._run("pg_ctl", "promote", "-w", "-D", self.data)

    def stop(self) -> None:
        postgres._stop(self.process)


@pytest.fixture
def standby() -> Iterator[tuple[Standby, str]]:
    """A standby, and the URL of a migrated database on it."""
    with (
        tempfile.TemporaryDirectory(prefix="pullwake-standby-") as folder,
        postgres.private_postgres() as primary,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("DATABASE_URL", primary)
        with migrated_template(Path(folder)) as database:
            standby = Standby(primary, Path(folder))
            try:
                url = urlsplit(database.url)
                there = url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{standby.port}")
                wait_until(lambda: answers(there.geturl()), timeout=60)
                yield standby, there.geturl()
            finally:
                standby.stop()


def answers(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def test_it_answers_503_until_it_is_promoted_and_then_serves(
    standby: tuple[Standby, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    database, url = standby
    # In development mode its start makes a login, which a standby does not take.
    env = {"PULLWAKE_MODE": "production", "PULLWAKE_TRUSTED_PROXIES": "127.0.0.1"}
    server = Server(url, tmp_path / "server.log", env)
    monkeypatch.setattr(server, "_ready", lambda: answered(server, 503))
    try:
        server.start()
        api = server.client()
        for method, path, body in (
            ("GET", "/readyz", None),
            ("POST", "/_electric/runners", {"id": "r1", "label": "r1"}),
            ("PUT", "/_electric/entities/agent/e1", {}),
        ):
            answer = api(method, path, body)
            assert (answer.status, answer.error) == (503, "SERVICE_UNAVAILABLE"), answer
            assert int(answer.headers["Retry-After"]) >= 1
        assert api.get("/livez").status == 200
        database.promote()
        wait_until(lambda: answered(server, 200))
        api.register()
        api.make_entity(initialMessage="hi")
        assert api.claim().done().status == 200
    finally:
        server.close()


def answered(server: Server, status: int) -> bool:
    assert server.process is not None
    assert server.process.poll() is None, server.log.read_text()
    try:
        return httpx2.get(f"{server.url}/readyz", timeout=5).status_code == status
    except httpx2.TransportError:
        return False
