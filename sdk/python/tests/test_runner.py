"""The runner over real connections, against a server that misbehaves on order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import os
from typing import Any

import pytest

from harness import Handled, TestClock, fast, make, running, until
from pullwake import Child, HeadersFailed, PullWakeRunner, RunnerError, Signal, State, Wake
from pullwake import runner as runner_module
from pullwake.backoff import Backoff
from pullwake.logs import WakeContext
from pullwake.machine import Event
from pullwake.runner import _Run
from pullwake.testing import (
    Cut,
    FakeServer,
    Fault,
    Hold,
    Request,
    Response,
    cut,
    hang,
    login_page,
    lose_answer,
    offset,
    status,
)

SIXTEEN = {
    "status",
    "stream_connected",
    "last_heartbeat_ok",
    "last_claim_result",
    "started_at",
    "stream_connected_since",
    "last_error",
    "last_error_at",
    "last_heartbeat_at",
    "last_claim_at",
    "last_dispatch_at",
    "reconnect_count",
    "events_received",
    "claims_succeeded",
    "claims_skipped",
    "claims_failed",
}


async def worked(server: FakeServer, path: str, claims: int = 1) -> None:
    """Wait until `claims` claims of the entity were released."""
    entity = server.entity(path)
    await server.until(
        lambda: sum(claim.status == "released" for claim in entity.claims) >= claims,
        f"{claims} done of {path}",
    )


# The loop


async def test_a_message_is_claimed_worked_on_and_done_once() -> None:
    async def handler(wake: Wake) -> None:
        for message in await wake.messages():
            await wake.append({"type": "reply", "key": "a", "value": {"echo": message.payload}})
            await wake.append({"type": "reply", "key": "b", "value": {}})

    async with FakeServer() as server, running(server, handler):
        await server.send("chat/1", {"text": "hi"})
        await worked(server, "chat/1")
        entity = server.entity("chat/1")
        assert [e["value"] for e in entity.appended()] == [{"echo": {"text": "hi"}}, {}]
        assert entity.claims[0].acks == [
            {"path": "/chat/1/main", "offset": "0000000000000001_0000000000000000"}
        ]
        assert len(server.of("done")) == len(server.of("claim")) == 1


async def test_a_message_that_comes_during_the_work_is_the_next_wakes() -> None:
    handled = Handled(waits=True)
    async with FakeServer() as server, running(server, handled):
        await server.send("chat/1", "first")
        await handled.began.wait()
        await server.send("chat/1", "second")
        handled.proceed.set()
        await worked(server, "chat/1", 2)
        assert handled.payloads == ["first", "second"]
        assert [wake.epoch for wake in handled.wakes] == [1, 2]


async def test_a_message_that_comes_after_the_claim_is_not_read_by_it_either() -> None:
    """It is not acknowledged with this claim, so to see it now would be to see it twice."""
    read: list[list[Any]] = []
    began, proceed = asyncio.Event(), asyncio.Event()

    async def handler(wake: Wake) -> None:
        began.set()
        await proceed.wait()
        read.append([message.payload for message in await wake.messages()])

    async with FakeServer() as server, running(server, handler):
        await server.send("chat/1", "first")
        await began.wait()
        await server.send("chat/1", "second")
        proceed.set()
        await worked(server, "chat/1", 2)
        assert read == [["first"], ["second"]]


async def test_messages_begin_after_the_cursor_and_hold_the_signals_for_the_handler() -> None:
    got: list[Any] = []

    async def handler(wake: Wake) -> None:
        got.extend(await told(wake))

    async with FakeServer() as server, running(server, handler):
        await server.send("chat/1", "old")
        await worked(server, "chat/1")
        got.clear()
        entity = server.entity("chat/1")
        for seen_to in ("handled", "unhandled"):
            value = {"signal": "SIGINT", "status": seen_to}
            server._append(entity, {"type": "signal", "value": value})
        server._append(entity, {"type": "reply", "value": {"payload": "no"}})
        await server.send("chat/1", "new")
        await worked(server, "chat/1", 2)
        assert got == [("SIGINT", None), (None, "new")]


async def told(wake: Wake) -> list[tuple[str | None, Any]]:
    """The name of each signal, and the payload of each message, in order."""
    return [
        (item.name, None) if isinstance(item, Signal) else (None, item.payload)
        for item in await wake.items()
    ]


def inbox(key: str, operation: str = "insert", **value: Any) -> dict[str, Any]:
    return {"type": "inbox", "key": key, "value": value, "headers": {"operation": operation}}


async def test_messages_are_as_later_events_left_them() -> None:
    got: list[Any] = []

    async def handler(wake: Wake) -> None:
        got.extend(
            (item.key, *item_told)
            for item, item_told in zip(await wake.items(), await told(wake), strict=True)
        )

    async with FakeServer() as server, running(server, handler):
        entity = server.entity("chat/1")
        for key in ("cancelled", "deleted", "edited", "held"):
            mode = "paused" if key == "held" else "queued"
            server._append(entity, inbox(key, payload="first", mode=mode, status="processed"))
        server._append(entity, inbox("cancelled", "update", status="cancelled"))
        server._append(entity, inbox("edited", "update", payload="second"))
        server._append(entity, inbox("seen before", "update", status="processed"))
        server._append(
            entity, {"type": "inbox", "key": "deleted", "headers": {"operation": "delete"}}
        )
        for key, name in (("s1", "SIGUSR"), ("s2", "SIGINT"), ("s3", "SIGSTOP")):
            value = {"signal": name, "status": "unhandled"}
            server._append(entity, {"type": "signal", "key": key, "value": value})
        server._append(entity, {"type": "signal", "key": "s1", "value": {"status": "handled"}})
        await server.send("chat/1", "last")
        await worked(server, "chat/1")
        assert got == [
            ("edited", None, "second"),
            ("s2", "SIGINT", None),
            (got[-1][0], None, "last"),
        ]


def wake_event(key: str, **value: Any) -> dict[str, Any]:
    return {"type": "wake", "key": key, "value": value, "headers": {"operation": "insert"}}


async def test_wake_events_are_what_happened_elsewhere() -> None:
    got: list[Any] = []
    child = {"url": "/chat/2", "type": "chat", "run_status": "completed", "response": "42"}
    run = {"collection": "runs", "kind": "update", "key": "run-1"}
    tick = {"collection": "cron_tick", "kind": "insert", "key": "tick-1", "payload": "look"}

    async def handler(wake: Wake) -> None:
        got.extend(await wake.events())
        assert [message.payload for message in await wake.messages()] == ["hi"]
        late = wake_event("late", source="/chat/4", changes=[])
        server._append(server.entity("chat/1"), late)

    async with FakeServer() as server, running(server, handler):
        entity = server.entity("chat/1")
        server._append(
            entity, wake_event("w1", source="/chat/2", changes=[run, 7], finished_child=child)
        )
        server._append(entity, wake_event("w2", source="/_cron/abc", changes=[tick]))
        server._append(entity, wake_event("w3", source="/chat/3", timeout=True, changes=[]))
        server._append(entity, {"type": "wake", "key": "w4", "value": "nonsense"})
        server._append(entity, {"type": "wake", "key": "w5", "headers": {"operation": "delete"}})
        await server.send("chat/1", "hi")
        await worked(server, "chat/1")
        assert [event.key for event in got] == ["w1", "w2", "w3"]
        finished, ticked, timed_out = got
        assert finished.child == Child("/chat/2", "completed", "42", None)
        assert finished.changes == [run]
        assert (ticked.source, ticked.changes, ticked.timeout) == ("/_cron/abc", [tick], False)
        assert (timed_out.timeout, timed_out.changes, timed_out.child) == (True, [], None)
        assert finished.offset == offset(1)
        assert ticked.payload == "look"


async def test_messages_and_events_are_read_once() -> None:
    async def handler(wake: Wake) -> None:
        for _ in range(2):
            await wake.messages()
            await wake.events()

    async with FakeServer() as server, running(server, handler):
        await server.send("chat/1", "hi")
        await worked(server, "chat/1")
        assert len(server.of("read")) == 1


async def test_a_queued_message_is_said_to_be_processed_once_its_handler_is_done() -> None:
    failing = True

    async def handler(wake: Wake) -> None:
        await wake.messages()
        if failing:
            raise RuntimeError

    async with FakeServer() as server, running(server, handler):
        entity = server.entity("chat/1")
        server._append(entity, inbox("q", payload="hi", mode="queued", status="pending"))
        server._wake(entity)
        await server._notify()
        await server.until(lambda: entity.claims and entity.claims[0].status == "failed", "failed")
        assert len(entity.events) == 1
        failing = False
        server._wake(entity)
        await server._notify()
        await worked(server, "chat/1", 1)
        update = entity.events[-1]
        assert (update["key"], update["headers"]["operation"]) == ("q", "update")
        assert set(update["value"]) == {"status", "processed_at"}
        assert update["value"]["status"] == "processed"


async def test_the_lease_is_as_long_as_the_server_says() -> None:
    handled = Handled(waits=True)
    async with FakeServer() as server:
        server.record["claim_lease_ms"] = 300
        async with running(server, handled):
            await server.send("chat/1", 1)
            await server.seen("renew", 3)
            handled.proceed.set()
            await worked(server, "chat/1")


async def test_reading_waits_for_neither_claims_nor_work() -> None:
    handled = Handled(waits=True)
    async with FakeServer() as server, running(server, handled):
        held = Hold()
        server.fault("claim", held)
        await server.send("chat/1", 1)
        await server.seen("claim")
        await server.send("chat/2", 2)
        await handled.began.wait()
        assert handled.payloads == [2]
        await server.send("chat/3", 3)
        await until(lambda: len(handled.wakes) == 2)
        held.release()
        handled.proceed.set()
        for path in ("chat/1", "chat/2", "chat/3"):
            await worked(server, path)


async def test_the_servers_limit_holds_until_it_says_otherwise() -> None:
    handled = Handled(waits=True)
    async with FakeServer() as server:
        server.record["max_concurrent_claims"] = 2
        async with running(server, handled):
            for number in range(4):
                await server.send(f"chat/{number}", number)
            await until(lambda: len(handled.wakes) == 2)
            # One that reports both claims, and so was answered with the limit after them.
            await server.until(
                lambda: any(
                    each["diagnostics"]["claims_succeeded"] == 2 for each in server.heartbeats
                ),
                "a heartbeat after both claims",
            )
            assert len(handled.wakes) == 2
            server.record["max_concurrent_claims"] = 3
            await server.emit("other/1")  # something to report, and so to hear
            await until(lambda: len(handled.wakes) == 3)
            handled.proceed.set()
            for number in range(4):
                await worked(server, f"chat/{number}")


# Connecting and reconnecting


@pytest.mark.parametrize("where", ["register", "wake"])
async def test_a_connection_attempt_that_hangs_is_cancelled_by_failing_heartbeats(
    where: str,
) -> None:
    async with FakeServer() as server:
        server.fault(where, hang)
        server.fault("heartbeat", *[status(500)] * 2)
        runner = make(server, timing=fast(heartbeat_interval=0.1))
        await runner.start()
        hung = await server.seen(where)
        await server.until(hung.gone.is_set, "the hung attempt's end")
        assert len(server.of("heartbeat")) == 2
        await runner.connected()
        await server.send("chat/1", 1)
        await worked(server, "chat/1")
        await runner.stop()


async def test_a_quiet_stream_is_not_trusted_when_heartbeats_fail() -> None:
    async with FakeServer() as server, running(server, timing=fast(heartbeat_interval=0.1)):
        poll = await server.seen("wake", 2)
        assert poll.query["live"] == "long-poll"
        server.fault("heartbeat", *[status(500)] * 2)
        await server.until(poll.gone.is_set, "the stream's end")
        await server.send("chat/1", 1)
        await worked(server, "chat/1")
        beat = await server.until(
            lambda: next(
                (b for b in server.heartbeats if b["diagnostics"]["reconnect_count"]), None
            )
        )
        assert beat["diagnostics"]["last_error"]


async def test_one_failed_heartbeat_changes_nothing() -> None:
    async with (
        FakeServer() as server,
        running(server, timing=fast(heartbeat_interval=0.1)) as runner,
    ):
        poll = await server.seen("wake", 2)
        count = len(server.of("heartbeat"))
        server.fault("heartbeat", status(500), delay_free, status(500), delay_free)
        await server.seen("heartbeat", count + 5)
        assert not poll.gone.is_set()
        assert runner.get_health()["reconnect_count"] == 0


async def delay_free(request: Request, answer: Any) -> Any:
    """No fault: lets one request through between two that fail."""
    return await answer()


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The delays of the runners' backoffs, with no jitter."""
    delays: list[float] = []

    class Noted(Backoff):
        def next(self, retry_after: float | None = None) -> float:
            delays.append(super().next(retry_after))
            return delays[-1]

    monkeypatch.setattr(runner_module, "Backoff", lambda timing: Noted(timing, draw=lambda: 1.0))
    return delays


