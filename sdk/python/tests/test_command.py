"""The handler that runs a command, and the command that runs it."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import pullwake
from harness import running, until
from pullwake.__main__ import main
from pullwake.command import CommandHandler
from pullwake.testing import PATIENCE, Claim, FakeServer, status


async def ended(server: FakeServer, path: str = "chat/1") -> Claim:
    """The entity's first claim, once its work was reported or it was taken away."""
    entity = server.entity(path)
    await server.until(lambda: entity.claims and entity.claims[0].status != "active", "an end")
    return entity.claims[0]


async def run(command: str, payload: Any = "hi", **options: Any) -> tuple[FakeServer, Claim]:
    """What the server has after one message was seen to by `command`."""
    async with FakeServer() as server:
        handler = CommandHandler(command, server.url, **options)
        async with running(server, handler):
            await server.send("chat/1", payload)
            return server, await ended(server)


def texts(server: FakeServer) -> list[str]:
    return [event["value"]["text"] for event in server.entity("chat/1").appended()]


async def test_the_wake_and_its_messages_come_on_standard_input() -> None:
    server, claim = await run("cat", {"text": "hällo"})
    request = json.loads(texts(server)[0])
    assert claim.status == "released"
    assert set(request) == {"wake", "messages", "events"}
    assert request["events"] == []
    assert request["wake"] == {
        "runner_id": "r",
        "entity_url": "/chat/1",
        "entity": {"type": "chat", "url": "/chat/1", "status": "idle"},
        "epoch": 1,
        "consumer_id": claim.consumer_id,
        "trigger_event": "message_received",
        "stream_path": "/chat/1/main",
        "stream_url": f"{server.url}/chat/1/main",
        "principal": {"kind": "user", "id": "a", "key": "user:a", "url": "/principal/user%3Aa"},
    }
    (message,) = request["messages"]
    assert message["type"] == "inbox"
    assert message["value"]["payload"] == {"text": "hällo"}
    # On a command's input there is nothing that would let its reader write.
    assert claim.write_token not in texts(server)[0]
    assert claim.token not in texts(server)[0]


async def test_the_environment_tells_where_and_as_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULLWAKE_TOKEN", "the-runners-own")
    monkeypatch.setenv("EDITOR", "ed")
    monkeypatch.delenv("PULLWAKE_MODE", raising=False)
    server, claim = await run("env")
    got = dict(text.split("=", 1) for text in texts(server) if "=" in text)
    assert {name: value for name, value in got.items() if name.startswith("PULLWAKE_")} == {
        "PULLWAKE_URL": server.url,
        "PULLWAKE_RUNNER_ID": "r",
        "PULLWAKE_ENTITY_URL": "/chat/1",
        "PULLWAKE_ENTITY_TYPE": "chat",
        "PULLWAKE_EPOCH": "1",
        "PULLWAKE_CONSUMER_ID": claim.consumer_id,
        "PULLWAKE_TRIGGER_EVENT": "message_received",
        "PULLWAKE_STREAM_URL": f"{server.url}/chat/1/main",
        "PULLWAKE_SEND_URL": f"{server.url}/_electric/entities/chat/1/send",
        "PULLWAKE_WRITE_TOKEN": claim.write_token,
    }
    assert got["EDITOR"] == "ed"


async def test_each_line_becomes_an_event_in_order() -> None:
    server, claim = await run(r"printf 'a\r\n\nb\377\0c\nlast'")
    assert texts(server) == ["a", "", "b��c", "last"]
    first = server.entity("chat/1").appended()[0]
    assert first["type"] == "output"
    assert first["headers"]["operation"] == "insert"
    keys = [event["key"] for event in server.entity("chat/1").appended()]
    assert len(set(keys)) == 4
    assert claim.status == "released"


