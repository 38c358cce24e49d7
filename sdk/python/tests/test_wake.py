"""What a handler is given, and what it can do with it."""

from __future__ import annotations

import asyncio
import logging
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from harness import FAST, fast, make, running, until
from pullwake import (
    BadPayload,
    ClaimLost,
    GiveUp,
    HandlerStuck,
    PullWakeRunner,
    RetryAfter,
    RunnerError,
    ServerRefused,
    State,
    SyncWake,
    Wake,
)
from pullwake.testing import (
    Entity,
    FakeServer,
    Hold,
    cut,
    handle,
    hang,
    lose_answer,
    offset,
    status,
)

QUICK = fast(watch_after=0.01, watch_gap=0.01)
"""So that what arrives is looked for at once."""


async def released(server: FakeServer, path: str) -> Entity:
    """The entity, once its first claim is."""
    entity = server.entity(path)
    await server.until(lambda: entity.claims and entity.claims[0].status == "released", "done")
    return entity


class Question(msgspec.Struct):
    text: str
    times: int = 1


class Validated:
    """As a pydantic model is used."""

    def __init__(self, text: str) -> None:
        self.text = text

    @classmethod
    def model_validate(cls, value: Any) -> Validated:
        if not isinstance(value, dict):
            raise ValueError("not an object")  # noqa: TRY004  as pydantic does
        return cls(value["text"])


# Whose handler


async def test_each_type_of_entity_has_its_handler() -> None:
    seen: list[str] = []

    async def other(wake: Wake) -> None:
        seen.append(f"other {wake.entity_url}")

    async with FakeServer() as server:
        runner = make(server, other)

        @runner.on("chat")
        async def chat(wake: Wake) -> None:
            seen.append(f"chat {wake.entity_url}")

        async with runner:
            await server.send("chat/1", "hi")
            await server.send("job/1", "hi")
            await until(lambda: len(seen) == 2)
    assert sorted(seen) == ["chat /chat/1", "other /job/1"]
    with pytest.raises(ValueError, match="already"):
        runner.on("chat")(chat)


def test_a_handler_that_no_entity_could_reach_is_refused() -> None:
    """Each would be registered for nothing, without a word."""
    runner = PullWakeRunner("http://127.0.0.1:1", "r")

    async def chat(wake: Wake) -> None: ...

    with pytest.raises(TypeError, match=r'@runner\.on\("chat"\)'):
        runner.on(chat)  # type: ignore[arg-type]
    for entity_type in ("", "/chat", "chat/hello"):
        with pytest.raises(ValueError, match="no type of entities"):
            runner.on(entity_type)


async def test_a_type_without_a_handler_fails_with_that_reason() -> None:
    async with FakeServer() as server:
        runner = make(server)
        runner = PullWakeRunner(server.url, "r", timing=FAST)
        with pytest.raises(RunnerError, match="no handler"):
            await runner.start()

        @runner.on("chat")
        async def chat(wake: Wake) -> None:
            pass

        async with runner:
            await server.send("job/1", "hi")
            claims = server.entity("job/1").claims
            await server.until(lambda: claims and claims[0].status == "failed")
            assert claims[0].error == (
                "NoHandler: this runner has no handler for entities of type job"
            )


# Payloads


@pytest.mark.parametrize("model", [Question, Validated])
async def test_payloads_are_of_the_model(model: Any) -> None:
    got: list[Any] = []

    async def handler(wake: Wake) -> None:
        got.extend(await wake.messages(model))

    await handle(handler, {"text": "why"})
    (message,) = got
    assert isinstance(message.payload, model)
    assert (message.payload.text, message.sender) == ("why", "user:a")


@pytest.mark.parametrize("model", [Question, Validated])
async def test_a_payload_of_another_shape_fails_the_wake_with_the_reason(model: Any) -> None:
    async def handler(wake: Wake) -> None:
        await wake.messages(model)

    outcome = await handle(handler, "why")
    assert outcome.status == "failed"
    assert outcome.error.startswith("BadPayload: the message k0 from user:a is not a valid ")


