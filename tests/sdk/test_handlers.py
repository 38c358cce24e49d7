"""What handlers do, with the real server: how their work ends, and what they send and make."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import harness
from pullwake import GiveUp, PullWakeRunner, RetryAfter, SyncWake, Wake
from pullwake.handlers import AnyHandler
from pullwake.runner import _Run
from tests.support import Database, HttpApi, Server

from .brisk import BRISK


async def until(condition: Callable[[], Any], what: str = "") -> None:
    await harness.until(condition, what, every=0.05)


@asynccontextmanager
async def at_work(server: Server, name: str, handler: AnyHandler) -> AsyncIterator[HttpApi]:
    """A runner of this name, and the entity /agent/<name> that it works for."""
    runner = PullWakeRunner(server.url, name, handler, timing=BRISK)
    async with runner:
        await runner.connected()
        api = server.client(None)
        api.make_entity(f"/agent/{name}", runner_id=name)
        yield api


def rows(server: Server, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    return list(Database(server.env["DATABASE_URL"]).execute(sql, *values))


def claims(server: Server, url: str) -> list[tuple[str, str]]:
    sql = "SELECT status, error FROM claims_consumerclaim WHERE entity_url = %s ORDER BY epoch"
    return [(status, error) for status, error in rows(server, sql, url)]


def cursor(server: Server, url: str) -> int:
    (found,) = rows(
        server,
        "SELECT s.cursor FROM dispatch_dispatchstate s JOIN dispatch_entity e ON e.id = s.entity_id"
        " WHERE e.url = %s",
        url,
    )
    return int(found[0])


async def test_work_is_put_off_and_then_given_up(server: Server) -> None:
    attempts: list[int] = []

    async def handler(wake: Wake) -> None:
        await wake.messages()
        attempts.append(wake.attempt)
        if wake.attempt == 1:
            raise RetryAfter(1, "busy")
        raise GiveUp("no such tool")

    async with at_work(server, "gives-up", handler) as api:
        api.send("/agent/gives-up")
        await until(lambda: len(claims(server, "/agent/gives-up")) == 2, "a second claim")
        await until(lambda: api.status("/agent/gives-up") == "idle", "its end")
    assert claims(server, "/agent/gives-up") == [("failed", "busy"), ("failed", "no such tool")]
    assert attempts == [1, 2]
    letters = rows(server, "SELECT reason, attempts FROM claims_deadletter")
    assert letters == [("no such tool", 2)]


async def test_a_part_is_acked_before_the_rest_fails(server: Server) -> None:
    seen: list[list[Any]] = []

    async def handler(wake: Wake) -> None:
        messages = await wake.messages()
        seen.append([message.payload for message in messages])
        if messages[-1].payload == "bad":
            await wake.ack(messages[0])
            raise RetryAfter(600)

    async with at_work(server, "acks", handler) as api:
        api.signal("/agent/acks", "SIGSTOP")
        api.send("/agent/acks", payload="good")
        api.send("/agent/acks", payload="bad")
        api.signal("/agent/acks", "SIGCONT")
        await until(lambda: len(claims(server, "/agent/acks")) == 1 and seen != [])
        await until(lambda: api.status("/agent/acks") == "idle")
        api.send("/agent/acks", payload="new")
        await until(lambda: len(seen) == 2)
    assert seen == [["good", "bad"], ["bad", "new"]]


async def test_it_hears_of_a_signal_within_a_second_or_two(server: Server) -> None:
    began, took = asyncio.Event(), 0.0

    async def handler(wake: Wake) -> None:
        nonlocal took
        began.set()
        await wake.interruption()
        took = asyncio.get_running_loop().time() - signalled

    async with at_work(server, "interrupted", handler) as api:
        api.send("/agent/interrupted")
        await began.wait()
        signalled = asyncio.get_running_loop().time()
        await asyncio.to_thread(api.signal, "/agent/interrupted", "SIGINT")
        await until(lambda: api.status("/agent/interrupted") == "idle")
        # It was seen to, so it wakes for nothing.
        assert claims(server, "/agent/interrupted") == [("released", "")]
    assert 0 < took < 2


async def test_a_kill_ends_it_within_a_second_or_two(server: Server) -> None:
    began, ended = asyncio.Event(), asyncio.Event()
    took = 0.0

    async def handler(wake: Wake) -> None:
        nonlocal took
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            took = asyncio.get_running_loop().time() - killed
            ended.set()

    async with at_work(server, "killed", handler) as api:
        api.send("/agent/killed")
        await began.wait()
        killed = asyncio.get_running_loop().time()
        await asyncio.to_thread(api.signal, "/agent/killed", "SIGKILL")
        async with asyncio.timeout(10):
            await ended.wait()
    # The watch begins a second after the work did; a renewal would come after ten.
    assert 0 < took < 3


async def test_what_arrives_is_worked_on_live_and_acked(server: Server) -> None:
    seen: list[Any] = []

    async def handler(wake: Wake) -> None:
        seen.extend(message.payload for message in await wake.messages())
        async for item in wake.live():
            await wake.append({"type": "reply", "key": str(item.payload), "value": {}})
            seen.append(item.payload)
            if item.payload == 3:
                return

    async with at_work(server, "live", handler) as api:
        for n in (1, 2, 3):
            api.send("/agent/live", payload=n)
            await until(lambda: n in seen)  # noqa: B023  waited for in its round
        await until(lambda: api.status("/agent/live") == "idle")
    assert seen == [1, 2, 3]
    assert claims(server, "/agent/live") == [("released", "")]


async def test_it_sends_spawns_and_tags(server: Server) -> None:
    got: list[Any] = []

    async def handler(wake: Wake) -> None:
        got.append((wake.entity_url, [each.payload for each in await wake.messages()]))
        if wake.entity_url == "/agent/parent":
            for _ in range(2):  # the second time all of it is there already
                url = await wake.spawn("agent", "child", {"n": 1}, message="go", tags={"a": "b"})
            await wake.send(url, "more", key="k")
            await wake.send(url, "more", key="k")
            await wake.set_tag("children", "1")

    async with at_work(server, "parent", handler) as api:
        api.send("/agent/parent")
        await until(lambda: sum(len(each) for url, each in got if url == "/agent/child") == 2)
        await until(lambda: api.status("/agent/parent") == "idle")
        parent = api.get("/_electric/entities/agent/parent").body
        child = api.get("/_electric/entities/agent/child").body
        history = api.get("/agent/child/main?offset=-1").body
    assert parent["tags"] == {"children": "1"}
    assert (child["parent"], child["spawn_args"], child["tags"]) == (
        *("/agent/parent", {"n": 1}),
        {"a": "b"},
    )
    senders = [each["value"]["from"] for each in history if each["type"] == "inbox"]
    assert senders[1:] == ["/agent/parent"]


async def test_a_thread_works_with_all_of_it(server: Server) -> None:
    def handler(wake: SyncWake) -> None:
        (message,) = wake.messages()
        with wake.run("r1") as run:
            run.write(f"You said: {message.payload}")
        wake.set_tag("done", str(len(list(wake.history()))))

    async with at_work(server, "threaded", handler) as api:
        api.send("/agent/threaded", payload="hällo")
        await until(lambda: claims(server, "/agent/threaded") == [("released", "")])
        stream = api.get("/agent/threaded/main?offset=-1").body
        deltas = [each["value"]["delta"] for each in stream if each["type"] == "text_delta"]
        assert deltas == ["You said: hällo"]
        assert api.get("/_electric/entities/agent/threaded").body["tags"] == {"done": "5"}


async def test_it_is_woken_at_the_time_that_it_asked_for(server: Server) -> None:
    seen: list[Any] = []

    async def handler(wake: Wake) -> None:
        payloads = [message.payload for message in await wake.messages()]
        seen.extend(payloads)
        if payloads == ["start"]:
            for _ in range(2):
                await wake.sleep_until(timedelta(seconds=1), "timer", key="once")

    async with at_work(server, "sleeps", handler) as api:
        api.send("/agent/sleeps", payload="start")
        await until(lambda: seen == ["start", "timer"])
    assert claims(server, "/agent/sleeps") == [("released", "")] * 2


# A queue that handlers of another runtime left: they ack all of it, and take a message a wake

LEFT = "/agent/left"


def leave_behind(api: HttpApi) -> None:
    """Four messages were sent to an entity, and its handler took the first."""
    api.register("other")
    api.make_entity(LEFT, runner_id="other")
    for key in ("m1", "m2", "m3", "m4"):
        api.send(LEFT, payload=key, key=key, mode="queued")
    claim = api.claim("other")
    taken = {"type": "inbox", "key": "m1", "value": {"status": "processed"}}
    claim.append({**taken, "headers": {"operation": "update"}}, token=claim.mint())
    assert claim.done(claim.tail).body["next_wake"]


def edit(api: HttpApi, key: str, change: Any) -> None:
    assert api("PATCH", f"/_electric/entities{LEFT}/inbox/{key}", change).status == 200


def hand_over(api: HttpApi) -> None:
    policy = {"targets": [{"type": "runner", "runnerId": "heir"}]}
    answer = api("PATCH", f"/_electric/entities{LEFT}", {"dispatch_policy": policy})
    assert answer.status == 200, answer


def waiting(server: Server) -> list[Any]:
    return [key for (key,) in rows(server, "SELECT key FROM dispatch_queuedmessage ORDER BY key")]


async def rests(server: Server, after: int) -> None:
    """Wait until that many claims have ended, with nothing left to do."""
    sql = "SELECT active_epoch, outstanding_wake_id FROM dispatch_dispatchstate s"
    sql += " JOIN dispatch_entity e ON e.id = s.entity_id WHERE e.url = %s"
    await until(
        lambda: len(claims(server, LEFT)) == after and rows(server, sql, LEFT) == [(None, None)],
        f"the end of claim {after}",
    )


class Given:
    """A handler, and the payloads that each of its wakes was given."""

    def __init__(self) -> None:
        self.wakes: list[list[Any]] = []

    async def __call__(self, wake: Wake) -> None:
        self.wakes.append([each.payload for each in await wake.messages()])


async def test_what_waits_in_the_queue_is_given_once_and_in_its_order(server: Server) -> None:
    given = Given()
    async with at_work(server, "heir", given) as api:
        leave_behind(api)
        edit(api, "m4", {"position": "0"})
        hand_over(api)
        await rests(server, 2)
        api.send(LEFT, payload="m5", mode="queued")
        await rests(server, 3)
    assert given.wakes == [["m4", "m2", "m3"], ["m5"]]
    assert claims(server, LEFT) == [("released", "")] * 3


async def test_what_waits_in_the_queue_comes_after_what_is_new(server: Server) -> None:
    given = Given()
    async with at_work(server, "heir", given) as api:
        leave_behind(api)
        api.send(LEFT, payload="new")
        hand_over(api)
        await rests(server, 3)
    assert given.wakes == [["new"], ["m2", "m3", "m4"]]


async def test_what_is_held_back_stops_those_behind_it(server: Server) -> None:
    given = Given()
    async with at_work(server, "heir", given) as api:
        leave_behind(api)
        edit(api, "m3", {"mode": "paused"})
        hand_over(api)
        await rests(server, 2)
        assert waiting(server) == ["m3", "m4"]
        edit(api, "m3", {"mode": "queued"})
        await rests(server, 3)
    assert given.wakes == [["m2"], ["m3", "m4"]]
    assert waiting(server) == []


async def test_what_was_edited_in_the_queue_is_given_whole_and_once(server: Server) -> None:
    seen: list[Any] = []

    async def handler(wake: Wake) -> None:
        seen.extend((each.payload, each.sender) for each in await wake.messages())

    async with at_work(server, "heir", handler) as api:
        leave_behind(api)
        edit(api, "m3", {"payload": "edited"})
        hand_over(api)
        await rests(server, 2)
    sender = "/principal/system%3Adev-local"
    assert seen == [("m2", sender), ("edited", sender), ("m4", sender)]


async def test_what_was_acked_of_a_queue_does_not_come_again(server: Server) -> None:
    given = Given()

    async def handler(wake: Wake) -> None:
        await given(wake)
        if wake.attempt == 1:
            await wake.ack((await wake.messages())[0])
            raise RetryAfter(1)

    async with at_work(server, "heir", handler) as api:
        leave_behind(api)
        edit(api, "m4", {"position": "0"})
        hand_over(api)
        await rests(server, 3)
        api.signal(LEFT, "SIGSTOP")
        for payload in ("m5", "m6"):
            api.send(LEFT, payload=payload, mode="queued")
        api.signal(LEFT, "SIGCONT")
        await rests(server, 5)
    assert given.wakes == [["m4", "m2", "m3"], ["m2", "m3"], ["m5", "m6"], ["m6"]]
    assert waiting(server) == []


# Two processes of one id, as in a rolling deploy


def run_of(runner: PullWakeRunner) -> _Run:
    assert runner._run is not None
    return runner._run


def hears_of_another(runner: PullWakeRunner) -> bool:
    """Whether the answer to its last heartbeat told of another process."""
    record = run_of(runner)._record
    return record is not None and record.other_process


async def test_the_old_ones_goodbye_does_not_make_the_new_one_look_dead(server: Server) -> None:
    async def handler(wake: Wake) -> None:
        began.set()
        await proceed.wait()

    began, proceed = asyncio.Event(), asyncio.Event()
    api = server.client(None)
    old, new = (PullWakeRunner(server.url, "rolling", handler, timing=BRISK) for _ in range(2))
    await old.start()
    await old.connected()
    await new.start()
    await new.connected()
    api.make_entity("/agent/rolling", runner_id="rolling")
    await until(lambda: hears_of_another(old), "that the old one hears of the new one")
    await old.stop()
    api.send("/agent/rolling")
    await began.wait()
    health = api.get("/_electric/runners/rolling/health").body
    assert health["runner"]["liveness_status"] == "online"
    assert health["claims"]["active_count"] == 1
    proceed.set()
    await until(lambda: not run_of(new).is_shared(), "that the new one is alone")
    await new.stop()
    health = api.get("/_electric/runners/rolling/health").body
    assert health["client"]["status"] == "stopped"


async def test_it_remembers_the_new_one_over_heartbeats_of_its_own(server: Server) -> None:
    """While it stops, the old one reports more often than the new one does at work."""

    async def handler(wake: Wake) -> None: ...

    seldom = replace(BRISK, heartbeat_interval=10.0)
    old, new = (PullWakeRunner(server.url, "rolling", handler, timing=seldom) for _ in range(2))
    async with new:
        await new.connected()
        async with old:
            await old.connected()
            while not hears_of_another(old):
                await run_of(new)._heartbeat()
                await run_of(old)._heartbeat()
            while hears_of_another(old):  # the new one tells by itself, too, that it has connected
                await run_of(old)._heartbeat()
        health = server.client(None).get("/_electric/runners/rolling/health").body
        assert health["runner"]["liveness_status"] == "online"
        assert health["client"]["status"] == "streaming"
