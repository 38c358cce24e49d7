"""The calls behind the commands for people."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from .api import START
from .backoff import Backoff
from .clock import Clock
from .errors import RunnerError, ServerRefused
from .profiles import Connection
from .timing import Timing
from .transport import Answer, Transport

PAGE = 1000
"""Rows of a list in one answer."""

_RETRY_LONGEST = 5.0
"""Seconds between tries to go on following."""


class Client:
    """Calls to one server. All raise what `Transport.call` raises.

    What follows something goes on when the server is back: `interrupted` hears of the first of the
    errors in a row.
    """

    def __init__(
        self,
        transport: Transport,
        timing: Timing,
        interrupted: Callable[[RunnerError], None] = lambda error: None,
    ) -> None:
        self._transport = transport
        self._timing = timing
        self._interrupted = interrupted

    async def call(
        self, method: str, path: str, body: object = None, query: Mapping[str, str] | None = None
    ) -> Answer:
        """One call."""
        return await self._transport.call(
            method,
            self._transport.url(path),
            json_body=body,
            params=query,
            deadline=self._timing.request_timeout,
        )

    async def rows(self, path: str, query: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
        """The rows of a list, a page at a time."""
        page: Mapping[str, str] | None = {**query, "limit": str(PAGE)}
        while page is not None:
            answer = await self.call("GET", path, query=page)
            for row in answer.array():
                if isinstance(row, dict):
                    yield row
            page = _next(answer)

    async def follow(
        self, entity: str, after: str = START, *, live: bool = True
    ) -> AsyncIterator[dict[str, Any]]:
        """The events of an entity's stream, and then those to come, until it is closed."""
        async for event in self._events(f"{entity}/main", {}, after, live=live):
            yield event

    async def changes(self, feed: str, query: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
        """The rows of a feed, `runners` or `entities`, and then what changes of them, for ever."""
        path = f"/_electric/feeds/{feed}"
        async for event in self._events(path, query, START, live=True):
            yield event

    async def _events(
        self, path: str, query: Mapping[str, str], after: str, *, live: bool
    ) -> AsyncIterator[dict[str, Any]]:
        waits = False
        while True:
            place = {"offset": after, **({"live": "long-poll"} if waits else {})}
            answer = await self._read(path, {**query, **place}, insists=waits)
            for event in answer.array() if answer.status != 204 else []:
                if isinstance(event, dict):
                    yield event
            end = answer.headers.get("stream-next-offset", after)
            at_end = answer.says("stream-up-to-date") or end == after
            if answer.says("stream-closed"):
                return
            if at_end and not live:
                return
            after, waits = end, at_end

    async def _read(self, path: str, query: Mapping[str, str], *, insists: bool) -> Answer:
        """One read of a stream. One that `insists` waits for a server that restarts."""
        backoff = Backoff(self._timing, longest=_RETRY_LONGEST)
        told = False
        while True:
            try:
                return await self._transport.call(
                    "GET",
                    self._transport.url(path),
                    params=query,
                    deadline=self._timing.long_poll_deadline,
                )
            except RunnerError as error:
                refused = isinstance(error, ServerRefused) and error.status == 401
                if not insists or not error.transient or refused:
                    raise
                if not told:
                    self._interrupted(error)
                told = True
                await asyncio.sleep(backoff.next(error.retry_after))


@asynccontextmanager
async def connected(
    connection: Connection, interrupted: Callable[[RunnerError], None] = lambda error: None
) -> AsyncIterator[Client]:
    """A client, for as long as the block."""
    transport = Transport(connection.url, connection.headers, Clock())
    try:
        yield Client(transport, Timing(), interrupted)
    finally:
        await transport.aclose()


def entity_path(name: str) -> str:
    """`agent/hello` or `/agent/hello`, as it is in a URL. Raises ValueError for anything else."""
    parts = name.strip("/").split("/")
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"not an entity, TYPE/ID such as agent/hello: {name!r}")
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _next(answer: Answer) -> dict[str, str] | None:
    """The query of the page that the Link header names."""
    target, _, rel = answer.headers.get("link", "").partition(">")
    if 'rel="next"' not in rel:
        return None
    query = parse_qs(urlsplit(target.removeprefix("<")).query)
    return {name: values[0] for name, values in query.items()}