async def test_backoff_grows_while_it_fails_and_starts_afresh_after_a_wake(
    delays: list[float],
) -> None:
    async with FakeServer() as server:
        server.fault("register", status(500), cut, login_page, status(503), status(429))
        async with running(server) as runner:
            assert delays == [0.05, 0.1, 0.2, 0.2, 0.2]
            await server.seen("wake", 2)
            await server.send("chat/1", 1)
            await worked(server, "chat/1")
            await server.close()
            await until(lambda: len(delays) > 5)
            assert delays[5] == 0.05
            await server.open()
            await runner.connected()


async def test_backoff_starts_afresh_after_a_connection_that_lasted(delays: list[float]) -> None:
    clock = TestClock()
    async with FakeServer() as server:
        server.fault("register", status(500), cut, cut)
        server.record["wake_stream_offset"] = offset(0)  # where it is: it brings no news
        async with running(server, clock=clock) as runner:
            await server.seen("wake", 2)
            clock.passed += 300.0
            await server.close()
            await until(lambda: len(delays) > 3)
            assert delays[:4] == [0.05, 0.1, 0.2, 0.05]
            await server.open()
            await runner.connected()


async def test_backoff_starts_afresh_after_a_sleep(delays: list[float]) -> None:
    """The network is seldom there yet at the first attempt; that must not cost half a minute."""
    clock = TestClock()
    async with FakeServer() as server:
        server.fault("register", cut, cut, status(503, Retry_After="60"), cut)
        runner = make(server, clock=clock)
        await runner.start()
        await until(lambda: len(delays) == 3)
        clock.moved += 3600.0
        await runner.connected()
        assert delays == [0.05, 0.1, 60.05, 0.05]
        await runner.stop()


