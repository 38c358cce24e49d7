"""The runner and the real server, in processes, and what can happen to either or between them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from runners.client import Handler, PullWakeRunner, RunnerError, Timing, Wake
from tests.support import ROOT, Database, HttpApi, Server

from .harness import until
from .proxy import Hook, Proxy

SETTINGS = {"PULLWAKE_REAPER_INTERVAL_MS": "200", "PULLWAKE_LONG_POLL_MS": "2000"}

BRISK = Timing(
    heartbeat_interval=1.0,
    heartbeat_gap=0.1,
    heartbeat_timeout=0.5,
    request_timeout=1.0,
    connect_timeout=3.0,
    long_poll_deadline=4.0,
    sse_idle_deadline=4.0,
    backoff_min=0.1,
    backoff_max=1.0,
    retry_after_max=5.0,
)
"""The protocol's durations on a smaller scale; so is the server's long-poll."""

DO = 'echo "did $(python3 -c "import json,sys; '
DO += "print(*(m['value']['payload'] for m in json.load(sys.stdin)['messages']))\")\""
"""A command that says what it did, as the last thing it does."""


@pytest.fixture(scope="module")
def shared(template: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that do nothing to it."""
    folder = tmp_path_factory.mktemp("shared")
    with template.copy(folder) as database:
        server = Server(database.url, folder / "server.log", SETTINGS)
        server.start()
        yield server
        server.close()


class Runner:
    """A runner process, as `python -m runners.client` starts it."""

    def __init__(self, url: str, log: Path, command: str, *options: str, runner_id: str = "r1"):
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "runners.client", "--url", url, "--id", runner_id),
                    *("--exec", command, *options),
                ],
                cwd=ROOT,
                stdout=out,
                stderr=out,
            )

    def said(self) -> str:
        return self.log.read_text()

    async def says(self, what: str, times: int = 1) -> None:
        await until(lambda: self.said().count(what) >= times, lambda: f"{what!r} in {self.said()}")

    async def stop(self) -> int:
        self.process.terminate()
        await until(lambda: self.process.poll() is not None, "the runner's end")
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


Start = Callable[..., Runner]


@pytest.fixture
def start_runner(tmp_path: Path) -> Iterator[Start]:
    runners: list[Runner] = []

    def start(url: str, command: str, *options: str, runner_id: str = "r1") -> Runner:
        log = tmp_path / f"runner-{len(runners)}.log"
        runners.append(Runner(url, log, command, *options, runner_id=runner_id))
        return runners[-1]

    yield start
    for runner in runners:
        runner.close()


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


# The server dies


@pytest.mark.parametrize("answered", [False, True], ids=["unanswered", "answer-lost"])
async def test_the_server_is_killed_and_started_again(
    start_server: Any, start_runner: Start, tmp_path: Path, answered: bool
) -> None:
    """SIGKILL while one runner streams, one claims, one works, and one works on a short lease.

    The claim is cut off before the server has decided, or after, with its answer lost: then only
    the lease brings the work back.
    """
    server = start_server(**SETTINGS)
    api = server.client(None)
    gate = tmp_path / "gate"
    gated = f"echo began; while ! test -e {gate}; do sleep 0.02; done; {DO}"
    killed = asyncio.Event()

    def kill_at(what: bytes) -> Hook:
        async def hook(data: bytes) -> bool:
            if what in data and not killed.is_set():
                server.kill()
                killed.set()
                return True
            return False

        return hook

    async with Proxy(server.port) as proxy:
        if answered:
            proxy.on_response = kill_at(b"claimToken")
        else:
            proxy.on_request = kill_at(b"/claim HTTP")
        short = ("--claim-lease", "2")
        runners = {
            "streams": start_runner(server.url, DO, runner_id="streams"),
            "works": start_runner(server.url, gated, runner_id="works"),
            "lapses": start_runner(server.url, gated, *short, runner_id="lapses"),
            "claims": start_runner(proxy.url, DO, *short, runner_id="claims"),
        }
        for name, runner in runners.items():
            await runner.says("connected to")
            api.make_entity(f"/agent/{name}", runner_id=name)
        for name in ("works", "lapses"):
            api.send(f"/agent/{name}", payload="one")
            await began(api, f"/agent/{name}")
        api.send("/agent/claims", payload="one")
        await killed.wait()
        await runners["streams"].says("connecting again in")
        await runners["lapses"].says("cancelled, since its lease ran out")
        gate.touch()
        server.start()
        api.send("/agent/streams", payload="one")
        for name in runners:
            await did(api, f"/agent/{name}", "one")
        # Work that outlived the server was not begun again; work that lost its lease was.
        assert outputs(api, "/agent/works") == ["began", "did one"]
        assert outputs(api, "/agent/lapses") == ["began", "began", "did one"]

        def told() -> Any:
            health = api.get("/_electric/runners/streams/health").body
            client = health["client"]
            return client["reconnect_count"] == 1 and client["last_error"] and health

        await until(told, "the health of a runner that has reconnected")
        assert told()["health"]["status"] == "healthy"
        for runner in runners.values():
            assert await runner.stop() == 0, runner.said()