async def test_a_handler_may_see_to_it_itself() -> None:
    async def handler(wake: Wake) -> None:
        try:
            await wake.messages(Question)
        except BadPayload as error:
            raise GiveUp(str(error)) from error

    assert (await handle(handler, "why")).gave_up


async def test_a_class_that_is_no_model_is_a_mistake() -> None:
    async def handler(wake: Wake) -> None:
        await wake.messages(int)

    assert "neither a msgspec.Struct" in (await handle(handler, 1)).error


# What comes


async def test_what_it_watches_comes_beside_messages() -> None:
    seen: list[Any] = []
    child = {"url": "/worker/1", "type": "worker", "run_status": "completed", "response": "42"}
    tick = [{"collection": "cron_tick", "kind": "insert", "key": "t", "payload": "nightly"}]

    async def handler(wake: Wake) -> None:
        seen.extend(await wake.events())
        seen.extend(message.payload for message in await wake.messages())

    outcome = await handle(
        handler,
        "hi",
        happened=[{"finished_child": child}, {"source": "/_cron/x", "changes": tick}],
    )
    finished, ticked, hi = seen
    told = (finished.child.url, finished.child.status, finished.child.response)
    assert told == ("/worker/1", "completed", "42")
    assert (ticked.child, ticked.source, ticked.payload, hi) == (None, "/_cron/x", "nightly", "hi")
    assert (outcome.status, outcome.acked) == ("released", 3)


async def test_an_event_that_is_none_does_no_harm() -> None:
    seen: list[Any] = []

    async def handler(wake: Wake) -> None:
        seen.extend(await wake.events())
        seen.extend(await wake.events())

    async with FakeServer() as server, running(server, handler):
        await server.put("chat/1", {"type": "wake", "value": "nonsense"}, wake=False)
        gone = {"type": "wake", "key": "gone", "headers": {"operation": "delete"}}
        await server.put("chat/1", gone, wake=False)
        changes = {"changes": [7], "finished_child": "nobody", "timeout": True, "source": 1}
        await server.happened("chat/1", **changes)
        await released(server, "chat/1")
        assert len(server.of("read")) == 1
    event, again = seen
    assert (event.changes, event.child, event.timeout, event.source) == ([], None, True, None)
    assert event is again


async def test_signals_come_apart_from_messages() -> None:
    seen: list[Any] = []

    async def handler(wake: Wake) -> None:
        seen.append([message.payload for message in await wake.messages()])
        seen.append([(each.name, each.reason) for each in await wake.signals()])

    async with FakeServer() as server, running(server, handler):
        await server.send("chat/1", "hi", wake=False)
        await server.signal("chat/1", "SIGHUP", reason="reload")
        await until(lambda: len(seen) == 2)
    assert seen == [["hi"], [("SIGHUP", "reload")]]


async def test_the_history_is_the_whole_stream_in_pages() -> None:
    seen: list[str] = []

    async def handler(wake: Wake) -> None:
        seen.extend([event["key"] async for event in wake.history()])

    async with FakeServer() as server, running(server, handler):
        entity = server.entity("chat/1")
        entity.cursor = 2
        await server.put("chat/1", {"type": "reply", "key": "old", "value": {}}, wake=False)
        await server.put("chat/1", {"type": "reply", "key": "older", "value": {}}, wake=False)
        await server.send("chat/1", "hi")
        await until(lambda: len(seen) == 3)
    assert seen == ["old", "older", "k2"]