@pytest.mark.parametrize("answers", [0, 1], ids=["unanswered", "answered-once"])
async def test_a_stream_that_breaks_at_once_is_no_success(
    delays: list[float], answers: int
) -> None:
    """Connecting works and reading never does: the delays must grow, not stay at the least."""
    live: list[Request] = []

    async def break_live(request: Request, answer: Any) -> Any:
        if "live" not in request.query:
            live.clear()
            return await answer()
        live.append(request)
        if len(live) > answers:
            raise Cut
        headers = {"Stream-Next-Offset": request.query["offset"], "Stream-Up-To-Date": "true"}
        return Response(204, None, headers)

    async with FakeServer() as server:
        server.standing("wake", break_live)
        runner = make(server)
        await runner.start()
        # The very first brings a runner that comes from the start to the tail: that is news.
        await until(lambda: len(delays) >= 4)
        assert delays[:4] == [0.05, 0.1, 0.2, 0.2]
        await runner.stop()


async def test_the_server_may_ask_for_a_longer_wait() -> None:
    async with FakeServer() as server:
        server.fault("register", status(503, "SERVICE_UNAVAILABLE", Retry_After="0.3"))
        async with running(server):
            first, second = server.of("register")
            assert second.at - first.at >= 0.3


async def test_the_server_may_ask_it_of_heartbeats(delays: list[float]) -> None:
    """That they failed resets the stream, which then waits as long."""
    async with FakeServer() as server, running(server, timing=fast(heartbeat_interval=0.1)):
        await server.seen("wake", 2)
        server.fault("heartbeat", status(500), status(503, Retry_After="0.3"))
        await until(lambda: delays)
        assert delays[0] >= 0.3


@pytest.mark.parametrize("state", [State.STREAMING, State.RECONNECTING, State.CONNECTING])
async def test_a_clock_jump_reconnects_at_once(state: State) -> None:
    clock = TestClock()
    async with FakeServer() as server:
        if state is State.RECONNECTING:
            server.fault("register", status(500))
        if state is State.CONNECTING:
            server.fault("register", hang)
        # Longer than the test has patience for: nothing but the jump can explain what follows.
        runner = make(server, clock=clock, timing=fast(backoff_min=300, backoff_max=300))
        await runner.start()
        await until(lambda: runner.state is state)
        await server.seen("register")
        clock.moved += 3600.0
        # One that was registered is asked for: the second time, as it was at once after that.
        await server.seen(*("get", 2) if state is State.STREAMING else ("register", 2))
        await runner.connected()
        await server.send("chat/1", 1)
        await worked(server, "chat/1")
        await runner.stop()


