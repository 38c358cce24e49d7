"""Calm under load, nothing silent, and other processes beside it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from harness import Handled, fast, make, running, until
from pullwake import (
    BadAnswer,
    Drained,
    RegistrationRefused,
    RunnerError,
    ServerUnreachable,
    State,
)
from pullwake import transport as transport_module
from pullwake.clock import Clock
from pullwake.testing import FakeServer, Fault, Request, Response, status
from pullwake.transport import Transport

# Calm


async def test_ten_at_once_unless_told_otherwise() -> None:
    handled = Handled(waits=True)
    async with FakeServer() as server, running(server, handled):
        for number in range(15):
            await server.send(f"chat/{number}", number)
        await until(lambda: len(handled.wakes) == 10)
        await server.emit("chat/0")  # whatever else comes
        heard = len(server.of("heartbeat"))
        await server.seen("heartbeat", heard + 1)
        assert len(server.of("claim")) == 10
        handled.proceed.set()
        await server.until(lambda: len(server.of("done")) == 15)


async def test_an_answer_of_any_size_is_not_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "MAX_BODY", 1000)

    async def endless(request: Request, answer: Callable[[], Awaitable[Response]]) -> Response:
        return Response(200, "[" + "1," * 1000 + "1]")

    async with FakeServer() as server:
        server.standing("get", endless)
        transport = Transport(server.url, None, Clock())
        with pytest.raises(BadAnswer, match="larger than 1000 bytes"):
            await transport.call("GET", transport.url("/_electric/runners/r"), deadline=10)
        await transport.aclose()


async def test_an_event_of_any_size_is_not_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "MAX_BODY", 1000)
    errors: list[RunnerError] = []
    async with FakeServer() as server, running(server, live="sse", on_error=errors.append):
        await server.emit("chat/1", padding="x" * 1000)
        await until(lambda: bool(errors))
    assert "an event is larger than 1000 characters" in str(errors[0])


async def test_an_event_stream_does_not_go_on_for_ever() -> None:
    errors: list[RunnerError] = []
    timing = fast(sse_deadline=0.2)
    async with (
        FakeServer() as server,
        running(server, live="sse", on_error=errors.append, timing=timing),
    ):
        await until(lambda: bool(errors))
        # What comes after is read by the next one.
        await server.emit("chat/1")
        await server.seen("claim")
    assert isinstance(errors[0], ServerUnreachable)
    assert "it is not over within 0.2 s" in str(errors[0])


# Not silent


@pytest.mark.parametrize("code", [400, 401, 403])
async def test_a_runner_that_is_refused_says_so_and_ends(code: int) -> None:
    async with FakeServer() as server:
        server.standing("register", status(code, "UNAUTHORIZED"))
        with pytest.raises(RegistrationRefused) as refused:
            await make(server).run(signals=())
        assert refused.value.status == code
        runner = make(server)
        await runner.start()
        with pytest.raises(RegistrationRefused):
            await runner.connected()
        with pytest.raises(RegistrationRefused):
            await runner.stop()
        server.standing("register", None)
        await runner.start()
        await runner.connected()
        await runner.stop()


async def test_or_goes_on_trying_if_it_is_told_to() -> None:
    async with FakeServer() as server:
        server.fault("register", status(401, "UNAUTHORIZED"), status(401, "UNAUTHORIZED"))
        async with running(server, retry_refused=True):
            pass


async def test_it_says_what_it_is_connected_to_and_as_whom(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "pullwake.runner")
    async with FakeServer() as server:
        server.record["owner_principal"] = "/principal/user%3Aa"
        async with running(server):
            pass
        said = f"connected to {server.url} as runner r of /principal/user%3Aa"
        assert said in [record.getMessage() for record in caplog.records]


async def test_two_runners_share_the_processs_signals() -> None:
    async with FakeServer() as server, FakeServer() as other:
        runs = [asyncio.create_task(make(each).run()) for each in (server, other)]
        for each in (server, other):
            await each.seen("wake", 2)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asyncio.gather(*runs) == [Drained(), Drained()]
        # And the first to end does not take the signals away from the other.
        first, second = (asyncio.create_task(make(each).run()) for each in (server, other))
        for each in (server, other):
            await each.seen("wake", 4)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await second == Drained()


async def test_it_runs_in_a_thread_and_is_stopped_from_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "pullwake.runner")
    outcome: list[Drained] = []
    async with FakeServer() as server:
        runner = make(server)
        thread = threading.Thread(target=lambda: outcome.append(asyncio.run(runner.run())))
        thread.start()
        await server.seen("wake", 2)
        with pytest.raises(RunnerError, match="another event loop"):
            await runner.start()
        with pytest.raises(RunnerError, match="another event loop"):
            await runner.stopped()
        runner.request_stop()
        await asyncio.to_thread(thread.join)
        assert outcome == [Drained()]
        assert "signals are left to the rest of the program" in caplog.text
        await runner.start()
        await runner.connected()
        await runner.stop()


def end_without_stopping(loop: asyncio.AbstractEventLoop) -> None:
    """Keeps nothing of what ran in it: a task that was cancelled has its connections."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()