async def test_the_history_says_what_was_removed_of_it() -> None:
    seen: list[Any] = []

    async def handler(wake: Wake) -> None:
        seen.append(wake.removed_to)
        seen.append([event["key"] async for event in wake.history()])
        seen.append(wake.removed_to)
        try:
            seen.append([event async for event in wake.history(offset(1))])
        except ServerRefused as error:
            seen.append((error.status, error.code))

    async with FakeServer() as server, running(server, handler):
        entity = server.entity("chat/1")
        entity.cursor = entity.removed = 2
        for key in ("old", "older"):
            await server.put("chat/1", {"type": "reply", "key": key, "value": {}}, wake=False)
        await server.send("chat/1", "hi")
        await until(lambda: len(seen) == 4)
    assert seen == [None, ["k2"], offset(2), (410, "OFFSET_GONE")]


async def test_what_arrives_during_the_work_comes_live_and_is_acked_with_it() -> None:
    seen: list[Any] = []

    async def handler(wake: Wake) -> None:
        seen.extend(message.payload for message in await wake.messages())
        async for item in wake.live():
            seen.append(item.payload)
            if item.payload == "stop":
                return

    async with FakeServer() as server, running(server, handler, timing=QUICK):
        await server.send("chat/1", "first")
        await until(lambda: seen == ["first"])
        await server.send("chat/1", "second")
        await until(lambda: seen == ["first", "second"])
        await server.send("chat/1", "stop")
        entity = await released(server, "chat/1")
        assert (entity.cursor, len(entity.claims), entity.pending()) == (3, 1, False)


async def test_what_arrived_and_was_not_asked_for_is_the_next_wakes() -> None:
    seen: list[Any] = []

    async def handler(wake: Wake) -> None:
        seen.append([message.payload for message in await wake.messages()])
        if wake.epoch == 1:
            async for item in wake.live():
                seen.append(item.payload)
                await server.send("chat/1", "third")
                await until(lambda: len(wake._inbox.late()) == 2)
                return

    async with FakeServer() as server, running(server, handler, timing=QUICK):
        await server.send("chat/1", "first")
        await until(lambda: bool(seen))
        await server.send("chat/1", "second")
        await until(lambda: len(seen) == 3)
    assert seen == [["first"], "second", ["third"]]


async def test_listening_ends_when_nothing_comes_for_a_while_and_when_the_runner_stops() -> None:
    ended: list[str] = []
    began: list[int] = []

    async def handler(wake: Wake) -> None:
        began.append(wake.epoch)
        async for _ in wake.live(idle=0.01 if wake.epoch == 1 else None):
            pass
        ended.append(f"epoch {wake.epoch}")

    async with FakeServer() as server:
        runner = make(server, handler)
        async with runner:
            await server.send("chat/1", "hi")
            await until(lambda: bool(ended))
            await server.send("chat/1", "hi")
            await until(lambda: began == [1, 2])
            drained = await runner.stop(grace=30.0)
        assert (ended, drained.cancelled) == (["epoch 1", "epoch 2"], 0)


async def test_nor_does_one_listen_that_begins_while_the_runner_stops() -> None:
    ended = asyncio.Event()

    async def handler(wake: Wake) -> None:
        async for _ in wake.live():
            pass
        ended.set()

    hold = Hold()
    async with FakeServer() as server:
        runner = make(server, handler)
        async with runner:
            server.fault("mint", hold)
            await server.send("chat/1", "hi")
            await server.seen("mint")
            stopping = asyncio.create_task(runner.stop(grace=30.0))
            await until(lambda: runner.state is State.STOPPING)
            hold.release()
            assert (await stopping).cancelled == 0
        assert ended.is_set()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGSTOP"])
async def test_it_knows_when_it_is_interrupted(name: str) -> None:
    began = asyncio.Event()

    async def handler(wake: Wake) -> None:
        assert not wake.interrupted
        began.set()
        await wake.interruption()
        assert wake.interrupted

    async with FakeServer() as server, running(server, handler, timing=QUICK):
        await server.send("chat/1", "hi")
        await began.wait()
        await server.signal("chat/1", name)
        entity = await released(server, "chat/1")
        # What it heeded is handled: it does not wake for the next. SIGTERM and SIGSTOP are the
        # server's own to see to.
        marked = [
            each["value"] for each in entity.events if each["headers"].get("operation") == "update"
        ]
        assert [each["status"] for each in marked] == (["handled"] if name == "SIGINT" else [])
        assert not entity.outstanding


