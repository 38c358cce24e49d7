"""``make bench``: what each call costs, beside the stack's limit and the database's.

    python -m bench [--only heartbeat,cycle] [--connections 1,8,32] [--seconds 3] [--workers 2]

Starts a PostgreSQL and servers of its own. A run with an error is not reported.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import latency, peer, seed
from bench.client import BenchError
from bench.lines import LINES, PEER_LINES, RUNNER, RUNNERS, STACK, Line
from bench.load import Order, Outcome, measured
from bench.machine import Database, Server, caller, conditions, migrated_database, serving
from bench.replay import Limit, limit

RESULTS = Path(__file__).parent / "results"
RECORDED = 300
"""Calls, or cycles, whose statements pgbench sends again."""
PGBENCH_CONNECTIONS = 4
COLUMNS = (
    "call",
    "conn.",
    "calls/s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "server CPU ms",
    "of empty view's CPU",
    "of empty view's rate",
    "db CPU ms",
    "of pgbench's rate",
    "statements",
    "transactions",
)


@dataclass(frozen=True)
class Measured:
    """A line at a number of connections: latencies, and CPU of each call, in milliseconds."""

    line: str
    connections: int
    per_second: float
    p50: float
    p95: float
    p99: float
    server_cpu: float
    database_cpu: float
    client_cpu: float


def percentile(values: list[float], share: float) -> float:
    """In milliseconds."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000


def summary(line: Line, connections: int, outcome: Outcome) -> Measured:
    """Sum up an outcome; a cycle counts as one call here."""
    taken = list(outcome.took.values())
    if not taken or not all(taken):
        raise BenchError(f"{line.name}: nothing was answered")
    units = min(map(len, taken))
    # A cycle's latency is the sum of its calls'; they are in order of completion, which will do.
    whole = [sum(each) for each in zip(*(each[-units:] for each in taken), strict=True)]
    calls = sum(map(len, taken)) / line.calls
    server, database = outcome.used
    return Measured(
        line=line.name,
        connections=connections,
        per_second=calls / outcome.elapsed,
        p50=percentile(whole, 0.50),
        p95=percentile(whole, 0.95),
        p99=percentile(whole, 0.99),
        server_cpu=server / calls * 1000,
        database_cpu=database / calls * 1000,
        client_cpu=outcome.client_cpu / calls * 1000,
    )