async def test_after_a_jump_no_connection_from_before_is_used() -> None:
    """They died with the network, and would only say so by never answering."""
    clock = TestClock()
    async with FakeServer() as server, running(server, clock=clock) as runner:
        await server.seen("heartbeat", 2)
        before = {request.connection for request in server.requests}
        count = len(server.requests)
        clock.moved += 3600.0
        await until(lambda: runner.connections == 2)
        await server.send("chat/1", 1)
        await worked(server, "chat/1")
        after = {r.connection for r in server.requests[count:] if r.route != "heartbeat"}
        assert after
        assert not after & before


async def test_a_long_poll_cannot_outlive_its_deadline() -> None:
    async with FakeServer() as server:
        server.long_poll = 300.0
        async with running(server, timing=fast(long_poll_deadline=0.2)) as runner:
            poll = await server.seen("wake", 2)
            await server.until(poll.gone.is_set, "the dead long-poll's end")
            await until(lambda: runner.connections >= 2)


async def test_an_event_stream_cannot_be_silent_past_its_deadline() -> None:
    async with FakeServer() as server:
        server.sse_lasts = 300.0
        async with running(server, live="sse", timing=fast(sse_idle_deadline=0.2)) as runner:
            stream = await server.seen("wake", 2)
            await server.until(stream.gone.is_set, "the dead stream's end")
            await until(lambda: runner.connections >= 2)


@pytest.mark.parametrize("only", ["long-poll", "sse"])
@pytest.mark.parametrize("live", ["auto", None])
async def test_it_works_with_a_server_that_has_one_live_mode_alone(only: str, live: Any) -> None:
    async with FakeServer() as server:
        server.live_modes = {only}
        async with running(server, live=live or only):
            for number in range(3):
                await server.send("chat/1", number)
                await worked(server, "chat/1", number + 1)
        modes = {request.query.get("live") for request in server.of("wake")}
        assert only in modes


async def test_a_wake_read_on_a_connection_that_is_given_up_before_it_was_seen_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered = _Run.entered

    def jump(run: _Run, before: State, state: State, payload: object) -> None:
        entered(run, before, state, payload)
        if state is State.STREAMING and run.connections == 1:
            run.lifecycle.post(Event.CLOCK_JUMP)

    monkeypatch.setattr(_Run, "entered", jump)
    async with FakeServer() as server:
        await server.send("chat/1", 1)
        runner = make(server)
        await runner.start()
        await worked(server, "chat/1")
        assert runner.connections == 2
        await runner.stop()


async def test_event_streams_that_end_are_taken_up_where_they_ended() -> None:
    handled = Handled()
    async with FakeServer() as server:
        server.sse_lasts = 0.05
        async with running(server, handled, live="sse") as runner:
            for number in range(10):
                await server.send(f"chat/{number}", number)
                await worked(server, f"chat/{number}")
            assert sorted(handled.payloads) == list(range(10))
            assert runner.get_health()["reconnect_count"] == 0
            assert runner.get_health()["events_received"] == 10


@pytest.mark.parametrize(
    ("route", "fault"),
    [
        ("register", status(500)),
        ("register", status(503, "SERVICE_UNAVAILABLE", Retry_After="0")),
        ("register", status(429, "RATE_LIMITED", Retry_After="0")),
        ("register", status(401, "UNAUTHORIZED")),
        ("register", cut),
        ("register", login_page),
        ("wake", status(500)),
        ("wake", status(401, "UNAUTHORIZED")),
        ("wake", status(404, "NOT_FOUND")),
        ("wake", cut),
        ("wake", login_page),
        ("claim", status(500)),
        ("claim", status(503, "SERVICE_UNAVAILABLE", Retry_After="0")),
        ("claim", status(429, "RATE_LIMITED", Retry_After="0")),
        ("claim", status(401, "UNAUTHORIZED")),
        ("claim", cut),
        ("claim", login_page),
        ("mint", status(500)),
        ("mint", cut),
        ("mint", lose_answer),
        ("read", status(500)),
        ("read", cut),
        ("append", status(500)),
        ("append", cut),
        ("append", lose_answer),
        ("done", status(500)),
        ("done", status(503, "SERVICE_UNAVAILABLE", Retry_After="0")),
        ("done", cut),
        ("done", lose_answer),
        ("done", login_page),
        ("heartbeat", status(500)),
        ("heartbeat", cut),
        ("heartbeat", login_page),
    ],
)
async def test_after_trouble_anywhere_the_message_is_done_exactly_once(
    route: str, fault: Fault
) -> None:
    async def handler(wake: Wake) -> None:
        for message in await wake.messages():
            await wake.append({"type": "reply", "value": message.payload})

    errors: list[RunnerError] = []
    async with FakeServer() as server:
        server.fault(route, fault, fault)
        runner = make(server, handler, on_error=errors.append, retry_refused=True)
        await runner.start()
        await runner.connected()
        await server.send("chat/1", "once")
        await worked(server, "chat/1")
        await server.until(lambda: len(server.of(route)) >= 3, f"{route} after the trouble")
        entity = server.entity("chat/1")
        assert [event["value"] for event in entity.appended()] == ["once"]
        assert [claim.status for claim in entity.claims] == ["released"]
        await until(lambda: len(errors) >= 2)
        assert runner.get_health()["last_error"] is not None
        await runner.stop()


async def test_a_mint_that_arrives_late_takes_the_claim_from_nobody() -> None:
    late = []

    async def delay(request: Request, answer: Any) -> Any:
        late.append(answer)
        raise Cut

    async def handler(wake: Wake) -> None:
        await late.pop()()
        await wake.append({"type": "reply", "value": "written"})

    async with FakeServer() as server:
        server.fault("mint", delay)
        async with running(server, handler):
            await server.send("chat/1", "hi")
            await worked(server, "chat/1")
        assert [event["value"] for event in server.entity("chat/1").appended()] == ["written"]