async def test_a_kill_takes_the_claim_away_at_once() -> None:
    async def handler(wake: Wake) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(wake.cancelled)

    cancelled: list[bool] = []
    async with FakeServer() as server, running(server, handler, timing=QUICK):
        await server.send("chat/1", "hi")
        await server.until(lambda: any("live" in each.query for each in server.of("read")))
        await server.signal("chat/1", "SIGKILL")
        await until(lambda: cancelled == [True])
        assert not server.of("renew")


async def test_a_short_handler_is_not_watched() -> None:
    async def handler(wake: Wake) -> None:
        await wake.messages()

    async with FakeServer() as server, running(server, handler):
        await server.send("chat/1", "hi")
        await server.seen("done")
        assert [each.query.get("live") for each in server.of("read")] == [None]


async def test_its_own_writes_do_not_make_a_busy_loop_of_watching() -> None:
    wrote = 0

    async def handler(wake: Wake) -> None:
        nonlocal wrote
        await server.until(lambda: any("live" in each.query for each in server.of("read")))
        for wrote in range(1, 101):
            await wake.append({"type": "x", "key": str(wrote), "value": {}})

    slow = fast(watch_after=0.01, watch_gap=60.0)
    async with FakeServer() as server, running(server, handler, timing=slow):
        await server.send("chat/1", "hi")
        await server.seen("done")
        assert wrote == 100
        # The one that its first write answered, and no second one within the gap.
        assert len([each for each in server.of("read") if "live" in each.query]) == 1


async def test_a_server_without_such_reads_is_done_without() -> None:
    async def handler(wake: Wake) -> None:
        await server.until(lambda: len(server.of("read")) >= 2)
        await wake.append({"type": "x", "key": "1", "value": {}})

    async def no_live(request: Any, answer: Any) -> Any:
        refused = "live" in request.query
        return await (status(400, "INVALID_REQUEST")(request, answer) if refused else answer())

    async with FakeServer() as server, running(server, handler, timing=QUICK):
        server.standing("read", no_live)
        await server.send("chat/1", "hi")
        await released(server, "chat/1")


# How it ends


async def test_it_can_be_tried_again_later() -> None:
    async def handler(wake: Wake) -> None:
        raise RetryAfter(60, "the model is busy")

    outcome = await handle(handler, "hi", attempt=3)
    assert (outcome.status, outcome.retry_after, outcome.error, outcome.acked) == (
        *("failed", 60, "the model is busy"),
        0,
    )


@pytest.mark.parametrize(("seconds", "asked"), [(0, 1.0), (-5, 1.0), (1e9, 30 * 86_400.0)])
def test_the_delay_is_one_that_the_server_takes(seconds: float, asked: float) -> None:
    assert RetryAfter(seconds).seconds == asked


