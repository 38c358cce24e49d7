"""What is measured: one `Line` for each call, and for the four-call cycle."""

import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from hashlib import md5, sha256
from typing import Any, Literal

from bench import seed
from bench.client import Loop, Script, call, request

RUNNERS = 50
RUNNER = "bench-"
DIAGNOSTICS = {
    "status": "streaming",
    "stream_connected": True,
    "last_heartbeat_ok": True,
    "last_claim_result": "claimed",
    "started_at": "2026-05-19T11:01:11.631Z",
    "stream_connected_since": "2026-05-19T11:01:12.071Z",
    "last_error": "fetch failed: connect ECONNREFUSED 127.0.0.1:8000",
    "last_error_at": "2026-05-19T11:00:09.113Z",
    "last_heartbeat_at": "2026-05-19T11:41:42.120Z",
    "last_claim_at": "2026-05-19T11:41:40.007Z",
    "last_dispatch_at": "2026-05-19T11:41:40.201Z",
    "reconnect_count": 1,
    "events_received": 5120,
    "claims_succeeded": 4711,
    "claims_skipped": 12,
    "claims_failed": 3,
}
HEARTBEAT = {
    "lease_ms": 90_000,
    "wake_stream_offset": "0000000000000000_0000000000000000",
    "diagnostics": DIAGNOSTICS,
}
EVENT = {
    "type": "message",
    "key": "bench",
    "value": {"role": "assistant", "text": "an event of an agent's stream " * 4},
    "headers": {"operation": "insert"},
}
MESSAGE = {"payload": {"text": "a message of some words, as a person might send it"}}


