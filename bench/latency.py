"""Wake latency: from a send to the answer of the runner's long-poll, idle and under load."""

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from bench.client import Answer, BenchError, Loop, Queue, Script, call, request
from bench.lines import MESSAGE, RUNNER, Line, cycle, encoded
from bench.load import Order, background, child, received
from bench.machine import Server

LINE = Line("wake", lambda work: iter(()), "idle")  # type: ignore[arg-type, return-value]
PAUSE_S = 0.02
"""Between a done and the next send."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds under a load, counted from the send's answer and from the send itself."""

    load: int
    wakes: int
    p50: float
    p95: float
    p99: float
    worst: float
    p50_from_request: float
    p99_from_request: float


def latency(server: Server, caller: str, prefix: str, load: int, seconds: float) -> Latency:
    """Wake one runner again and again, while ``load`` connections heartbeat without a pause."""
    with ExitStack() as stack:
        if load:
            heartbeats = Order("heartbeat", server.port, caller, load, seconds + 30)
            stack.enter_context(background(heartbeats))
        pipe = stack.enter_context(child(_wake, server.port, caller, prefix, seconds))
        from_answer, from_request = received(pipe)
    if not from_answer:
        raise BenchError("nothing was woken")

    def at(values: list[float], share: float) -> float:
        return sorted(values)[min(int(len(values) * share), len(values) - 1)] * 1000

    return Latency(
        load=load,
        wakes=len(from_answer),
        p50=at(from_answer, 0.5),
        p95=at(from_answer, 0.95),
        p99=at(from_answer, 0.99),
        worst=at(from_answer, 1.0),
        p50_from_request=at(from_request, 0.5),
        p99_from_request=at(from_request, 0.99),
    )


def table(latencies: list[Latency]) -> list[str]:
    """Lines of Markdown."""
    return [
        "| wake latency, ms | wakes | p50 | p95 | p99 | worst | p50, p99 from the request |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {f'{each.load} connections heartbeat' if each.load else 'idle'} | {each.wakes} "
            f"| {each.p50:.1f} | {each.p95:.1f} | {each.p99:.1f} | {each.worst:.1f} "
            f"| {each.p50_from_request:.1f}, {each.p99_from_request:.1f} |"
            for each in latencies
        ),
    ]


def poll(loop: Loop, principal: bytes, runner: str, woken: Queue) -> Script:
    """Keep a runner's long-poll open, and pass on each answer that has wakes."""
    offset = "now"
    while True:
        path = f"/runners/{runner}/wake?offset={offset}&live=long-poll"
        answer = yield from call(loop, "long-poll", request("GET", path, principal), 200, 204)
        offset = answer.header(b"Stream-Next-Offset").decode()
        if answer.status == 200:
            woken.put(loop, (answer, json.loads(answer.body)))


def _wake(pipe: Connection, port: int, caller: str, prefix: str, seconds: float) -> None:
    loop, woken = Loop(), Queue()
    principal = f"{caller}\r\n".encode()
    runner = f"{RUNNER}0"
    from_answer: list[float] = []
    from_request: list[float] = []

    def send() -> Script:
        data = request(
            "POST", f"/_electric/entities/bench/{prefix}0/send", principal, encoded(MESSAGE)
        )
        while True:
            yield time.monotonic() + PAUSE_S
            sent: Answer = yield from call(loop, "send", data)
            found: Any = yield woken
            answer, events = found
            if len(events) != 1:
                raise BenchError(f"one message woke {len(events)} times")
            from_answer.append(answer.received_at - sent.received_at)
            from_request.append(answer.received_at - sent.sent_at)
            claim = f"/_electric/runners/{runner}/claim"
            yield from cycle(loop, principal, claim, encoded(events[0]))

    try:
        loop.start(poll(loop, principal, runner, woken), port)
        loop.start(send(), port)
        loop.run(until=time.monotonic() + seconds)
        pipe.send((from_answer, from_request))
    except BenchError as error:
        pipe.send(error)
