"""A fleet on one machine: every runner's long-poll open, all heartbeating, wakes among them.

    python -m bench.fleet [--runners 10000] [--minutes 10] [--wakes 50] [--workers 2]
        [--servers 1]

PostgreSQL runs with fsync on. Several servers share the port, as behind a load balancer. Exits with
1 unless every call succeeded, every send woke its runner once, the 99th percentile of wake latency
stayed under its bound, and the memory and the database connections of each server did, too.
"""

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from bench import seed
from bench.__main__ import RESULTS, percentile
from bench.client import Answer, BenchError, Loop, Queue, Script, call, request
from bench.latency import poll
from bench.lines import HEARTBEAT, MESSAGE, cycle, encoded
from bench.load import child, received
from bench.machine import Database, Server, caller, conditions, migrated_database, serving

HEARTBEAT_EVERY_S = 30.0
RAMP_S = 30.0
"""Over how long the runners connect: as long as a long-poll, so that they do not answer at once."""
HANDS = 64
"""Connections that the runners' other calls share, as behind a proxy."""
LOST_AFTER_S = 20.0
"""A wake that has not arrived by then is lost, though it would be emitted again later."""

MEMORY_MB = 700.0
GROWTH = 1.05
DATABASE_CONNECTIONS = 50


@dataclass(frozen=True)
class Plan:
    """What the fleet does."""

    port: int
    caller: str
    runners: int
    minutes: float
    wakes: float