async def test_it_can_be_given_up(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(wake: Wake) -> None:
        if wake.attempt == 3:
            raise GiveUp("no such tool")

    outcome = await handle(handler, "one", "two", attempt=3)
    assert (outcome.status, outcome.gave_up, outcome.error) == ("failed", True, "no such tool")
    assert outcome.acked == 2
    assert not (await handle(handler, "one", attempt=2)).gave_up


async def test_some_of_the_work_can_be_acked_before_the_rest() -> None:
    seen: list[list[Any]] = []

    async def handler(wake: Wake) -> None:
        messages = await wake.messages()
        seen.append([message.payload for message in messages])
        if len(messages) == 2:
            await wake.ack(messages[0])
            raise RuntimeError("the second cannot be done")

    async with FakeServer() as server, running(server, handler):
        entity = server.entity("chat/1")
        await server.send("chat/1", "one", wake=False)
        await server.send("chat/1", "two")
        await server.until(lambda: entity.claims and entity.claims[0].status == "failed")
        assert entity.cursor == 1
        server._wake(entity)
        await server._notify()
        await until(lambda: len(seen) == 2)
    assert seen == [["one", "two"], ["two"]]


# What it does


@pytest.mark.parametrize("trouble", [None, cut, lose_answer, status(503)])
async def test_a_message_is_sent_once_whatever_the_connection_does(trouble: Any) -> None:
    async def handler(wake: Wake) -> None:
        if wake.entity_url == "/chat/1":
            await wake.send("/chat/2", {"greeting": "hällo"}, type="greeting", mode="queued")

    async with FakeServer() as server, running(server, handler):
        if trouble is not None:
            server.fault("send", trouble)
        await server.send("chat/1", "hi")
        await released(server, "chat/1")
        (sent,) = server.sent
        assert (sent["to"], sent["from"], sent["payload"]) == (
            *("chat/2", "/chat/1"),
            {"greeting": "hällo"},
        )
        assert (sent["type"], sent["mode"]) == ("greeting", "queued")
        token = server.of("send")[0].headers["electric-claim-token"]
        assert token == server.entity("chat/1").claims[0].write_token


async def test_a_message_can_be_sent_later_and_the_entity_woken_at_a_time() -> None:
    async def handler(wake: Wake) -> None:
        await wake.send("chat/2", "later", after=timedelta(minutes=1), key="k")
        await wake.sleep_until(datetime.now(UTC) + timedelta(hours=1), {"again": 1}, key="s")
        await wake.sleep_until(timedelta(seconds=-5))

    outcome = await handle(handler, "hi")
    later, again, now = outcome.sent
    assert (later["to"], later["key"], later["afterMs"]) == ("chat/2", "k", 60_000)
    assert (again["to"], again["payload"]) == ("agent/test", {"again": 1})
    assert 3_590_000 < again["afterMs"] <= 3_600_000
    assert (now["afterMs"], now["payload"]) == (0, None)


async def test_a_child_is_spawned_in_the_creators_name() -> None:
    async def handler(wake: Wake) -> None:
        if wake.entity_type == "manager":
            url = await wake.spawn(
                "worker", "1", {"n": 1}, message="go", tags={"a": "b"}, wake="runFinished"
            )
            assert url == "/worker/1"

    async with FakeServer() as server, running(server, handler, token="secret"):
        server.fault("spawn", lose_answer)
        await server.send("manager/1", "hi")
        await released(server, "manager/1")
        assert server.entity("worker/1").spawned == {
            "parent": "/manager/1",
            "args": {"n": 1},
            "initialMessage": "go",
            "tags": {"a": "b"},
            "wake": {"subscriberUrl": "/manager/1", "condition": "runFinished"},
        }
        headers = server.of("spawn")[0].headers
        assert headers["electric-principal"] == "user:a"
        assert headers["authorization"] == "Bearer secret"
        # The answer was lost, so it was there already: what was asked with it is asked for again.
        assert server.watches == [
            {"subscriberUrl": "/manager/1", "sourceUrl": "/worker/1", "condition": "runFinished"}
        ]


async def test_tags_are_set_and_taken_off() -> None:
    async def handler(wake: Wake) -> None:
        await wake.set_tag("state/of it", "busy")
        await wake.set_tag("other", "x")
        await wake.set_tag("other", None)

    assert list((await handle(handler, "hi")).tags.values()) == ["busy"]


async def test_a_run_is_told_from_its_start_to_its_end() -> None:
    async def handler(wake: Wake) -> None:
        async with wake.run("r1") as run:
            await run.write("Hel")
            await run.write("lo")

    outcome = await handle(handler, "hi")
    assert [(each["type"], each["key"], each["value"]) for each in outcome.events] == [
        ("run", "r1", {"status": "started"}),
        ("text_delta", "r1:1", {"run_id": "r1", "delta": "Hel"}),
        ("text_delta", "r1:2", {"run_id": "r1", "delta": "lo"}),
        ("run", "r1", {"status": "completed"}),
    ]
    assert outcome.events[-1]["headers"]["operation"] == "update"


async def test_a_run_that_goes_wrong_is_failed() -> None:
    async def handler(wake: Wake) -> None:
        async with wake.run("r1"):
            raise OSError("no such model")

    outcome = await handle(handler, "hi")
    assert outcome.status == "failed"
    _, error, run = outcome.events
    assert error["value"] == {"run_id": "r1", "message": "OSError: no such model"}
    assert run["value"] == {"status": "failed"}


async def test_text_goes_over_the_wire_as_it_is() -> None:
    async def handler(wake: Wake) -> None:
        await wake.append({"type": "x", "key": "1", "value": {"text": "häß 🙂"}})
        await wake.append({"type": "x", "key": "2", "value": {"text": "half \ud800"}})

    async with FakeServer() as server, running(server, handler):
        await server.send("chat/1", "hi")
        first, second = await server.seen("append"), await server.seen("append", 2)
        assert int(first.headers["content-length"]) == len(
            '[{"type": "x", "key": "1", "value": {"text": "häß 🙂"}}]'.encode()
        )
        assert second.body[0]["value"]["text"] == "half \ud800"


# In threads


async def test_a_plain_function_runs_in_a_thread_with_all_of_it() -> None:
    threads: list[str] = []

    def handler(wake: SyncWake) -> None:
        threads.append(threading.current_thread().name)
        (message,) = wake.messages(Question)
        (child,) = wake.events()
        assert (wake.signals(), child.child.url if child.child else "") == ([], "/worker/1")
        assert [event["type"] for event in wake.history()] == ["wake", "inbox"]
        with wake.run("r1") as run:
            run.write(message.payload.text)
        wake.append({"type": "x", "key": "1", "value": {}})
        wake.send("chat/2", "hi")
        wake.sleep_until(timedelta(hours=1))
        wake.spawn("worker", "2")
        wake.set_tag("a", "b")
        wake.ack(message)
        assert list(wake.live(idle=0.01)) == []

    outcome = await handle(
        handler, {"text": "why"}, happened=[{"finished_child": {"url": "/worker/1"}}]
    )
    assert (outcome.status, outcome.error) == ("released", "")
    assert threads == ["work of /agent/test"]
    assert [each["type"] for each in outcome.events] == ["run", "text_delta", "run", "x"]
    assert (len(outcome.sent), list(outcome.spawned), outcome.tags) == (
        2,
        ["/worker/2"],
        {"a": "b"},
    )


async def test_appends_may_come_from_many_threads_at_once() -> None:
    def handler(wake: SyncWake) -> None:
        def write(n: int) -> None:
            for m in range(10):
                wake.append({"type": "x", "key": f"{n}-{m}", "value": {}})

        threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    outcome = await handle(handler, "hi")
    assert outcome.status == "released"
    assert len({each["key"] for each in outcome.events}) == 80


@pytest.mark.parametrize("error", [ValueError("boom"), SystemExit(3), StopIteration()])
async def test_what_a_thread_raises_fails_the_wake(error: BaseException) -> None:
    def handler(wake: SyncWake) -> None:
        raise error

    outcome = await handle(handler, "hi")
    assert outcome.status == "failed"
    assert type(error).__name__ in outcome.error


async def test_a_thread_may_put_its_work_off() -> None:
    def handler(wake: SyncWake) -> None:
        raise RetryAfter(7)

    assert (await handle(handler, "hi")).retry_after == 7


async def test_a_plain_function_that_gives_an_awaitable_is_a_mistake() -> None:
    async def later() -> None: ...

    assert "no `async def`" in (await handle(lambda wake: later(), "hi")).error


async def test_a_thread_sees_that_its_claim_is_lost() -> None:
    ended: list[str] = []
    began = threading.Event()

    def handler(wake: SyncWake) -> None:
        began.set()
        while not wake.cancelled:
            pass
        try:
            wake.append({"type": "x", "key": "1", "value": {}})
        except ClaimLost:
            ended.append("lost")

    errors: list[RunnerError] = []
    async with FakeServer() as server, running(server, handler, on_error=errors.append):
        await server.send("chat/1", "hi")
        await asyncio.to_thread(began.wait)
        drained = None
    assert ended == ["lost"]
    assert drained is None
    assert not [each for each in errors if isinstance(each, HandlerStuck)]


async def test_a_thread_that_heeds_nothing_is_abandoned() -> None:
    release = threading.Event()
    began = threading.Event()

    def handler(wake: SyncWake) -> None:
        began.set()
        release.wait()

    async with FakeServer() as server:
        runner = make(server, handler)
        async with runner:
            await server.send("chat/1", "hi")
            await asyncio.to_thread(began.wait)
            drained = await runner.stop(grace=0.0)
        assert (drained.cancelled, drained.abandoned) == (1, 1)
        release.set()
        await asyncio.sleep(0.05)


async def test_ten_threads_work_at_once() -> None:
    barrier = threading.Barrier(10)

    def handler(wake: SyncWake) -> None:
        barrier.wait(20)

    async with FakeServer() as server, running(server, handler):
        for n in range(10):
            await server.send(f"chat/{n}", "hi")
        await server.until(lambda: len(server.of("done")) == 10)


# Nothing silent


async def test_a_handler_that_cancels_itself_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(wake: Wake) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    caplog.set_level(logging.WARNING, "pullwake.runner")
    outcome = await handle(handler, "hi")
    assert (outcome.status, outcome.error) == ("failed", "the handler cancelled its own task")
    assert "the handler cancelled its own task" in caplog.text


async def test_a_clean_up_that_raises_reaches_the_caller_of_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    began = asyncio.Event()

    async def handler(wake: Wake) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("the disk is full")

    caplog.set_level(logging.WARNING, "pullwake.runner")
    async with FakeServer() as server:
        runner = make(server, handler)
        async with runner:
            await server.send("chat/1", "hi")
            await began.wait()
            drained = await runner.stop(grace=0.0)
    (error,) = drained.errors
    assert isinstance(error.__cause__, OSError)
    assert "the disk is full" in caplog.text


async def test_a_wake_without_anything_is_a_mistake_of_the_test() -> None:
    async def handler(wake: Wake) -> None: ...

    with pytest.raises(ValueError, match="nothing to wake for"):
        await handle(handler)


async def test_a_send_gives_up_when_the_claim_is_lost() -> None:
    raised: list[BaseException] = []

    async def handler(wake: Wake) -> None:
        try:
            await wake.send("chat/2", "hi")
        except BaseException as error:
            raised.append(error)
            raise

    async with FakeServer() as server, running(server, handler):
        server.fault("send", hang)
        await server.send("chat/1", "hi")
        await server.seen("send")
        await server.expire("chat/1")
        server.standing("renew", None)
    assert raised


@pytest.mark.parametrize("route", ["send", "tags", "spawn"])
async def test_what_the_server_says_of_another_entity_says_nothing_of_the_claim(route: str) -> None:
    """It fails the wake with that reason; taken for a lost claim, it would leave the lease to
    lapse, and the work to come again and again."""

    async def tell(wake: Wake) -> None:
        match route:
            case "send":
                await wake.send("/chat/none", "Hello")
            case "tags":
                await wake.set_tag("a", "b", of="/chat/none")
            case "spawn":
                await wake.spawn("chat", "child", runner="none")

    async with FakeServer() as server:
        server.fault(route, status(404, "NOT_FOUND"))
        async with running(server, tell) as runner:
            await server.send("chat/1", 1)
            claims = server.entity("chat/1").claims
            await server.until(lambda: claims and claims[0].status != "active")
            assert claims[0].status == "failed"
            assert "404 NOT_FOUND" in claims[0].error
            assert "fenced" not in (runner.get_health()["last_error"] or "")
