"""For tests of handlers: a small server in process, and `handle`, one wake from claim to end.

`FakeServer` speaks the wire contract's happy path to one runner, and has faults on order. It keeps
what a test looks at (`requests`, `entities`, `heartbeats`) and lets one wait for it.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .handlers import AnyHandler
from .runner import PullWakeRunner

PATIENCE = 30.0
"""Seconds any wait of a test may take: far more than it should, so that only a bug takes it."""


def offset(number: int) -> str:
    return f"{number:016d}_{0:016d}"


@dataclass
class Request:
    route: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any
    at: float
    connection: int
    """The client's port: which of its connections this came by."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the client closed the connection before it had its answer."""


@dataclass
class Response:
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


class Cut(Exception):
    """Close the connection instead of answering."""


_ROUTES = {
    "register": "/_electric/runners",
    "heartbeat": "/_electric/runners/[^/]+/heartbeat",
    "claim": "/_electric/runners/[^/]+/claim",
    "get": "/_electric/runners/[^/]+",
    "wake": "/runners/[^/]+/wake",
    "watch": "/_electric/wake",
    "send": "/_electric/entities/[^/]+/[^/]+/send",
    "tags": "/_electric/entities/[^/]+/[^/]+/tags/.+",
    "spawn": "/_electric/entities/[^/]+/[^/]+",
}

Fault = Callable[[Request, Callable[[], Awaitable[Response]]], Awaitable[Response]]


def status(code: int, error: str = "INTERNAL_SERVER_ERROR", **headers: str) -> Fault:
    async def fault(request: Request, answer: Callable[[], Awaitable[Response]]) -> Response:
        body = {"error": {"code": error, "message": f"injected {code}"}}
        return Response(code, body, {k.replace("_", "-"): v for k, v in headers.items()})

    return fault


async def hang(request: Request, answer: Callable[[], Awaitable[Response]]) -> Response:
    await asyncio.Event().wait()
    raise AssertionError


async def cut(request: Request, answer: Callable[[], Awaitable[Response]]) -> Response:
    raise Cut


async def lose_answer(request: Request, answer: Callable[[], Awaitable[Response]]) -> Response:
    await answer()
    raise Cut


async def login_page(request: Request, answer: Callable[[], Awaitable[Response]]) -> Response:
    return Response(200, "<html>please log in</html>", {"content-type": "text/html"})


class Hold:
    """Keeps the next request of a route until `release()`."""

    def __init__(self) -> None:
        self._released = asyncio.Event()

    def release(self) -> None:
        self._released.set()

    async def __call__(
        self, request: Request, answer: Callable[[], Awaitable[Response]]
    ) -> Response:
        await self._released.wait()
        return await answer()


@dataclass
class Claim:
    consumer_id: str
    epoch: int
    token: str
    tail: int
    write_token: str = ""
    status: str = "active"
    mints: int = 0
    renewals: int = 0
    error: str = ""
    acks: Any = None
    retry_after: float | None = None
    """Seconds after which the handler asked to be woken again."""
    gave_up: bool = False


@dataclass
class Entity:
    path: str
    """`chat/1`"""
    generation: int = 0
    cursor: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    outstanding: bool = False
    producers: dict[tuple[str, int], int] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    failures: int = 0
    removed: int = 0
    """Of its events, the oldest: they are not to be read any more."""
    spawned: dict[str, Any] | None = None
    """What the runner asked for, if it was a runner that made it."""

    @property
    def active(self) -> Claim | None:
        claim = self.claims[-1] if self.claims else None
        return claim if claim is not None and claim.status == "active" else None

    def pending(self) -> bool:
        """Whether there is work, other than what was handled or what the server acts on itself."""
        handled = {
            each["key"]
            for each in self.events
            if each["type"] == "signal" and each["value"].get("status") == "handled"
        }
        return any(
            event["type"] in ("inbox", "wake")
            or (
                event["type"] == "signal"
                and event["key"] not in handled
                and event["value"].get("signal") not in ("SIGSTOP", "SIGTERM", None)
            )
            for event in self.events[self.cursor :]
            if event.get("headers", {}).get("operation") != "update"
        )

    def appended(self) -> list[dict[str, Any]]:
        """What its handlers wrote."""
        return [event for event in self.events if event["type"] not in ("inbox", "wake", "signal")]