class Bench:
    """One run: the servers that are measured, and the results."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.found: list[Measured] = []
        self.limits: dict[str, Limit] = {}
        self.latencies: list[latency.Latency] = []
        self.compared: list[peer.Compared] = []
        self.passes = 0

    def run(self) -> None:
        """Measure everything that was asked for."""
        options = self.options
        with migrated_database(options.postgres) as database:
            self.caller = caller(database)
            if options.peer:
                self._beside(peer.at(options.peer), database)
                return
            with database.connect() as connection:
                seed.runners(connection, RUNNER, RUNNERS)
            lines = [each for each in LINES if not options.only or each.name in options.only]
            if options.limits:
                for line in lines:
                    # What it leaves, claims that runners hold, would be theirs for the other lines.
                    with database.copy() as copy:
                        self._limit(copy, line)
            # Wakes that a line left unclaimed are not to be emitted again under the next one, by
            # neither: the empty view has the same worker, and so its housekeeping, too.
            env = {"PULLWAKE_WAKE_REEMIT_MS": "86400000"}
            with (
                Server(database, options.workers, "bench.stack:application", env=env) as stack,
                ExitStack() as held,
            ):
                servers = list(serving(held, database, options.workers, options.servers, **env))
                for line in STACK.values():
                    self._line(line, database, [stack])
                for line in lines:
                    self._line(line, database, servers)
                if not options.only or "wake" in options.only:
                    self.latencies = list(self._latencies(database, servers[0]))
                for each in [stack, *servers]:
                    each.refuse_complaints()

    def _beside(self, theirs: peer.Side, database: Database) -> None:
        with Server(database, self.options.workers) as server:
            ours = peer.Side("ours", server.port, self.caller, server.cpu)
            for side in (ours, theirs):
                peer.prepare(side)
            for line in PEER_LINES:
                if self.options.only and line.name not in self.options.only:
                    continue
                for connections in self.options.connections:
                    turns = [
                        (self._turn(line, connections, ours), self._turn(line, connections, theirs))
                        for _ in range(peer.ROUNDS)
                    ]
                    self.compared.append(peer.compared(line, connections, turns))
            server.refuse_complaints()

    def _turn(self, line: Line, connections: int, side: peer.Side) -> Outcome:
        print(f"{line.name}: {connections} connections, {side.name}", file=sys.stderr)
        # Names that no run had before, for the peer keeps them.
        prefix = f"{time.time_ns():x}-"
        order = Order(line.name, side.port, side.caller, connections, self.options.seconds, prefix)
        return measured(order, side.cpu)

    def _seeded(self, database: Database, line: Line, count: int) -> str:
        self.passes += 1
        prefix = f"p{self.passes}-"
        if line.stage is not None:
            with database.connect() as connection:
                seed.entities(
                    connection,
                    prefix,
                    count,
                    line.stage,
                    runner=RUNNER,
                    runners=RUNNERS,
                    events=line.events,
                )
                seed.settle(connection)
        return prefix

    def _limit(self, database: Database, line: Line) -> None:
        print(f"pgbench: {line.name}", file=sys.stderr)
        prefix = self._seeded(database, line, RECORDED)
        order = Order(
            line.name,
            0,
            self.caller,
            1,
            60,
            prefix,
            RECORDED,
            requests=RECORDED,
            events=line.events,
        )
        self.limits[line.name] = limit(
            database,
            order,
            calls=line.calls,
            connections=PGBENCH_CONNECTIONS,
            repeatable=line.stage is None,
        )

    def _line(self, line: Line, database: Database, servers: list[Server]) -> None:
        for connections in self.options.connections:
            print(f"{line.name}: {connections} connections", file=sys.stderr)
            seconds = self.options.seconds
            count = line.rows(seconds)
            order = Order(
                line.name,
                servers[0].port,
                self.caller,
                connections,
                seconds,
                self._seeded(database, line, count),
                count,
                events=line.events,
            )
            outcome = measured(order, lambda: sum(each.cpu() for each in servers), database.cpu)
            self.found.append(summary(line, connections, outcome))

    def _latencies(self, database: Database, server: Server) -> Iterator[latency.Latency]:
        for load in (0, 8, 32):
            print(f"wake latency: {load} connections of heartbeats", file=sys.stderr)
            prefix = self._seeded(database, latency.LINE, 1)
            yield latency.latency(server, self.caller, prefix, load, self.options.seconds * 2)

    def table(self) -> str:
        """The results in Markdown."""
        if self.compared:
            return peer.table(self.compared)
        empty = {(e.line, e.connections): e for e in self.found if e.line.startswith("empty")}
        rows = [
            f"| {' | '.join(COLUMNS)} |",
            f"|---{'|--:' * (len(COLUMNS) - 1)}|",
        ]
        stacks = {line.name: STACK[line.stack].name for line in LINES}
        for each in self.found:
            alone = empty[stacks.get(each.line, each.line), each.connections]
            known = self.limits.get(each.line)
            rows.append(
                f"| {each.line} | {each.connections} | {each.per_second:.0f} | {each.p50:.1f} "
                f"| {each.p95:.1f} | {each.p99:.1f} | {each.server_cpu:.2f} "
                f"| {each.server_cpu / alone.server_cpu:.1f} "
                f"| {each.per_second / alone.per_second:.2f} | {each.database_cpu:.2f} "
                + (
                    f"| {each.per_second / known.per_second:.2f} "
                    f"| {known.statements:.1f} | {known.transactions:.1f} |"
                    if known
                    else "| | | |"
                )
            )
        if self.limits:
            rows += [
                "",
                f"| pgbench, {PGBENCH_CONNECTIONS} connections | calls/s | db CPU ms |",
                "|---|--:|--:|",
            ]
            for name, known in self.limits.items():
                rows.append(f"| {name} | {known.per_second:.0f} | {known.cpu * 1000:.2f} |")
        if self.latencies:
            rows += ["", *latency.table(self.latencies)]
        return "\n".join(rows)

    def store(self) -> Path:
        """Store the run as JSON."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
        facts: dict[str, Any] = {
            "conditions": {**conditions(), **vars(self.options)},
            "lines": [asdict(each) for each in self.found],
            "pgbench": {name: asdict(each) for name, each in self.limits.items()},
            "beside the peer": [asdict(each) for each in self.compared],
            "wake latency": [asdict(each) for each in self.latencies],
        }
        path.write_text(json.dumps(facts, indent=1) + "\n")
        return path


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    names = [each.name for each in LINES] + ["wake"]
    parser.add_argument("--seconds", type=float, default=3, help="for each line (3)")
    parser.add_argument("--workers", type=int, default=2, help="of the server (2)")
    parser.add_argument("--servers", type=int, default=1, help="behind one address (1)")
    parser.add_argument(
        "--connections",
        type=lambda text: [int(each) for each in text.split(",")],
        default=[1, 8, 32],
        help="of the client (1,8,32)",
    )
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=[], help=f"of: {', '.join(names)}"
    )
    parser.add_argument(
        "--no-limits", dest="limits", action="store_false", help="leave pgbench out"
    )
    parser.add_argument(
        "--peer", metavar="URL", help="a server of the same contract, on this machine, to compare"
    )
    parser.add_argument(
        "--postgres",
        metavar="URL",
        default="",
        help="use this PostgreSQL; a database is made there",
    )
    options = parser.parse_args()
    if options.peer:
        names = [each.name for each in PEER_LINES]
    unknown = set(options.only) - set(names)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    return options


def main() -> int:
    """Run; print the table and store the result, unless there were errors."""
    bench = Bench(_options())
    try:
        bench.run()
    except BenchError as error:
        print(f"bench: {error}\nbench: no result, because of this error", file=sys.stderr)
        return 1
    print(bench.table())
    print(f"\nkept as {bench.store()}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
