"""Long lives: what calls and pages cost an entity whose stream is long, beside one whose is short.

    python -m bench.lives [--events 1000000] [--rounds 20] [--engines postgresql,sqlite]

Two entities in one database, each with a claim for every ten of its events, which are what an agent
leaves: messages, runs, text. Both are measured by turns in one run, each call alone on one
connection: its time in the median, and the CPU of server and database for each kind of calls. Exits
with 1 where the long life costs more than 1.2 times the short one, by both.
"""

import argparse
import http.client
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from bench.__main__ import RESULTS
from bench.client import HOST, BenchError
from bench.machine import Database, Server, caller, conditions, manage, migrated_database

SHORT = 1_000
MOST = 1.2
"""Times that a long life may cost as much as a short one."""
CALLS = 10
"""Of each case in a turn."""
EVENTS_A_CLAIM = 10

_SESSION = """
from django.contrib.auth.models import User
from django.test import Client
client = Client()
client.force_login(User.objects.create_superuser("bench"))
print("; ".join(f"{name}={each.value}" for name, each in client.cookies.items()))
"""


@dataclass
class Life:
    """An entity whose stream has this many events; its runner, parent and server."""

    name: str
    events: int
    server: http.client.HTTPConnection
    api: dict[str, str]
    pages: dict[str, str]
    key: int = 0
    case: str = ""
    """What is measured now."""
    took: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds of each call, by its case and what it is."""

    @property
    def url(self) -> str:
        """The entity's URL."""
        return f"/life/{self.name}"

    def call(
        self, what: str, method: str, path: str, body: Any = None, token: str | None = None
    ) -> Any:
        """Make a call and record its time as ``what``: the answer."""
        headers = dict(self.api) if token is None else {"Electric-Claim-Token": token}
        headers["Content-Type"] = "application/json"
        content = None if body is None else json.dumps(body)
        status, said, _ = self._ask(what, method, path, content, headers)
        if status >= 300:
            raise BenchError(f"{what} was answered {status}: {said[:300]!r}")
        return json.loads(said) if said else None

    def page(self, what: str, path: str) -> None:
        """Get a page of the admin, which must exist."""
        status, said, _ = self._ask(what, "GET", path, None, self.pages)
        if status != 200:
            raise BenchError(f"{what} was answered {status}: {said[:300]!r}")

    def _ask(
        self, what: str, method: str, path: str, content: str | None, headers: dict[str, str]
    ) -> tuple[int, bytes, Any]:
        began = time.perf_counter()
        self.server.request(method, path, content, headers)
        answer = self.server.getresponse()
        said = answer.read()
        self.took[self.case, what].append(time.perf_counter() - began)
        return answer.status, said, answer.headers


def event(kind: str, key: str, value: dict[str, Any], operation: str = "insert") -> Any:
    """An event as a handler writes it."""
    return {"type": kind, "key": key, "value": value, "headers": {"operation": operation}}


# --- What is measured --------------------------------------------------------------------------


def _reads(life: Life) -> None:
    tail = life.call("tail", "GET", f"{life.url}/main?offset=now") or []
    assert tail == []
    near = f"0000000000000000_{life.events - 10:016d}"
    life.call("read the end", "GET", f"{life.url}/main?offset={near}")


def _first_page(life: Life) -> None:
    life.call("read the first page", "GET", f"{life.url}/main?offset=-1")


