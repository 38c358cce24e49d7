"""Idle runners of the SDK in one process: the memory and the CPU that they take.

    python -m bench.idle [--runners 1000] [--seconds 120]

Each has its long-poll open and a heartbeat every 30 s, as by default, and nothing to do.
"""

import argparse
import asyncio
import json
import os
import sys
import time

from bench.__main__ import RESULTS
from bench.client import HOST, BenchError
from bench.machine import Server, caller, conditions, migrated_database, pss
from pullwake import PullWakeRunner, State, Wake

TOGETHER = 10
"""How many runners connect at a time."""
REST_S = 45.0
"""Seconds after which each has sent a heartbeat and had an answer to a long-poll."""


async def never(wake: Wake) -> None:
    """Handle a wake, of which there are none."""
    raise BenchError(f"an idle runner was woken: {wake!r}")


async def measure(url: str, bearer: str, count: int, seconds: float) -> dict[str, float]:
    """The memory and the CPU that this many runners used."""
    before = pss(os.getpid())
    headers = {"Authorization": bearer}
    runners = [
        PullWakeRunner(url, f"idle-{number}", never, headers=headers) for number in range(count)
    ]
    try:
        for first in range(0, count, TOGETHER):
            some = runners[first : first + TOGETHER]
            await asyncio.gather(*(each.start() for each in some))
            await asyncio.gather(*(each.connected() for each in some))
        await asyncio.sleep(REST_S)
        began = time.process_time()
        await asyncio.sleep(seconds)
        used = time.process_time() - began
        held = pss(os.getpid())
        streaming = sum(each.state is State.STREAMING for each in runners)
        if streaming != count:
            raise BenchError(f"{count - streaming} runners are not connected")
    finally:
        await asyncio.gather(*(each.stop() for each in runners))
    return {
        "memory_mb": round(held / 1e6, 1),
        "of_it_before_mb": round(before / 1e6, 1),
        "cpu_of_a_core": round(used / seconds, 3),
    }


def main() -> int:
    """Measure; print the result and store it."""
    parser = argparse.ArgumentParser(prog="bench.idle", description=__doc__.splitlines()[0])
    parser.add_argument("--runners", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    with migrated_database() as database, Server(database) as server:
        url = f"http://{HOST}:{server.port}"
        bearer = caller(database).partition(": ")[2]
        found = asyncio.run(measure(url, bearer, options.runners, options.seconds))
        server.refuse_complaints()
    facts = {"conditions": {**conditions(), **vars(options)}, "idle": found}
    print(json.dumps(found, indent=1))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"idle-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"kept as {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
