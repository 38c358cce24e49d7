"""Servers of the version before this one and of this one serve one database, with traffic.

The version before is what `BEFORE` was; it is taken from the checkout's own history.
"""

import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import ROOT, HttpApi, Server, empty_database

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

BEFORE = "9bcbaa0"
"""The oldest commit whose servers may serve beside these: raised with each release."""


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout of the version before."""
    folder = tmp_path_factory.mktemp("before")
    archive = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip(f"the checkout's history does not reach back to {BEFORE}")
    subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
    return folder


@pytest.fixture
def serve(before: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server: ``serve(folder)``."""
    with empty_database(tmp_path) as database:
        servers: list[Server] = []

        def start(folder: Path) -> Server:
            server = Server(
                database.url, tmp_path / f"server-{len(servers)}.log", {}, folder=folder
            )
            servers.append(server)
            server.start()
            return server

        yield start
        for server in servers:
            server.close()


def work(*servers: Server) -> None:
    """Let each step of entities' lives be another server's than the step before."""
    for first in range(len(servers)):
        apis: Iterator[HttpApi] = itertools.cycle([each.client() for each in servers])
        for _ in range(first):
            next(apis)
        entity = f"/agent/{next(NAMES)}"
        next(apis).register()
        next(apis).make_entity(entity)
        for end in ("done", "fail"):
            next(apis).send(entity)
            claim = next(apis).claim()
            assert claim.body["entity"]["url"] == entity
            claim.api = next(apis)
            token = claim.mint()
            claim.api = next(apis)
            assert claim.append({"type": "line"}, token=token).status == 204
            claim.api = next(apis)
            assert claim.heartbeat().status == 200
            claim.api = next(apis)
            assert getattr(claim, end)().body["entity_cleared"] is True
        next(apis).signal(entity, "SIGKILL")


NAMES = map(str, itertools.count())


def test_old_and_new_servers_serve_side_by_side_and_the_old_ones_again(
    before: Path, serve: Callable[..., Server]
):
    old = serve(before)
    work(old)
    new = serve(ROOT)  # which migrates, while the old one serves
    work(old, new)
    work(old)
    # The way back: a server of the version before starts on the database of this one.
    again = serve(before)
    work(again, new)
    new.stop()
    work(old, again)
    for server in (old, new, again):
        assert "Traceback" not in server.log.read_text()