class FakeServer:
    """Use as `async with FakeServer() as server`."""

    def __init__(self) -> None:
        self.port = 0
        self.registered = False
        self.record: dict[str, Any] = {"claim_lease_ms": 30_000, "admin_status": "enabled"}
        self.requests: list[Request] = []
        self.entities: dict[str, Entity] = {}
        self.long_poll = 20.0
        self.live_modes = {"long-poll", "sse"}
        self.sse_lasts = 20.0
        self.connections = 0
        self.sent: list[dict[str, Any]] = []
        """What handlers sent: {to, from, …the message's body}."""
        self.watches: list[dict[str, Any]] = []
        """Whom handlers asked to be woken for, but for those that came with a spawn."""
        self.traceparent: str | None = None
        """Of what wakes, as claims are told it."""
        self.wakes_only: str | None = None
        """The entity that alone is woken, if there is to be but one."""
        self._wakes: list[dict[str, Any]] = []
        self._changed = asyncio.Condition()
        self._faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._standing: dict[str, Fault] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # Running it

    async def __aenter__(self) -> FakeServer:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """As a process that is killed: every connection is cut."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What a test does with it

    def fault(self, route: str, *faults: Fault) -> None:
        """The next requests of the route get these, in order."""
        self._faults[route].extend(faults)

    def standing(self, route: str, fault: Fault | None) -> None:
        """Every request of the route gets this, until it is None."""
        if fault is None:
            self._standing.pop(route, None)
        else:
            self._standing[route] = fault

    async def until(self, condition: Callable[[], Any], what: str = "") -> Any:
        """Wait until `condition()` is true of the server's state; returns what it returned."""
        async with asyncio.timeout(PATIENCE), self._changed:
            try:
                return await self._changed.wait_for(condition)
            except asyncio.CancelledError:
                seen = [request.route for request in self.requests]
                raise AssertionError(
                    f"waited in vain for {what or condition}; saw {seen}"
                ) from None

    async def seen(self, route: str, count: int = 1) -> Request:
        """The `count`-th request of the route, once it has arrived."""
        await self.until(lambda: len(self.of(route)) >= count, f"{count} x {route}")
        return self.of(route)[count - 1]

    def of(self, route: str) -> list[Request]:
        return [request for request in self.requests if request.route == route]

    @property
    def heartbeats(self) -> list[dict[str, Any]]:
        return [request.body for request in self.of("heartbeat")]

    def entity(self, path: str) -> Entity:
        return self.entities.setdefault(path, Entity(path))

    async def send(self, path: str, payload: Any, *, wake: bool = True, **value: Any) -> None:
        """Send `payload` to the entity at `path`, such as `chat/1`."""
        message = {"from": "user:a", "payload": payload, **value}
        await self.put(path, {"type": "inbox", "value": message}, wake=wake)

    async def signal(self, path: str, name: str, **value: Any) -> None:
        """Signal the entity; SIGKILL takes its claim away."""
        claim = self.entity(path).active
        if name == "SIGKILL" and claim is not None:
            claim.status = "fenced"
        told = {"signal": name, "status": "unhandled", "sender": "user:a", **value}
        closing = name in ("SIGSTOP", "SIGTERM", "SIGKILL")
        await self.put(path, {"type": "signal", "value": told}, wake=not closing)

    async def happened(self, path: str, **value: Any) -> None:
        """Wake the entity for something that it watches: `finished_child`, `changes`, `source`."""
        told = {"timeout": False, "changes": [], **value}
        await self.put(path, {"type": "wake", "value": told})

    async def put(self, path: str, event: dict[str, Any], *, wake: bool = True) -> None:
        """Append an event to the entity's stream as the server does, and wake it."""
        entity = self.entity(path)
        event.setdefault("headers", {}).setdefault("operation", "insert")
        self._append(entity, event)
        awake = self.wakes_only in (None, entity.path)
        if wake and awake and not entity.outstanding and entity.active is None:
            self._wake(entity)
        await self._notify()

    async def emit(self, path: str, **fields: Any) -> None:
        """A wake event, whether or not there is anything to claim."""
        self._wakes.append(self._event(self.entity(path)) | fields)
        await self._notify()

    async def expire(self, path: str) -> None:
        """As the reaper does: the claim is over, and the work is offered again."""
        entity = self.entity(path)
        assert entity.active is not None
        entity.active.status = "expired"
        self._wake(entity)
        await self._notify()

    # Its inside

    def _append(self, entity: Entity, event: dict[str, Any]) -> None:
        event.setdefault("key", f"k{len(entity.events)}")
        event.setdefault("headers", {})["offset"] = offset(len(entity.events) + 1)
        entity.events.append(event)

    def _wake(self, entity: Entity) -> None:
        entity.generation += 1
        entity.outstanding = True
        self._wakes.append(self._event(entity))

    def _event(self, entity: Entity) -> dict[str, Any]:
        return {
            "type": "wake",
            "subscription_id": f"runner:r:{entity.path}",
            "stream": f"{entity.path}/main",
            "generation": entity.generation,
            "ts": int(time.time() * 1000),
        }

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._serve(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, Cut):
            pass
        finally:
            self.connections -= 1
            self._tasks.discard(task)
            writer.transport.abort()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            await self._notify()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {}
        for line in head[1:]:
            if line:
                name, _, value = line.partition(":")
                headers[name.strip().lower()] = value.strip()
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        parts = urlsplit(target)
        body = json.loads(raw) if raw else None
        request = Request(
            self._route(method, parts.path, body),
            method,
            parts.path,
            dict(parse_qsl(parts.query)),
            headers,
            body,
            time.monotonic(),
            writer.get_extra_info("peername")[1],
        )
        self.requests.append(request)
        await self._notify()
        answering = asyncio.create_task(self._answer(request, writer))
        hung_up = asyncio.create_task(_wait_eof(reader))
        try:
            await asyncio.wait({answering, hung_up}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                request.gone.set()
                await self._notify()
                return False
            response = answering.result()
        finally:
            for task in (answering, hung_up):
                task.cancel()
            await asyncio.gather(answering, hung_up, return_exceptions=True)
        if response is None:
            return False
        _write(writer, response)
        await writer.drain()
        return True

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> Response | None:
        async def answer() -> Response:
            response = await self._handle(request)
            await self._notify()
            return response

        queued = self._faults[request.route]
        fault = queued.popleft() if queued else self._standing.get(request.route)
        if fault is not None:
            return await fault(request, answer)
        if request.route == "wake" and request.query.get("live") == "sse":
            return await self._sse(request, writer)
        return await answer()

    def _route(self, method: str, path: str, body: Any) -> str:
        if path.startswith("/_electric/wake-callbacks/"):
            for name in ("done", "failed"):
                if body.get(name):
                    return name
            return "mint" if "wakeId" in body else "renew"
        for route, pattern in _ROUTES.items():
            if re.fullmatch(pattern, path):
                return route
        return "append" if method == "POST" else "read"

    async def _handle(self, request: Request) -> Response:
        handle: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "register": self._register,
            "get": self._get,
            "heartbeat": self._heartbeat,
            "wake": self._read_wakes,
            "claim": self._claim,
            "read": self._read,
            "append": self._write,
            "send": self._send,
            "tags": self._tag,
            "spawn": self._spawn,
            "watch": self._watch,
        }
        return await handle.get(request.route, self._callback)(request)

    async def _register(self, request: Request) -> Response:
        self.registered = True
        self.record |= {"id": request.body["id"]} | request.body
        self.record["wake_stream"] = f"/runners/{request.body['id']}/wake"
        return Response(201, self.record)

    async def _get(self, request: Request) -> Response:
        return Response(200, self.record) if self.registered else _error(404, "NOT_FOUND")

    async def _heartbeat(self, request: Request) -> Response:
        if not self.registered:
            return _error(404, "NOT_FOUND")
        if "wake_stream_offset" in request.body:
            self.record["wake_stream_offset"] = request.body["wake_stream_offset"]
        return Response(200, self.record)

    async def _watch(self, request: Request) -> Response:
        self.watches.append(request.body)
        return Response(204)

    def _position(self, request: Request) -> int:
        given = request.query["offset"]
        number = 0 if given == "-1" else int(given.split("_")[0])
        return min(number, len(self._wakes))

    async def _read_wakes(self, request: Request) -> Response:
        live = request.query.get("live")
        if live is not None and live not in self.live_modes:
            return _error(400, "INVALID_REQUEST")
        start = self._position(request)
        if live and start >= len(self._wakes):
            with suppress(TimeoutError):
                async with asyncio.timeout(self.long_poll), self._changed:
                    await self._changed.wait_for(lambda: len(self._wakes) > start)
        headers = {
            "Stream-Next-Offset": offset(len(self._wakes)),
            "Stream-Up-To-Date": "true",
            "Stream-Cursor": "1",
        }
        wakes = self._wakes[start:]
        if live and not wakes:
            return Response(204, None, headers)
        return Response(200, wakes, headers)

    async def _sse(self, request: Request, writer: asyncio.StreamWriter) -> Response | None:
        if "sse" not in self.live_modes:
            return _error(400, "INVALID_REQUEST")
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
            b"connection: close\r\n\r\n"
        )
        at = self._position(request)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.sse_lasts):
                while True:
                    wakes, at = self._wakes[at:], len(self._wakes)
                    control = {"streamNextOffset": offset(at), "streamCursor": "1"}
                    if wakes:
                        writer.write(f"event: data\ndata: {json.dumps(wakes)}\n\n".encode())
                    writer.write(f"event: control\ndata: {json.dumps(control)}\n\n".encode())
                    await writer.drain()
                    async with self._changed:
                        while len(self._wakes) <= at:
                            await self._changed.wait()
        return None

    async def _claim(self, request: Request) -> Response:
        if self.record["admin_status"] == "disabled":
            return _error(409, "NOT_RUNNING")
        path = request.body["stream"].removesuffix("/main")
        entity = self.entity(path)
        if entity.active is not None:
            return _error(409, "ALREADY_CLAIMED")
        if not entity.outstanding or not entity.pending():
            return _error(409, "NO_PENDING_WORK")
        entity.outstanding = False
        number = sum(len(entity.claims) for entity in self.entities.values()) + 1
        claim = Claim(f"w_{number:024x}", entity.generation, f"ct{number}", len(entity.events))
        entity.claims.append(claim)
        body = {
            "consumerId": claim.consumer_id,
            "epoch": claim.epoch,
            "wakeId": claim.consumer_id,
            "streamPath": f"/{path}/main",
            "streams": [{"path": f"/{path}/main", "offset": f"{offset(entity.cursor)}_1"}],
            "callback": f"{self.url}/_electric/wake-callbacks/{claim.consumer_id}",
            "claimToken": claim.token,
            "triggerEvent": "message_received",
            "attempt": entity.failures + 1,
            "entity": {"type": path.split("/")[0], "url": f"/{path}", "status": "idle"},
            "principal": {"kind": "user", "id": "a", "key": "user:a", "url": "/principal/user%3Aa"},
        }
        if self.traceparent is not None:
            body["traceparent"] = self.traceparent
        places = {
            "Pullwake-Cursor": offset(entity.cursor),
            "Pullwake-Tail": offset(claim.tail),
        }
        return Response(200, body, places)

    def _find(self, request: Request) -> tuple[Entity, Claim] | None:
        consumer_id = request.path.rsplit("/", 1)[1]
        for entity in self.entities.values():
            for claim in entity.claims:
                if claim.consumer_id == consumer_id:
                    return entity, claim
        return None

    async def _callback(self, request: Request) -> Response:
        found = self._find(request)
        if found is None:
            return _error(404, "NOT_FOUND")
        entity, claim = found
        if request.headers.get("electric-claim-token") != claim.token:
            return _error(401, "UNAUTHORIZED")
        if request.route == "done" and claim.status == "released":
            return Response(200, {"ok": True, "next_wake": False, "entity_cleared": False})
        if claim.status != "active":
            return _error(409, "FENCED")
        match request.route:
            case "mint":
                claim.mints += 1
                name = request.headers.get("pullwake-claim-nonce", claim.mints)
                claim.write_token = f"wt-{claim.consumer_id}-{name}"
                return Response(200, {"ok": True, "writeToken": claim.write_token})
            case "renew":
                claim.renewals += 1
                for ack in request.body.get("acks", ()):
                    entity.cursor = max(entity.cursor, int(ack["offset"].split("_")[0]))
                return Response(200, {"ok": True, "next_wake": False, "lease_expires_at": "later"})
            case "failed":
                claim.status, claim.error = "failed", request.body["error"]
                if not request.body.get("give_up"):
                    entity.failures += 1
                    later = request.body.get("retry_after_ms")
                    claim.retry_after = None if later is None else later / 1000
                    body = {"ok": True, "entity_cleared": True, "retry_at": "later"}
                    return Response(200, body)
                claim.gave_up = True
            case _:
                claim.status = "released"
        claim.acks, entity.failures = request.body["acks"], 0
        for ack in claim.acks:
            entity.cursor = max(entity.cursor, int(ack["offset"].split("_")[0]))
        if entity.pending():
            self._wake(entity)
        body = {"ok": True, "next_wake": entity.outstanding, "entity_cleared": True}
        return Response(200, body)

    def _stream(self, request: Request) -> Entity:
        return self.entity(request.path.strip("/").removesuffix("/main"))

    def _authorised(self, entity: Entity, request: Request) -> bool:
        token = request.headers.get("electric-claim-token")
        claim = entity.active
        return claim is not None and token in (claim.token, claim.write_token)

    async def _read(self, request: Request) -> Response:
        entity = self._stream(request)
        if not self._authorised(entity, request):
            return _error(401, "UNAUTHORIZED")
        given = request.query["offset"]
        start = 0 if given == "-1" else int(given.split("_")[0])
        if 0 < start < entity.removed:
            return _error(410, "OFFSET_GONE")
        live = "live" in request.query
        if live and start >= len(entity.events):
            with suppress(TimeoutError):
                async with asyncio.timeout(self.long_poll), self._changed:
                    await self._changed.wait_for(lambda: len(entity.events) > start)
        tail = len(entity.events)
        headers = {"Stream-Next-Offset": offset(tail), "Stream-Up-To-Date": "true"}
        if live and start >= tail:
            return Response(204, None, headers)
        if start < entity.removed:
            start = entity.removed
            headers["Stream-Earliest-Offset"] = offset(start)
        return Response(200, entity.events[start:], headers)

    def _by_token(self, request: Request) -> Entity | None:
        return next(
            (each for each in self.entities.values() if self._authorised(each, request)), None
        )

    async def _tell_parent(self, child: Entity, event: Mapping[str, Any]) -> None:
        """Wake whoever spawned the entity and asked to be, if this ends a run of it."""
        asked = (child.spawned or {}).get("wake")
        value = event.get("value")
        if not asked or event.get("type") != "run" or not isinstance(value, dict):
            return
        if value.get("status") not in ("completed", "failed"):
            return
        told: dict[str, list[str]] = {"text_delta": [], "error": []}
        for each in child.events:
            said = each.get("value") or {}
            if each["type"] in told and said.get("run_id") == event["key"]:
                told[each["type"]].append(said.get("delta", said.get("message", "")))
        finished = {
            "url": f"/{child.path}",
            "type": child.path.split("/")[0],
            "run_status": value["status"],
            "response": "".join(told["text_delta"]),
            **({"error": "\n".join(told["error"])} if told["error"] else {}),
        }
        parent = asked["subscriberUrl"].strip("/")
        await self.happened(parent, source=f"/{child.path}", finished_child=finished)

    async def _send(self, request: Request) -> Response:
        sender = self._by_token(request)
        if sender is None:
            return _error(401, "UNAUTHORIZED")
        to = request.path.removeprefix("/_electric/entities/").removesuffix("/send")
        known = [
            each for each in self.sent if (each["to"], each["key"]) == (to, request.body["key"])
        ]
        if not known:
            message = {"to": to, "from": f"/{sender.path}", **request.body}
            self.sent.append(message)
            if not request.body.get("afterMs"):
                value = {"from": f"/{sender.path}", "payload": request.body["payload"]}
                await self.put(to, {"type": "inbox", "value": value})
        return Response(200, {"txid": "1"})

    async def _tag(self, request: Request) -> Response:
        if self._by_token(request) is None:
            return _error(401, "UNAUTHORIZED")
        path, _, key = request.path.removeprefix("/_electric/entities/").partition("/tags/")
        entity = self.entity(path)
        if request.method == "DELETE":
            entity.tags.pop(key, None)
        else:
            entity.tags[key] = request.body["value"]
        return Response(200, {"url": f"/{path}", "tags": entity.tags})

    async def _spawn(self, request: Request) -> Response:
        path = request.path.removeprefix("/_electric/entities/")
        if path in self.entities:
            return _error(409, "DUPLICATE_URL")
        self.entity(path).spawned = request.body
        if "initialMessage" in request.body:
            await self.send(path, request.body["initialMessage"])
        return Response(201, {"url": f"/{path}"})

    async def _write(self, request: Request) -> Response:
        entity = self._stream(request)
        if not self._authorised(entity, request):
            return _error(401, "UNAUTHORIZED")
        producer = (request.headers["producer-id"], int(request.headers["producer-epoch"]))
        seq, last = int(request.headers["producer-seq"]), entity.producers.get(producer, -1)
        if seq <= last:
            return Response(204)
        if seq > last + 1:
            return _error(409, "PRODUCER_GAP")
        entity.producers[producer] = seq
        events = request.body if isinstance(request.body, list) else [request.body]
        for event in events:
            self._append(entity, event)
            await self._tell_parent(entity, event)
        return Response(200, {}, {"Stream-Next-Offset": offset(len(entity.events))})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one wake."""

    status: str
    """`released` when it is done, else `failed`."""
    error: str
    """What the server was told of a failure."""
    retry_after: float | None
    """Seconds, if the handler said when to try again."""
    gave_up: bool
    events: list[dict[str, Any]]
    """What was appended to the entity's stream."""
    sent: list[dict[str, Any]]
    """The messages that were sent: {to, payload, key, …}."""
    spawned: dict[str, dict[str, Any]]
    """The entities that were spawned, by URL, and with what."""
    tags: dict[str, str]
    acked: int
    """How many of the entity's events have been acknowledged."""