def _lives_on(life: Life) -> None:
    """The events of its life: messages that it is sent, and the runs that answer them."""
    entity = f"/_electric/entities{life.url}"
    life.call("send", "POST", f"{entity}/send", {"payload": "What is new?"})
    queued = {"payload": "later", "mode": "queued", "key": f"q-{time.time_ns()}"}
    life.call("queue a message", "POST", f"{entity}/send", queued)
    life.call("edit it", "PATCH", f"{entity}/inbox/{queued['key']}", {"payload": "sooner"})
    life.call("delete it", "DELETE", f"{entity}/inbox/{queued['key']}")
    claim = life.call("claim", "POST", f"/_electric/runners/{life.name}/claim", {})
    back = f"/_electric/wake-callbacks/{claim['consumerId']}"
    token, epoch = claim["claimToken"], claim["epoch"]
    minted = {"epoch": epoch, "wakeId": claim["wakeId"]}
    write = life.call("mint", "POST", back, minted, token)["writeToken"]
    run = f"run-{time.time_ns()}"
    begun = [event("run", run, {"status": "started"})]
    life.call("append", "POST", f"{life.url}/main", begun, write)
    text = event("text_delta", f"{run}-1", {"run_id": run, "delta": "Nothing much."})
    life.call("append", "POST", f"{life.url}/main", [text], write)
    life.call("heartbeat of the claim", "POST", back, {"epoch": epoch}, token)
    ended = [event("run", run, {"status": "completed"}, "update")]
    life.call("finish a run that a parent waits for", "POST", f"{life.url}/main", ended, write)
    life.call("done", "POST", back, {"epoch": epoch, "done": True}, token)
    life.call("signal", "POST", f"{entity}/signal", {"signal": "SIGSTOP"})
    life.call("signal", "POST", f"{entity}/signal", {"signal": "SIGCONT"})
    claim = life.call("claim", "POST", f"/_electric/runners/{life.name}/claim", {})
    done = {"epoch": claim["epoch"], "done": True}
    back = f"/_electric/wake-callbacks/{claim['consumerId']}"
    life.call("done", "POST", back, done, claim["claimToken"])
    life.call("get", "GET", entity)


def _pages(life: Life) -> None:
    page = f"/admin/dispatch/entity/{life.key}"
    life.page("entity page", f"{page}/change/")
    life.page("conversation, in the middle", f"{page}/conversation/?before={life.events // 2}")
    life.page("conversation, at the end", f"{page}/conversation/?after={life.events - 10}")
    life.page("JSON of events", f"{page}/events/?first={life.events - 9}&last={life.events}")
    life.page("list of entities", f"/admin/dispatch/entity/?q={life.url}")
    life.page("list of its claims", f"/admin/claims/consumerclaim/?entity={life.url}")
    life.page("list of its wakes", f"/admin/dispatch/wake/?entity={life.url}")


CASES: dict[str, Callable[[Life], None]] = {
    "reads": _reads,
    "first page": _first_page,
    "a wake's way": _lives_on,
    "pages": _pages,
}


# --- Two lives ---------------------------------------------------------------------------------


def _told(number: int, run: int) -> tuple[Any, str | None]:
    """The event at this offset of a stream, and its key if it is a message."""
    step = number % EVENTS_A_CLAIM
    if step == 2:
        key = f"seeded-{number}"
        sender = {"from": "/principal/user%3Abench", "mode": "immediate", "status": "processed"}
        said = event("inbox", key, {**sender, "payload": "What is new?"})
        said["headers"]["txid"] = str(number)
        return said, key
    if step in (3, 1):
        how = "started" if step == 3 else "completed"
        said = event("run", f"seeded-{run}", {"status": how}, "insert" if step == 3 else "update")
        return said, None
    delta = {"run_id": f"seeded-{run}", "delta": "a few words of what an agent says "}
    return event("text_delta", f"seeded-{number}", delta), None


