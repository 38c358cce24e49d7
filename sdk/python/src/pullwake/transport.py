"""HTTP, with hard deadlines and one kind of error.

httpx2, because it is typed, maintained and pure Python, and has cancellation, event streams and a
timeout for each phase built in.
"""

from __future__ import annotations

import asyncio
import codecs
import inspect
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import httpx2

from . import tracing
from .clock import Clock
from .errors import BadAnswer, HeadersFailed, ServerRefused, ServerUnreachable
from .tasks import ends_task

Headers = Mapping[str, str]
HeaderSource = Headers | Callable[[], Headers | Awaitable[Headers]]

_MAX_MESSAGE = 500


MAX_BODY = 16 * 1024 * 1024
"""Bytes of an answer, or characters of an event: twice what the protocol allows."""


KEPT_ALIVE = 45.0
"""Seconds that a connection is kept for the next request: from one heartbeat to the next, and less
than the minute after which servers and proxies usually close one."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of an event stream."""

    event: str
    data: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with a 2xx status. `sent_at` is the lease clock when its request left."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent_at: float

    def says(self, header: str) -> bool:
        """Whether this header of it is `true`."""
        return self.headers.get(header, "").lower() == "true"

    def json(self) -> Any:
        """The body. Raises BadAnswer."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise BadAnswer(f"an answer is not JSON: {_excerpt(self.body)!r}") from error

    def object(self) -> dict[str, Any]:
        """The body as a JSON object. Raises BadAnswer."""
        body = self.json()
        if not isinstance(body, dict):
            raise BadAnswer(f"an answer is not a JSON object: {_excerpt(self.body)!r}")
        return body

    def array(self) -> list[Any]:
        """The body as a JSON array. Raises BadAnswer."""
        body = self.json()
        if not isinstance(body, list):
            raise BadAnswer(f"an answer is not a JSON array: {_excerpt(self.body)!r}")
        return body


class _Connections:
    """A pool that can be retired: requests in flight finish on it, new ones do not use it."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.client = client
        self.users = 0
        self.retired = False


class Transport:
    """Requests to one server. Close it with `aclose()`."""

    def __init__(self, base_url: str, headers: HeaderSource | None, clock: Clock) -> None:
        check_url(base_url)
        self.base_url = base_url.rstrip("/")
        self._origin = _origin(base_url)
        self._source: HeaderSource = headers if headers is not None else {}
        self._clock = clock
        self._connections = self._connect()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def url(self, path: str) -> str:
        return f"{self.base_url}/{path.lstrip('/')}"

    def recycle(self) -> None:
        """Open new connections from here on: the old ones may be dead without having said so."""
        old, self._connections = self._connections, self._connect()
        self._retire(old)

    async def aclose(self) -> None:
        """Close. Requests from here on raise ServerUnreachable."""
        self._closed = True
        self._retire(self._connections)
        while self._closing:
            await asyncio.wait(self._closing)

    async def call(
        self,
        method: str,
        url: str,
        *,
        deadline: float,
        params: Mapping[str, str] | None = None,
        json_body: object = None,
        content: bytes | None = None,
        extra: Headers | None = None,
        token: str | None = None,
    ) -> Answer:
        """One request, answered within `deadline` seconds.

        With `token` it carries that claim or write token in place of the runner's credentials.
        Raises ServerUnreachable, BadAnswer, HeadersFailed, ServerRefused.
        """
        if json_body is not None:
            content = dump(json_body)
        try:
            async with asyncio.timeout(deadline), self._client() as client:
                headers = await self._headers(url, token)
                headers.update(tracing.headers())
                headers.update(extra or {})
                if content is not None:
                    headers["content-type"] = "application/json"
                sent_at = self._clock.lease()
                async with client.stream(
                    method, url, params=params, content=content, headers=headers
                ) as response:
                    body = await _read(response)
        except TimeoutError as error:
            said = f"no answer within {_seconds(deadline)}"
            raise ServerUnreachable(f"{method} {self._shown(url)}: {said}") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            said = _describe(error)
            raise ServerUnreachable(f"{method} {self._shown(url)}: {said}") from error
        if not response.is_success:
            raise _refusal(response, body)
        return Answer(response.status_code, response.headers, body, sent_at)

    @asynccontextmanager
    async def events(
        self,
        url: str,
        *,
        params: Mapping[str, str],
        deadline: float,
        idle: float,
        longest: float,
    ) -> AsyncIterator[AsyncIterator[ServerEvent]]:
        """An event stream, which must open within `deadline`, never be silent for `idle`, and be
        over within `longest` seconds.

        Raises as `call` does, from the iterator too.
        """
        what = f"GET {self._shown(url)}"
        timeout = httpx2.Timeout(deadline, read=idle)
        try:
            async with asyncio.timeout(deadline) as limit, self._client() as client:
                headers = await self._headers(url, None)
                headers["accept"] = "text/event-stream"
                async with client.stream(
                    "GET", url, params=params, headers=headers, timeout=timeout
                ) as response:
                    if not response.is_success:
                        raise _refusal(response, await _read(response))
                    limit.reschedule(asyncio.get_running_loop().time() + longest)
                    deadline = longest
                    yield _events(response)
        except TimeoutError as error:
            said = "it is not over" if deadline == longest else "no event stream"
            raise ServerUnreachable(f"{what}: {said} within {_seconds(deadline)}") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise ServerUnreachable(f"{what}: {_describe(error)}") from error

    def _shown(self, url: str) -> str:
        """`url` for an error: its path, and its host only if that is another than expected."""
        return httpx2.URL(url).path if self._is_own(url) else url

    def _is_own(self, url: str) -> bool:
        """Whether it is this server's, which is seldom worth taking it apart for."""
        return url.startswith(f"{self.base_url}/") or _origin(url) == self._origin

    async def _headers(self, url: str, token: str | None) -> httpx2.Headers:
        source = self._source
        try:
            made = source() if callable(source) else source
            headers = httpx2.Headers(dict(await made if inspect.isawaitable(made) else made))
        except BaseException as error:
            if ends_task(error):
                raise
            why = f"{type(error).__name__}: {error}"  # with the file, where that is missing
            raise HeadersFailed(f"the headers could not be made: {why}") from error
        if token is None:
            return headers
        if not self._is_own(url):
            headers = httpx2.Headers()  # the runner's own headers are for its own server
        # A claim's token outlives the runner's: an expired one beside it must not spoil it.
        for private in ("authorization", "electric-principal"):
            headers.pop(private, None)
        headers["electric-claim-token"] = token
        return headers

    def _connect(self) -> _Connections:
        return _Connections(
            httpx2.AsyncClient(
                verify=_ssl_context(),
                timeout=None,  # each request has a deadline of its own
                # Waiting for a free connection would let work hold up heartbeats.
                limits=httpx2.Limits(
                    max_connections=None,
                    max_keepalive_connections=20,
                    keepalive_expiry=KEPT_ALIVE,
                ),
            )
        )

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx2.AsyncClient]:
        if self._closed:
            raise ServerUnreachable("the runner is stopped")
        connections = self._connections
        connections.users += 1
        try:
            yield connections.client
        finally:
            connections.users -= 1
            if connections.retired and not connections.users:
                self._close(connections)

    def _retire(self, connections: _Connections) -> None:
        connections.retired = True
        if not connections.users:
            self._close(connections)

    def _close(self, connections: _Connections) -> None:
        task = asyncio.create_task(connections.client.aclose(), name="runner close connections")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


