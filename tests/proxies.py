"""The proxies that deploy/ has recipes for, as tests run them: on ports of their own."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.support import ROOT, Database, Server, free_port, wait_until

PROGRAMS = ("pgbouncer", "haproxy", "nginx", "caddy")


def found(program: str) -> str | None:
    """Where it is: Debian has servers where only root looks."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


def recipe(name: str, instead: dict[str, str]) -> str:
    """A recipe of deploy/, with a test's own in place of what is the reader's to fill in."""
    text = (ROOT / "deploy" / name).read_text()
    for named, own in instead.items():
        assert named in text, f"deploy/{name} does not say {named!r}"
        text = text.replace(named, own)
    return text


@contextmanager
def running(
    program: str,
    *args: object,
    port: int,
    folder: Path,
    user: int | None = None,
    env: Mapping[str, str] | None = None,
):
    """A program that listens on this port, until it is left; ``env`` is besides this process's."""
    path = found(program)
    assert path is not None, f"{program} is not installed"
    with (folder / f"{program}.log").open("ab") as log:
        process = subprocess.Popen(
            [path, *map(str, args)],
            cwd=folder,
            env={**os.environ, **(env or {})},
            user=user,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: listens(process, port), what=f"{program}, see {folder}")
        yield process
    finally:
        process.terminate()
        process.wait()


def listens(process: "subprocess.Popen[bytes]", port: int) -> bool:
    assert process.poll() is None, process.args
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def pgbouncer(database: Database, **instead: str) -> Iterator[str]:
    """The URL of a database behind PgBouncer in transaction mode."""
    url = urlsplit(database.url)
    port = free_port()
    # It refuses to run as root.
    user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="pullwake-pgbouncer-") as name:
        folder = Path(name)
        own = {
            "host=postgres.example port=5432 dbname=pullwake": f"host=127.0.0.1 port={url.port} "
            f"dbname={url.path[1:]}",
            "listen_addr = 0.0.0.0": "listen_addr = 127.0.0.1",
            "listen_port = 6432": f"listen_port = {port}\nunix_socket_dir =",
            **instead,
        }
        (folder / "pgbouncer.ini").write_text(recipe("pgbouncer.ini", own))
        (folder / "userlist.txt").write_text(f'"{url.username}" "{url.password}"\n')
        if user is not None:
            for path in (folder, *folder.iterdir()):
                os.chown(path, user, -1)
        with running("pgbouncer", "pgbouncer.ini", port=port, folder=folder, user=user):
            yield f"postgres://{url.username}:{url.password}@127.0.0.1:{port}/pullwake"


def _instead_of_servers(servers: Sequence[Server]) -> dict[str, str]:
    return {
        f"pullwake-{number}.example:8000": f"127.0.0.1:{server.port}"
        for number, server in enumerate(servers, 1)
    }


@contextmanager
def haproxy(servers: Sequence[Server], folder: Path) -> Iterator[str]:
    """The URL of HAProxy before three servers."""
    port = free_port()
    own = {**_instead_of_servers(servers), "bind :8000": f"bind 127.0.0.1:{port}"}
    (folder / "haproxy.cfg").write_text(recipe("haproxy.cfg", own))
    with running("haproxy", "-db", "-f", "haproxy.cfg", port=port, folder=folder):
        yield f"http://127.0.0.1:{port}"


NGINX = """
daemon off;
pid nginx.pid;
error_log nginx.log;
events {{}}
http {{
    access_log off;
    {paths}
    include pullwake.conf;
}}
"""
"""What stands around the recipe where it is included; nothing is written but beside it."""


@contextmanager
def nginx(servers: Sequence[Server], folder: Path) -> Iterator[str]:
    """The URL of nginx before three servers."""
    port = free_port()
    own = {**_instead_of_servers(servers), "listen 8000;": f"listen 127.0.0.1:{port};"}
    (folder / "pullwake.conf").write_text(recipe("nginx.conf", own))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = " ".join(f"{kind}_temp_path {folder / kind};" for kind in kinds)
    (folder / "nginx.conf").write_text(NGINX.format(paths=paths))
    with running("nginx", "-p", folder, "-c", "nginx.conf", port=port, folder=folder):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def caddy(servers: Sequence[Server], folder: Path) -> Iterator[str]:
    """The URL of Caddy before these servers, without a name that it would get a certificate for."""
    port = free_port()
    own = {
        "PULLWAKE_SITE": f"http://127.0.0.1:{port}",
        "PULLWAKE_SERVERS": " ".join(f"127.0.0.1:{server.port}" for server in servers),
        "CADDY_ADMIN": f"unix/{folder / 'caddy.sock'}",
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
    }
    recipe = ROOT / "deploy" / "Caddyfile"
    with running("caddy", "run", "--config", recipe, port=port, folder=folder, env=own):
        yield f"http://127.0.0.1:{port}"
