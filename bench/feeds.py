"""Readers of a feed by server-sent events, beside a fleet at work: their cost, how late they are.

    python -m bench.feeds [--readers 1000] [--runners 200] [--minutes 1] [--wakes 20]

The fleet is that of `bench.fleet`, measured without readers and then with them. Each of them sees
all that changes, and one entity is tagged anew every two seconds: late is how long after the answer
to that each reader has it. Exits with 1 unless every reader was told of every tag and the fleet
lost nothing.
"""

import argparse
import json
import re
import selectors
import socket
import sys
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from bench import seed
from bench.__main__ import RESULTS, percentile
from bench.client import HOST, BenchError, request
from bench.fleet import RAMP_S, Plan, Report, fleet
from bench.load import child, received
from bench.machine import Server, caller, conditions, migrated_database

PROBE = "/bench/probe-0"
EVERY_S = 2.0
LATE_S = 10.0
"""Seconds after which a reader that has not been told never is."""

_TOLD = re.compile(rb'"probe":"(\d+)"')
_NEXT = re.compile(rb'"streamNextOffset":"([0-9_]+)"')


@dataclass(frozen=True)
class Readers:
    """What they saw; times in milliseconds, from the answer to the change."""

    changes: int
    late_p50: float
    late_p99: float
    late_worst: float
    slowest_p50: float
    """Until the last reader had it, in the median."""
    megabytes: float
    client_cpu: float


class Reader:
    """A connection that follows the feed, and connects again where it ended."""

    def __init__(self, port: int, headers: bytes) -> None:
        self.port, self.headers = port, headers
        self.offset = b"now"
        self.seen = -1
        self.connect()

    def connect(self) -> None:
        self.socket = socket.create_connection((HOST, self.port))
        path = f"/_electric/feeds/entities?offset={self.offset.decode()}&live=sse"
        self.socket.sendall(request("GET", path, self.headers))
        self.rest = b""
        self.begins = True

    def receive(self) -> tuple[int, list[int]]:
        """How many bytes arrived, and which tags were told; none at its end."""
        data = self.socket.recv(1 << 20)
        if self.begins and data and not data.startswith(b"HTTP/1.1 200"):
            raise BenchError(f"a reader was answered {data[:200]!r}")
        self.begins = False
        text = self.rest + data
        # A feed has the latest of a row: whoever is late is told of several changes at once.
        newest = max(map(int, _TOLD.findall(text)), default=self.seen)
        told = list(range(self.seen + 1, newest + 1))
        self.seen = max(newest, self.seen)
        if offsets := _NEXT.findall(text):
            self.offset = offsets[-1]
        self.rest = text[-200:]
        return len(data), told


def read(pipe: Connection, port: int, bearer: str, count: int, seconds: float) -> None:
    """Follow with so many readers, and change something for them to be told of."""
    try:
        pipe.send(_read(pipe, port, f"{bearer}\r\n".encode(), count, seconds))
    except BenchError as error:
        pipe.send(error)


def _read(pipe: Connection, port: int, headers: bytes, count: int, seconds: float) -> Readers:
    selector = selectors.DefaultSelector()
    writer = socket.create_connection((HOST, port))
    writer.settimeout(30)
    for _ in range(count):
        reader = Reader(port, headers)
        selector.register(reader.socket, selectors.EVENT_READ, reader)
    cpu, began = time.process_time(), time.monotonic()
    changed_at: list[float] = []
    late: dict[int, list[float]] = {}
    size = 0
    next_at, ends_at = began + EVERY_S, began + seconds
    while time.monotonic() < ends_at + LATE_S:
        now = time.monotonic()
        if next_at <= now < ends_at:
            late[len(changed_at)] = []
            changed_at.append(_tag(writer, headers, len(changed_at)))
            next_at += EVERY_S
        for key, _ in selector.select(max(min(next_at, ends_at + LATE_S) - now, 0.01)):
            arrived = time.monotonic()
            length, told = key.data.receive()
            size += length
            for number in told:
                late[number].append(max(arrived - changed_at[number], 0.0))
            if not length:
                selector.unregister(key.data.socket)
                key.data.socket.close()
                key.data.connect()
                selector.register(key.data.socket, selectors.EVENT_READ, key.data)
        if now > ends_at and all(len(each) == count for each in late.values()):
            break
    missed = [number for number, each in late.items() if len(each) < count]
    if missed:
        raise BenchError(f"not all readers were told of {len(missed)} of {len(late)} changes")
    every = [each for found in late.values() for each in found]
    return Readers(
        len(late),
        percentile(every, 0.5),
        percentile(every, 0.99),
        percentile(every, 1),
        percentile([max(each) for each in late.values()], 0.5),
        size / 2**20,
        (time.process_time() - cpu) / (time.monotonic() - began),
    )


def _tag(writer: socket.socket, headers: bytes, number: int) -> float:
    """Set the tag: when that was answered."""
    body = json.dumps({"value": str(number)}).encode()
    path = f"/_electric/entities{PROBE}/tags/probe"
    writer.sendall(request("POST", path, headers, body))
    answer = writer.recv(1 << 16)
    if not answer.startswith(b"HTTP/1.1 20"):
        raise BenchError(f"the tag was answered {answer[:300]!r}")
    return time.monotonic()


def main() -> int:
    """Measure without and with readers; print both and store them."""
    parser = argparse.ArgumentParser(prog="bench.feeds")
    parser.add_argument("--readers", type=int, default=1_000)
    parser.add_argument("--runners", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--wakes", type=float, default=20, help="a second")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    try:
        with migrated_database() as database:
            bearer = caller(database)
            with database.connect() as connection:
                many = {"runner": "fleet-", "runners": options.runners}
                seed.runners(connection, "fleet-", options.runners)
                seed.entities(connection, "fleet-", options.runners, "idle", **many)
                seed.entities(connection, "probe-", 1, "idle", **many)
                seed.settle(connection)
            for readers in (0, options.readers):
                with Server(database, options.workers) as server:
                    plan = Plan(
                        server.port, bearer, options.runners, options.minutes, options.wakes
                    )
                    seconds = RAMP_S + options.minutes * 60
                    if readers:
                        with child(read, server.port, bearer, readers, seconds) as pipe:
                            report: Report = fleet(plan, [server], database)
                            found["readers"] = asdict(received(pipe))
                    else:
                        report = fleet(plan, [server], database)
                    server.refuse_complaints()
                found[f"fleet beside {readers}"] = asdict(report)
    except BenchError as error:
        print(f"bench.feeds: {error}", file=sys.stderr)
        return 1
    facts = {"conditions": {**conditions(), **vars(options)}, **found}
    print(json.dumps(facts, indent=1))
    path = RESULTS / f"feeds-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