@cache
def _ssl_context() -> ssl.SSLContext:
    """One for all: making it takes longer than connecting. Also where the server's own URL is
    plain HTTP, for its callbacks may not be."""
    return httpx2.create_ssl_context()


def dump(value: object) -> bytes:
    """A body: JSON in UTF-8, its text as it is and not escaped.

    Raises ValueError or TypeError for what is not JSON.
    """
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair: for the server to judge
        return json.dumps(value, allow_nan=False).encode()


def check_url(url: str) -> None:
    """Raises ValueError for what is not the URL of a server."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"not an http(s) URL: {url!r} ({error})") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"not an http(s) URL, such as http://127.0.0.1:8000: {url!r}")


def _origin(url: str) -> tuple[str, str, int | None]:
    parsed = httpx2.URL(url)
    return parsed.scheme, parsed.host, parsed.port


async def _read(response: httpx2.Response) -> bytes:
    """The body. Raises BadAnswer for one that is larger than any of the protocol's."""
    parts, size = [], 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MAX_BODY:
            raise BadAnswer(f"an answer is larger than {MAX_BODY} bytes")
        parts.append(part)
    return b"".join(parts)


async def _events(response: httpx2.Response) -> AsyncIterator[ServerEvent]:
    """Server-sent events. Raises BadAnswer for one that is larger than any of the protocol's."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest, name, data, size = "", "message", list[str](), 0
    async for part in response.aiter_bytes():
        *lines, rest = (rest + decoder.decode(part)).split("\n")
        size += sum(map(len, lines))
        if size + len(rest) > MAX_BODY:
            raise BadAnswer(f"an event is larger than {MAX_BODY} characters")
        for line in lines:
            field, _, value = line.removesuffix("\r").partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif not field and not value:  # the empty line that ends an event
                if data:
                    yield ServerEvent(name, "\n".join(data))
                name, data, size = "message", [], 0


def _refusal(response: httpx2.Response, body: bytes) -> ServerRefused:
    code, message = "", _excerpt(body)
    try:
        error = json.loads(body)["error"]
        code, message = str(error["code"]), _which(error) or str(error["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        pass  # not the protocol's shape: its beginning has to do as the message
    return ServerRefused(
        response.status_code,
        code[:100],
        message[:_MAX_MESSAGE] or response.reason_phrase,
        _retry_after(response.headers.get("retry-after")),
    )


def _which(error: dict[str, Any]) -> str:
    """What is wrong with which field, where the error says; it has no other use for details."""
    match error.get("details"):
        case [*fields]:
            return "; ".join(f"{field['path']}: {field['message']}" for field in fields)
    return ""


def _retry_after(value: str | None) -> float | None:
    """Seconds, from either form of the header."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
        return max(0.0, when.timestamp() - Clock().wall())
    except (ValueError, OverflowError):
        return None


def _seconds(duration: float) -> str:
    """For people, who count in tenths at most."""
    return f"{max(0.1, round(duration, 1)):g} s"


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__


def _excerpt(body: bytes) -> str:
    return body[:200].decode(errors="replace").strip()
