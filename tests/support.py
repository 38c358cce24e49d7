"""What tests drive Pullwake with: its API in process, its servers as processes, their databases."""

import itertools
import os
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx2
import msgspec
import psycopg
from django.apps import apps
from django.conf import settings
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.test.client import ClientHandler

from claims import retention
from claims.models import ConsumerClaim, ServerPulse
from config.serving.application import ApiHandler
from dispatch.models import DispatchState, Timer, Wake
from tests import forks

ROOT = Path(__file__).resolve().parent.parent
JSON = "application/json"

TRUST = ssl.create_default_context()
"""What HTTP clients trust: one for all, as reading all authorities takes longer than a call."""


class Answer:
    """An API answer: status, headers, and its JSON body, None without one."""

    def __init__(self, response: Any) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.content = (
            b"".join(response.streaming_content) if response.streaming else response.content
        )

    @property
    def body(self) -> Any:
        return msgspec.json.decode(self.content) if self.content else None

    @property
    def error(self) -> Any:
        """The error's code; fails the test when this is not an error in the contract's shape."""
        assert self.headers["Content-Type"] == JSON
        assert set(self.body) == {"error"}
        assert {"code", "message"} <= set(self.body["error"]) <= {"code", "message", "details"}
        return self.body["error"]["code"]

    def __repr__(self) -> str:
        return f"<{self.status} {self.content[:500]!r}>"


class ApiClient(Client):
    """Django's test client, through the middleware of the API and not that of the pages."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.handler = _ApiClientHandler()


class _ApiClientHandler(ClientHandler, ApiHandler):  # type: ignore[misc]  # called as the first
    """Takes requests as the one does, and passes them on as the other does."""


class Api:
    """The REST API in process, as one principal calls it; paths are below the root."""

    def __init__(self, principal: str | None = None, **headers: str) -> None:
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if principal is not None:
            self.headers["Electric-Principal"] = principal
        self.client = ApiClient(raise_request_exception=False)

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        content = (
            body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        )
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = self.client.generic(
            method,
            path,
            content,
            content_type=named.pop("Content-Type", JSON),
            headers={**self.headers, **named},
        )
        return Answer(response)

    def get(self, path: str, **headers: str) -> Answer:
        return self("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return self("POST", path, body, **headers)

    # The steps of most tests; each fails unless it succeeds.

    def register(self, runner_id: str = "r1", **facts: Any) -> Any:
        answer = self.post("/_electric/runners", {"id": runner_id, "label": runner_id, **facts})
        assert answer.status == 201, answer
        return answer.body

    def make_entity(
        self, url: str = "/agent/e1", runner_id: str | None = "r1", **facts: Any
    ) -> Any:
        if runner_id is not None:
            target = {"type": "runner", "runnerId": runner_id}
            facts["dispatch_policy"] = {"targets": [target]}
        answer = self("PUT", f"/_electric/entities{url}", facts)
        assert answer.status == 201, answer
        return answer.body

    def send(self, url: str = "/agent/e1", payload: Any = "hi", **facts: Any) -> str:
        answer = self.post(f"/_electric/entities{url}/send", {"payload": payload, **facts})
        assert answer.status == 200, answer
        txid: str = answer.body["txid"]
        return txid

    def share(self, shared_id: str = "s1", owner: str = "/agent/e1") -> str:
        """Make a shared state, or let one more entity have it: its path."""
        path = f"/_electric/shared-state/{shared_id}"
        answer = self("PUT", path, Electric_Owner_Entity=owner)
        assert answer.status in (200, 201), answer
        return path

    def signal(self, url: str, name: str) -> Any:
        answer = self.post(f"/_electric/entities{url}/signal", {"signal": name})
        assert answer.status == 200, answer
        return answer.body

    def status(self, url: str = "/agent/e1") -> str:
        status: str = self.get(f"/_electric/entities{url}").body["status"]
        return status

    def wakes(self, runner_id: str = "r1", offset: str = "-1") -> Any:
        answer = self.get(f"/runners/{runner_id}/wake?offset={offset}")
        assert answer.status == 200, answer
        return answer.body

    def events(self, url: str = "/agent/e1") -> Any:
        return self.get(f"{url}/main").body

    def try_claim(self, runner_id: str = "r1", event: Any = None) -> Answer:
        return self.post(f"/_electric/runners/{runner_id}/claim", event or {})

    def claim(self, runner_id: str = "r1", event: Any = None) -> "Claim":
        answer = self.try_claim(runner_id, event)
        assert answer.status == 200, answer
        assert "consumerId" in answer.body, answer
        return Claim(self, answer.body, answer.headers["Pullwake-Tail"])


@dataclass
class Claim:
    """A claim, as the handler that holds it uses it."""

    api: Any
    body: Any
    tail: str = ""
    """Of the entity's stream, when it was claimed."""

    @property
    def epoch(self) -> int:
        epoch: int = self.body["epoch"]
        return epoch

    @property
    def offset(self) -> str:
        """Just before the first work that it was given."""
        offset: str = self.body["streams"][0]["offset"]
        return offset

    def call(self, body: Any, token: str | None = None) -> Any:
        """Call back with the epoch and what ``body`` adds or overrides."""
        return self.api.post(
            f"/_electric/wake-callbacks/{self.body['consumerId']}",
            {"epoch": self.epoch, **body},
            Electric_Claim_Token=token or self.body["claimToken"],
        )

    def mint(self) -> str:
        answer = self.call({"wakeId": self.body["wakeId"]})
        assert answer.status == 200, answer
        token: str = answer.body["writeToken"]
        return token

    def heartbeat(self, **facts: Any) -> Any:
        return self.call(facts)

    def done(self, *acked: str) -> Any:
        acks = [{"path": self.body["streamPath"], "offset": offset} for offset in acked]
        return self.call({"done": True, **({"acks": acks} if acked else {})})

    def fail(self, error: str = "boom") -> Any:
        return self.call({"failed": True, "error": error})

    def append(self, *events: Any, token: str, **headers: str) -> Any:
        return self.api.post(
            self.body["streamPath"], list(events), Electric_Claim_Token=token, **headers
        )


