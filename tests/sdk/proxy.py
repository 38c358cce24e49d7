"""A TCP proxy between a runner and its server, for everything a network does to a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

Hook = Callable[[bytes], Awaitable[bool]]
"""Gets the beginning of each request; True cuts the connection instead of passing it on."""


class Proxy:
    """Use as `async with Proxy(port) as proxy`; `mode` may change at any time.

    - `pass`
    - `accept`: accept, and never answer
    - `cut`: cut each response in its middle
    - `refuse`: reset each connection
    - `answer`: give `answer` to everything, as a broken server or a load balancer does
    - `delay`: pass what comes on after `delay` seconds
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.mode = "pass"
        self.answer = b""
        self.delay = 0.0
        self.port = 0
        self.accepted = 0
        self.on_request: Hook | None = None
        self.on_response: Hook | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._dead: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut_all()

    async def cut_all(self) -> None:
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def blackhole(self) -> None:
        """Connections that are open stay open, and nothing comes through them ever again."""
        self._dead |= self._connections

    def fail_with(self, status: int, **headers: str) -> None:
        """Answer everything with this status, in the wire's form."""
        body = b'{"error": {"code": "INJECTED", "message": "the proxy says so"}}'
        lines = [f"HTTP/1.1 {status} Injected", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines += ["content-type: application/json", "connection: close"]
        self.answer = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        self.mode = "answer"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self.accepted += 1
        upstream: asyncio.StreamWriter | None = None
        answered = False
        try:
            if self.mode == "refuse":
                return
            if self.mode == "accept":
                await asyncio.Event().wait()
            if self.mode == "answer":
                await reader.read(65536)
                writer.write(self.answer)
                await writer.drain()
                writer.close()
                answered = True
                return
            theirs, upstream = await asyncio.open_connection("127.0.0.1", self.upstream)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._requests(task, reader, upstream))
                group.create_task(self._responses(task, theirs, writer))
        except (OSError, _Cut, ExceptionGroup, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            self._dead.discard(task)
            for end in (writer, upstream):
                if end is not None:
                    if not answered:
                        end.transport.abort()
                    with suppress(OSError, asyncio.CancelledError):
                        await end.wait_closed()

    async def _requests(
        self,
        connection: asyncio.Task[None],
        reader: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
    ) -> None:
        while data := await reader.read(65536):
            await self._hold_up(connection)
            if self.mode == "answer":
                raise _Cut
            if self.on_request is not None and await self.on_request(data):
                raise _Cut
            upstream.write(data)
            await upstream.drain()
        raise _Cut

    async def _responses(
        self,
        connection: asyncio.Task[None],
        theirs: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        while data := await theirs.read(65536):
            await self._hold_up(connection)
            if self.on_response is not None and await self.on_response(data):
                raise _Cut
            if self.mode == "cut":
                writer.write(data[: len(data) // 2])
                await writer.drain()
                raise _Cut
            writer.write(data)
            await writer.drain()
        raise _Cut

    async def _hold_up(self, connection: asyncio.Task[None]) -> None:
        if connection in self._dead or self.mode == "accept":
            await asyncio.Event().wait()
        if self.mode == "delay":
            await asyncio.sleep(self.delay)
        if self.mode == "refuse":
            raise _Cut


class _Cut(Exception):
    """Ends a connection that the proxy holds."""
