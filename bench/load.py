"""A line's load, from a process of its own."""

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from bench.client import BenchError, Loop
from bench.lines import LINES, PEER_LINES, RUNNER, RUNNERS, STACK, Work

WARM_UP_S = 0.3


@dataclass(frozen=True)
class Order:
    """What to measure: a line by name, at which port, how much, and on which seeded rows."""

    line: str
    port: int
    caller: str
    connections: int
    seconds: float
    prefix: str = ""
    count: int = 1
    requests: int = 0
    """Stop after this many units; 0 means never."""
    runner: str = RUNNER
    runners: int = RUNNERS
    events: int = 2
    """Events in the stream of each seeded entity."""


@dataclass(frozen=True)
class Outcome:
    """Seconds that the run took, and each call by name; the CPU of server and database."""

    elapsed: float
    took: dict[str, list[float]]
    client_cpu: float
    used: tuple[float, ...] = ()


def measured(order: Order, *meters: Callable[[], float]) -> Outcome:
    """Carry out the order in another process, and read the CPU meters before and after."""
    with child(_carry_out, order) as pipe:
        received(pipe)  # it is warm
        before = [meter() for meter in meters]
        pipe.send(None)
        outcome = received(pipe)
        used = tuple(meter() - was for meter, was in zip(meters, before, strict=True))
    return Outcome(outcome.elapsed, outcome.took, outcome.client_cpu, used)


@contextmanager
def background(order: Order) -> Iterator[None]:
    """Put load on the server while the block runs, at most ``order.seconds``."""
    with child(_carry_out, order) as pipe:
        received(pipe)
        pipe.send(None)
        yield
        if pipe.poll():
            received(pipe)  # it failed, or it ended too soon
            raise BenchError("the load ended before the measurement did")


@contextmanager
def child(target: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """Start another process, which ends with the block: the pipe to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.terminate()
        process.join()


def received(pipe: Connection) -> Any:
    """Receive what the other process sends. Raises its BenchError."""
    try:
        said = pipe.recv()
    except EOFError:
        raise BenchError("the load generator died") from None
    if isinstance(said, BenchError):
        raise said
    return said


def _carry_out(pipe: Connection, order: Order) -> None:
    try:
        known = [*LINES, *STACK.values(), *PEER_LINES]
        line = next(each for each in known if each.name == order.line)
        loop = Loop()
        turn = iter(range(order.requests)) if order.requests else itertools.count()
        work = Work(
            loop,
            order.caller,
            order.prefix,
            order.count,
            turn,
            order.runner,
            order.runners,
            order.events,
        )
        for _ in range(order.connections):
            loop.start(line.script(work), order.port)
        if not order.requests:
            loop.run(until=time.monotonic() + WARM_UP_S)
        pipe.send("warm")
        pipe.recv()
        loop.took.clear()
        began, cpu = time.monotonic(), time.process_time()
        loop.run(until=began + order.seconds)
        elapsed = time.monotonic() - began
        took = {name: list(each) for name, each in loop.took.items()}
        pipe.send(Outcome(elapsed, took, time.process_time() - cpu))
    except BenchError as error:
        pipe.send(error)
