"""Probes, metrics, and what a log says of the wake that it was written in."""

from __future__ import annotations

import asyncio
import json
import logging
import socket

import httpx2
import pytest

from harness import Handled, make, running, until
from pullwake import SyncWake, Wake
from pullwake.logs import JsonLines, Readable, WakeContext
from pullwake.testing import FakeServer, handle, status


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_it_is_live_ready_and_counted() -> None:
    port, handled = free_port(), Handled(waits=True)
    async with (
        FakeServer() as server,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        async with running(server, handled, health_port=port, health_host="127.0.0.1"):
            await server.seen("heartbeat")
            await server.send("chat/1", "hi")
            await handled.began.wait()
            assert (await http.get("/livez")).text == "ok\n"
            ready = await http.get("/readyz")
            assert (ready.status_code, ready.text) == (200, "ok\n")
            metrics = (await http.get("/metrics")).text.splitlines()
            for line in (
                "pullwake_runner_connected 1",
                "pullwake_runner_claims_active 1",
                "pullwake_runner_claimed_total 1",
                "# TYPE pullwake_runner_claimed_total counter",
            ):
                assert line in metrics
            assert (await http.get("/other")).status_code == 404
            assert (await http.post("/livez")).status_code == 405
            assert (await http.head("/livez")).text == ""
            handled.proceed.set()
        with pytest.raises(httpx2.ConnectError):
            await http.get("/livez")


async def test_it_is_not_ready_while_it_cannot_take_work() -> None:
    port = free_port()
    async with (
        FakeServer() as server,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        server.standing("register", status(503))
        runner = make(server, health_port=port)
        await runner.start()
        not_yet = await http.get("/readyz")
        assert (not_yet.status_code, (await http.get("/livez")).status_code) == (503, 200)
        assert not_yet.text in ("it is connecting\n", "it is reconnecting\n")
        server.standing("register", None)
        server.standing("heartbeat", status(503))
        await runner.connected()
        await until(lambda: runner.get_health()["last_heartbeat_ok"] is False)
        said = (await http.get("/readyz")).text
        assert said in ("its last heartbeat failed\n", "it is reconnecting\n", "it is connecting\n")
        await runner.stop(grace=0.0)


async def test_a_port_that_is_taken_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with FakeServer() as server:
            runner = make(server, health_port=port, health_host="127.0.0.1")
            with pytest.raises(OSError, match="in use"):
                await runner.start()
            assert runner.state.value == "stopped"


async def test_whoever_sends_nothing_or_nonsense_holds_nothing_up() -> None:
    port = free_port()
    async with FakeServer() as server:
        async with running(server, health_port=port):
            silent = await asyncio.open_connection("127.0.0.1", port)
            rubbish = await asyncio.open_connection("127.0.0.1", port)
            rubbish[1].write(b"x" * 100_000)
            assert await rubbish[0].read() == b""
        for _, writer in (silent, rubbish):
            writer.close()


@pytest.mark.parametrize("threaded", [False, True])
async def test_a_log_says_of_which_wake_it_is(threaded: bool) -> None:
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    keep, logger = Keep(), logging.getLogger("my.handler")
    keep.addFilter(WakeContext())
    logger.addHandler(keep)

    async def in_loop(wake: Wake) -> None:
        logger.warning("working")

    def in_thread(wake: SyncWake) -> None:
        logger.warning("working")

    try:
        await handle(in_thread if threaded else in_loop, "hi")
    finally:
        logger.removeHandler(keep)
    (record,) = records
    line = json.loads(JsonLines().format(record))
    assert (line["entity"], line["epoch"], line["runner"]) == ("/agent/test", 1, "test")
    assert Readable().format(record).endswith("warning: /agent/test | working")


def test_a_record_that_names_its_entity_does_so_once() -> None:
    for message, shown in (("GET /x: cut", "/a/b | GET /x: cut"), ("/a/b epoch 1: done",) * 2):
        record = logging.LogRecord("pullwake.runner", logging.INFO, "", 1, message, (), None)
        record.entity = "/a/b"
        assert Readable().format(record)[9:] == shown