async def test_the_servers_restart_in_good_order_is_no_trouble(
    start_server: Any, start_runner: Start
) -> None:
    server = start_server(**SETTINGS)
    api = server.client(None)
    runner = start_runner(server.url, DO)
    await runner.says("connected to")
    api.make_entity(runner_id="r1")
    server.stop()
    server.start()
    api.send(payload="one")
    await did(api, "/agent/e1", "one")
    assert await runner.stop() == 0


# The runner dies, or is stopped


async def test_the_runner_is_stopped_past_its_lease_and_continued(
    shared: Server, start_runner: Start, tmp_path: Path
) -> None:
    """It finds itself fenced, ends its command, and says nothing; another has done the work."""
    api = shared.client(None)
    gate = tmp_path / "gate"
    stopped = start_runner(
        shared.url,
        f"echo $$ > {tmp_path}/pid; echo began; while ! test -e {gate}; do sleep 0.02; done; {DO}",
        *("--claim-lease", "2"),
        runner_id="stopped",
    )
    other = start_runner(shared.url, DO, runner_id="other")
    await stopped.says("connected to")
    await other.says("connected to")
    api.make_entity("/agent/stopped", runner_id="stopped")
    api.send("/agent/stopped", payload="one")
    await began(api, "/agent/stopped")
    os.kill(stopped.process.pid, signal.SIGSTOP)
    dispatch(api, "/agent/stopped", "other")
    await did(api, "/agent/stopped", "one")
    # Its command is ready to end well when the runner wakes up: that must not be reported.
    gate.touch()
    pid = int((tmp_path / "pid").read_text())
    await until(lambda: not alive(pid), "the command's end, with the runner still stopped")
    os.kill(stopped.process.pid, signal.SIGCONT)
    await until(lambda: "fenced" in stopped.said(), stopped.said)
    assert "done in" not in stopped.said()
    assert outputs(api, "/agent/stopped") == ["began", "did one"]
    # And it is at work again.
    dispatch(api, "/agent/stopped", "stopped")
    api.send("/agent/stopped", payload="two")
    await did(api, "/agent/stopped", "one", "two")
    await stopped.says("epoch 3: done in")
    assert await stopped.stop() == await other.stop() == 0


async def test_a_runner_stopped_past_its_lease_ends_a_command_that_still_works(
    shared: Server, start_runner: Start, tmp_path: Path
) -> None:
    api = shared.client(None)
    stopped = start_runner(
        shared.url,
        f"echo $$ > {tmp_path}/pid; echo began; exec sleep 600",
        *("--claim-lease", "2"),
        runner_id="asleep",
    )
    other = start_runner(shared.url, DO, runner_id="awake")
    await stopped.says("connected to")
    await other.says("connected to")
    api.make_entity("/agent/asleep", runner_id="asleep")
    api.send("/agent/asleep", payload="one")
    await began(api, "/agent/asleep")
    pid = int((tmp_path / "pid").read_text())
    os.kill(stopped.process.pid, signal.SIGSTOP)
    dispatch(api, "/agent/asleep", "awake")
    await did(api, "/agent/asleep", "one")
    assert alive(pid)
    os.kill(stopped.process.pid, signal.SIGCONT)
    await stopped.says("cancelled, since the server fenced it")
    await until(lambda: not alive(pid), "the command's end")
    assert await stopped.stop() == await other.stop() == 0
    assert "done in" not in stopped.said()


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


