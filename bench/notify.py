"""What it costs to tell other processes of what was written: servers that do, and that do not.

    python -m bench.notify [--connections 64] [--servers 4] [--seconds 10]

Entities are made and sent a message, through several servers of one worker on one database, by
turns with as many for which PULLWAKE_NOTIFY is off. PostgreSQL runs with fsync on.
"""

import argparse
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict

from bench.__main__ import RESULTS
from bench.client import BenchError
from bench.lines import PEER_LINES
from bench.load import Order, Outcome, measured
from bench.machine import Database, Server, caller, conditions, migrated_database, serving
from bench.peer import Compared, Side, compared, prepare
from bench.seed import settle

TURNS = 6
"""Of each side; the median counts."""
# The wakes of one turn, which nobody claims, are not to be emitted again under a later one.
_CALM = {"PULLWAKE_WAKE_REEMIT_MS": "86400000"}
PAIRS = next(line for line in PEER_LINES if line.name == "PUT and send")


def measure(database: Database, options: argparse.Namespace) -> Compared:
    """Both sides' rates and CPU; those that announce are ``ours``."""
    who = caller(database)
    with ExitStack() as stack:
        servers = {
            notify: list(
                serving(stack, database, 1, options.servers, PULLWAKE_NOTIFY=notify, **_CALM)
            )
            for notify in ("yes", "no")
        }
        sides = [_side(name, who, some) for name, some in servers.items()]
        prepare(sides[0])

        def turn(side: Side, number: int) -> Outcome:
            prefix = f"{side.name}-{number}-"
            order = Order(PAIRS.name, side.port, who, options.connections, options.seconds, prefix)
            return measured(order, side.cpu)

        turns = []
        for number in range(TURNS + 1):
            # Who comes second meets what the first has left to the disk.
            order = sides if number % 2 == 0 else sides[::-1]
            outcomes = {side.name: turn(side, number) for side in order}
            if number == 0:
                # Each has planned its statements for tables that had just begun to grow.
                with database.connect() as connection:
                    settle(connection)
            else:
                turns.append((outcomes["yes"], outcomes["no"]))
        for each in (*servers["yes"], *servers["no"]):
            each.refuse_complaints()
    return compared(PAIRS, options.connections, turns)


def _side(name: str, caller: str, servers: list[Server]) -> Side:
    return Side(name, servers[0].port, caller, lambda: sum(each.cpu() for each in servers))


def main() -> int:
    """Measure; print the result and store it."""
    parser = argparse.ArgumentParser(prog="bench.notify", description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--servers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    try:
        with migrated_database() as database:
            found = measure(database, options)
    except BenchError as error:
        print(f"bench.notify: {error}", file=sys.stderr)
        return 1
    print(f"pairs of PUT and send a second: {found.ours:.0f} announcing, {found.theirs:.0f} not")
    print(f"ratio {found.ours / found.theirs:.3f}, of CPU {found.our_cpu / found.their_cpu:.3f}")
    facts = {"conditions": {**conditions(), **vars(options)}, "notify": asdict(found)}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"notify-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