async def test_lines_are_appended_as_they_come(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    command = f"echo first; while ! test -e {gate}; do sleep 0.01; done; echo second"
    async with FakeServer() as server, running(server, CommandHandler(command, server.url)):
        await server.send("chat/1", 1)
        await server.until(lambda: server.entity("chat/1").appended(), "the first line")
        assert texts(server) == ["first"]
        gate.touch()
        await ended(server)
        assert texts(server) == ["first", "second"]


async def test_a_line_that_does_not_end_is_appended_as_it_comes_too(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    command = f"yes | head -c 80000 | tr -d '\\n'; while ! test -e {gate}; do sleep 0.01; done"
    async with FakeServer() as server, running(server, CommandHandler(command, server.url)):
        await server.send("chat/1", 1)
        await server.until(lambda: server.entity("chat/1").appended(), "the line's beginning")
        gate.touch()
        await ended(server)
        assert "".join(texts(server)) == "y" * 40_000


async def test_much_output_arrives_whole() -> None:
    server, claim = await run("seq 1 30000")
    assert texts(server) == [str(number) for number in range(1, 30_001)]
    assert len(server.of("append")) < 150
    assert claim.status == "released"


@pytest.mark.parametrize("end", ["\\nafter\\n", "after"])
async def test_a_line_too_long_for_one_append_is_cut(end: str) -> None:
    """With characters that are long in JSON, of which none is torn apart."""
    emoji = "import sys; sys.stdout.write('\U0001f600' * 200_000)"
    server, _ = await run(f'{sys.executable} -c "{emoji}"; printf "{end}"')
    assert "".join(texts(server)) == "\U0001f600" * 200_000 + "after"
    assert max(len(json.dumps(request.body)) for request in server.of("append")) < 1024 * 1024


async def test_many_short_lines_fit_into_an_append_too() -> None:
    server, _ = await run("yes '' | head -n 20000")
    assert texts(server) == [""] * 20_000
    assert max(len(json.dumps(request.body)) for request in server.of("append")) < 1024 * 1024


async def test_a_command_need_not_read_its_input() -> None:
    _, claim = await run("true", "x" * 1_000_000)
    assert claim.status == "released"


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("echo trying >&2; echo no such file >&2; exit 3", "exit status 3: trying\nno such file"),
        ("exit 1", "exit status 1"),
        ("kill -9 $$", "killed by SIGKILL"),
        ("no-such-command-anywhere", "exit status 127: "),
    ],
)
async def test_what_does_not_exit_with_0_failed(command: str, error: str) -> None:
    _, claim = await run(command)
    assert claim.status == "failed"
    assert claim.error.startswith(f"CommandFailed: {error}")


async def test_output_as_json_is_appended_as_events() -> None:
    server, claim = await run("""echo '{"type":"reply","key":"k","value":[1]}'""", output="json")
    (event,) = server.entity("chat/1").appended()
    assert (event["type"], event["key"], event["value"]) == ("reply", "k", [1])
    assert claim.status == "released"


async def test_what_was_printed_before_a_line_that_is_no_event_is_kept() -> None:
    server, claim = await run("""printf '{"type":"reply"}\\nplain\\n'""", output="json")
    assert [event["type"] for event in server.entity("chat/1").appended()] == ["reply"]
    assert claim.status == "failed"


async def test_an_event_may_be_longer_than_a_line_of_text() -> None:
    event = "import json; print(json.dumps({'type': 'reply', 'value': 'x' * 500_000}))"
    first = """echo '{"type":"reply"}'"""
    server, claim = await run(f'{first}; {sys.executable} -c "{event}"', output="json")
    assert [len(e.get("value", "")) for e in server.entity("chat/1").appended()] == [0, 500_000]
    assert claim.status == "released"


@pytest.mark.parametrize("line", ["plain", "[1]"])
async def test_output_that_should_be_json_and_is_not_fails(line: str) -> None:
    _, claim = await run(f"echo '{line}'; sleep 60", output="json")
    assert claim.status == "failed"
    assert "output line 1 is not" in claim.error