async def test_a_runner_deleted_on_the_server_registers_again() -> None:
    async with FakeServer() as server, running(server, timing=fast(heartbeat_interval=0.1)):
        await server.seen("heartbeat")
        server.registered = False
        await server.until(lambda: server.registered, "a new registration")


async def test_an_offset_the_server_refuses_is_given_up() -> None:
    async def only_the_start(request: Request, answer: Any) -> Any:
        refused = request.query["offset"] == "poison"
        return await (status(400, "INVALID_REQUEST") if refused else delay_free)(request, answer)

    async with FakeServer() as server:
        server.record["wake_stream_offset"] = "poison"
        server.standing("wake", only_the_start)
        async with running(server):
            assert [r.query["offset"] for r in server.of("wake")][:2] == ["poison", "-1"]
            await server.send("chat/1", 1)
            await worked(server, "chat/1")


async def test_a_stream_that_became_shorter_is_read_from_its_new_end() -> None:
    async with FakeServer() as server:
        server.record["wake_stream_offset"] = "0000000000000099_0000000000000000"
        async with running(server):
            await server.send("chat/1", 1)
            await worked(server, "chat/1")


async def test_work_outlives_the_servers_restart() -> None:
    handled = Handled(waits=True)
    async with FakeServer() as server, running(server, handled):
        await server.send("chat/1", 1)
        await handled.began.wait()
        await server.close()
        handled.proceed.set()
        await server.open()
        await worked(server, "chat/1")
        assert len(handled.wakes) == 1
        await server.send("chat/1", 2)
        await worked(server, "chat/1", 2)


# Heartbeats and diagnostics


async def test_a_heartbeat_carries_all_sixteen_fields_and_the_offset() -> None:
    async with FakeServer() as server, running(server) as runner:
        await server.send("chat/1", 1)
        await worked(server, "chat/1")
        beat = await server.until(
            lambda: next(
                (b for b in server.heartbeats if b["diagnostics"]["last_dispatch_at"]), None
            )
        )
        fields = beat["diagnostics"]
        assert set(fields) == SIXTEEN
        assert beat["lease_ms"] == 90_000
        assert beat["wake_stream_offset"] == "0000000000000001_0000000000000000"
        assert fields["status"] == "streaming"
        assert fields["stream_connected"] is fields["last_heartbeat_ok"] is True
        assert (fields["last_claim_result"], fields["events_received"]) == ("claimed", 1)
        assert (fields["claims_skipped"], fields["claims_failed"]) == (0, 0)
        for name in ("started_at", "stream_connected_since", "last_claim_at", "last_dispatch_at"):
            assert fields[name].endswith("Z")
        assert fields["last_error"] is fields["last_error_at"] is None
        assert set(runner.get_health()) == SIXTEEN


async def test_heartbeats_go_on_with_degraded_diagnostics_while_reconnecting() -> None:
    timing = fast(backoff_min=300, backoff_max=300, heartbeat_interval=0.1)
    async with FakeServer() as server, running(server, timing=timing) as runner:
        await server.seen("heartbeat", 2)
        server.standing("wake", status(500))
        await server.send("chat/1", 1)  # the poll that ends with it is the last that succeeds
        await until(lambda: runner.state is State.RECONNECTING)
        count = len(server.of("heartbeat"))
        await server.seen("heartbeat", count + 3)
        fields = server.heartbeats[-1]["diagnostics"]
        assert (fields["status"], fields["stream_connected"]) == ("reconnecting", False)
        assert "500" in fields["last_error"]
        await worked(server, "chat/1")