def encoded(body: Any) -> bytes:
    """A JSON body, without spaces, as runners write it."""
    return json.dumps(body, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Work:
    """What the scripts of one run share."""

    loop: Loop
    caller: str
    """The header that says who calls."""
    prefix: str
    count: int
    turn: Iterator[int]
    """Numbers, which all scripts share."""
    runner: str = RUNNER
    runners: int = RUNNERS
    events: int = 2
    """In the stream of each entity."""

    @property
    def principal(self) -> bytes:
        """The header that says who calls."""
        return f"{self.caller}\r\n".encode()

    def runner_of(self, number: int) -> str:
        """The runner that this entity is dispatched to, as `bench.seed` does."""
        return f"{self.runner}{number % self.count % self.runners}"

    def names(self, *, once: bool) -> Iterator[tuple[int, str]]:
        """The seeded names, which all scripts share: each once, or again and again."""
        for number in self.turn:
            if once and number >= self.count:
                return
            yield number, f"{self.prefix}{number % self.count}"


@dataclass(frozen=True)
class Line:
    """A line of the table: ``script`` makes its calls, on rows that ``stage`` says to seed."""

    name: str
    script: Callable[[Work], Script]
    stage: seed.Stage | None = None
    events: int = 2
    per_second: int = 0
    """How many entities are used up a second at the most; 0: none is, they go round."""
    calls: int = 1
    stack: Literal["POST", "GET"] = "POST"

    def rows(self, seconds: float) -> int:
        """How many entities to seed."""
        return int(self.per_second * seconds) if self.per_second else 200


def _claim_token(name: str) -> bytes:
    return f"Electric-Claim-Token: pwc_{name}\r\n".encode()


def _consumer(name: str) -> str:
    # As `bench.seed` makes wake ids.
    return "w_" + md5(f"/bench/{name}1".encode()).hexdigest()[:24]  # noqa: S324


def _wake(work: Work, number: int, name: str) -> tuple[str, bytes]:
    return _wake_of(work.runner_of(number), f"/bench/{name}")


def _wake_of(runner: str, url: str) -> tuple[str, bytes]:
    event = {
        "type": "wake",
        "subscription_id": f"runner:{runner}:{sha256(url.encode()).hexdigest()[:16]}",
        "stream": f"{url[1:]}/main",
        "generation": 1,
        "ts": 1778324210000,
    }
    return f"/_electric/runners/{runner}/claim", encoded(event)


def _heartbeats(work: Work) -> Script:
    body = encoded(HEARTBEAT)
    for number in work.turn:
        path = f"/_electric/runners/{work.runner}{number % work.runners}/heartbeat"
        yield from call(work.loop, "heartbeat", request("POST", path, work.principal, body))


def _healths(work: Work) -> Script:
    for number in work.turn:
        path = f"/_electric/runners/{work.runner}{number % work.runners}/health"
        yield from call(work.loop, "health", request("GET", path, work.principal))


def _lists(work: Work) -> Script:
    data = request("GET", "/_electric/runners", work.principal)
    while True:
        yield from call(work.loop, "list", data)


def _claims(work: Work) -> Script:
    for number, name in work.names(once=True):
        path, event = _wake(work, number, name)
        yield from call(work.loop, "claim", request("POST", path, work.principal, event))


def _oldest(work: Work) -> Script:
    for number, _ in work.names(once=True):
        path = f"/_electric/runners/{work.runner_of(number)}/claim"
        yield from call(work.loop, "claim", request("POST", path, work.principal, b"{}"))


def _callbacks(kind: str, once: bool, body: Callable[[str], Any]) -> Callable[[Work], Script]:
    def script(work: Work) -> Script:
        for _, name in work.names(once=once):
            path = f"/_electric/wake-callbacks/{_consumer(name)}"
            data = request("POST", path, _claim_token(name), encoded(body(name)))
            yield from call(work.loop, kind, data)

    return script


def _acks(name: str) -> list[dict[str, str]]:
    return [{"path": f"/bench/{name}/main", "offset": "0000000000000000_0000000000000002"}]


def _cycles(work: Work) -> Script:
    for number, name in work.names(once=True):
        yield from cycle(work.loop, work.principal, *_wake(work, number, name))


def cycle(loop: Loop, principal: bytes, path: str, event: bytes) -> Script:
    """Claim, mint, heartbeat, done: what a runner does with a wake."""
    answer = yield from call(loop, "claim", request("POST", path, principal, event))
    claimed = json.loads(answer.body)
    callback = "/_electric/wake-callbacks/" + claimed["consumerId"]
    token = f"Electric-Claim-Token: {claimed['claimToken']}\r\n".encode()
    epoch = {"epoch": claimed["epoch"]}
    for name, body in (
        ("mint", {"wakeId": claimed["wakeId"], **epoch}),
        ("renew", epoch),
        ("done", {**epoch, "done": True}),
    ):
        yield from call(loop, name, request("POST", callback, token, encoded(body)))


def _sends(*, once: bool) -> Callable[[Work], Script]:
    def script(work: Work) -> Script:
        body = encoded(MESSAGE)
        for _, name in work.names(once=once):
            path = f"/_electric/entities/bench/{name}/send"
            yield from call(work.loop, "send", request("POST", path, work.principal, body))

    return script


def _appends(work: Work) -> Script:
    body = encoded(EVENT)
    for _, name in work.names(once=False):
        token = f"Electric-Claim-Token: pww_{name}\r\n".encode()
        data = request("POST", f"/bench/{name}/main", token, body)
        yield from call(work.loop, "append", data, 204)


def _reads(work: Work) -> Script:
    for _, name in work.names(once=False):
        path = f"/bench/{name}/main?offset=0000000000000000_{work.events - 10:016}"
        yield from call(work.loop, "read", request("GET", path, work.principal))


def _wake_reads(work: Work) -> Script:
    for number in work.turn:
        path = f"/runners/{work.runner}{number % work.runners}/wake?offset=now"
        yield from call(work.loop, "wake read", request("GET", path, work.principal))


def _empty(method: str) -> Callable[[Work], Script]:
    body = encoded(HEARTBEAT) if method == "POST" else None

    def script(work: Work) -> Script:
        data = request(method, "/empty", work.principal, body)
        while True:
            yield from call(work.loop, "empty", data)

    return script


STACK = {method: Line(f"empty view, {method}", _empty(method)) for method in ("POST", "GET")}

LINES = [
    Line("heartbeat", _heartbeats),
    Line("health", _healths, stack="GET"),
    Line("health of 4 claims", _healths, "claimed", stack="GET"),
    Line("list", _lists, stack="GET"),
    Line("cycle", _cycles, "pending", per_second=800, calls=4),
    Line("claim", _claims, "pending", per_second=2000),
    Line("claim oldest", _oldest, "pending", per_second=2000),
    Line(
        "mint",
        _callbacks("mint", False, lambda name: {"wakeId": _consumer(name), "epoch": 1}),
        "claimed",
    ),
    Line("renew", _callbacks("renew", False, lambda name: {"epoch": 1}), "claimed"),
    Line(
        "done",
        _callbacks("done", True, lambda name: {"epoch": 1, "acks": _acks(name), "done": True}),
        "claimed",
        per_second=2000,
    ),
    Line("send", _sends(once=True), "idle", per_second=2000),
    Line("send awake", _sends(once=False), "pending"),
    Line("append", _appends, "claimed"),
    Line("read 10 events", _reads, "idle", events=100, stack="GET"),
    Line("read no wakes", _wake_reads, stack="GET"),
]


# --- By the API alone, for a server whose database is not ours to seed --------------------------


def _made(work: Work, number: int) -> Generator[Any, Any, tuple[str, str]]:
    """Make an entity, send it a message, and return its runner and its URL."""
    runner, url = f"{work.runner}{number % work.runners}", f"/bench/{work.prefix}{number}"
    path = f"/_electric/entities{url}"
    policy = {"dispatch_policy": {"targets": [{"type": "runner", "runnerId": runner}]}}
    made = request("PUT", path, work.principal, encoded(policy))
    yield from call(work.loop, "put", made, 200, 201)
    sent = request("POST", f"{path}/send", work.principal, encoded(MESSAGE))
    yield from call(work.loop, "send", sent, 200, 201, 202, 204)
    return runner, url


def _pairs(work: Work) -> Script:
    for number in work.turn:
        yield from _made(work, number)


def _whole_cycles(work: Work) -> Script:
    for number in work.turn:
        runner, url = yield from _made(work, number)
        yield from cycle(work.loop, work.principal, *_wake_of(runner, url))


PEER_LINES = [
    *(line for line in LINES if line.name in ("heartbeat", "health")),
    Line("PUT and send", _pairs, calls=2),
    Line("PUT, send and cycle", _whole_cycles, calls=6),
]
