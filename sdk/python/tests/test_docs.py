"""The page that teaches it works as it is written."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pullwake.__main__ import main, parser
from pullwake.testing import PATIENCE, FakeServer
from pullwake.timing import Timing

SDK = Path(__file__).parents[1]
README = (SDK / "README.md").read_text()
PAGE_FILE = SDK.parents[1] / "docs" / "writing-a-runner.md"
if not PAGE_FILE.exists():
    pytest.skip("the page is in the checkout, not in the sdist", allow_module_level=True)
PAGE = PAGE_FILE.read_text()


FIRST = (PAGE_FILE.parent / "first-agent.md").read_text()


def python_of(page: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return str(code)


def test_both_pages_begin_with_the_same_ten_lines() -> None:
    assert python_of(README) == python_of(PAGE)


async def test_the_ten_lines_are_a_runner() -> None:
    code = python_of(PAGE)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    async with FakeServer() as server, asyncio.timeout(PATIENCE):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code.replace("http://127.0.0.1:8000", server.url))
        )
        try:
            await server.seen("wake", 2)
            await server.send("agent/hello", "Hello")
            entity = server.entity("agent/hello")
            await server.until(lambda: entity.claims and entity.claims[0].status == "released")
            (reply,) = entity.appended()
            assert reply["value"] == {"text": "You said: Hello"}
            process.terminate()
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def test_the_options_it_names_exist(capsys: pytest.CaptureFixture[str]) -> None:
    option = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
    for command in ("run", "send", "spawn", "observe", "ps", "signal"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
    assert set(option.findall(PAGE)) <= set(option.findall(capsys.readouterr().out))


def test_the_durations_it_names_are_the_defaults() -> None:
    timing = Timing()
    for sentence in (
        f"after {timing.backoff_min:g} s, doubling to {timing.backoff_max:g} s",
        f"(up to {timing.retry_after_max:g} s)",
        f"lasted for {timing.stable_after:g} s",
        f"not answered within {timing.long_poll_deadline:g} s",
        f"silent for {timing.sse_idle_deadline:g} s",
    ):
        assert sentence in PAGE
    assert timing.report_for == 600
    assert timing.heartbeat_interval == 30


def test_the_first_agents_are_the_examples() -> None:
    for name, example in re.findall(r"\[`(\S+)`\]\((\S+)\)", FIRST):
        assert (PAGE_FILE.parent / example).resolve() == SDK / "examples" / name
        assert (SDK / "examples" / name).exists()
    echo, streams, _ = re.findall(r"```py\n(.*?)```", FIRST, re.DOTALL)
    assert echo in (SDK / "examples" / "echo.py").read_text()
    assert "wake.interrupted" in streams


def test_its_test_needs_nothing_but_pytest() -> None:
    (_, _, code) = re.findall(r"```py\n(.*?)```", FIRST, re.DOTALL)
    found: dict[str, Callable[[], None]] = {}
    exec(code, found)  # noqa: S102  the page's own
    found["test_it_echoes"]()


def test_its_commands_are_taken() -> None:
    lines = re.findall(r"^pullwake (?!--)(.+)$", FIRST, re.MULTILINE)
    assert {line.split()[0] for line in lines} == {"spawn", "observe", "signal", "send"}
    for line in lines:
        parser().parse_args(shlex.split(line))