def accept_only(proxy: Proxy) -> None:
    proxy.mode = "accept"


def cut_responses(proxy: Proxy) -> None:
    proxy.mode = "cut"


def refuse(proxy: Proxy) -> None:
    proxy.mode = "refuse"


def answer(status: int, **headers: str) -> Callable[[Proxy], None]:
    def change(proxy: Proxy) -> None:
        proxy.fail_with(status, **headers)

    return change


FAULTS = {
    "accepts and never answers": accept_only,
    "cuts mid-response": cut_responses,
    "refuses": refuse,
    "500": answer(500),
    "503": answer(503, Retry_After="1"),
    "429": answer(429, Retry_After="1"),
    "401": answer(401),
}


@pytest.mark.parametrize("live", ["long-poll", "sse"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_trouble_that_passes(shared: Server, fault: str, live: Any) -> None:
    """Back at work by itself, the message done once, and health that says what happened."""
    name = f"{fault}-{live}".replace(" ", "-")
    url = f"/agent/{name}"
    api = shared.client(None)
    async with between(shared, name, live=live) as (proxy, runner, errors):
        FAULTS[fault](proxy)
        if proxy.mode != "accept":
            await proxy.cut_all()
        api.send(url, payload="during")
        await until(lambda: len(errors) >= 3, "errors")
        assert runner.get_health()["last_error"] is not None
        proxy.mode = "pass"
        await did(api, url, "before", "during")
        api.send(url, payload="after")
        await did(api, url, "before", "during", "after")

        def told() -> Any:
            health = api.get(f"/_electric/runners/{name}/health").body
            return (
                health["health"]["status"] == "healthy"
                and health["client"]["stream_connected"]
                and health["client"]["last_error"]
                and health["client"]["reconnect_count"] >= 1
            )

        await until(told, "what happened, in the runner's health")


async def test_connections_that_die_in_silence(shared: Server) -> None:
    """No reset and no end: only the runner's own deadlines can tell."""
    api = shared.client(None)
    async with between(shared, "blackhole") as (proxy, runner, _):
        proxy.blackhole()
        api.send("/agent/blackhole", payload="during")
        await did(api, "/agent/blackhole", "before", "during")
        assert runner.get_health()["reconnect_count"] >= 1


async def test_a_slow_network(shared: Server) -> None:
    api = shared.client(None)
    async with between(shared, "slow", timing=Timing()) as (proxy, runner, errors):
        proxy.mode, proxy.delay = "delay", 0.05
        for number in range(2):
            api.send("/agent/slow", payload=str(number))
            await did(api, "/agent/slow", "before", *map(str, range(number + 1)))
        assert errors == []
        assert runner.get_health()["reconnect_count"] == 0


async def test_a_network_that_is_away_while_it_works(shared: Server) -> None:
    """Gone for less than the lease, with work at hand: the work goes on, and is done once."""
    api = shared.client(None)
    proceed = asyncio.Event()
    working = asyncio.Event()

    async def handler(wake: Wake) -> None:
        if (await wake.messages())[0].payload == "during":
            working.set()
            await proceed.wait()
        await handle(wake)

    async with between(shared, "away", handler, claim_lease=30.0) as (proxy, _, errors):
        api.send("/agent/away", payload="during")
        await working.wait()
        refuse(proxy)
        await proxy.cut_all()
        await until(lambda: len(errors) >= 2)
        proceed.set()
        await until(lambda: len(errors) >= 4)
        proxy.mode = "pass"
        await did(api, "/agent/away", "before", "during")
        assert api.get("/_electric/entities/agent/away").body["status"] == "idle"


# One live mode alone


@pytest.mark.parametrize("live", ["sse", "long-poll"])
async def test_one_live_mode_alone(shared: Server, start_runner: Start, live: str) -> None:
    api = shared.client(None)
    name = f"only-{live}"
    runner = start_runner(shared.url, DO, "--live", live, runner_id=name)
    await runner.says("connected to")
    api.make_entity(f"/agent/{name}", runner_id=name)
    for count in range(2):
        api.send(f"/agent/{name}", payload=str(count))
        await did(api, f"/agent/{name}", *map(str, range(count + 1)))
    assert await runner.stop() == 0
    assert "connecting again" not in runner.said()
