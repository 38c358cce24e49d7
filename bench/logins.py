"""Operators who log in, and how long a runner's heartbeats take meanwhile.

    python -m bench.logins [--loops 8] [--seconds 20] [--guess]

Each loop, a process of its own, gets the login page and sends its form, again and again; with
``--guess`` the password is wrong. By turns with a while in which nobody logs in, in one run.
"""

import argparse
import http.client
import json
import os
import re
import statistics
import sys
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection

from bench import seed
from bench.__main__ import RESULTS
from bench.client import HOST, BenchError
from bench.lines import RUNNER
from bench.load import Order, child, measured, received
from bench.machine import Database, Server, caller, conditions, manage, migrated_database

TURNS = 3
NAME, PASSWORD = "operator", "correct horse battery staple"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def log_in(pipe: Connection, port: int, password: str, expected: tuple[int, ...]) -> None:
    """Log in for ever; send how long each took, in seconds."""
    connection = http.client.HTTPConnection(HOST, port)
    pipe.send(None)
    while True:
        began = time.monotonic()
        connection.request("GET", "/admin/login/")
        page = connection.getresponse()
        found = re.search(rb'csrfmiddlewaretoken" value="(\w+)"', page.read())
        cookie = (page.getheader("Set-Cookie") or "").partition(";")[0]
        if not found:
            pipe.send(BenchError(f"no form: {page.status}"))
            return
        token = found[1].decode()
        form = f"username={NAME}&password={password}&csrfmiddlewaretoken={token}".replace(" ", "+")
        connection.request("POST", "/admin/login/", form, {**FORM, "Cookie": cookie})
        answer = connection.getresponse()
        answer.read()
        if answer.status not in expected:
            pipe.send(BenchError(f"a login was answered {answer.status}"))
            return
        pipe.send(time.monotonic() - began)


def heartbeats(order: Order, loops: int, guess: bool) -> dict[str, float]:
    """Milliseconds that heartbeats took while this many loops log in, and those loops' logins."""
    with ExitStack() as stack:
        login = ("wrong", (200, 429)) if guess else (PASSWORD, (302,))
        pipes = [stack.enter_context(child(log_in, order.port, *login)) for _ in range(loops)]
        for pipe in pipes:
            received(pipe)
        outcome = measured(order)
        logins: list[float] = []
        for pipe in pipes:
            while pipe.poll():
                logins.append(received(pipe))
    took = [each * 1000 for each in outcome.took["heartbeat"]]
    cuts = statistics.quantiles(took, n=100)
    found = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "worst": max(took)}
    if logins:
        found |= {"logins_per_s": len(logins) / outcome.elapsed}
        found |= {"login_s": statistics.median(logins)}
    return {name: round(value, 2) for name, value in found.items()}


def operator(database: Database) -> None:
    """Make the operator who logs in."""
    os.environ["DJANGO_SUPERUSER_PASSWORD"] = PASSWORD
    manage(database, "createsuperuser", "--noinput", f"--username={NAME}", "--email=")


def main() -> int:
    """Measure; print the result and store it."""
    parser = argparse.ArgumentParser(prog="bench.logins", description=__doc__.splitlines()[0])
    parser.add_argument("--loops", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--guess", action="store_true", help="with a wrong password")
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"nobody logs in": [], "loops log in": []}
    with migrated_database() as database, Server(database) as server:
        operator(database)
        with database.connect() as connection:
            seed.runners(connection, RUNNER, 1)
        order = Order("heartbeat", server.port, caller(database), 1, options.seconds, runners=1)
        for _ in range(TURNS):
            found["nobody logs in"].append(heartbeats(order, 0, options.guess))
            found["loops log in"].append(heartbeats(order, options.loops, options.guess))
    facts = {"conditions": {**conditions(), **vars(options)}, "heartbeat, ms": found}
    print(json.dumps(found, indent=1))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"logins-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"kept as {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