async def handle(
    handler: AnyHandler,
    *payloads: Any,
    entity: str = "agent/test",
    happened: Sequence[Mapping[str, Any]] = (),
    attempt: int = 1,
) -> Outcome:
    """Run `handler` for one wake of an entity that was sent these messages, and tell how it went.

    `happened`: the values of wake events, such as {"finished_child": {…}}, that come with them.
    """
    async with FakeServer() as server:
        there = server.entity(entity)
        there.failures = attempt - 1
        server.wakes_only = entity
        for value in happened:
            await server.happened(entity, **value)
        for payload in payloads:
            await server.send(entity, payload)
        if not there.outstanding:
            raise ValueError("no message, and nothing that happened: there is nothing to wake for")
        runner = PullWakeRunner(server.url, "test", handler)
        await runner.start()
        try:
            claim = await server.until(
                lambda: there.claims and there.claims[0].status != "active" and there.claims[0],
                "the handler's end",
            )
        finally:
            await runner.stop(grace=1.0)  # the runner has yet to hear what the server knows
        return Outcome(
            status=claim.status,
            error=claim.error,
            retry_after=claim.retry_after,
            gave_up=claim.gave_up,
            events=there.appended(),
            sent=server.sent,
            spawned={
                f"/{each.path}": each.spawned
                for each in server.entities.values()
                if each.spawned is not None
            },
            tags=there.tags,
            acked=there.cursor,
        )


async def _wait_eof(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        while await reader.read(1):
            raise AssertionError("a client sent on before it had its answer")


def _error(code: int, error: str) -> Response:
    return Response(code, {"error": {"code": error, "message": error.lower()}})


def _write(writer: asyncio.StreamWriter, response: Response) -> None:
    if isinstance(response.body, str):
        raw = response.body.encode()
    else:
        raw = b"" if response.body is None else json.dumps(response.body).encode()
    lines = [f"HTTP/1.1 {response.status} X"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    if response.status != 204:
        lines.append(f"content-length: {len(raw)}")
    writer.write(
        "\r\n".join(lines).encode() + b"\r\n\r\n" + (raw if response.status != 204 else b"")
    )
