"""Three PostgreSQLs under Patroni, etcd and HAProxy, by the recipes in deploy/, on this machine."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tests import postgres
from tests.proxies import found, recipe
from tests.support import free_port, wait_until

PATRONI = Path(sys.prefix).with_name(f"{Path(sys.prefix).name}-ha") / "bin" / "patroni"
"""In an environment of its own, beside this one: ``make ha`` makes it."""

NODES = 3
WHOLE_S = 120.0
"""Seconds that a node which was killed may take to be a standby again."""


def missing() -> list[str]:
    """What this machine lacks, in a sentence each."""
    lacks = [
        f"{program} is not installed (on Debian: apt-get install {package})."
        for program, package in (("etcd", "etcd-server"), ("haproxy", "haproxy"))
        if found(program) is None
    ]
    if not PATRONI.exists():
        lacks.append("Patroni is not there: `make ha` installs it.")
    if os.geteuid() == 0 and subprocess.run([*_as_nobody(), "true"]).returncode:
        lacks.append("PostgreSQL refuses root, and unshare makes nobody else here: be a user.")
    return lacks


def _as_nobody() -> list[str]:
    """Before a command: for root, who is nobody to it, and can still read what is root's."""
    if os.geteuid():
        return []
    return ["unshare", "--user", "--map-user=65534", "--map-group=65534"]


class Node:
    """A host: PostgreSQL, and the Patroni that runs it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.port, self.patroni_port = free_port(), free_port()
        self.data = folder / "data"
        self._patroni: subprocess.Popen[bytes] | None = None

    def configure(self, etcd: int, passwords: dict[str, str]) -> None:
        """Write its patroni.yml."""
        binaries = postgres.psql().parent
        own = {
            "name: postgres-1": f"name: {self.name}",
            "listen: 0.0.0.0:8008": f"listen: 127.0.0.1:{self.patroni_port}",
            "postgres-1.example:8008": f"127.0.0.1:{self.patroni_port}",
            "etcd-1.example:2379, etcd-2.example:2379, etcd-3.example:2379": f"127.0.0.1:{etcd}",
            "listen: 0.0.0.0:5432": f"listen: 127.0.0.1:{self.port}",
            "postgres-1.example:5432": f"127.0.0.1:{self.port}",
            "/var/lib/postgresql/18/pullwake": str(self.data),
            "/usr/lib/postgresql/18/bin": f"{binaries}\n  pgpass: {self.folder / 'pgpass'}",
            # Patroni must not reset this machine.
            "mode: automatic": "mode: 'off'",
            "        max_connections: 300": "        max_connections: 300\n"
            "        unix_socket_directories: ''",
            **passwords,
        }
        self.folder.mkdir()
        (self.folder / "patroni.yml").write_text(recipe("patroni.yml", own))

    def start(self) -> None:
        """Start its Patroni, which starts PostgreSQL."""
        with (self.folder / "log").open("ab") as log:
            self._patroni = subprocess.Popen(
                [*_as_nobody(), PATRONI, "patroni.yml"],
                cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def ask(self, path: str) -> tuple[int, Any]:
        """Ask its Patroni: status and JSON, or status 0 if it does not answer."""
        url = f"http://127.0.0.1:{self.patroni_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refused:
            return refused.code, None
        except (OSError, ValueError):
            return 0, None

    def signal(self, number: int, *, to: str = "all") -> None:
        """Send a signal to ``all`` of its processes, to ``postgres`` alone, or ``receiver``."""
        for pid in self._processes(to):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _processes(self, which: str) -> list[int]:
        pids: list[int] = []
        with suppress(OSError, ValueError, IndexError):
            postmaster = int((self.data / "postmaster.pid").read_text().splitlines()[0])
            pids = [postmaster, *_children(postmaster)]
        if which == "receiver":
            return [pid for pid in pids if b"walreceiver" in _command(pid)]
        # A pid file outlives its process, whose number may be another's by now.
        pids = [pid for pid in pids if b"postgres" in _command(pid)]
        if which == "all" and self._patroni is not None and self._patroni.poll() is None:
            pids = [self._patroni.pid, *pids]
        return pids

    def kill(self) -> None:
        """Kill all its processes at once, as a power cut would: none sees another end."""
        self.signal(signal.SIGSTOP)
        self.signal(signal.SIGKILL)
        if self._patroni is not None:
            self._patroni.wait()


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    return []


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


class Cluster:
    """The whole cluster, which is removed when its block ends."""

    def __init__(self, folder: Path, *, synchronous: bool = True) -> None:
        self.folder = folder
        self.port = free_port()
        self.nodes = [Node(f"postgres-{n}", folder / f"postgres-{n}") for n in range(1, NODES + 1)]
        self._password = secrets.token_hex(16)
        self._synchronous = synchronous
        self._open = ExitStack()

    @property
    def url(self) -> str:
        """The database's address, behind which is whichever node leads."""
        return f"postgres://postgres:{self._password}@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> "Cluster":
        with ExitStack() as opening:
            self._start(opening)
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _start(self, opening: ExitStack) -> None:
        etcd, peers = free_port(), free_port()
        client, peer = f"http://127.0.0.1:{etcd}", f"http://127.0.0.1:{peers}"
        self._run(
            opening, "etcd", etcd,
            f"--data-dir={self.folder / 'etcd'}", f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
        )  # fmt: skip
        passwords = {
            "superuser-password": self._password,
            "replicator-password": secrets.token_hex(16),
            "rewinder-password": secrets.token_hex(16),
        }
        if not self._synchronous:
            passwords["synchronous_mode: true"] = "synchronous_mode: false"
        for node in self.nodes:
            node.configure(etcd, passwords)
            opening.callback(node.kill)
        # One makes the cluster, and the others copy it.
        self.nodes[0].start()
        wait_until(self.leader, timeout=WHOLE_S, what=f"a leader, see {self.folder}")
        for node in self.nodes[1:]:
            node.start()
        servers = {
            f"{node.name}.example:5432 check port 8008": f"127.0.0.1:{node.port} check port "
            f"{node.patroni_port}"
            for node in self.nodes
        }
        own = {**servers, "bind :5432": f"bind 127.0.0.1:{self.port}"}
        (self.folder / "haproxy.cfg").write_text(recipe("haproxy-database.cfg", own))
        self._run(opening, "haproxy", self.port, "-db", "-f", "haproxy.cfg")
        wait_until(self.is_whole, timeout=WHOLE_S, what=f"its standbys, see {self.folder}")

    def _run(self, opening: ExitStack, program: str, port: int, *args: str) -> None:
        path = found(program)
        assert path is not None
        with (self.folder / f"{program}.log").open("ab") as log:
            process = subprocess.Popen([path, *args], cwd=self.folder, stdout=log, stderr=log)
        opening.callback(process.wait)
        opening.callback(process.kill)
        wait_until(lambda: _listens(port), what=f"{program}, see {self.folder}")

    def leader(self) -> Node | None:
        """The node that says it leads, or None."""
        return next((node for node in self.nodes if node.ask("/primary")[0] == 200), None)

    def is_whole(self) -> bool:
        """Whether one node leads, all others follow, and one of those has everything committed."""
        leader = self.leader()
        if leader is None:
            return False
        standbys = [node.ask("/replica")[0] for node in self.nodes if node is not leader]
        synchronous = [node.ask("/synchronous")[0] for node in self.nodes if node is not leader]
        return set(standbys) == {200} and (not self._synchronous or 200 in synchronous)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