@dataclass
class Report:
    """The outcome; times in milliseconds."""

    wakes: int = 0
    wake_p50: float = 0
    wake_p99: float = 0
    wake_worst: float = 0
    heartbeats: int = 0
    heartbeat_p99: float = 0
    long_polls: int = 0
    backlog: int = 0
    """The most calls that waited for a connection of the client at once."""
    client_cpu: float = 0
    memory_mb: list[float] = field(default_factory=list)
    """Of all servers together, as are these."""
    database_connections: int = 0
    server_cpu: float = 0
    """Cores, on average, once all were connected; and the same for the database."""
    database_cpu: float = 0

    def failures(self, p99_ms: float, servers: int) -> Iterator[str]:
        """What is wrong, in a sentence each; ``servers`` is how many there were."""
        if self.wake_p99 > p99_ms:
            yield f"wake latency: p99 is {self.wake_p99:.0f} ms, over {p99_ms:.0f} ms"
        if max(self.memory_mb) > MEMORY_MB * servers:
            yield f"memory: {max(self.memory_mb):.0f} MB, over {MEMORY_MB * servers:.0f} MB"
        # The first half is for warming up.
        quarter = max(len(self.memory_mb) // 4, 1)
        early, late = max(self.memory_mb[: -2 * quarter][-quarter:]), max(self.memory_mb[-quarter:])
        if late > early * GROWTH:
            yield f"memory grows: from {early:.0f} to {late:.0f} MB"
        if self.database_connections >= DATABASE_CONNECTIONS * servers:
            yield f"{self.database_connections} database connections"


class Fleet:
    """The client's side of it, in a process of its own."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.loop = Loop()
        self.principal = f"{plan.caller}\r\n".encode()
        self.calls, self.woken = Queue(), Queue()
        self.started_at = time.monotonic()
        self.sending_from = self.started_at + RAMP_S + 5
        self.ends_at = self.sending_from + plan.minutes * 60
        self.sent: dict[int, float] = {}
        """By entity, when its send was answered, until it wakes."""
        self.busy: set[int] = set()
        """Entities between their send and their done."""
        self.latencies: list[float] = []
        self.backlog = 0

    def run(self) -> Report:
        """Carry out the plan."""
        for number in range(self.plan.runners):
            self.loop.start(self._runner(number), self.plan.port)
        for _ in range(HANDS):
            self.loop.start(self._hand(), self.plan.port)
        for script in (self._heartbeats(), self._sends(), self._wakes()):
            self.loop.start(script, self.plan.port)
        cpu = time.process_time()
        self.loop.run(until=self.ends_at)
        # Those under way may end.
        while self.busy and time.monotonic() < self.ends_at + LOST_AFTER_S:
            self.loop.run(until=time.monotonic() + 0.1)
        if self.busy:
            raise BenchError(f"{len(self.sent)} wakes lost, {len(self.busy)} not done")
        took = self.loop.took
        return Report(
            wakes=len(self.latencies),
            wake_p50=percentile(self.latencies, 0.5),
            wake_p99=percentile(self.latencies, 0.99),
            wake_worst=percentile(self.latencies, 1),
            heartbeats=len(took["heartbeat"]),
            heartbeat_p99=percentile(list(took["heartbeat"]), 0.99),
            long_polls=len(took["long-poll"]),
            backlog=self.backlog,
            client_cpu=(time.process_time() - cpu) / (time.monotonic() - self.started_at),
        )

    def _runner(self, number: int) -> Script:
        yield self.started_at + random.random() * RAMP_S
        yield from poll(self.loop, self.principal, f"fleet-{number}", self.woken)

    def _hand(self) -> Script:
        while True:
            script: Any = yield self.calls
            yield from script

    def _ask(self, script: Script) -> None:
        self.calls.put(self.loop, script)
        self.backlog = max(self.backlog, len(self.calls.items))

    def _heartbeats(self) -> Script:
        for beat in itertools.count():
            yield self.started_at + beat * HEARTBEAT_EVERY_S / self.plan.runners
            self._ask(self._heartbeat(beat % self.plan.runners))

    def _heartbeat(self, number: int) -> Script:
        path = f"/_electric/runners/fleet-{number}/heartbeat"
        data = request("POST", path, self.principal, encoded(HEARTBEAT))
        yield from call(self.loop, "heartbeat", data)

    def _sends(self) -> Script:
        for turn in itertools.count():
            at = self.sending_from + turn / self.plan.wakes
            if at > self.ends_at:
                return
            yield at
            number = random.randrange(self.plan.runners)
            if number not in self.busy:
                self.busy.add(number)
                self._ask(self._send(number))

    def _send(self, number: int) -> Script:
        path = f"/_electric/entities/bench/fleet-{number}/send"
        data = request("POST", path, self.principal, encoded(MESSAGE))
        self.sent[number] = float("inf")
        answer: Answer = yield from call(self.loop, "send", data)
        if number in self.sent:
            self.sent[number] = answer.received_at
        else:
            self.latencies.append(0.0)  # its runner was woken before the answer was here

    def _wakes(self) -> Script:
        while True:
            found: Any = yield self.woken
            answer, events = found
            for event in events:
                number = int(event["stream"].removeprefix("bench/fleet-").removesuffix("/main"))
                sent_at = self.sent.pop(number, None)
                if sent_at is None:
                    raise BenchError(f"fleet-{number} was woken twice")
                if sent_at != float("inf"):
                    self.latencies.append(answer.received_at - sent_at)
                self._ask(self._work(number, event))

    def _work(self, number: int, event: Any) -> Script:
        path = f"/_electric/runners/fleet-{number}/claim"
        yield from cycle(self.loop, self.principal, path, encoded(event))
        self.busy.remove(number)


def fleet(plan: Plan, servers: Sequence[Server], database: Database) -> Report:
    """Carry out the plan on these servers, which share its port."""
    with child(_carry_out, plan) as pipe:
        return _observed(pipe, servers, database)


def _carry_out(pipe: Connection, plan: Plan) -> None:
    try:
        pipe.send(Fleet(plan).run())
    except BenchError as error:
        pipe.send(error)


def _observed(pipe: Connection, servers: Sequence[Server], database: Database) -> Report:
    """Wait for the report, and watch the servers meanwhile."""
    memory: list[float] = []
    connections = 0
    began = cpu = database_cpu = 0.0
    ready_at = time.monotonic() + RAMP_S + 5
    with database.connect() as connection:
        while not pipe.poll(2):
            (count,) = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()"
            ).fetchone() or (0,)
            connections = max(connections, int(str(count)))
            if time.monotonic() > ready_at:
                if not memory:
                    began, database_cpu = time.monotonic(), database.cpu()
                    cpu = sum(each.cpu() for each in servers)
                memory.append(sum(each.memory() for each in servers) / 2**20)
                print(f"{memory[-1]:.0f} MB, {connections} connections", file=sys.stderr)
        elapsed = time.monotonic() - began
        server_cpu = sum(each.cpu() for each in servers) - cpu
        database_cpu = database.cpu() - database_cpu
    report: Report = received(pipe)
    report.memory_mb = [round(each, 1) for each in memory]
    report.database_connections = connections
    report.server_cpu, report.database_cpu = server_cpu / elapsed, database_cpu / elapsed
    return report


def main() -> int:
    """Run the fleet; print the report and store it."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet")
    parser.add_argument("--runners", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--wakes", type=float, default=50, help="a second")
    parser.add_argument("--workers", type=int, default=2, help="of each server")
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--p99-ms", type=float, default=250, help="that wakes may take")
    options = parser.parse_args()
    try:
        with migrated_database() as database:
            who = caller(database)
            with database.connect() as connection:
                many = {"runner": "fleet-", "runners": options.runners}
                seed.runners(connection, "fleet-", options.runners)
                seed.entities(connection, "fleet-", options.runners, "idle", **many)
                seed.settle(connection)
            with ExitStack() as stack:
                servers = list(serving(stack, database, options.workers, options.servers))
                port = servers[0].port
                plan = Plan(port, who, options.runners, options.minutes, options.wakes)
                report = fleet(plan, servers, database)
                for each in servers:
                    each.refuse_complaints()
    except BenchError as error:
        print(f"bench.fleet: {error}", file=sys.stderr)
        return 1
    failures = list(report.failures(options.p99_ms, options.servers))
    facts = {"conditions": {**conditions(), **vars(options)}, **asdict(report)}
    for name, value in facts.items():
        print(f"{name}: {value}")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    path = RESULTS / f"fleet-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.write_text(json.dumps({**facts, "failures": failures}, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
