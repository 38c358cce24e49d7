"""The runner and the real server, in processes, and what can happen to either or between them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import harness
from pullwake import Handler, PullWakeRunner, RunnerError, Timing, Wake
from tests.support import ROOT, Database, HttpApi, Server

from .brisk import BRISK
from .proxy import Proxy

SETTINGS = {"PULLWAKE_REAPER_INTERVAL_MS": "200", "PULLWAKE_LONG_POLL_MS": "2000"}

DO = 'echo "did $(python3 -c "import json,sys; '
DO += "print(*(m['value']['payload'] for m in json.load(sys.stdin)['messages']))\")\""
"""A command that says what it did, as the last thing it does."""


@contextmanager
def serving(template: Database, folder: Path) -> Iterator[Server]:
    with template.copy(folder) as database:
        server = Server(database.url, folder / "server.log", SETTINGS, forked=True)
        server.start()
        try:
            yield server
        finally:
            server.close()


@pytest.fixture(scope="module")
def shared(template: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that do nothing to it."""
    with serving(template, tmp_path_factory.mktemp("shared")) as server:
        yield server


@pytest.fixture(scope="module")
def mortal(template: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that end it, and start it again before they end themselves."""
    with serving(template, tmp_path_factory.mktemp("mortal")) as server:
        yield server


class Runner:
    """A runner process, as `pullwake run` starts it, or a program like it."""

    def __init__(
        self,
        url: str,
        log: Path,
        command: str,
        *options: str,
        runner_id: str = "r1",
        program: str = "pullwake",
    ):
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", program, "run"),
                    *("--url", url, "--id", runner_id, "--exec", command, *options),
                ],
                cwd=ROOT,
                stdout=out,
                stderr=out,
            )

    def said(self) -> str:
        return self.log.read_text()

    async def says(self, what: str, times: int = 1) -> None:
        await until(lambda: self.said().count(what) >= times, lambda: f"{what!r} in {self.said()}")

    def delays(self) -> list[float]:
        return delays(self.said())

    async def stop(self) -> int:
        self.process.terminate()
        await until(lambda: self.process.poll() is not None, "the runner's end")
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


Start = Callable[..., Runner]
Said = Callable[[], str]
"""What a runner has logged so far, a line for each record."""


@pytest.fixture
def start_runner(tmp_path: Path) -> Iterator[Start]:
    runners: list[Runner] = []

    def start(url: str, command: str, *options: str, **how: str) -> Runner:
        log = tmp_path / f"runner-{len(runners)}.log"
        runners.append(Runner(url, log, command, *options, **how))
        return runners[-1]

    yield start
    for runner in runners:
        runner.close()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """What a runner in this process has logged, as one that is a process writes it."""
    name = "pullwake.runner"
    caplog.set_level("INFO", name)

    def lines() -> str:
        records = [record for record in caplog.records if record.name == name]
        return "".join(f"{record.levelname.lower()}: {record.getMessage()}\n" for record in records)

    return lines


async def until(condition: Callable[[], Any], what: str | Callable[[], str] = "") -> None:
    """Wait for what costs a request, or a look at a file, at each look."""
    await harness.until(condition, what, every=0.05)


def outputs(api: HttpApi, url: str) -> list[str]:
    events = api.get(f"{url}/main?offset=-1").body
    return [event["value"]["text"] for event in events if event["type"] == "output"]


async def began(api: HttpApi, url: str) -> None:
    await until(lambda: outputs(api, url) == ["began"], f"the beginning of {url}")


async def did(api: HttpApi, url: str, *payloads: str) -> None:
    """Wait until the entity is idle with nothing left to do, and each was done exactly once."""
    expected = [f"did {payload}" for payload in payloads]

    def done() -> bool:
        finished = [text for text in outputs(api, url) if text.startswith("did ")]
        assert len(set(finished)) == len(finished), finished
        return finished == expected and api.status(url) == "idle"

    await until(done, lambda: f"{expected}; there is {outputs(api, url)}")


def claims(server: Server, url: str) -> list[tuple[str, str]]:
    """Who held the entity, in order, and how each claim ended: `released` is work that was done."""
    rows = Database(server.env["DATABASE_URL"]).execute(
        "SELECT runner_name, status FROM claims_consumerclaim WHERE entity_url = %s ORDER BY epoch",
        url,
    )
    return [(runner_id, status) for runner_id, status in rows]


def delays(log: str) -> list[float]:
    """Seconds it waited before each attempt to connect again."""
    return [float(seconds) for seconds in re.findall(r"connecting again in ([\d.]+) s", log)]


def back_within_backoff(
    waited: list[float], before: int, timing: Timing, retry_after: float = 0.0
) -> None:
    """That it waited no longer than it may, and that trouble which has passed is soon over.

    `before` of the waits began in the trouble. Told by what it did rather than by the clock, it
    is as true on a busy machine: after the trouble only an attempt and a heartbeat that were
    under way in it may fail.
    """
    assert waited
    for number, seconds in enumerate(waited):
        full = min(timing.backoff_max, timing.backoff_min * 2**number)
        assert seconds <= max(full, retry_after + timing.backoff_min) + 0.05, waited  # as rounded
    assert len(waited) <= before + 2, (waited, before)


def reported(log: str) -> list[str]:
    """The errors it reported; that the process itself was held up is none."""
    return re.findall(r"warning: (?!nothing ran for)(?:/\S+ \| )?(.*)", log)


def health_of(api: HttpApi, runner_id: str) -> Any:
    return api.get(f"/_electric/runners/{runner_id}/health").body


def issues(api: HttpApi, runner_id: str) -> str:
    """What the server finds wrong with the runner, a sentence a line."""
    return "\n".join(health_of(api, runner_id)["health"]["issues"])


async def health_tells(api: HttpApi, runner_id: str, said: Said, fault: str) -> Any:
    """Wait until the server calls the runner healthy, and tells what had happened to it.

    The runner must have reported an error with the pattern `fault`. The server must tell of the
    last one: that is the fault, unless the machine was so busy that a request took too long after
    it, and then health has to say that.
    """
    assert any(re.search(fault, error) for error in reported(said())), (fault, said())

    def expected() -> dict[str, Any]:
        log = said()
        return {
            "status": "streaming",
            "stream_connected": True,
            "last_heartbeat_ok": True,
            "last_error": reported(log)[-1],
            "reconnect_count": log.count("connected to http") - 1,
        }

    def told() -> bool:
        health = health_of(api, runner_id)
        client: dict[str, Any] = health["client"]
        return (
            health["health"]["status"] == "healthy"
            and client["last_error_at"] is not None
            and expected().items() <= client.items()
        )

    await until(told, lambda: f"{expected()} in {health_of(api, runner_id)}")
    return health_of(api, runner_id)["client"]


# The server dies


async def test_the_server_is_killed_and_started_again(
    mortal: Server, start_runner: Start, tmp_path: Path
) -> None:
    """SIGKILL while one runner streams, one works, one works on a short lease, and two claim.

    One claim is cut off before the server has heard of it, and one after it was granted, with the
    answer lost: asked again, the server that came back answers the same claim, long before its
    lease runs out.
    """
    server = mortal
    api = server.client(None)
    faults = {
        "streams": "GET /runners/streams/wake: ",
        "works": "GET /runners/works/wake: ",
        "lapses": "epoch 1: cancelled, since its lease ran out",
        "asks": "POST /_electric/runners/asks/claim: ",
        "granted": "POST /_electric/runners/granted/claim: ",
    }
    gate = tmp_path / "gate"
    gated = f"echo began; while ! test -e {gate}; do sleep 0.05; done; {DO}"
    asked, killed = asyncio.Event(), asyncio.Event()

    async def never_ask(data: bytes) -> bool:
        if b"/claim HTTP" in data and not killed.is_set():
            asked.set()
            await killed.wait()
            return True
        return False

    async def lose_the_grant(data: bytes) -> bool:
        if b"claimToken" in data and not killed.is_set():
            server.kill()
            killed.set()
            return True
        return False

    async with Proxy(server.port) as asking, Proxy(server.port) as granting:
        asking.on_request, granting.on_response = never_ask, lose_the_grant
        short = ("--claim-lease", "2")
        runners = {
            "streams": start_runner(server.url, DO, runner_id="streams"),
            "works": start_runner(server.url, gated, runner_id="works"),
            "lapses": start_runner(server.url, gated, *short, runner_id="lapses"),
            "asks": start_runner(asking.url, DO, runner_id="asks"),
            "granted": start_runner(granting.url, DO, runner_id="granted"),
        }
        for name, runner in runners.items():
            await runner.says("connected to")
            api.make_entity(f"/agent/{name}", runner_id=name)
        for name in ("works", "lapses"):
            api.send(f"/agent/{name}", payload="one")
            await began(api, f"/agent/{name}")
        api.send("/agent/asks", payload="one")
        await asked.wait()
        api.send("/agent/granted", payload="one")
        await killed.wait()
        for runner in runners.values():
            await runner.says("connecting again in")
        await runners["lapses"].says("cancelled, since its lease ran out")
        gate.touch()
        await asyncio.to_thread(server.start)  # the proxies go on meanwhile
        waited = {name: len(runner.delays()) for name, runner in runners.items()}
        api.send("/agent/streams", payload="one")
        for name in runners:
            await did(api, f"/agent/{name}", "one")
        # Work that outlived the server was not begun again; work that lost its lease was.
        assert outputs(api, "/agent/works") == ["began", "did one"]
        assert outputs(api, "/agent/lapses") == ["began", "began", "did one"]
        for name, runner in runners.items():
            lost = [(name, "expired")] if name == "lapses" else []
            assert claims(server, f"/agent/{name}") == [*lost, (name, "released")], runner.said()
            await health_tells(api, name, runner.said, faults[name])
            back_within_backoff(runner.delays(), waited[name], Timing())
        for runner in runners.values():
            assert await runner.stop() == 0, runner.said()


async def test_the_servers_restart_in_good_order_is_no_trouble(
    mortal: Server, start_runner: Start
) -> None:
    api = mortal.client(None)
    runner = start_runner(mortal.url, DO, runner_id="restart")
    await runner.says("connected to")
    api.make_entity("/agent/restart", runner_id="restart")
    mortal.stop()
    mortal.start()
    waited = len(runner.delays())
    api.send("/agent/restart", payload="one")
    await did(api, "/agent/restart", "one")
    assert claims(mortal, "/agent/restart") == [("restart", "released")]
    health = await health_tells(api, "restart", runner.said, "GET /runners/restart/wake: ")
    assert health["reconnect_count"] == 1
    back_within_backoff(runner.delays(), waited, Timing())
    assert await runner.stop() == 0


# The runner dies, or is stopped


async def test_the_runner_is_stopped_past_its_leases_and_continued(
    shared: Server, start_runner: Start, tmp_path: Path
) -> None:
    """It finds itself fenced, ends what still works, and says nothing; another has done it all.

    Of its two commands, one has ended by the time it wakes up: that is not to be reported either.
    The lease of its own heartbeats runs out, too.
    """
    api = shared.client(None)
    name = "${PULLWAKE_ENTITY_URL##*/}"
    stopped = start_runner(
        shared.url,
        f"echo $$ > {tmp_path}/{name}.pid; echo began;"
        f" while ! test -e {tmp_path}/{name}.gate; do sleep 0.05; done; {DO}",
        *("--claim-lease", "2"),
        runner_id="stopped",
        program="tests.sdk.brisk",
    )
    other = start_runner(shared.url, DO, runner_id="other")
    await stopped.says("connected to")
    await other.says("connected to")
    pids = {}
    for ends in ("ended", "works"):
        api.make_entity(f"/agent/{ends}", runner_id="stopped")
        api.send(f"/agent/{ends}", payload="one")
        await began(api, f"/agent/{ends}")
        pids[ends] = int((tmp_path / f"{ends}.pid").read_text())
    waited = len(stopped.delays())
    os.kill(stopped.process.pid, signal.SIGSTOP)
    for ends in pids:
        dispatch(api, f"/agent/{ends}", "other")
        await did(api, f"/agent/{ends}", "one")
    (tmp_path / "ended.gate").touch()
    await until(lambda: not alive(pids["ended"]), "the command's end, with the runner stopped")
    assert alive(pids["works"])

    def noticed() -> bool:
        # For so long that every deadline of the runner's has passed when it continues.
        expired = re.search(r"Heartbeat lease expired (\d+)s ago", issues(api, "stopped"))
        return expired is not None and int(expired[1]) >= 3

    await until(noticed, "the server's view meanwhile")
    assert health_of(api, "stopped")["claims"]["active_count"] == 0
    os.kill(stopped.process.pid, signal.SIGCONT)
    await stopped.says("since the server fenced it", times=2)
    await until(lambda: not alive(pids["works"]), "the end of the command that works")
    assert "done in" not in stopped.said()
    for ends in pids:
        assert outputs(api, f"/agent/{ends}") == ["began", "did one"]
        held = [("stopped", "expired"), ("other", "released")]
        assert claims(shared, f"/agent/{ends}") == held
    await health_tells(api, "stopped", stopped.said, "the server fenced it")
    # And it is at work again.
    dispatch(api, "/agent/ended", "stopped")
    api.send("/agent/ended", payload="two")
    await did(api, "/agent/ended", "one", "two")
    await stopped.says("epoch 3: done in")
    assert claims(shared, "/agent/ended") == [*held, ("stopped", "released")]
    # Its stream outlives the stop if that came between two polls.
    back_within_backoff(stopped.delays() or [0.0], waited, BRISK)
    assert await stopped.stop() == await other.stop() == 0


async def test_the_runner_is_killed_and_started_again(shared: Server, start_runner: Start) -> None:
    """It resumes from where it was: what was resolved does not come again, what was not does."""
    api = shared.client(None)
    runner = start_runner(shared.url, DO, runner_id="killed")
    await runner.says("connected to")
    for name in ("killed-1", "killed-2"):
        api.make_entity(f"/agent/{name}", runner_id="killed")
        api.send(f"/agent/{name}", payload="one")
        await did(api, f"/agent/{name}", "one")
    runner.close()
    api.send("/agent/killed-2", payload="two")
    again = start_runner(shared.url, DO, runner_id="killed")
    await did(api, "/agent/killed-2", "one", "two")
    assert again.said().count("claimed") == 1
    assert "no work" not in again.said()
    assert await again.stop() == 0


def dispatch(api: HttpApi, url: str, runner_id: str) -> None:
    """Have the entity's next wakes go to that runner."""
    policy = {"targets": [{"type": "runner", "runnerId": runner_id}]}
    answer = api("PATCH", f"/_electric/entities{url}", {"dispatch_policy": policy})
    assert answer.status == 200, answer


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


# The network between them


async def handle(wake: Wake) -> None:
    payloads = [message.payload for message in await wake.messages()]
    value = {"text": f"did {' '.join(payloads)}"}
    await wake.append({"type": "output", "value": value, "headers": {"operation": "insert"}})


@asynccontextmanager
async def between(
    server: Server, name: str, handler: Handler = handle, timing: Timing = BRISK, **options: Any
) -> AsyncIterator[tuple[Proxy, PullWakeRunner, list[RunnerError]]]:
    """A runner that reaches the server through a proxy, with one entity of its own."""
    errors: list[RunnerError] = []
    async with Proxy(server.port) as proxy:
        runner = PullWakeRunner(
            proxy.url, name, handler, timing=timing, on_error=errors.append, **options
        )
        async with runner:
            await runner.connected()
            api = server.client(None)
            api.make_entity(f"/agent/{name}", runner_id=name)
            api.send(f"/agent/{name}", payload="before")
            await did(api, f"/agent/{name}", "before")
            yield proxy, runner, errors


@asynccontextmanager
async def at_work(
    server: Server, name: str, **options: Any
) -> AsyncIterator[tuple[Proxy, PullWakeRunner, asyncio.Event]]:
    """As `between`, with the runner at work for another entity, until the event is set."""
    held = f"/agent/{name}-held"
    working, proceed = asyncio.Event(), asyncio.Event()

    async def handler(wake: Wake) -> None:
        if wake.entity_url == held:
            working.set()
            await proceed.wait()
        await handle(wake)

    async with between(server, name, handler, **options) as (proxy, runner, _):
        api = server.client(None)
        api.make_entity(held, runner_id=name)
        api.send(held, payload="held")
        await working.wait()
        yield proxy, runner, proceed


def mode(mode: str) -> Callable[[Proxy], None]:
    def change(proxy: Proxy) -> None:
        proxy.mode = mode

    return change


def answer(status: int, **headers: str) -> Callable[[Proxy], None]:
    def change(proxy: Proxy) -> None:
        proxy.fail_with(status, **headers)

    return change


@dataclass(frozen=True)
class Fault:
    strike: Callable[[Proxy], None]
    error: str
    """A pattern of what the runner says of it."""
    retry_after: float = 0.0


CUT = r"(GET|POST) /\S+: (?!no answer)"
FAULTS = {
    "accepts and never answers": Fault(mode("accept"), "no answer within 1 s"),
    "cuts mid-response": Fault(mode("cut"), CUT),
    "refuses": Fault(mode("refuse"), CUT),
    "500": Fault(answer(500), "500 INJECTED"),
    "503": Fault(answer(503, Retry_After="1"), "503 INJECTED", retry_after=1.0),
    "429": Fault(answer(429, Retry_After="1"), "429 INJECTED", retry_after=1.0),
    "401": Fault(answer(401), "401 INJECTED"),
}


@pytest.mark.parametrize("live", ["long-poll", "sse"])
@pytest.mark.parametrize("kind", FAULTS)
async def test_trouble_that_passes(shared: Server, kind: str, live: Any, said: Said) -> None:
    """It strikes a runner that streams and works, and the server says so.

    Then it is back at work by itself, each message is done once, and health tells of it still.
    """
    fault = FAULTS[kind]
    name = f"{kind}-{live}".replace(" ", "-")
    url, held = f"/agent/{name}", f"/agent/{name}-held"
    api = shared.client(None)
    # A 401 ends the work at once, and the lease has to run out before it can begin again.
    lease = 2.0 if kind == "401" else 30.0
    async with at_work(shared, name, live=live, claim_lease=lease) as (proxy, runner, proceed):
        fault.strike(proxy)
        if proxy.mode != "accept":
            await proxy.cut_all()
        api.send(url, payload="during")
        proceed.set()

        def noticed() -> bool:
            if proxy.mode != "cut":
                return "Heartbeat lease expired" in issues(api, name)
            # Where the answers alone are cut, the server hears of it.
            last_error = health_of(api, name)["client"]["last_error"] or ""
            return disconnected(api, name) and re.search(fault.error, last_error) is not None

        def asked_to_wait() -> list[str]:
            told = rf"warning: {fault.error}.*\ninfo: connecting again in ([\d.]+) s"
            return re.findall(told, said())

        await until(noticed, lambda: f"the server's view meanwhile: {health_of(api, name)}")
        await until(lambda: runner.get_health()["status"] == "reconnecting", "its own view")
        assert runner.get_health()["stream_connected"] is False
        await until(lambda: re.search(fault.error, str(runner.get_health()["last_error"])), said)
        if fault.retry_after:
            await until(asked_to_wait, said)
            assert all(float(seconds) >= fault.retry_after for seconds in asked_to_wait()), said()

        waited = len(delays(said()))
        proxy.mode = "pass"
        await did(api, url, "before", "during")
        await did(api, held, "held")
        api.send(url, payload="after")
        await did(api, url, "before", "during", "after")
        assert claims(shared, url) == [(name, "released")] * 3
        lost = [(name, "expired")] if kind == "401" else []
        assert claims(shared, held) == [*lost, (name, "released")]
        await health_tells(api, name, said, fault.error)
        back_within_backoff(delays(said()), waited, BRISK, fault.retry_after)


def disconnected(api: HttpApi, runner_id: str) -> bool:
    """Whether the server has heard that neither stream nor heartbeats get through."""
    found = issues(api, runner_id)
    return (
        "Client reports stream disconnected" in found
        and "Client reports last heartbeat failed" in found
    )


async def test_a_stream_that_breaks_again_and_again_shows_in_health(
    shared: Server, said: Said
) -> None:
    """With heartbeats going through, the server is told while it lasts."""
    api = shared.client(None)

    async def cut_streams(data: bytes) -> bool:
        return b"/wake?" in data

    async with between(shared, "broken") as (proxy, _, _):
        proxy.on_request = cut_streams
        await proxy.cut_all()

        def told() -> bool:
            health = health_of(api, "broken")
            return (
                health["health"]["status"] == "degraded"
                and "Client reports stream disconnected" in health["health"]["issues"]
                and health["client"]["status"] == "reconnecting"
                and "GET /runners/broken/wake: " in health["client"]["last_error"]
            )

        await until(told, "what is the matter, in the runner's health")
        api.send("/agent/broken", payload="during")
        waited = len(delays(said()))
        proxy.on_request = None
        await did(api, "/agent/broken", "before", "during")
        assert claims(shared, "/agent/broken") == [("broken", "released")] * 2
        await health_tells(api, "broken", said, "GET /runners/broken/wake: ")
        back_within_backoff(delays(said()), waited, BRISK)


async def test_a_token_that_the_server_refuses_until_it_is_rotated(
    shared: Server, said: Said
) -> None:
    """Work goes on meanwhile, by the claim's own token."""
    api = shared.client(None)
    headers: dict[str, str] = {}
    async with at_work(shared, "rotates", headers=lambda: headers) as (proxy, runner, proceed):
        headers["Authorization"] = "Bearer expired"
        await proxy.cut_all()
        api.send("/agent/rotates", payload="during")
        await until(lambda: "401 UNAUTHORIZED" in str(runner.get_health()["last_error"]), said)
        assert runner.get_health()["stream_connected"] is False
        proceed.set()
        await did(api, "/agent/rotates-held", "held")
        await until(lambda: "Heartbeat lease expired" in issues(api, "rotates"), "its view")
        waited = len(delays(said()))
        headers.clear()
        await did(api, "/agent/rotates", "before", "during")
        assert claims(shared, "/agent/rotates") == [("rotates", "released")] * 2
        assert claims(shared, "/agent/rotates-held") == [("rotates", "released")]
        await health_tells(api, "rotates", said, "401 UNAUTHORIZED")
        back_within_backoff(delays(said()), waited, BRISK)


async def test_connections_that_die_in_silence(shared: Server, said: Said) -> None:
    """No reset and no end: only the runner's own deadlines can tell. New connections work."""
    api = shared.client(None)
    async with at_work(shared, "blackhole") as (proxy, _, proceed):
        waited = len(delays(said()))
        proxy.blackhole()
        api.send("/agent/blackhole", payload="during")
        proceed.set()
        await did(api, "/agent/blackhole", "before", "during")
        await did(api, "/agent/blackhole-held", "held")
        assert claims(shared, "/agent/blackhole") == [("blackhole", "released")] * 2
        assert claims(shared, "/agent/blackhole-held") == [("blackhole", "released")]
        await health_tells(api, "blackhole", said, "no answer within")
        back_within_backoff(delays(said()), waited, BRISK)


async def test_a_slow_network(shared: Server, said: Said) -> None:
    api = shared.client(None)
    timing = Timing(heartbeat_gap=0.1)
    async with between(shared, "slow", timing=timing) as (proxy, runner, errors):
        proxy.mode, proxy.delay = "delay", 0.05
        for number in range(2):
            api.send("/agent/slow", payload=str(number))
            await did(api, "/agent/slow", "before", *map(str, range(number + 1)))
        assert claims(shared, "/agent/slow") == [("slow", "released")] * 3
        await until(lambda: not issues(api, "slow"), lambda: issues(api, "slow"))
        health = health_of(api, "slow")["client"]
        assert (health["reconnect_count"], health["last_error"]) == (0, None)
        assert (runner.connections, errors, delays(said())) == (1, [], [])


async def test_a_network_slower_than_the_runner_waits(shared: Server, said: Said) -> None:
    """What it gave up arrives all the same: heartbeats tell how it is, and work is not redone."""
    name = "too-slow"
    api = shared.client(None)
    async with at_work(shared, name) as (proxy, runner, proceed):
        proxy.mode, proxy.delay = "delay", 1.2
        proceed.set()
        await until(lambda: runner.get_health()["status"] == "reconnecting", "its own view")
        api.send(f"/agent/{name}", payload="during")
        await until(lambda: disconnected(api, name), "the server's view meanwhile")
        waited = len(delays(said()))
        proxy.mode = "pass"
        await did(api, f"/agent/{name}", "before", "during")
        await did(api, f"/agent/{name}-held", "held")
        assert claims(shared, f"/agent/{name}") == [(name, "released")] * 2
        assert claims(shared, f"/agent/{name}-held") == [(name, "released")]
        await health_tells(api, name, said, "no answer within 1 s")
        back_within_backoff(delays(said()), waited, BRISK)


# One live mode alone


@pytest.mark.parametrize("live", ["sse", "long-poll"])
async def test_one_live_mode_alone(shared: Server, live: Any) -> None:
    api = shared.client(None)
    name = f"only-{live}"
    async with between(shared, name, live=live, timing=Timing()) as (_, runner, errors):
        for number in range(2):
            api.send(f"/agent/{name}", payload=str(number))
            await did(api, f"/agent/{name}", "before", *map(str, range(number + 1)))
        assert (runner.connections, errors) == (1, [])
