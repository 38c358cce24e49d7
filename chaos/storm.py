"""The storm: a fleet under load, and what goes wrong with it."""

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2
import psycopg

from chaos.evidence import Evidence
from tests.sdk.proxy import Proxy
from tests.support import ROOT, Database, Server

SERVERS, RUNNERS, ENTITIES = 2, 2, 6
SETTLE_S = 40.0
PRINCIPAL = {"Electric-Principal": "system:dev-local"}
SETTINGS = {
    "PULLWAKE_LOCK_TIMEOUT_MS": "2000",
    "PULLWAKE_STATEMENT_TIMEOUT_MS": "4000",
    "PULLWAKE_IDLE_TRANSACTION_TIMEOUT_MS": "1500",
    "PULLWAKE_REAPER_INTERVAL_MS": "500",
}
NO_FENCE = """
ALTER TABLE dispatch_wake DROP CONSTRAINT wake_generation_once;
CREATE FUNCTION stay() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN NEW.generation := greatest(NEW.generation - 1, 1); RETURN NEW; END $$;
CREATE TRIGGER stay BEFORE INSERT ON dispatch_wake FOR EACH ROW EXECUTE FUNCTION stay();
CREATE TRIGGER stay BEFORE UPDATE ON dispatch_dispatchstate FOR EACH ROW
WHEN (NEW.generation > OLD.generation) EXECUTE FUNCTION stay();
"""
"""Breaks the fence: an entity's generation does not rise, and its epoch is given again."""


class Front(Proxy):
    """The one address that runners and senders know; each connection goes to the next server."""

    def __init__(self, servers: list[Server]) -> None:
        self._ports = itertools.cycle([server.port for server in servers])
        super().__init__(0)

    @property
    def upstream(self) -> int:
        return next(self._ports)

    @upstream.setter
    def upstream(self, _: int) -> None: ...


def said(happening: Callable[..., Awaitable[None]]) -> str:
    """What happens, in words."""
    return happening.__name__.strip("_").replace("_", " ")


