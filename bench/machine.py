"""The PostgreSQL and the servers that are measured, and what they cost."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

from bench.client import HOST, BenchError
from tests.postgres import private_postgres

ROOT = Path(__file__).resolve().parent.parent
PRINCIPAL = "user:bench"
SECRET_KEY = secrets.token_urlsafe(50)
CONFIGURATION = "config/serving/gunicorn.conf.py"
PRODUCT = "config.wsgi:application"
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Database:
    """A database of the private PostgreSQL."""

    url: str
    postmaster: int | None
    """Its first process; None on another machine."""

    def connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        """A connection that commits each statement."""
        return psycopg.connect(self.url, autocommit=True)

    @contextmanager
    def copy(self) -> Iterator["Database"]:
        """A copy, gone afterwards. Nobody may be connected to the original."""
        name = f"copy_{secrets.token_hex(4)}"
        template = urlsplit(self.url).path[1:]
        with psycopg.connect(_named(self.url, "template1"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            yield Database(_named(self.url, name), self.postmaster)
        finally:
            with psycopg.connect(_named(self.url, "template1"), autocommit=True) as connection:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def cpu(self) -> float:
        """CPU seconds that PostgreSQL has used so far, all of its processes; 0 if not here."""
        return 0.0 if self.postmaster is None else tree_cpu(self.postmaster)


def _named(url: str, database: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


@dataclass
class Server:
    """A gunicorn, configured as the product is, that serves ``application``."""

    database: Database
    workers: int = 2
    application: str = PRODUCT
    port: int = 0
    env: dict[str, str] = field(default_factory=dict)
    log: str = ""
    process: "subprocess.Popen[bytes]" = field(init=False, repr=False)

    def __enter__(self) -> "Server":
        self.port = self.port or free_port()
        with tempfile.NamedTemporaryFile(prefix="pullwake-bench-", delete=False) as log:
            self.log = log.name
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", CONFIGURATION, self.application],
                cwd=ROOT,
                env=self._environment(),
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 30
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"the server did not start:\n{Path(self.log).read_text()}")
            time.sleep(0.05)
        return self

    def __exit__(self, error: object = None, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        if error is not None and (complaints := self.complaints()):
            print(f"{self.application} said:\n{complaints[0]}", file=sys.stderr)
        Path(self.log).unlink()

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=5) as probe:
                probe.sendall(b"GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n")
                return b" 200 " in probe.recv(100)
        except OSError:
            return False

    def _environment(self) -> dict[str, str]:
        # The caller's settings are not what is measured.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PULLWAKE_")}
        return {
            **inherited,
            **environment(self.database.url),
            "HOST": HOST,
            "PORT": str(self.port),
            "WEB_CONCURRENCY": str(self.workers),
            **self.env,
        }

    def cpu(self) -> float:
        """CPU seconds that its processes have used so far."""
        return tree_cpu(self.process.pid)

    def memory(self) -> int:
        """Bytes that its processes hold, shared pages counted once (PSS)."""
        return sum(pss(pid) for pid in tree(self.process.pid))

    def refuse_complaints(self) -> None:
        """Raise BenchError if it logged anything at WARNING or above."""
        if complaints := self.complaints():
            raise BenchError(f"the server complained:\n{complaints[0]}")

    def complaints(self) -> list[str]:
        """Lines of its log at WARNING or above."""
        lines = Path(self.log).read_text().splitlines()
        calm = ('"level":"info"', '"level":"debug"')
        return [line for line in lines if not any(each in line for each in calm)]


def serving(
    stack: ExitStack, database: Database, workers: int, servers: int, **env: str
) -> Iterator[Server]:
    """Start this many servers on one port; they end when the stack is closed."""
    if servers > 1:
        env["GUNICORN_CMD_ARGS"] = "--reuse-port"
    port = 0
    for _ in range(servers):
        server = stack.enter_context(Server(database, workers, port=port, env=env))
        port = server.port
        yield server


def environment(database_url: str) -> dict[str, str]:
    """The settings that production mode needs."""
    return {
        "PULLWAKE_MODE": "production",
        # It measures what there is, with few principals.
        **{f"PULLWAKE_{name}": "0" for name in ("RATE_PER_S", "MAX_STREAMS", "MAX_RUNNERS")},
        "PULLWAKE_MAX_ENTITIES": "0",
        "SECRET_KEY": SECRET_KEY,
        "DATABASE_URL": database_url,
        "ALLOWED_HOSTS": f"{HOST},localhost",
        "DJANGO_SETTINGS_MODULE": "config.settings",
    }


@contextmanager
def migrated_database(url: str = "") -> Iterator[Database]:
    """A database with every migration, gone afterwards: in the PostgreSQL at ``url``, whose role
    may make databases, or in one of its own.
    """
    with ExitStack() as stack:
        server_url = url or stack.enter_context(private_postgres(durable=True))
        name = f"pullwake_bench_{secrets.token_hex(4)}"
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
            postmaster = _postmaster(connection.info.backend_pid) if _is_here(server_url) else None
        try:
            database = Database(_named(server_url, name), postmaster)
            manage(database, "migrate", "--verbosity=0")
            yield database
        finally:
            with psycopg.connect(server_url, autocommit=True) as connection:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def manage(database: Database, *arguments: str) -> str:
    """What manage.py prints."""
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment(database.url)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BenchError(f"manage.py {arguments[0]} failed:\n{done.stderr}")
    return done.stdout.strip()


def caller(database: Database) -> str:
    """The header of `PRINCIPAL` with a new access token."""
    return f"Authorization: Bearer {manage(database, 'create_token', PRINCIPAL)}"


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


# --- /proc ------------------------------------------------------------------------------------


def tree(root: int) -> list[int]:
    """A process and all its descendants."""
    pids, found = [root], []
    while pids:
        pid = pids.pop()
        found.append(pid)
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
        except OSError:
            found.remove(pid)  # it has just ended
    return found


def tree_cpu(root: int) -> float:
    """CPU seconds of a process and all its descendants, also of those that have ended."""
    return sum(map(_ticks, tree(root))) / _TICK


def _ticks(pid: int) -> int:
    fields = _stat(pid)
    return sum(map(int, fields[11:15]))  # utime, stime, and the same of ended children


def _stat(pid: int) -> Sequence[str]:
    # The name, in brackets, may hold anything; the fields after it are numbered from the third.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["0"] * 50


def pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _is_here(url: str) -> bool:
    return urlsplit(url).hostname in (None, HOST, "localhost", "::1")


def _postmaster(backend: int) -> int:
    return int(_stat(backend)[1])  # its parent


def conditions() -> dict[str, object]:
    """What else a result depends on: the machine, Python, PostgreSQL."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit,
        "cpu": cpu[0].partition(": ")[2] if cpu else "unknown",
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "load before": os.getloadavg()[0],
    }
