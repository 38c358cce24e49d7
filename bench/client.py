"""HTTP/1.1 by hand on one epoll loop: thousands of keep-alive connections at little CPU.

What a connection does is a *script*: a generator that yields

- the bytes of a request, and is sent its `Answer`;
- a float, a `time.monotonic()` at which it goes on;
- a `Queue`, and is sent its next item.

Hand-written, because a call costs this client about 25 µs, and asyncio's or gevent's streams about
three times that: on two cores the client must not be what is measured.
"""

import heapq
import itertools
import select
import socket
import time
from array import array
from collections import defaultdict, deque
from collections.abc import Generator
from typing import Any, NamedTuple

HOST = "127.0.0.1"


class BenchError(Exception):
    """The run failed and must not be reported."""


class Answer(NamedTuple):
    """An answer, and when its request was sent and it arrived, by `time.monotonic`."""

    status: int
    head: bytes
    body: bytes
    sent_at: float
    received_at: float

    def header(self, name: bytes) -> bytes:
        """A header, by the spelling that the server uses; empty if it is missing."""
        return self.head.partition(b"\r\n" + name + b": ")[2].partition(b"\r\n")[0]


class Queue:
    """A queue between scripts of one loop."""

    def __init__(self) -> None:
        self.items: deque[Any] = deque()
        self.waiting: deque[Connection] = deque()

    def put(self, loop: "Loop", item: Any) -> None:
        """Give an item to the script that waits for it, now or later."""
        if self.waiting:
            loop.resume(self.waiting.popleft(), item)
        else:
            self.items.append(item)


Script = Generator[bytes | float | Queue, Any, None]


class Connection:
    """A script and its connection, which its first request opens."""

    __slots__ = ("buffer", "port", "script", "sent_at", "socket")

    def __init__(self, script: Script, port: int) -> None:
        self.script = script
        self.port = port
        self.socket: socket.socket | None = None
        self.buffer = b""
        self.sent_at = 0.0


def request(method: str, path: str, headers: bytes = b"", body: bytes | None = None) -> bytes:
    """The bytes of a request; ``headers`` are whole lines."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n".encode() + headers
    if body is None:
        return head + b"\r\n"
    length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head + length.encode() + body


class Loop:
    """Runs scripts, and records by name how long their calls took."""

    def __init__(self) -> None:
        self.took: dict[str, array[float]] = defaultdict(lambda: array("d"))
        self.running = 0
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._ready: deque[tuple[Connection, Any]] = deque()
        self._timers: list[tuple[float, int, Connection]] = []
        self._order = itertools.count()

    def start(self, script: Script, port: int) -> None:
        """Start a script on a connection of its own."""
        self.running += 1
        self.resume(Connection(script, port), None)

    def resume(self, connection: Connection, value: Any) -> None:
        """Let a script continue with this value in the loop's next round."""
        self._ready.append((connection, value))

    def run(self, until: float = float("inf")) -> None:
        """Run until this `time.monotonic`, or until every script has ended."""
        while self.running:
            while self._ready:
                self._step(*self._ready.popleft())
            now = time.monotonic()
            if now >= until:
                return
            while self._timers and self._timers[0][0] <= now:
                self._step(heapq.heappop(self._timers)[2], None)
            if self._ready:
                continue
            wake_at = min(until, self._timers[0][0] if self._timers else until, now + 1)
            for descriptor, _ in self._epoll.poll(max(wake_at - time.monotonic(), 0), 1024):
                self._receive(self._connections[descriptor])

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self._connections.values()):
            self._disconnect(connection)

    def _step(self, connection: Connection, value: Any) -> None:
        try:
            wanted = connection.script.send(value)
        except StopIteration:
            self.running -= 1
            self._disconnect(connection)
            return
        if isinstance(wanted, bytes):
            self._send(connection, wanted)
        elif isinstance(wanted, Queue):
            if wanted.items:
                self.resume(connection, wanted.items.popleft())
            else:
                wanted.waiting.append(connection)
        else:
            heapq.heappush(self._timers, (wanted, next(self._order), connection))

    def _send(self, connection: Connection, data: bytes) -> None:
        if connection.socket is None:
            connection.socket = socket.create_connection((HOST, connection.port))
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[connection.socket.fileno()] = connection
            self._epoll.register(connection.socket.fileno(), select.EPOLLIN)
        connection.sent_at = time.monotonic()
        connection.socket.sendall(data)

    def _receive(self, connection: Connection) -> None:
        assert connection.socket is not None
        data = connection.socket.recv(1 << 20)
        if not data:
            if connection.sent_at:
                raise BenchError(f"the server closed a connection in the middle of {connection}")
            self._disconnect(connection)  # it was idle for longer than the server keeps it
            return
        buffer = connection.buffer + data
        head_end = buffer.find(b"\r\n\r\n")
        if head_end < 0:
            connection.buffer = buffer
            return
        head = buffer[: head_end + 2]
        body = _body(buffer[9:12], head, buffer[head_end + 4 :])
        if body is None:
            connection.buffer = buffer
            return
        connection.buffer = b""
        answer = Answer(int(buffer[9:12]), head, body, connection.sent_at, time.monotonic())
        connection.sent_at = 0.0
        self._step(connection, answer)

    def _disconnect(self, connection: Connection) -> None:
        if connection.socket is not None:
            del self._connections[connection.socket.fileno()]
            connection.socket.close()
            connection.socket = None


def _body(status: bytes, head: bytes, rest: bytes) -> bytes | None:
    """The body of an answer, or None until all of it has arrived."""
    headers = head.lower()
    if b"\r\ntransfer-encoding: chunked\r\n" in headers:
        return _dechunked(rest)
    value = headers.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
    if not value and status not in (b"204", b"304"):
        raise BenchError(f"an answer without a length: {head!r}")
    return rest if len(rest) >= int(value or 0) else None


def _dechunked(rest: bytes) -> bytes | None:
    body = b""
    while True:
        size, found, rest = rest.partition(b"\r\n")
        length = int(size or b"0", 16)
        if not found or len(rest) < length + 2:
            return None
        if not length:
            return body
        body += rest[:length]
        rest = rest[length + 2 :]


def call(loop: Loop, name: str, data: bytes, *expected: int) -> Generator[bytes, Answer, Answer]:
    """Make a call in a script and record its time; any other status fails the run."""
    answer = yield data
    if answer.status not in (expected or (200,)):
        raise BenchError(f"{name} was answered {answer.status}: {answer.body[:300]!r}")
    loop.took[name].append(answer.received_at - answer.sent_at)
    return answer