# --- Others' calls, in the midst of one ---------------------------------------------------------


@contextmanager
def interrupted(act: Callable[[], object], by: str, *, since: str = "") -> Iterator[None]:
    """Acts once, just after the first statement of the block that names ``by``.

    With ``since``: just before the first that does so once one has named that.
    """
    waits, seen = [act], not since

    def watch(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        nonlocal seen
        is_it = bool(waits) and seen and by in sql
        seen = seen or since in sql
        if is_it and since:
            waits.pop()()
        answer = execute(sql, *args)
        if is_it and not since:
            waits.pop()()
        return answer

    with connection.execute_wrapper(watch):
        yield
    assert not waits, f"no statement named {by}"


# --- Time that has passed, in process: seeded in the rows, for nothing here waits ---------------

PAST = Now() - timedelta(seconds=1)


def lapse(claim: Claim) -> None:
    """Let the claim's lease be over."""
    claims = ConsumerClaim.objects.filter(consumer_id=claim.body["consumerId"])
    assert claims.update(lease_expires_at=PAST)


def end_delay(url: str = "/agent/e1") -> None:
    """Let the delay after a failure be over."""
    delayed = DispatchState.objects.filter(entity__url=url, retry_at__isnull=False)
    assert delayed.update(retry_at=PAST)


def age_wakes(**which: Any) -> None:
    """Let outstanding wakes be as old as those that are emitted again."""
    patience = timedelta(milliseconds=settings.PULLWAKE_WAKE_REEMIT_MS or 30_000)
    assert Wake.objects.outstanding().filter(**which).update(emitted_at=Now() - patience)


def come_due(**which: Any) -> None:
    """Let the time of timers have come."""
    assert Timer.objects.pending().filter(**which).update(due_at=PAST)


def prune() -> dict[str, int]:
    """Delete all that may be: how many rows of each kind."""
    return {name: sum(each) for name, each in retention.pruning()}


def block(page: str, name: str) -> str:
    """The code that a page has below ``<!-- run: name -->``."""
    text = (ROOT / "docs" / page).read_text()
    (found,) = re.findall(rf"<!-- run: {name} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    return str(found)


# --- Databases and servers --------------------------------------------------------------------


@dataclass(frozen=True)
class Database:
    """A database that no other test uses."""

    url: str

    @property
    def path(self) -> str | None:
        """Where it is, on SQLite."""
        return self.url.removeprefix("sqlite:///") if self.url.startswith("sqlite") else None

    @contextmanager
    def copy(self, folder: Path) -> Iterator["Database"]:
        """A copy of it, gone afterwards. Nobody may be connected to the original."""
        if self.path is not None:
            path = folder / "pullwake.sqlite3"
            shutil.copy(self.path, path)
            yield Database(f"sqlite:///{path}")
            return
        template = urlsplit(self.url).path.removeprefix("/")
        with _created_database(f'TEMPLATE "{template}"') as url:
            yield Database(url)

    def empty(self) -> None:
        """Delete all that runners and operators have done; logins and the servers' pulse stay.

        Ids are not given again: a request that a server still holds waits for none of the new rows.
        """
        tables = [
            model._meta.db_table
            for app in ("runners", "dispatch", "claims", "moving")
            for model in apps.get_app_config(app).get_models()
            if model is not ServerPulse
        ]
        tables.append("django_admin_log")
        if self.path is None:
            # With so few rows it takes a tenth of TRUNCATE, which makes a new file for each table.
            self.execute(";".join(f"DELETE FROM {table}" for table in tables))  # noqa: S608
            return
        with closing(sqlite3.connect(self.path, timeout=20, isolation_level=None)) as lite:
            lite.execute("BEGIN IMMEDIATE")
            for table in tables:
                lite.execute(f"DELETE FROM {table}")  # noqa: S608
            lite.execute("COMMIT")

    def execute(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        """Rows of one statement, in a transaction of its own; parameters are written ``%s``."""
        if self.path is not None:
            with closing(sqlite3.connect(self.path, timeout=20, isolation_level=None)) as lite:
                return lite.execute(sql.replace("%s", "?"), params).fetchall()
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql, params)
            return cursor.fetchall() if cursor.description else []

    def load(self, dump: Path) -> None:
        """Run a file of SQL statements."""
        sql = dump.read_text(encoding="utf-8")
        if self.path is not None:
            with closing(sqlite3.connect(self.path)) as lite:
                lite.executescript(sql)
            return
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.encode())

    @contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Let nobody else write to a table (on SQLite to any) for a while."""
        if self.path is not None:
            with closing(sqlite3.connect(self.path, timeout=20)) as lite:
                lite.execute("BEGIN IMMEDIATE")
                yield
            return
        with psycopg.connect(self.url) as connection:
            connection.execute(f'LOCK TABLE "{table}" IN SHARE MODE')
            yield

    @contextmanager
    def hold(self, sql: str) -> Iterator[None]:
        """Hold the locks that a statement on PostgreSQL takes."""
        with psycopg.connect(self.url) as connection:
            connection.execute(sql)
            yield
            connection.rollback()

    def waiting(self) -> int:
        """How many transactions wait for a lock, on PostgreSQL."""
        ((count,),) = self.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return int(count)

    def manage(self, *args: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """Run manage.py on it to its end."""
        return forks.manage(args, {**os.environ, **env, "DATABASE_URL": self.url})


@contextmanager
def empty_database(folder: Path) -> Iterator[Database]:
    """A database of the kind that this run is on, with no table, gone afterwards."""
    if settings.SQLITE:
        yield Database(f"sqlite:///{folder / 'database.sqlite3'}")
        return
    with _created_database("") as url:
        yield Database(url)


@contextmanager
def migrated_template(folder: Path) -> Iterator[Database]:
    """A fresh database of the kind that this run is on, with every migration."""
    with empty_database(folder) as database:
        _migrate(database)
        yield database


def _migrate(database: Database) -> None:
    done = database.manage("migrate", "--verbosity=0")
    assert done.returncode == 0, done.stderr


@contextmanager
def _created_database(options: str) -> Iterator[str]:
    server = os.environ["DATABASE_URL"]
    name = f"pullwake_{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" {options}')
    try:
        yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def wait_until(condition: Any, *, timeout: float = 15.0, what: str = "") -> Any:
    """The condition's first true value; fails the test after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout} s for {what or condition}"
        time.sleep(0.01)
    return value


class Server:
    """A server process: what `make run` runs, on a port of its own.

    A ``forked`` one is not a new interpreter (`tests.forks`): it starts in a quarter of the CPU.
    """

    def __init__(
        self,
        database_url: str,
        log: Path,
        env: dict[str, str],
        tls: ssl.SSLContext | None = None,
        arguments: tuple[str, ...] = (),
        folder: Path = ROOT,
        *,
        forked: bool = False,
    ) -> None:
        self.port = free_port()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.trusted = tls or TRUST
        self.arguments = arguments
        self.folder = folder
        self.forked = forked
        self.log = log
        self.env = {
            **os.environ,
            "WEB_CONCURRENCY": "1",
            **env,
            "DATABASE_URL": database_url,
            "PORT": str(self.port),
        }
        self.process: subprocess.Popen[bytes] | forks.Process | None = None
        self.clients: list[HttpApi] = []

    def start(self) -> None:
        """Start it, again on the same port if it ran before, and wait until it is ready."""
        with self.log.open("ab") as log:
            self.process = (
                forks.serve(self.arguments, self.env, log)
                if self.forked
                else subprocess.Popen(
                    [sys.executable, "manage.py", "serve", *self.arguments],
                    cwd=self.folder,
                    env=self.env,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        wait_until(self._ready, timeout=30, what=f"the server, see {self.log}")

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        # Asked of the system first: a client costs as much as a good part of the server's start.
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError:
            return False
        try:
            ready = httpx2.get(f"{self.url}/readyz", timeout=5, verify=self.trusted)
        except httpx2.TransportError:
            return False
        return ready.status_code == 200

    def kill(self) -> None:
        """SIGKILL to it and its workers, as a power cut would."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def stop(self, timeout: float = 10.0) -> float:
        """SIGTERM, and how many seconds it took to exit."""
        assert self.process is not None
        began = time.monotonic()
        self.process.terminate()
        assert self.process.wait(timeout) == 0
        return time.monotonic() - began

    def client(self, principal: str | None = "user:alice", **options: Any) -> "HttpApi":
        """Its API over HTTP."""
        client = HttpApi(self.url, principal, **options)
        self.clients.append(client)
        return client

    def close_clients(self) -> None:
        """Close those that `client` has made."""
        while self.clients:
            self.clients.pop().http.close()

    def close(self) -> None:
        """Kill it, and close its clients."""
        self.kill()
        self.close_clients()

    @property
    def database(self) -> Database:
        """What it serves."""
        return Database(self.env["DATABASE_URL"])


class Servers:
    """Servers that tests share, one for each environment: what starts one is most of a test."""

    def __init__(self, template: Database, folder: Path) -> None:
        self._template = template
        self._folder = folder
        self._running: dict[tuple[tuple[str, object], ...], list[Server]] = defaultdict(list)
        self._open: dict[tuple[tuple[str, object], ...], ExitStack] = defaultdict(ExitStack)

    def lend(self, **env: object) -> Server:
        """A server with this environment, whose database is empty, and which is not to be ended."""
        (server,) = self.lend_some(1, **env)
        return server

    def lend_some(self, count: int, **env: object) -> list[Server]:
        """Several on one database."""
        which = tuple(sorted(env.items()))
        running = self._running[which]
        while len(running) < count:
            database = running[0].database if running else None
            running.append(self._start(env, database, self._open[which]))
        for server in running:
            assert server.process is not None
            assert server.process.poll() is None, "a test ended it: that takes a `mortal` one"
            server.close_clients()
        running[0].database.empty()
        return running[:count]

    def _start(self, env: dict[str, object], database: Database | None, open_: ExitStack) -> Server:
        folder = self._folder / secrets.token_hex(4)
        folder.mkdir()
        if database is None:
            database = open_.enter_context(self._template.copy(folder))
        settings = {name: str(value) for name, value in env.items()}
        server = Server(database.url, folder / "server.log", settings, forked=True)
        open_.callback(server.close)
        server.start()
        return server

    def close_rare(self) -> None:
        """Kill all but the one that most tests use: even idle, each takes some of the CPU."""
        for which, running in [*self._running.items()]:
            if which:
                self._close(which)
                continue
            while len(running) > 1:
                running.pop().close()

    def close(self) -> None:
        """Kill them."""
        for which in [*self._running]:
            self._close(which)

    def _close(self, which: tuple[tuple[str, object], ...]) -> None:
        self._open.pop(which).close()
        del self._running[which]


class HttpApi(Api):
    """The API over HTTP, with the same steps as `Api`."""

    def __init__(self, url: str, principal: str | None = None, **headers: str) -> None:
        super().__init__(principal, **headers)
        self.http = httpx2.Client(base_url=url, timeout=60, verify=TRUST)

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        content = (
            body if isinstance(body, bytes) else None if body is None else msgspec.json.encode(body)
        )
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if content is not None:
            named.setdefault("Content-Type", JSON)
        response = self.http.request(
            method, path, content=content, headers={**self.headers, **named}
        )
        return HttpAnswer(response)


class HttpAnswer(Answer):
    """An answer that came over HTTP."""

    def __init__(self, response: httpx2.Response) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.content = response.content


class Balancer:
    """One address for several servers, each request to the next of them; it counts them."""

    def __init__(self, *servers: Server) -> None:
        self.servers = itertools.cycle(servers)
        self.served: list[tuple[Server, str, str]] = []
        """Which server took each request, its method, and its path with the query."""
        self.clients: list[HttpApi] = []
        self._http = httpx2.Client(timeout=60, verify=TRUST)
        self._listening = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._listening.server_address[1]}"
        threading.Thread(target=self._listening.serve_forever, daemon=True).start()

    def client(self, principal: str | None = "user:alice") -> HttpApi:
        """Its API over HTTP."""
        client = HttpApi(self.url, principal)
        self.clients.append(client)
        return client

    def close(self) -> None:
        """Take no more requests, and close its clients."""
        self._listening.shutdown()
        self._listening.server_close()
        self._http.close()
        for client in self.clients:
            client.http.close()

    def _pass_on(self, request: BaseHTTPRequestHandler) -> httpx2.Response:
        server = next(self.servers)
        self.served.append((server, request.command, request.path))
        length = int(request.headers.get("Content-Length") or 0)
        return self._http.request(
            request.command,
            f"{server.url}{request.path}",
            headers=[*request.headers.items()],
            content=request.rfile.read(length),
        )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        balancer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline()
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                try:
                    answer = balancer._pass_on(self)
                except httpx2.TransportError:
                    self.close_connection = True  # as a server that is away would
                    return
                self.send_response_only(answer.status_code)
                for name, value in answer.headers.multi_items():
                    if name not in ("connection", "transfer-encoding", "content-length"):
                        self.send_header(name, value)
                if answer.status_code not in (204, 304):
                    self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

        return Handler
