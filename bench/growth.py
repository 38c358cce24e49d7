"""Growth: what calls cost in an empty database and in a full one.

    python -m bench.growth [--scale 0.1] [--seconds 3]

At scale 1 a full one holds 10 000 runners, 1 000 000 claims of 100 000 entities, 10 000 000
events, a runner with 10 000 wakes that wait, and an entity with 1 000 000 events. Looks at the plan
of every statement, and exits with 1 if one of them reads a whole table, or a heartbeat's update is
not HOT.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from bench import seed
from bench.__main__ import RESULTS
from bench.client import BenchError
from bench.lines import LINES, RUNNERS, Line
from bench.load import Order, measured
from bench.machine import Database, Server, caller, conditions, migrated_database
from bench.replay import recorded

CONNECTIONS = 4
SAMPLES = 3
"""Of each line; the cheapest counts, for what else the machine does only ever adds."""
GROWING = (
    "claims_consumerclaim",
    "dispatch_dispatchstate",
    "dispatch_entity",
    "dispatch_streamevent",
    "dispatch_wake",
    "runners_runner",
    "runners_runnerliveness",
)


@dataclass(frozen=True)
class Case:
    """A line, on rows like any other's, on the runner with many wakes, or the entity with many
    events.
    """

    name: str
    line: str
    where: str = ""

    @property
    def title(self) -> str:
        """The case's name in the table."""
        return f"{self.name}, {self.where}" if self.where else self.name


WAKES, EVENTS = "many wakes", "many events"
CASES = [
    *(Case(each.name, each.name) for each in LINES if each.name != "list"),
    Case("heartbeat", "heartbeat", WAKES),
    Case("health", "health", WAKES),
    Case("claim", "claim", WAKES),
    Case("claim oldest", "claim oldest", WAKES),
    Case("read no wakes", "read no wakes", WAKES),
    Case("send awake", "send awake", EVENTS),
    Case("read 10 events", "read 10 events", EVENTS),
]


class Growth:
    """One database, measured as it grows."""

    def __init__(self, database: Database, seconds: float) -> None:
        self.database = database
        self.seconds = seconds
        self.caller = caller(database)
        self.passes = 0

    def measure(self, waking: int, streaming: int) -> dict[str, tuple[float, float]]:
        """Milliseconds of CPU of each case's call, of the server and of the database.

        The runner with many wakes gets ``waking`` of them, the entity with many events ``events``.
        """
        found: dict[str, tuple[float, float]] = {}
        with Server(self.database, 1) as server:
            for case in CASES:
                print(case.title, file=sys.stderr)
                samples = [self._sample(case, server, waking, streaming) for _ in range(SAMPLES)]
                found[case.title] = min(samples, key=sum)
            server.refuse_complaints()
        return found

    def _sample(
        self, case: Case, server: Server, waking: int, streaming: int
    ) -> tuple[float, float]:
        line, order = self.prepared(case, waking, streaming)
        order = Order(**{**order.__dict__, "port": server.port, "connections": CONNECTIONS})
        outcome = measured(order, server.cpu, self.database.cpu)
        calls = sum(map(len, outcome.took.values())) / line.calls
        if not calls:
            raise BenchError(f"{case.title}: nothing was answered")
        used, database = outcome.used
        return used / calls * 1000, database / calls * 1000

    def prepared(self, case: Case, waking: int, streaming: int) -> tuple[Line, Order]:
        """Seed the case's rows: the order to carry out on them."""
        line = next(each for each in LINES if each.name == case.line)
        self.passes += 1
        # Runners of its own, for what other samples left would be theirs, too.
        prefix, runners = f"g{self.passes}-", RUNNERS
        count, events = line.rows(self.seconds), line.events
        if case.where == WAKES:
            runners, count = 1, waking
        elif case.where == EVENTS:
            count, events = 1, streaming
        with self.database.connect() as connection:
            seed.runners(connection, prefix, runners)
            stage = line.stage or ("pending" if case.where == WAKES else None)
            if stage is not None:
                seed.entities(
                    connection, prefix, count, stage, runner=prefix, runners=runners, events=events
                )
                connection.execute("ANALYZE")
        return line, Order(
            line=line.name,
            port=0,
            caller=self.caller,
            connections=1,
            seconds=self.seconds,
            prefix=prefix,
            count=count,
            runner=prefix,
            runners=runners,
            events=events,
        )

    def grow(self, scale: float) -> None:
        """Fill the database."""
        runners = max(1, int(10_000 * scale))
        with self.database.connect() as connection:
            seed.runners(connection, "old-", runners)
            # In parts: a transaction of so many rows would need the disk twice.
            parts = 10
            for part in range(parts):
                print(f"growing: {part + 1} of {parts}", file=sys.stderr)
                seed.entities(
                    connection,
                    f"old{part}-",
                    int(100_000 * scale / parts),
                    "idle",
                    runner="old-",
                    runners=runners,
                    events=100,
                    past=10,
                )
            seed.settle(connection)

    def plans(self, waking: int, streaming: int) -> Iterator[tuple[str, str, list[str]]]:
        """Each case's statements, and PostgreSQL's plans for them."""
        for case in CASES:
            _, order = self.prepared(case, waking, streaming)
            order = Order(**{**order.__dict__, "requests": 3})
            said = set()
            for statements in recorded(self.database, order):
                for statement in statements:
                    shape = re.sub(r"'[^']*'|\b\d+\b", "?", statement)
                    if shape not in said and re.match("SELECT|UPDATE|INSERT|DELETE", statement):
                        said.add(shape)
                        yield case.title, statement, self._plan(statement)

    def _plan(self, statement: str) -> list[str]:
        with self.database.connect() as connection:
            rows = connection.execute(f"EXPLAIN {statement}")
            return [str(row[0]) for row in rows]

    def hot_share(self) -> float:
        """The share of the heartbeats' updates that were HOT."""
        with self.database.connect() as connection:
            row = _one(
                connection,
                "SELECT n_tup_hot_upd::float / n_tup_upd FROM pg_stat_user_tables"
                " WHERE relname = 'runners_runnerliveness'",
            )
        return float(row[0])

    def sizes(self) -> dict[str, int]:
        """About how many rows each growing table has."""
        with self.database.connect() as connection:
            return {
                name: int(
                    _one(
                        connection,
                        f"SELECT reltuples FROM pg_class WHERE relname = '{name}'",  # noqa: S608
                    )[0]
                )
                for name in GROWING
            }


