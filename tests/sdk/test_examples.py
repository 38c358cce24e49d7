"""Examples of the SDK, with the real server, by the commands that their first lines name."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import ROOT, Server, wait_until

EXAMPLES = ROOT / "sdk" / "python" / "examples"


@pytest.fixture
def start(server: Server) -> Iterator[Callable[..., None]]:
    """Start a program of the SDK's, and wait until its runner is connected."""
    processes = []

    def start(runner_id: str, *arguments: str, **env: str) -> None:
        process = subprocess.Popen(
            [sys.executable, *arguments], env={**server.env, "PULLWAKE_URL": server.url, **env}
        )
        processes.append(process)
        api = server.client(None)

        def connected() -> Any:
            health = api.get(f"/_electric/runners/{runner_id}/health")
            return health.status == 200 and (health.body["client"] or {}).get("stream_connected")

        wait_until(connected, timeout=30)

    yield start
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(30)


def pullwake(server: Server, line: str) -> str:
    """What a command line of an example prints."""
    _, *arguments = shlex.split(line)
    done = subprocess.run(
        [sys.executable, "-m", "pullwake", *arguments],
        env={**server.env, "PULLWAKE_URL": server.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done
    return done.stdout


def commands(name: str) -> dict[str, str]:
    """The command lines that the example says to try, by subcommand."""
    lines = (EXAMPLES / name).read_text().splitlines()
    tried = [line.strip("# ") for line in lines if line.strip("# ").startswith("pullwake ")]
    return {line.split()[1]: line for line in tried}


def observed(server: Server, name: str) -> str:
    """What the example's `observe` shows, up to now."""
    return pullwake(server, f"{commands(name)['observe']} --once")


def test_echo(server: Server, start: Callable[..., None]) -> None:
    start("echo", str(EXAMPLES / "echo.py"))
    pullwake(server, commands("echo.py")["spawn"])
    wait_until(lambda: "\nYou said: Hello\n" in observed(server, "echo.py"), timeout=30)


def test_a_session_is_interrupted(server: Server, start: Callable[..., None]) -> None:
    start("session", str(EXAMPLES / "session.py"), SESSION_IDLE="1")
    pullwake(server, commands("session.py")["spawn"])
    wait_until(lambda: "« You asked" in observed(server, "session.py"), timeout=30)
    pullwake(server, commands("session.py")["signal"])
    wait_until(lambda: "(interrupted)" in observed(server, "session.py"), timeout=30)
    wait_until(lambda: server.client(None).status("/session/1") == "idle", timeout=30)


def test_an_approval(server: Server, start: Callable[..., None]) -> None:
    start("approval", str(EXAMPLES / "approval.py"))
    pullwake(server, commands("approval.py")["spawn"])
    api = server.client(None)
    entity = "/_electric/entities/deploy/1"
    wait_until(lambda: api.get(entity).body["tags"] == {"waits-for": "approval"}, timeout=30)
    pullwake(server, commands("approval.py")["send"])
    wait_until(lambda: "version 2: deployed" in observed(server, "approval.py"), timeout=30)


def test_a_manager_and_its_workers(server: Server, start: Callable[..., None]) -> None:
    start("manager", str(EXAMPLES / "manager.py"))
    pullwake(server, commands("manager.py")["spawn"])
    report = "\nAll are done.\n/worker/1-0: 2 words\n/worker/1-1: 1 words\n"
    wait_until(lambda: report in observed(server, "manager.py"), timeout=60)


def test_a_nightly_job(server: Server, start: Callable[..., None]) -> None:
    start("nightly", str(EXAMPLES / "nightly.py"))
    pullwake(server, commands("nightly.py")["spawn"])
    wait_until(lambda: "backed up" in observed(server, "nightly.py"), timeout=30)


def test_a_shell_agent(server: Server, start: Callable[..., None]) -> None:
    run = commands("shell_agent.sh")["run"].replace("./", f"{EXAMPLES}/")
    start("shell", "-m", *shlex.split(run))
    pullwake(server, commands("shell_agent.sh")["spawn"])

    def said() -> bool:
        shown = observed(server, "shell_agent.sh")
        return "\n3 words\n" in shown and "\nGoodbye.\n" in shown

    wait_until(said, timeout=30)