def _events(life: Life) -> Iterator[tuple[Any, ...]]:
    for number in range(2, life.events + 1):  # the first says that it was made
        said, key = _told(number, number // EVENTS_A_CLAIM)
        said["headers"]["offset"] = f"0000000000000000_{number:016d}"
        text = json.dumps(said, separators=(",", ":"))
        yield life.key, number, key, text, key is not None


def _wakes(life: Life) -> Iterator[tuple[Any, ...]]:
    for generation in range(1, life.events // EVENTS_A_CLAIM + 1):
        wake = f"w_{life.key:08x}{generation:016x}"
        yield wake, life.key, generation, life.name, "claimed", generation, 1


def _claims(life: Life) -> Iterator[tuple[Any, ...]]:
    when = "2026-01-01 00:00:00+00:00"
    for epoch in range(1, life.events // EVENTS_A_CLAIM + 1):
        wake = f"w_{life.key:08x}{epoch:016x}"
        place = epoch * EVENTS_A_CLAIM
        yield (
            *(wake, epoch, life.key, life.url, life.name, life.name, "released", when),
            *(30_000_000, when, when, place, "[]", "", "0" * 64, ""),
        )


_ROWS: dict[str, tuple[tuple[str, ...], Callable[[Life], Iterator[tuple[Any, ...]]]]] = {
    "dispatch_streamevent": (("entity_id", "offset", "message_key", "data", "work"), _events),
    "dispatch_wake": (
        ("wake_id", "entity_id", "generation", "runner_id", "status", "offset", "emissions"),
        _wakes,
    ),
    "claims_consumerclaim": (
        (
            *("consumer_id", "epoch", "entity_id", "entity_url", "runner_id", "runner_name"),
            *("status", "claimed_at", "lease", "lease_expires_at", "ended_at", "delivered_offset"),
            *("acked_streams", "error", "claim_token_hash", "write_token_hash"),
        ),
        _claims,
    ),
}
_LEASE = 8
"""Where a claim's row has its lease: SQLite keeps it in microseconds."""

_STATE = """
    UPDATE dispatch_dispatchstate
    SET tail = {0}, cursor = {0}, last_work_offset = {1}, generation = {2} WHERE entity_id = {3}
"""


def live(database: Database, life: Life) -> None:
    """Give an entity that the API made its past life, by rows written straight into the tables."""
    last_work = life.events - (life.events - 2) % EVENTS_A_CLAIM
    generation = life.events // EVENTS_A_CLAIM
    state = _STATE.format(life.events, last_work, generation, life.key)
    tail = f"UPDATE runners_wakestream SET tail = {generation} WHERE runner_id = '{life.name}'"  # noqa: S608
    if database.url.startswith("sqlite"):
        with closing(_sqlite(database)) as file:
            for table, (columns, rows) in _ROWS.items():
                named = ", ".join(f'"{each}"' for each in columns)
                marks = ", ".join("?" * len(columns))
                sql = f"INSERT INTO {table} ({named}) VALUES ({marks})"  # noqa: S608
                file.executemany(sql, rows(life))
            file.execute(state)
            file.execute(tail)
            file.commit()
        return
    with database.connect() as connection, connection.transaction():
        for table, (columns, rows) in _ROWS.items():
            named = ", ".join(f'"{each}"' for each in columns)
            with connection.cursor().copy(f"COPY {table} ({named}) FROM STDIN") as copy:
                for row in rows(life):
                    lease = ("30 seconds",) if table == "claims_consumerclaim" else row[_LEASE:9]
                    copy.write_row((*row[:_LEASE], *lease, *row[_LEASE + 1 :]))
        connection.execute(state)
        connection.execute(tail)


def _sqlite(database: Database) -> sqlite3.Connection:
    return sqlite3.connect(database.url.removeprefix("sqlite:///"))


@contextmanager
def scratch(engine: str) -> Iterator[Database]:
    """A migrated database of this engine, gone afterwards."""
    if engine == "postgresql":
        with migrated_database() as database:
            yield database
        return
    with tempfile.TemporaryDirectory(prefix="pullwake-lives-") as folder:
        database = Database(f"sqlite:///{Path(folder) / 'pullwake.sqlite3'}", None)
        manage(database, "migrate", "--verbosity=0")
        yield database


def settle(database: Database) -> None:
    """Update statistics, as autovacuum would later."""
    if database.url.startswith("sqlite"):
        with closing(_sqlite(database)) as connection:
            connection.execute("PRAGMA optimize")
        return
    with database.connect() as connection:
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


def key_of(database: Database, url: str) -> int:
    """The primary key of the entity at a URL."""
    sql = f"SELECT id FROM dispatch_entity WHERE url = '{url}'"  # noqa: S608
    if database.url.startswith("sqlite"):
        with closing(_sqlite(database)) as connection:
            return int(connection.execute(sql).fetchone()[0])
    with database.connect() as connection:
        row: Any = connection.execute(sql).fetchone()
        return int(row[0])


# --- The run -----------------------------------------------------------------------------------


def begin(server: Server, database: Database, name: str, events: int, headers: Any) -> Life:
    """Make an entity with a runner and a parent, by the API."""
    connection = http.client.HTTPConnection(HOST, server.port)
    life = Life(name, events, connection, *headers)
    life.call("begin", "POST", "/_electric/runners", {"id": name, "label": name})
    policy = {"targets": [{"type": "runner", "runnerId": name}]}
    parents = {"dispatch_policy": {"targets": [{"type": "runner", "runnerId": name}]}}
    life.call("begin", "POST", "/_electric/runners", {"id": f"{name}-above", "label": "above"})
    parents["dispatch_policy"]["targets"][0]["runnerId"] = f"{name}-above"
    life.call("begin", "PUT", f"/_electric/entities/life/{name}-above", parents)
    child = {
        "dispatch_policy": policy,
        "parent": f"/life/{name}-above",
        "wake": {"subscriberUrl": f"/life/{name}-above", "condition": "runFinished"},
    }
    life.call("begin", "PUT", f"/_electric/entities{life.url}", child)
    life.key = key_of(database, life.url)
    return life


def measure(engine: str, events: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of each call by both lives, and CPU of each case by both."""
    with scratch(engine) as database:
        authorization = caller(database).partition(": ")[2]
        cookie = manage(database, "shell", "--no-imports", "-c", _SESSION)
        headers = {"Authorization": authorization}, {"Cookie": cookie}
        env = {"PULLWAKE_WAKE_REEMIT_MS": "86400000"}
        with Server(database, 1, env=env) as server:
            made = ("short", SHORT), ("long", events)
            lives = [begin(server, database, *each, headers) for each in made]
        for life in lives:
            print(f"{engine}: {life.events} events", file=sys.stderr)
            live(database, life)
        settle(database)
        with Server(database, 1, env=env) as server:
            for life in lives:
                life.server = http.client.HTTPConnection(HOST, server.port)
            used = _by_turns(lives, rounds, lambda: server.cpu() + database.cpu())
            server.refuse_complaints()
    short, long = lives
    return {
        "calls": {
            case: {
                what: [statistics.median(each.took[case, what]) * 1000 for each in (short, long)]
                for of, what in short.took
                if of == case
            }
            for case in CASES
        },
        "cpu": {case: [each * 1000 for each in used[case]] for case in CASES},
    }


def _by_turns(
    lives: list[Life], rounds: int, cpu: Callable[[], float]
) -> dict[str, tuple[float, float]]:
    """The CPU seconds of a call of each case, of the first life and of the second."""
    for life in lives:
        for case in CASES.values():  # the first call of a kind finds nothing prepared
            case(life)
        life.took.clear()
    used = {case: [0.0, 0.0] for case in CASES}
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
        for name, case in CASES.items():
            for index in (0, 1) if turn % 2 else (1, 0):
                lives[index].case = name
                before = cpu()
                for _ in range(CALLS):
                    case(lives[index])
                used[name][index] += cpu() - before
    calls = rounds * CALLS
    return {name: (short / calls, long / calls) for name, (short, long) in used.items()}


def main() -> int:
    """Measure on each engine; print the result and store it."""
    parser = argparse.ArgumentParser(prog="bench.lives", description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000, help="of the long life")
    parser.add_argument("--rounds", type=int, default=20, help=f"of {CALLS} calls by each (20)")
    parser.add_argument("--engines", default="postgresql,sqlite")
    options = parser.parse_args()
    before, found, problems = conditions(), {}, []
    try:
        for engine in options.engines.split(","):
            found[engine] = measure(engine, options.events, options.rounds)
    except (BenchError, psycopg.Error, OSError) as error:
        print(f"bench.lives: {error}", file=sys.stderr)
        return 1
    for engine, each in found.items():
        print(f"\n| {engine} | ms, {SHORT} events | ms, {options.events} | ratio |")
        print("|---|--:|--:|--:|")
        for case, (less, more) in each["cpu"].items():
            for what, (short, long) in each["calls"][case].items():
                print(f"| {what} | {short:.2f} | {long:.2f} | {long / short:.2f} |")
                if long > MOST * short and more > MOST * less:
                    problems.append(f"{engine}: {what} takes {long / short:.2f} times as long")
            print(f"| *{case}: CPU* | {less:.2f} | {more:.2f} | {more / less:.2f} |")
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"lives-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.write_text(json.dumps({"conditions": {**before, **vars(options)}, **found}, indent=1))
    print(f"kept as {path}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