def _one(connection: "psycopg.Connection[Any]", sql: str) -> Any:
    return connection.execute(sql).fetchone()


def main() -> int:
    """Measure, grow, measure again, and look at the plans."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth")
    parser.add_argument("--scale", type=float, default=0.1, help="of a million claims (0.1)")
    parser.add_argument("--seconds", type=float, default=3, help="for each sample (3)")
    parser.add_argument("--plans", action="store_true", help="print every plan")
    options = parser.parse_args()
    waking, streaming = int(10_000 * options.scale), int(1_000_000 * options.scale)
    problems = []
    try:
        with migrated_database() as database:
            growth = Growth(database, options.seconds)
            before = growth.measure(waking=500, streaming=100)
            growth.grow(options.scale)
            after = growth.measure(waking=max(waking, 500), streaming=max(streaming, 100))
            hot = growth.hot_share()
            sizes = growth.sizes()
            print(f"\n{sizes}\n")
            for title, statement, plan in growth.plans(max(waking, 500), max(streaming, 100)):
                whole = [
                    table
                    for table in GROWING
                    if re.search(rf"Seq Scan on {table}\b", "".join(plan))
                ]
                if whole:
                    problems.append(f"{title}: reads all of {', '.join(whole)}: {statement}")
                if options.plans or whole:
                    print("\n".join([f"{title}: {statement}", *plan, ""]))
    except BenchError as error:
        print(f"bench.growth: {error}", file=sys.stderr)
        return 1
    if hot < 0.99:
        problems.append(f"only {hot:.1%} of the heartbeats' updates are HOT")
    print("| call | server + db CPU ms, empty | full | ratio | db alone, ratio |")
    print("|---|--:|--:|--:|--:|")
    for title, (server, alone) in before.items():
        server_after, alone_after = after[title]
        print(
            f"| {title} | {server:.2f} + {alone:.2f} | {server_after:.2f} + {alone_after:.2f} "
            f"| {(server_after + alone_after) / (server + alone):.2f} "
            f"| {alone_after / max(alone, 0.001):.2f} |"
        )
    print(f"\nHOT updates of runner liveness: {hot:.1%}")
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    facts = {
        "conditions": {**conditions(), **vars(options)},
        "rows": sizes,
        "before": before,
        "after": after,
        "hot": hot,
        "problems": problems,
    }
    path = RESULTS / f"growth-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