class Storm:
    """Servers, runners and senders; `rage` for a while, then `settle` and look."""

    kind = "agent"

    def __init__(
        self,
        database: Database,
        folder: Path,
        seed: int,
        say: Callable[[str], None],
        entities: int = ENTITIES,
    ) -> None:
        self.database = database
        self.folder = folder
        self.evidence = Evidence(folder / "evidence.jsonl")
        self.random = random.Random(seed)
        self.say = say
        self.urls = [f"/{self.kind}/e{number}" for number in range(entities)]
        self.sending = True
        self._open = AsyncExitStack()
        self._runners: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Self:
        url = urlsplit(self.database.url)
        assert url.port is not None
        self.links = [await self._open.enter_async_context(Proxy(url.port)) for _ in range(SERVERS)]
        self.servers = []
        for number, link in enumerate(self.links):
            there = url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{link.port}").geturl()
            server = Server(there, self.folder / f"server-{number}.log", SETTINGS)
            self._open.callback(server.close)
            await asyncio.to_thread(server.start)
            self.servers.append(server)
        self.front = await self._open.enter_async_context(Front(self.servers))
        self.http = await self._open.enter_async_context(
            httpx2.AsyncClient(base_url=self.front.url, timeout=5, headers=PRINCIPAL)
        )
        self._open.callback(self._kill_runners)
        for number in range(RUNNERS):
            self._runners.append(self._start_runner(number))
        await self._make_entities()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def _make_entities(self) -> None:
        for number, entity in enumerate(self.urls):
            await self._make(entity, f"r{number % RUNNERS}")

    async def _make(self, entity: str, runner_id: str, **facts: Any) -> None:
        policy = {"targets": [{"type": "runner", "runnerId": runner_id}]}
        body = {"dispatch_policy": policy, **facts}
        # The answer may have been lost, or the runner may be yet to come.
        await self._repeat("PUT", f"/_electric/entities{entity}", body, 201, 409)

    def _kill_runners(self) -> None:
        for runner in self._runners:
            runner.kill()
            runner.wait()

    def _start_runner(self, number: int) -> "subprocess.Popen[bytes]":
        with (self.folder / f"runner-{number}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "chaos.runner", self.front.url, f"r{number}",
                 self.evidence.path],
                cwd=ROOT, stdout=log, stderr=log,
            )  # fmt: skip

    async def _repeat(self, method: str, path: str, body: Any, *statuses: int) -> None:
        """Ask again until the answer has this status, as a careful client does."""
        while True:
            with suppress(httpx2.TransportError):
                answer = await self.http.request(method, path, json=body)
                if answer.status_code in statuses:
                    return
            await asyncio.sleep(0.1)

    async def _send(self, entity: str) -> None:
        for number in itertools.count():
            if not self.sending:
                return
            key = f"m{number}"
            await self._repeat(
                "POST", f"/_electric/entities{entity}/send", {"payload": number, "key": key}, 200
            )
            self.evidence.add("sent", entity=entity, message=key)
            await asyncio.sleep(0.2)

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Send all the time, and at the end wait until everything sent was acknowledged."""
        senders = [asyncio.create_task(self._send(entity)) for entity in self.urls]
        yield
        self.sending = False
        self.say("it is over; what was sent is waited for")
        await asyncio.gather(*senders)

    async def rage(self, seconds: float) -> None:
        """Let something happen every second or two."""
        over = asyncio.get_running_loop().time() + seconds
        async with self.load():
            while asyncio.get_running_loop().time() < over:
                await self._let_something_happen()

    async def _let_something_happen(self) -> None:
        happening = self.random.choice(self.happenings())
        self.say(said(happening))
        await happening()
        await asyncio.sleep(self.random.uniform(0.5, 1.5))

    def happenings(self) -> list[Callable[[], Awaitable[None]]]:
        """All that may happen; whatever was ended is started again."""
        return [
            self._kill_a_server,
            self._stop_a_server,
            self._freeze_a_server,
            self._kill_a_runner,
            self._freeze_a_runner,
            self._crash_the_database,
            self._cut_runners_off,
            self._cut_a_server_off_the_database,
            self._let_a_servers_connections_to_the_database_go_dead,
            self._delay_the_network,
        ]

    async def _kill_a_server(self) -> None:
        server = self.random.choice(self.servers)
        server.kill()
        await asyncio.to_thread(server.start)

    async def _stop_a_server(self) -> None:
        server = self.random.choice(self.servers)
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)

    async def _freeze_a_server(self) -> None:
        process = self.random.choice(self.servers).process
        assert process is not None
        os.killpg(process.pid, signal.SIGSTOP)
        await asyncio.sleep(3)
        os.killpg(process.pid, signal.SIGCONT)

    async def _kill_a_runner(self) -> None:
        number = self.random.randrange(RUNNERS)
        self._runners[number].kill()
        self._runners[number].wait()
        self._runners[number] = self._start_runner(number)

    async def _freeze_a_runner(self) -> None:
        """Freeze it for longer than its leases, so that it is fenced when it comes back."""
        runner = self.random.choice(self._runners)
        runner.send_signal(signal.SIGSTOP)
        await asyncio.sleep(4)
        runner.send_signal(signal.SIGCONT)

    async def _crash_the_database(self) -> None:
        """Kill one session: PostgreSQL then ends all of them, and recovers from its log."""
        with suppress(psycopg.OperationalError), psycopg.connect(self.database.url) as connection:
            os.kill(connection.info.backend_pid, signal.SIGKILL)
            connection.execute("SELECT")
        while True:
            with suppress(psycopg.OperationalError), psycopg.connect(self.database.url):
                return
            await asyncio.sleep(0.1)

    async def _cut_runners_off(self) -> None:
        self.front.mode = "refuse"
        await self.front.cut_all()
        await asyncio.sleep(self.random.uniform(0.5, 3))
        self.front.mode = "pass"

    async def _cut_a_server_off_the_database(self) -> None:
        link = self.random.choice(self.links)
        link.mode = "refuse"
        await link.cut_all()
        await asyncio.sleep(self.random.uniform(0.5, 3))
        link.mode = "pass"

    async def _let_a_servers_connections_to_the_database_go_dead(self) -> None:
        self.random.choice(self.links).blackhole()

    async def _delay_the_network(self) -> None:
        proxies = [self.front, *self.links]
        for proxy in proxies:
            proxy.delay, proxy.mode = 0.1, "delay"
        await asyncio.sleep(2)
        for proxy in proxies:
            proxy.mode = "pass"

    async def settle(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The streams and the statuses of all entities, once all is done or too long has passed."""
        over = asyncio.get_running_loop().time() + SETTLE_S
        while True:
            rows = await asyncio.to_thread(self._look)
            if all(row[1] == row[2] and row[3] for row in rows):
                break
            if asyncio.get_running_loop().time() > over:
                break
            await asyncio.sleep(0.5)
        streams, statuses = {}, {}
        for entity in self.urls:
            streams[entity] = await self._stream(entity)
            answer = await self.http.get(f"/_electric/entities{entity}", timeout=30)
            statuses[entity] = answer.json()["status"]
        return streams, statuses

    async def _stream(self, entity: str) -> list[Any]:
        """All events of an entity, page by page."""
        events: list[Any] = []
        offset = "-1"
        while True:
            page = await self.http.get(f"{entity}/main?offset={offset}", timeout=30)
            events += page.json()
            if "Stream-Up-To-Date" in page.headers:
                return events
            offset = page.headers["Stream-Next-Offset"]

    def _look(self) -> list[tuple[Any, ...]]:
        """Of each entity its messages, how many of them are handled, and whether nothing is on."""
        return self.database.execute(
            "WITH events AS (SELECT entity_id, data::jsonb AS e FROM dispatch_streamevent)"
            " SELECT url, count(DISTINCT e ->> 'key') FILTER (WHERE e ->> 'type' = 'inbox'),"
            " count(DISTINCT e -> 'value' ->> 'message') FILTER (WHERE e ->> 'type' = 'handled'),"
            " NOT EXISTS (SELECT FROM claims_consumerclaim c"
            " WHERE c.entity_id = n.id AND c.status = 'active')"
            " FROM dispatch_entity n JOIN events ON entity_id = n.id GROUP BY n.id"
        )
