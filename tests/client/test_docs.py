"""The page that teaches it works as it is written."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from runners.client.__main__ import parser
from runners.client.timing import Timing

from .fake import PATIENCE, FakeServer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "writing-a-runner.md").read_text()


async def test_the_ten_lines_are_a_runner() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    async with FakeServer() as server, asyncio.timeout(PATIENCE):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code.replace("http://127.0.0.1:8000", server.url)), cwd=ROOT
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


def test_the_options_it_names_exist() -> None:
    exist = {option for action in parser()._actions for option in action.option_strings}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    assert named <= exist


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
