"""Beside another server of the contract: the same calls, by turns, and what they cost each.

Nothing is seeded: a peer's database is its own, so all is made by its API. ``--peer`` is its URL on
this machine; it must believe ``Electric-Principal``, as a server of runners does in development.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from bench.client import HOST, BenchError, Loop, Script, call, request
from bench.lines import DIAGNOSTICS, RUNNER, RUNNERS, Line, encoded
from bench.load import Outcome
from bench.machine import PRINCIPAL, tree_cpu

ROUNDS = 3
"""Turns of each server on each line; the median counts."""
HEADER = f"Electric-Principal: {PRINCIPAL}"


@dataclass(frozen=True)
class Side:
    """One of the servers: where it is, who calls, and the CPU seconds that it has used."""

    name: str
    port: int
    caller: str
    cpu: Callable[[], float]


@dataclass(frozen=True)
class Compared:
    """A line at both: calls a second, and milliseconds of CPU of each call."""

    line: str
    connections: int
    ours: float
    theirs: float
    our_cpu: float
    their_cpu: float


def prepare(side: Side) -> None:
    """Register the entity type and the runners."""
    header = f"{side.caller}\r\n".encode()
    loop = Loop()

    def script() -> Script:
        kind = encoded({"name": "bench", "description": "of a benchmark"})
        made = request("POST", "/_electric/entity-types", header, kind)
        yield from call(loop, "type", made, 200, 201, 409)
        for number in range(RUNNERS):
            runner = encoded({"id": f"{RUNNER}{number}", "label": "of a benchmark"})
            made = request("POST", "/_electric/runners", header, runner)
            yield from call(loop, "register", made, 200, 201)
            beat = encoded({"lease_ms": 600_000, "diagnostics": DIAGNOSTICS})
            made = request("POST", f"/_electric/runners/{RUNNER}{number}/heartbeat", header, beat)
            yield from call(loop, "heartbeat", made)

    loop.start(script(), side.port)
    loop.run()
    loop.close()


def compared(line: Line, connections: int, turns: list[tuple[Outcome, Outcome]]) -> Compared:
    """What the turns of both come to."""

    def of(outcomes: list[Outcome]) -> tuple[float, float]:
        calls = [sum(map(len, each.took.values())) / line.calls for each in outcomes]
        if not all(calls):
            raise BenchError(f"{line.name}: nothing was answered")
        rates = [n / each.elapsed for n, each in zip(calls, outcomes, strict=True)]
        cpus = [each.used[0] / n * 1000 for n, each in zip(calls, outcomes, strict=True)]
        return median(rates), median(cpus)

    ours, theirs = ([turn[side] for turn in turns] for side in (0, 1))
    (our_rate, our_cpu), (their_rate, their_cpu) = of(ours), of(theirs)
    return Compared(line.name, connections, our_rate, their_rate, our_cpu, their_cpu)


def table(found: list[Compared]) -> str:
    """In Markdown."""
    rows = [
        "| call | conn. | ours/s | peer's/s | ratio | our CPU ms | peer's CPU ms | ratio |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    rows += [
        f"| {each.line} | {each.connections} | {each.ours:.0f} | {each.theirs:.0f} "
        f"| {each.ours / each.theirs:.2f} | {each.our_cpu:.2f} | {each.their_cpu:.2f} "
        f"| {each.our_cpu / each.their_cpu:.2f} |"
        for each in found
    ]
    return "\n".join(rows)


def at(url: str) -> Side:
    """The peer at a URL of this machine. Raises BenchError for another, or where nobody listens."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in (HOST, "localhost") or not parts.port:
        raise BenchError(f"--peer is {url!r}; it must look like http://127.0.0.1:4437")
    pid = _listener(parts.port)
    return Side("peer", parts.port, HEADER, lambda: tree_cpu(pid))


def _listener(port: int) -> int:
    """The first of the processes that listen there: the one that started the others."""
    listening = "0A"
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in Path(table).read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == listening and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    found = [
        int(process.name)
        for process in Path("/proc").iterdir()
        if process.name.isdigit() and _holds(process, inodes)
    ]
    if not found:
        raise BenchError(f"nobody listens on port {port} of this machine")
    return min(found)


def _holds(process: Path, inodes: set[str]) -> bool:
    try:
        return any(str(each.readlink()) in inodes for each in (process / "fd").iterdir())
    except OSError:
        return False