def test_it_starts_anew_after_its_event_loop_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    server_side = asyncio.new_event_loop()
    server = FakeServer()
    server_side.run_until_complete(server.open())
    thread = threading.Thread(target=server_side.run_forever, daemon=True)
    thread.start()
    runner = make(server)

    async def connect() -> None:
        await runner.start()
        await runner.connected()
        await until(lambda: runner.get_health()["last_heartbeat_ok"])  # and its connection is idle

    gc.disable()  # until it is asked what was left
    loop = asyncio.new_event_loop()
    loop.run_until_complete(connect())
    end_without_stopping(loop)
    assert runner.state is State.STOPPED
    runner.request_stop()

    async def again() -> None:
        assert await runner.stop() == Drained()
        await connect()
        await runner.stop()

    asyncio.run(again())
    assert "ended without stopping it" in caplog.text
    del loop
    # What an event loop that ended in the middle of it leaves open, nobody can close.
    with pytest.warns(ResourceWarning, match="unclosed"):
        gc.collect()
    gc.enable()
    asyncio.run_coroutine_threadsafe(server.close(), server_side).result(10)
    server_side.call_soon_threadsafe(server_side.stop)
    thread.join()
    server_side.close()


# Two processes of one id


def reports(server: FakeServer, started_at: str) -> Fault:
    """As if another process, started then, had reported since."""

    async def fault(request: Request, answer: Callable[[], Awaitable[Response]]) -> Response:
        response = await answer()
        response.body = {**response.body, "diagnostics": {"started_at": started_at}}
        return response

    return fault


async def test_the_goodbye_of_an_old_process_does_not_make_the_new_one_look_dead() -> None:
    async with FakeServer() as server:
        async with running(server):
            await server.seen("heartbeat")
            server.standing("get", reports(server, "2100-01-01T00:00:00.000Z"))
        assert [beat for beat in server.heartbeats if beat["lease_ms"] == 1000] == []


async def test_nor_where_the_old_one_reported_last() -> None:
    async def other(request: Request, answer: Callable[[], Awaitable[Response]]) -> Response:
        response = await answer()
        response.headers["Pullwake-Other-Process"] = "true"
        return response

    async with FakeServer() as server:
        server.standing("heartbeat", other)
        async with running(server):
            await server.seen("heartbeat")
            await server.seen("heartbeat", 2)
        assert [beat for beat in server.heartbeats if beat["lease_ms"] == 1000] == []


async def test_what_an_operator_changed_is_not_overwritten_by_a_reconnect() -> None:
    options: dict[str, Any] = {"max_concurrent_claims": 5, "claim_lease": 20.0, "label": "mine"}
    async with FakeServer() as server, running(server, kind="ci", **options):
        assert server.of("register")[0].body == {
            "id": "r",
            "label": "mine",
            "kind": "ci",
            "max_concurrent_claims": 5,
            "claim_lease_ms": 20_000,
        }
        server.record["max_concurrent_claims"] = 1
        await server.emit("chat/1")  # something to report, and so to hear
        heard = len(server.of("heartbeat"))
        await server.seen("heartbeat", heard + 1)
        await server.close()
        await server.open()
        reads = len(server.of("wake"))
        await server.seen("wake", reads + 1)
        # Registered again, its wakes would all be emitted again.
        assert len(server.of("register")) == 1
        assert server.record["max_concurrent_claims"] == 1


async def test_one_that_was_deleted_meanwhile_is_registered_as_it_was() -> None:
    async with FakeServer() as server:
        server.record["created_at"] = "2026-01-01T00:00:00.000Z"
        async with running(server, max_concurrent_claims=5):
            await server.close()
            server.record = {
                "id": "r",
                "claim_lease_ms": 30_000,
                "admin_status": "enabled",
                "created_at": "2026-02-02T00:00:00.000Z",
            }
            await server.open()
            again = await server.seen("register", 2)
            assert again.body["max_concurrent_claims"] == 5


async def test_a_server_is_told_the_limit_and_then_goes_by_it() -> None:
    handled = Handled(waits=True)
    async with FakeServer() as server, running(server, handled, max_concurrent_claims=2):
        for number in range(4):
            await server.send(f"chat/{number}", number)
        await until(lambda: len(handled.wakes) == 2)
        server.record["max_concurrent_claims"] = 3
        await server.emit("other/1")
        await until(lambda: len(handled.wakes) == 3)
        handled.proceed.set()