@pytest.mark.parametrize("odd", [KeyError("bug"), asyncio.CancelledError()], ids=repr)
async def test_heartbeats_cannot_end_unnoticed(
    odd: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    heartbeat, left = _Run._heartbeat, [odd]

    async def breaks_once(run: _Run) -> None:
        if left:
            raise left.pop()
        await heartbeat(run)

    monkeypatch.setattr(_Run, "_heartbeat", breaks_once)
    errors: list[RunnerError] = []
    async with FakeServer() as server, running(server, on_error=errors.append):
        await server.seen("heartbeat", 1)
        assert "heartbeats" in str(errors[0])


async def test_an_unchanged_offset_is_no_change() -> None:
    async with FakeServer() as server:
        server.long_poll = 0.01
        async with running(server):
            await server.seen("heartbeat", 2)  # the first, and that the first has arrived
            count = len(server.of("heartbeat"))
            polls = len(server.of("wake"))
            await server.seen("wake", polls + 3)
            assert len(server.of("heartbeat")) == count


async def test_counters_start_afresh_at_every_start() -> None:
    async with FakeServer() as server:
        server.fault("register", status(500))
        runner = make(server)
        await runner.start()
        await runner.connected()
        await server.send("chat/1", 1)
        await worked(server, "chat/1")
        await until(lambda: runner.get_health()["claims_succeeded"] == 1)
        first = runner.get_health()
        assert first["last_error"] is not None
        await runner.stop()
        await runner.start()
        await runner.connected()
        second = runner.get_health()
        assert second["claims_succeeded"] == second["events_received"] == 0
        assert second["last_error"] is None
        assert second["started_at"] >= first["started_at"]
        await runner.stop()


async def test_the_last_heartbeat_says_stopped() -> None:
    async with FakeServer() as server:
        async with running(server) as runner:
            await server.seen("heartbeat")
        last = server.heartbeats[-1]
        assert last["diagnostics"]["status"] == "stopped"
        assert last["diagnostics"]["stream_connected"] is False
        assert last["lease_ms"] == 1000
        assert runner.get_health()["status"] == "stopped"


# Stopping and starting


async def test_stop_lets_work_finish() -> None:
    handled = Handled(waits=True)
    async with FakeServer() as server, running(server, handled) as runner:
        await server.send("chat/1", 1)
        await handled.began.wait()
        stopping = asyncio.create_task(runner.stop())
        await until(lambda: runner.state is State.STOPPING)
        await server.send("chat/2", 2)
        handled.proceed.set()
        drained = await stopping
        assert server.entity("chat/1").claims[0].status == "released"
        assert server.entity("chat/2").claims == []
        assert (runner.state, drained.cancelled) == (State.STOPPED, 0)


async def test_stop_cancels_what_outlasts_its_grace() -> None:
    handled = Handled(waits=True)
    async with FakeServer() as server, running(server, handled) as runner:
        await server.send("chat/1", 1)
        await handled.began.wait()
        drained = await runner.stop(grace=0.1)
        assert drained.cancelled == 1
        assert handled.cancelled[0].cancelled
        assert server.of("done") == server.of("failed") == []


async def test_concurrent_stops_share_one_shutdown_and_the_shortest_grace() -> None:
    handled = Handled(waits=True)
    async with FakeServer() as server, running(server, handled) as runner:
        await server.send("chat/1", 1)
        await handled.began.wait()
        stops = [asyncio.create_task(runner.stop(grace=300)) for _ in range(3)]
        await until(lambda: runner.state is State.STOPPING)
        assert not any(stop.done() for stop in stops)
        stops[0].cancel()  # whoever gives up waiting does not undo it for the others
        last = await runner.stop(grace=0.0)
        results = await asyncio.gather(*stops, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1] is results[2] is last
        assert len([b for b in server.heartbeats if b["lease_ms"] == 1000]) == 1


async def test_a_claim_that_hangs_blocks_neither_stop_nor_a_later_start() -> None:
    async with FakeServer() as server:
        runner = make(server, timing=fast(request_timeout=300))
        await runner.start()
        await runner.connected()
        server.fault("claim", hang)
        await server.send("chat/1", 1)
        claim = await server.seen("claim")
        async with asyncio.timeout(5):
            await runner.stop(grace=300)
        await server.until(claim.gone.is_set, "the hung claim's end")
        await runner.start()
        await runner.connected()
        await server.emit("chat/1")
        await worked(server, "chat/1")
        await runner.stop()


async def test_a_server_that_hangs_does_not_hold_up_stopping() -> None:
    async with FakeServer() as server:
        runner = make(server, timing=fast(farewell_timeout=0.2))
        await runner.start()
        await runner.connected()
        for route in ("register", "heartbeat", "wake", "claim", "done"):
            server.standing(route, hang)
        async with asyncio.timeout(5):
            await runner.stop()
        assert runner.state is State.STOPPED


async def test_an_error_while_draining_is_raised_once_the_runner_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(*_: object) -> None:
        raise OSError("cannot drain")

    handled = Handled(waits=True)
    async with FakeServer() as server:
        runner = make(server, handled)
        await runner.start()
        await runner.connected()
        assert runner._run is not None
        monkeypatch.setattr(runner._run._claims, "drain", broken)
        await server.send("chat/1", 1)
        await handled.began.wait()
        results = await asyncio.gather(runner.stop(), runner.stop(), return_exceptions=True)
        assert [str(result) for result in results] == ["cannot drain"] * 2
        assert runner.state is State.STOPPED
        await until(lambda: handled.cancelled, "the end of the work")
        await server.until(lambda: server.connections == 0, "closed connections")
        await runner.start()
        await runner.connected()
        await runner.stop()


async def test_stopping_what_was_never_started_is_nothing() -> None:
    async with FakeServer() as server:
        runner = make(server)
        drained = await runner.stop()
        assert (drained.cancelled, runner.state) == (0, State.STOPPED)
        assert server.requests == []


async def test_starting_twice_is_one_start_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with FakeServer() as server, running(server) as runner:
        caplog.clear()
        await runner.start()
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert warnings == ["start has no effect: the runner is streaming"]
        await server.send("chat/1", 1)
        await worked(server, "chat/1")
        assert len(server.of("register")) == len(server.of("claim")) == 1


async def test_an_outage_is_told_of_once_for_each_claim(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pullwake.runner")
    caplog.handler.addFilter(WakeContext())
    handled, reported = Handled(waits=True), list[RunnerError]()
    options: dict[str, Any] = {"out_of_touch": "work", "on_error": reported.append}
    async with FakeServer() as server:
        server.record["claim_lease_ms"] = 600
        async with running(server, handled, **options):
            server.fault("renew", *[status(503)] * 3)
            await server.send("chat/1", 1)
            await until(lambda: "epoch 1: its lease is renewed again" in caplog.text)
            handled.proceed.set()
            await worked(server, "chat/1")
    assert [error.repeated for error in reported] == [False, True, True]
    (told,) = [record for record in caplog.records if "503" in record.getMessage()]
    assert (told.levelname, told.entity, told.epoch) == ("WARNING", "/chat/1", 1)  # type: ignore[attr-defined]


async def test_a_start_while_stopping_waits_and_starts() -> None:
    handled = Handled(waits=True)
    async with FakeServer() as server, running(server, handled) as runner:
        await server.send("chat/1", 1)
        await handled.began.wait()
        stopping = asyncio.create_task(runner.stop(grace=300))
        await until(lambda: runner.state is State.STOPPING)
        starting = asyncio.create_task(runner.start())
        handled.proceed.set()
        await asyncio.gather(stopping, starting)
        await runner.connected()
        assert len(server.of("register")) == 2


async def test_waiting_for_a_connection_ends_when_the_runner_is_stopped() -> None:
    async with FakeServer() as server:
        server.standing("register", hang)
        runner = make(server)
        await runner.start()
        waiting = asyncio.create_task(runner.connected())
        await server.seen("register")
        await runner.stop()
        with pytest.raises(RunnerError, match="stopped before"):
            await waiting


async def test_fifty_starts_and_stops_leave_nothing_behind() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def runs() -> int:
        gc.collect()
        return sum(isinstance(thing, _Run) for thing in gc.get_objects())

    async def handler(wake: Wake) -> None:  # keeps nothing itself
        await wake.messages()

    gc.collect()  # what others left
    async with FakeServer() as server:
        runner = make(server, handler)
        before: tuple[int, int] | None = None
        for number in range(50):
            await runner.start()
            await runner.connected()
            await server.send("chat/1", number)
            await worked(server, "chat/1", number + 1)
            await runner.stop()
            await server.until(lambda: server.connections == 0, "closed connections")
            if before is None:
                before = descriptors(), runs()
        tasks = [t for t in asyncio.all_tasks() if t.get_name().startswith(("runner", "wakes"))]
        assert tasks == []
        assert (descriptors(), runs()) == before
        assert len(logging.getLogger("pullwake.runner").handlers) == 0


async def test_starts_and_stops_at_any_moment_leave_nothing_behind() -> None:
    async with FakeServer() as server:
        runner = make(server)
        for step in range(40):
            await runner.start()
            for _ in range(step):
                await asyncio.sleep(0)
            await runner.stop(grace=0.0)
            assert runner.state is State.STOPPED
        await server.until(lambda: server.connections == 0, "closed connections")
        await runner.start()
        await runner.connected()
        await runner.stop()


def test_one_runner_can_be_started_in_one_event_loop_after_another() -> None:
    runner: list[PullWakeRunner] = []

    async def once() -> None:
        async with FakeServer() as server:
            if not runner:
                runner.append(make(server))
            server_url = server.url
            runner[0]._settings.base_url = server_url
            await runner[0].start()
            await runner[0].connected()
            await runner[0].stop()

    asyncio.run(once())
    asyncio.run(once())


async def test_run_ends_when_it_is_cancelled_and_cancels_the_work() -> None:
    handled = Handled(waits=True)
    async with FakeServer() as server:
        runner = make(server, handled)
        task = asyncio.create_task(runner.run(signals=()))
        await server.seen("heartbeat")
        await server.send("chat/1", 1)
        await handled.began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert runner.state is State.STOPPED
        assert len(handled.cancelled) == 1


# Reporting


@pytest.mark.parametrize(
    "raised", [ValueError("reporter"), asyncio.CancelledError(), SystemExit(1)], ids=repr
)
async def test_an_on_error_that_raises_is_logged_and_changes_nothing(
    raised: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def on_error(error: RunnerError) -> None:
        raise raised

    async with FakeServer() as server:
        server.fault("register", status(500))
        server.fault("wake", status(500))
        server.fault("claim", status(500))
        async with running(server, on_error=on_error):
            await server.send("chat/1", 1)
            await worked(server, "chat/1")
        assert len([r for r in caplog.records if r.getMessage() == "on_error raised"]) >= 3


async def test_an_async_on_error_may_raise_too(caplog: pytest.LogCaptureFixture) -> None:
    async def on_error(error: RunnerError) -> None:
        raise SystemExit(1)

    async with FakeServer() as server:
        server.fault("register", status(500))
        async with running(server, on_error=on_error):
            await server.send("chat/1", 1)
            await worked(server, "chat/1")
        assert [r.getMessage() for r in caplog.records].count("on_error raised") == 1


async def test_an_on_error_may_be_async_and_may_hang() -> None:
    heard: list[RunnerError] = []

    async def on_error(error: RunnerError) -> None:
        heard.append(error)
        await asyncio.Event().wait()

    async with FakeServer() as server:
        server.fault("register", status(500))
        async with running(server, on_error=on_error):
            await server.send("chat/1", 1)
            await worked(server, "chat/1")
        assert len(heard) == 1


# Resuming


async def test_it_starts_from_the_offset_the_server_holds() -> None:
    handled = Handled()
    async with FakeServer() as server:
        async with running(server, handled):
            await server.send("chat/1", 1)
            await worked(server, "chat/1")
        assert server.record["wake_stream_offset"] == "0000000000000001_0000000000000000"
        count = len(server.of("wake"))
        async with running(server, handled) as runner:
            await server.seen("wake", count + 2)
            assert server.of("wake")[count].query["offset"] == "0000000000000001_0000000000000000"
            assert runner.get_health()["events_received"] == 0


async def test_a_server_that_tells_the_offset_only_on_get_is_asked() -> None:
    async def without_offset(request: Request, answer: Any) -> Any:
        response = await answer()
        response.body = {k: v for k, v in response.body.items() if k != "wake_stream_offset"}
        return response

    async with FakeServer() as server:
        server.record["wake_stream_offset"] = "0000000000000000_0000000000000000"
        server.standing("register", without_offset)
        async with running(server):
            assert server.of("wake")[0].query["offset"] == "0000000000000000_0000000000000000"


async def test_reconnecting_goes_on_where_it_was() -> None:
    clock = TestClock()
    async with FakeServer() as server, running(server, clock=clock) as runner:
        await server.send("chat/1", 1)
        await worked(server, "chat/1")
        count = len(server.of("wake"))
        clock.moved += 3600.0
        await until(lambda: runner.connections == 2)
        catch_up = next(r for r in server.of("wake")[count:] if "live" not in r.query)
        assert catch_up.query["offset"] == "0000000000000001_0000000000000000"
        assert runner.get_health()["events_received"] == 1


# Headers


async def test_headers_come_from_a_function_called_for_each_request() -> None:
    made: list[str] = []

    async def headers() -> dict[str, str]:
        made.append(f"Bearer token-{len(made)}")
        return {"Authorization": made[-1], "X-Tenant": "t"}

    async with FakeServer() as server, running(server, headers=headers):
        await server.send("chat/1", 1)
        await worked(server, "chat/1")
        own = [r for r in server.requests if r.route in ("register", "wake", "claim", "heartbeat")]
        assert len({r.headers["authorization"] for r in own}) == len(own)
        # A claim's calls carry its own token, and no credential that may have expired meanwhile.
        theirs = [r for r in server.requests if r.route in ("mint", "read", "done")]
        assert len(theirs) == 3
        for request in theirs:
            assert "authorization" not in request.headers
            assert request.headers["x-tenant"] == "t"
            assert request.headers["electric-claim-token"]


async def hanging() -> dict[str, str]:
    await asyncio.Event().wait()
    raise AssertionError


async def cancelling() -> dict[str, str]:
    raise asyncio.CancelledError


def exiting() -> dict[str, str]:
    raise SystemExit(1)


def failing() -> dict[str, str]:
    raise OSError("no vault")


@pytest.mark.parametrize(
    "bad", [failing, exiting, cancelling, hanging, lambda: None, lambda: {"Authorization": None}]
)
async def test_headers_that_cannot_be_made_are_trouble_like_any_other(bad: Any) -> None:
    """When connecting, when claiming, and for a heartbeat."""
    errors: list[RunnerError] = []
    left = 2

    async def headers() -> dict[str, str]:
        nonlocal left
        left -= 1
        made = bad() if left >= 0 else {}
        return await made if inspect.isawaitable(made) else made

    timing = fast(request_timeout=0.1, heartbeat_timeout=0.1, heartbeat_interval=0.2)
    options: dict[str, Any] = {
        "headers": headers,
        "timing": timing,
        "on_error": errors.append,
    }
    async with FakeServer() as server, running(server, **options):
        await server.seen("wake", 2)
        left = 3
        await server.send("chat/1", 1)
        await worked(server, "chat/1")
        await until(lambda: left < 0)
        await server.seen("heartbeat", len(server.of("heartbeat")) + 2)
        assert len(errors) >= 5
        assert bad is hanging or any(isinstance(error, HeadersFailed) for error in errors)


async def test_a_token_is_sent_as_a_bearer() -> None:
    async with FakeServer() as server, running(server, token="s3cret"):
        assert server.of("register")[0].headers["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize("wrong", [{"live": "websocket"}, {"out_of_touch": "wait"}])
def test_a_mode_that_is_none_is_an_error_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is one of"):
        PullWakeRunner("http://127.0.0.1:1", "r", Handled(), **wrong)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "", "http://"])
def test_a_url_that_is_none_is_an_error_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="not an http"):
        PullWakeRunner(url, "r", Handled())


# Appending


async def test_an_append_that_was_given_up_is_not_mixed_up_with_the_next() -> None:
    """Its number is taken until its answer was seen: else the next would pass for a duplicate."""

    async def handler(wake: Wake) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await wake.append({"type": "reply", "value": "first"})
        await wake.append({"type": "reply", "value": "second"})

    async def written_but_never_answered(request: Request, answer: Any) -> Any:
        await answer()
        await asyncio.Event().wait()

    async with FakeServer() as server, running(server, handler):
        server.fault("append", written_but_never_answered)
        await server.send("chat/1", 1)
        await worked(server, "chat/1")
        assert [e["value"] for e in server.entity("chat/1").appended()] == ["first", "second"]


async def test_an_append_that_is_refused_raises_and_the_next_goes_through() -> None:
    async def handler(wake: Wake) -> None:
        with pytest.raises(RunnerError, match="413"):
            await wake.append({"type": "reply", "value": "huge"})
        await wake.append({"type": "reply", "value": "small"})

    async with FakeServer() as server, running(server, handler):
        server.fault("append", status(413, "PAYLOAD_TOO_LARGE"))
        await server.send("chat/1", 1)
        await worked(server, "chat/1")
        assert [e["value"] for e in server.entity("chat/1").appended()] == ["small"]


async def test_a_handler_that_outlives_the_runner_writes_nothing_more() -> None:
    began, stopped = asyncio.Event(), asyncio.Event()
    raised: list[Exception] = []

    async def handler(wake: Wake) -> None:
        began.set()
        while not stopped.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await stopped.wait()
        try:
            await wake.append({"type": "reply", "value": "late"})
        except Exception as error:
            raised.append(error)
            raise

    async with FakeServer() as server:
        async with running(server, handler, timing=fast(cancel_grace=0.1)) as runner:
            await server.send("chat/1", 1)
            await began.wait()
            drained = await runner.stop(grace=0.0)
            assert (drained.cancelled, drained.abandoned) == (1, 1)
        stopped.set()
        await until(lambda: raised)
        assert isinstance(raised[0], RunnerError)
        assert server.of("append") == server.of("failed") == []


async def test_an_append_that_finds_the_claim_gone_ends_the_work_unreported() -> None:
    after: list[str] = []
    fenced = asyncio.Event()

    async def handler(wake: Wake) -> None:
        await fenced.wait()
        try:
            await wake.append({"type": "reply", "value": "late"})
        except RunnerError:
            after.append("raised")
        if wake.epoch == 1:
            await asyncio.sleep(60)
            after.append("went on")

    async with FakeServer() as server:
        server.record["claim_lease_ms"] = 600_000  # so that no renewal finds out instead
        async with running(server, handler):
            await server.send("chat/1", 1)
            entity = server.entity("chat/1")
            await server.until(lambda: entity.claims and entity.claims[0].write_token)
            await server.expire("chat/1")
            fenced.set()
            await worked(server, "chat/1")
            assert after == ["raised"]
            assert [c.status for c in server.entity("chat/1").claims] == ["expired", "released"]
            assert len(server.of("done")) == 1