async def test_what_a_command_leaves_running_is_ended_and_holds_up_nothing(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    server, claim = await run(f"sleep 600 & echo $! > {pid}; echo done")
    assert claim.status == "released"
    assert texts(server) == ["done"]
    await until(lambda: not alive(int(pid.read_text())), "the end of what it left")


async def test_not_even_what_escapes_its_group_holds_it_up(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    server, claim = await run(
        f"setsid sh -c 'echo $$ > {pid}; exec sleep 600' & echo done; "
        f"while ! test -s {pid}; do sleep 0.01; done"
    )
    try:
        assert claim.status == "released"
        assert texts(server) == ["done"]
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


GROUP = "sleep 600 & echo $! > {0}/child; echo $$ > {0}/shell; {1} wait; sleep 600"


@pytest.mark.parametrize("trap", ["", "trap '' TERM;"], ids=["gentle", "stubborn"])
async def test_a_cancelled_command_is_ended_with_its_whole_group(tmp_path: Path, trap: str) -> None:
    async with FakeServer() as server:
        server.record["claim_lease_ms"] = 1000
        handler = CommandHandler(GROUP.format(tmp_path, trap), server.url, kill_after=0.2)
        async with running(server, handler):
            await server.send("chat/1", 1)
            await until(lambda: (tmp_path / "shell").exists() and (tmp_path / "shell").read_text())
            pids = [int((tmp_path / name).read_text()) for name in ("child", "shell")]
            assert all(map(alive, pids))
            await server.expire("chat/1")
            await until(lambda: not any(map(alive, pids)), "the group's end")
        assert server.of("done") == server.of("failed") == []


async def test_one_cancelled_at_any_moment_of_its_start_leaves_nothing(tmp_path: Path) -> None:
    said = tmp_path / "children"
    said.touch()

    async def handle(wake: pullwake.Wake) -> None:
        await wake.items()  # all of it is read, so that what comes next is the start
        handler = CommandHandler(f"sleep 600 & echo $! >> {said}; wait", server.url)
        for turns in range(40):
            before = said.read_text()
            starting = asyncio.create_task(handler(wake))
            for _ in range(turns):
                await asyncio.sleep(0)
            while has_child() and said.read_text() == before:
                pass  # the loop has other things to do meanwhile
            starting.cancel()
            with suppress(asyncio.CancelledError):
                await starting
            gc.collect()  # says what was left open

    async with FakeServer() as server, running(server, handle):
        await server.send("chat/1", 1)
        assert (await ended(server)).status == "released"
    children = said.read_text().split()
    assert children
    await until(lambda: not any(alive(int(pid)) for pid in children), "the groups' ends")


def has_child() -> bool:
    thread = threading.get_native_id()
    return bool(Path(f"/proc/self/task/{thread}/children").read_text())


async def test_a_stopped_group_is_ended_too(tmp_path: Path) -> None:
    async with FakeServer() as server:
        handler = CommandHandler(GROUP.format(tmp_path, ""), server.url, kill_after=5)
        async with running(server, handler):
            await server.send("chat/1", 1)
            await until(lambda: (tmp_path / "shell").exists() and (tmp_path / "shell").read_text())
            pid = int((tmp_path / "shell").read_text())
            os.killpg(pid, signal.SIGSTOP)
        assert not alive(pid)


@pytest.mark.parametrize("trap", ["", "trap '' TERM;"], ids=["gentle", "stubborn"])
async def test_a_command_does_not_outlive_its_runner(tmp_path: Path, trap: str) -> None:
    """SIGKILL leaves the runner no moment to end anything itself."""
    async with FakeServer() as server:
        command = GROUP.format(tmp_path, trap)
        code = f"""
import asyncio
from pullwake import PullWakeRunner
from pullwake.command import CommandHandler
handler = CommandHandler({command!r}, {server.url!r}, kill_after=0.2)
asyncio.run(PullWakeRunner({server.url!r}, "r", handler).run())
"""
        runner = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
        pids: list[int] = []
        try:
            await server.seen("wake", 2)
            await server.send("chat/1", 1)
            await until(lambda: (tmp_path / "shell").exists() and (tmp_path / "shell").read_text())
            pids = [int((tmp_path / name).read_text()) for name in ("child", "shell")]
            await until(lambda: guards(pids[1]), "the guard")
            runner.kill()
            await until(lambda: not any(map(alive, pids)), "the group's end")
            await until(lambda: not guards(pids[1]), "the guard's end")
        finally:
            with suppress(ProcessLookupError):
                runner.kill()
            await runner.wait()
            for pid in filter(alive, pids):
                os.kill(pid, signal.SIGKILL)


async def test_of_a_command_that_has_ended_nothing_is_left() -> None:
    server, _ = await run("echo $$")
    assert guards(int(texts(server)[0])) == []


def guards(group: int) -> list[str]:
    """The processes that are to end the group should the runner die."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            arguments = process.read_bytes().split(b"\0")
            if arguments[3:5] == [b"sh", str(group).encode()]:
                found.append(str(process.parent))
    return found


# As a process


@asynccontextmanager
async def process(
    server: FakeServer, command: str, *options: str, **env: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pullwake", "run"),
        *("--url", server.url, "--id", "r", "--exec", command, *options),
        env={k: v for k, v in os.environ.items() if not k.startswith("PULLWAKE_")} | env,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            yield started
    finally:
        with suppress(ProcessLookupError):
            started.kill()
        await started.wait()


async def logged(started: asyncio.subprocess.Process, what: str) -> None:
    """Wait until it has written a line with `what` in it."""
    assert started.stderr is not None
    while what not in (line := (await started.stderr.readline()).decode()):
        assert line, f"it ended without a word of {what!r}"


async def said(started: asyncio.subprocess.Process) -> str:
    """All it wrote, once it has exited."""
    _, err = await started.communicate()
    return err.decode()


async def test_it_works_and_a_signal_ends_it_with_0() -> None:
    async with FakeServer() as server, process(server, "cat >/dev/null; echo hi") as started:
        await server.seen("wake", 2)
        await server.send("chat/1", 1)
        await ended(server)
        started.terminate()
        log = await said(started)
        assert started.returncode == 0
        for line in ("connected to", "/chat/1 epoch 1: claimed", "/chat/1 epoch 1: done in"):
            assert line in log
        assert texts(server) == ["hi"]


async def test_a_signal_drains(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    command = f"echo began; while ! test -e {gate}; do sleep 0.02; done; echo ended"
    async with FakeServer() as server, process(server, command) as started:
        await server.seen("wake", 2)
        await server.send("chat/1", 1)
        await server.seen("append")
        started.send_signal(signal.SIGINT)
        await logged(started, "stopping")
        gate.touch()
        await said(started)
        assert started.returncode == 0
        assert texts(server) == ["began", "ended"]
        assert server.entity("chat/1").claims[0].status == "released"


async def test_a_second_signal_cancels_and_says_so() -> None:
    async with FakeServer() as server, process(server, "echo began; sleep 600") as started:
        await server.seen("wake", 2)
        await server.send("chat/1", 1)
        await server.seen("append")
        started.terminate()
        await logged(started, "stopping")
        started.terminate()
        log = await said(started)
        assert started.returncode == 75
        assert "cancelled" in log
        assert server.entity("chat/1").claims[0].status == "active"


@pytest.mark.parametrize(
    ("code", "error", "exit_status"),
    [
        (401, "UNAUTHORIZED", 77),
        (403, "UNAUTHORIZED", 77),
        (400, "INVALID_REQUEST", 78),
    ],
)
async def test_a_runner_that_is_not_taken_ends_and_says_why(
    code: int, error: str, exit_status: int
) -> None:
    async with FakeServer() as server:
        server.standing("register", status(code, error))
        async with process(server, "true") as started:
            log = await said(started)
            assert started.returncode == exit_status
            assert f"the server does not take this runner: {code} {error}" in log


async def test_once_it_has_worked_a_refusal_is_waited_out() -> None:
    async with FakeServer() as server, process(server, "echo hi") as started:
        await server.seen("wake", 2)
        server.fault("get", status(401, "UNAUTHORIZED"))
        await server.close()
        await server.open()
        await server.until(lambda: len(server.of("get")) >= 3, "asking again")
        await server.send("chat/1", 1)
        await ended(server)
        started.terminate()
        await said(started)
        assert started.returncode == 0


async def test_it_waits_for_a_server_that_is_not_there_yet() -> None:
    server = FakeServer()
    await server.open()
    await server.close()
    async with process(server, "echo hi") as started:
        await logged(started, "connecting again")
        await server.open()
        await server.seen("wake", 2)
        started.terminate()
        await said(started)
        assert started.returncode == 0
    await server.close()


async def test_its_log_as_json() -> None:
    async with (
        FakeServer() as server,
        process(server, "echo oops >&2; exit 1", "--log-format", "json") as started,
    ):
        await server.seen("wake", 2)
        await server.send("chat/1", 1)
        await ended(server)
        started.terminate()
        lines = [json.loads(line) for line in (await said(started)).splitlines()]
        assert all({"time", "level", "message"} <= set(line) for line in lines)
        (claimed,) = [line for line in lines if line["message"].endswith("claimed")]
        assert (claimed["entity"], claimed["epoch"], claimed["level"]) == ("/chat/1", 1, "info")
        assert any("oops" in line["message"] for line in lines)


async def test_a_token_is_taken_from_the_environment_or_a_file(tmp_path: Path) -> None:
    async with FakeServer() as server, process(server, "true", PULLWAKE_TOKEN="env") as started:
        await server.seen("register")
        assert server.of("register")[0].headers["authorization"] == "Bearer env"
        started.terminate()
        await said(started)
    file = tmp_path / "token"
    file.write_text("one\n")
    async with FakeServer() as server, process(server, "true", "--token-file", str(file)):
        await server.seen("wake", 2)
        assert server.of("register")[0].headers["authorization"] == "Bearer one"
        file.write_text("two\n")
        await server.send("chat/1", 1)
        assert (await server.seen("claim")).headers["authorization"] == "Bearer two"


async def test_a_command_may_be_given_so_much_time() -> None:
    async with FakeServer() as server, process(server, "sleep 600", "--timeout", "0.3"):
        await server.seen("wake", 2)
        await server.send("chat/1", 1)
        claim = await ended(server)
        assert (claim.status, claim.error) == ("failed", "not finished within 0.3 s")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--url", "http://127.0.0.1:1"],
        ["--exec", "true"],
        ["--url", "nonsense", "--exec", "true"],
        ["--url", "http://127.0.0.1:1", "--exec", "true", "--timeout", "-1"],
        ["--url", "http://127.0.0.1:1", "--exec", "true", "--max-concurrent-claims", "0"],
        ["--url", "http://127.0.0.1:1", "--exec", "true", "--token", "t", "--token-file", "f"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PULLWAKE_URL", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["run", *arguments])
    assert caught.value.code == 2


@pytest.mark.parametrize("arguments", [[], ["walk"]])
def test_without_a_subcommand_it_says_which_there_are(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: pullwake [-h] [--version] COMMAND" in capsys.readouterr().err


async def test_it_is_installed_as_a_command() -> None:
    installed = Path(sys.executable).with_name("pullwake")
    helped = await asyncio.create_subprocess_exec(
        installed, "run", "--help", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await helped.communicate()
    assert helped.returncode == 0
    assert out.startswith(b"usage: pullwake run ")


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"pullwake {pullwake.__version__}\n"
