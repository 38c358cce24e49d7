"""A small server for one runner, in process: the wire contract's happy path, and faults on order.

It keeps what a test looks at (`requests`, `entities`, `heartbeats`) and lets one wait for it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

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

    @property
    def active(self) -> Claim | None:
        claim = self.claims[-1] if self.claims else None
        return claim if claim is not None and claim.status == "active" else None

    def pending(self) -> bool:
        return any(event["type"] == "inbox" for event in self.events[self.cursor :])

    def appended(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] != "inbox"]


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

    async def send(self, path: str, payload: Any, *, wake: bool = True) -> None:
        entity = self.entity(path)
        self._append(entity, {"type": "inbox", "value": {"from": "user:a", "payload": payload}})
        if wake and not entity.outstanding and entity.active is None:
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
        if path == "/_electric/runners":
            return "register"
        if path.endswith("/heartbeat"):
            return "heartbeat"
        if path.endswith("/claim"):
            return "claim"
        if path.startswith("/_electric/runners/"):
            return "get"
        if path.endswith("/wake"):
            return "wake"
        if path.startswith("/_electric/wake-callbacks/"):
            for name in ("done", "failed"):
                if body.get(name):
                    return name
            return "mint" if "wakeId" in body else "renew"
        return "append" if method == "POST" else "read"

    async def _handle(self, request: Request) -> Response:
        match request.route:
            case "register":
                self.registered = True
                self.record |= {"id": request.body["id"]} | request.body
                self.record["wake_stream"] = f"/runners/{request.body['id']}/wake"
                return Response(201, self.record)
            case "get":
                return Response(200, self.record) if self.registered else _error(404, "NOT_FOUND")
            case "heartbeat":
                if not self.registered:
                    return _error(404, "NOT_FOUND")
                if "wake_stream_offset" in request.body:
                    self.record["wake_stream_offset"] = request.body["wake_stream_offset"]
                return Response(200, self.record)
            case "wake":
                return await self._read_wakes(request)
            case "claim":
                return self._claim(request)
            case "read":
                return self._read(request)
            case "append":
                return self._write(request)
            case _:
                return self._callback(request)

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

    def _claim(self, request: Request) -> Response:
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
            "entity": {"type": path.split("/")[0], "url": f"/{path}", "status": "idle"},
            "principal": {"kind": "user", "id": "a", "key": "user:a", "url": "/principal/user%3Aa"},
        }
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

    def _callback(self, request: Request) -> Response:
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
                claim.write_token = f"wt-{claim.consumer_id}-{claim.mints}"
                return Response(200, {"ok": True, "writeToken": claim.write_token})
            case "renew":
                claim.renewals += 1
                return Response(200, {"ok": True, "next_wake": False, "lease_expires_at": "later"})
            case "failed":
                claim.status, claim.error = "failed", request.body["error"]
                return Response(200, {"ok": True, "entity_cleared": True, "retry_at": "later"})
        claim.status, claim.acks = "released", request.body["acks"]
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

    def _read(self, request: Request) -> Response:
        entity = self._stream(request)
        if not self._authorised(entity, request):
            return _error(401, "UNAUTHORIZED")
        given = request.query["offset"]
        start = 0 if given == "-1" else int(given.split("_")[0])
        tail = len(entity.events)
        headers = {"Stream-Next-Offset": offset(tail), "Stream-Up-To-Date": "true"}
        return Response(200, entity.events[start:], headers)

    def _write(self, request: Request) -> Response:
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
        return Response(200, {}, {"Stream-Next-Offset": offset(len(entity.events))})


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
