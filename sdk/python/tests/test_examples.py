"""Each example does what its first lines say."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import approval
import echo
import manager
import nightly
import session
from harness import fast, make, running
from pullwake.command import CommandHandler
from pullwake.testing import FakeServer, handle

EXAMPLES = Path(__file__).parents[1] / "examples"
MODULES = {"approval": approval, "echo": echo, "manager": manager, "nightly": nightly}
MODULES["session"] = session


def outputs(events: list[dict[str, Any]]) -> list[str]:
    return [each["value"]["text"] for each in events if each["type"] == "output"]


def test_there_is_a_test_of_each() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == MODULES.keys()
    assert [path.name for path in EXAMPLES.glob("*.sh")] == ["shell_agent.sh"]


async def test_echo_says_again_what_it_was_told() -> None:
    outcome = await handle(echo.echo, "Hello", entity="chat/hello")
    assert outputs(outcome.events) == ["You said: Hello"]


async def test_a_manager_reports_when_all_its_workers_are_done() -> None:
    async with FakeServer() as server:
        runner = make(server, manager.worker)
        runner.on("manager")(manager.manager)
        async with runner:
            await server.send("manager/1", {"texts": ["one two", "three", "a b c"]})
            there = server.entity("manager/1")
            await server.until(lambda: outputs(there.appended()), "the report")
            await server.until(lambda: there.active is None and not there.pending())
        spawned = [path for path, each in server.entities.items() if each.spawned is not None]
    assert spawned == ["worker/1-0", "worker/1-1", "worker/1-2"]
    assert outputs(there.appended()) == [
        "All are done.\n/worker/1-0: 2 words\n/worker/1-1: 1 words\n/worker/1-2: 3 words"
    ]


async def test_a_session_streams_and_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "IDLE", 0.05)
    timing = fast(watch_after=0.01, watch_gap=0.01)
    async with FakeServer() as server, running(server, session.session, timing=timing):
        await server.send("session/1", "everything")
        there = server.entity("session/1")

        def deltas() -> list[str]:
            return [each["value"]["delta"] for each in there.events if each["type"] == "text_delta"]

        await server.until(lambda: len(deltas()) >= 2, "the first words")
        await server.signal("session/1", "SIGINT")
        await server.until(lambda: there.claims[0].status == "released", "its end")
        written = deltas()
    assert written[:2] == ["You ", "asked "]
    assert written[-1] == "(interrupted)"


async def test_a_session_goes_on_with_what_comes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "model", quick)
    timing = fast(watch_after=0.01, watch_gap=0.01)
    async with FakeServer() as server, running(server, session.session, timing=timing):
        await server.send("session/1", "first")
        there = server.entity("session/1")
        await server.until(lambda: "first" in str(there.appended()))
        await server.send("session/1", "second")
        await server.until(lambda: "second" in str(there.appended()))
        await server.signal("session/1", "SIGINT")
        await server.until(lambda: there.claims[0].status == "released", "its end")
        assert len(there.claims) == 1


async def quick(prompt: str) -> Any:
    yield prompt


async def test_a_nightly_job_is_done_and_comes_again_the_next_night() -> None:
    outcome = await handle(nightly.nightly, "start", entity="nightly/backup")
    (text,) = outputs(outcome.events)
    assert text.endswith("backed up")
    (sent,) = outcome.sent
    assert (sent["to"], sent["payload"]) == ("nightly/backup", "night")
    assert 0 < sent["afterMs"] <= 86_400_000


def test_the_next_night_is_at_three() -> None:
    evening = datetime(2026, 1, 31, 23, 5, tzinfo=UTC)
    assert nightly.next_night(evening) == datetime(2026, 2, 1, 3, tzinfo=UTC)
    early = evening.replace(hour=2)
    assert nightly.next_night(early) - early == timedelta(minutes=55)


async def test_a_nightly_job_that_cannot_be_done_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails() -> str:
        raise OSError("no space")

    monkeypatch.setattr(nightly, "work", fails)
    assert (await handle(nightly.nightly, "night", entity="nightly/backup")).retry_after == 600


@pytest.mark.parametrize(("approved", "did"), [(True, "deployed"), (False, "left alone")])
async def test_an_approval_is_waited_for_by_nobody(approved: bool, did: str) -> None:
    async with FakeServer() as server, running(server, approval.deploy):
        await server.send("deploy/1", {"what": "version 2"})
        there = server.entity("deploy/1")
        await server.until(lambda: there.claims and there.claims[0].status == "released", "asked")
        assert there.tags == {"waits-for": "approval"}
        await server.send("deploy/1", {"approved": approved})
        await server.until(lambda: len(there.claims) == 2 and there.active is None, "settled")
    assert outputs(there.appended()) == [f"version 2: {did}, as user:a said"]
    assert there.tags == {}


async def test_what_is_no_answer_is_given_up() -> None:
    assert (await handle(approval.deploy, "hm", entity="deploy/1")).gave_up


async def test_a_shell_agent_counts_and_says_goodbye() -> None:
    async with FakeServer() as server:
        handler = CommandHandler(str(EXAMPLES / "shell_agent.sh"), server.url)
        async with running(server, handler):
            await server.send("shell/1", "one two three")
            there = server.entity("shell/1")
            await server.until(lambda: len(outputs(there.appended())) == 2, "both lines")
    assert outputs(there.appended()) == ["3 words", "Goodbye."]


@pytest.mark.parametrize("name", MODULES)
async def test_each_is_a_program(name: str) -> None:
    async with FakeServer() as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(EXAMPLES / f"{name}.py")), env={"PULLWAKE_URL": server.url}
        )
        try:
            await server.seen("wake", 2)
            process.terminate()
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
