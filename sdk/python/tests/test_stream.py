"""How often a wake stream is asked, in virtual time and without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from pullwake.stream import Batch, Live, WakeStream
from pullwake.testing import offset
from pullwake.timing import Timing
from pullwake.transport import Answer, Transport
from virtual import VirtualClock, virtual

WAKE = b'[{"type": "wake", "stream": "chat/1/main"}]'


class Server:
    """Answers every read at once, whatever was asked for."""

    def __init__(self, *, wakes: bool, moves_on: bool, at_end: str = "true") -> None:
        self.asked = 0
        self.at_end = at_end
        self.wakes = wakes
        self.moves_on = moves_on

    def url(self, path: str) -> str:
        return path

    def _offset(self) -> str:
        self.asked += 1
        return offset(1 + self.asked if self.moves_on else 1)

    async def call(self, *_: object, **__: object) -> Answer:
        headers = {"stream-next-offset": self._offset(), "stream-up-to-date": self.at_end}
        return Answer(200, headers, WAKE if self.wakes else b"[]", 0.0)

    @asynccontextmanager
    async def events(self, *_: object, **__: object) -> AsyncIterator[Any]:
        control = f'{{"streamNextOffset": "{self._offset()}", "upToDate": true}}'

        async def events() -> AsyncIterator[Event]:
            if self.wakes:
                yield Event("data", WAKE.decode())
            yield Event("control", control)

        yield events()


class Event:
    def __init__(self, event: str, data: str) -> None:
        self.event = event
        self.data = data


async def follow(server: Server, live: Live, seconds: float, *, up_to_date: bool = True) -> int:
    """How many batches came in so many seconds, or a thousand."""
    transport = cast(Transport, server)
    stream = WakeStream(transport, live, offset(1), Timing(), VirtualClock())
    first = Batch(up_to_date=True) if up_to_date else Batch(offset=offset(0))
    count = 0

    async def read() -> None:
        nonlocal count
        async for _ in stream.follow(first):
            count += 1
            if count == 1000:
                return
            await asyncio.sleep(0)

    reading = asyncio.create_task(read())
    await asyncio.wait({reading}, timeout=seconds)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    return count


@virtual
@pytest.mark.parametrize("live", ["long-poll", "sse"])
@pytest.mark.parametrize(
    ("wakes", "moves_on"),
    [(False, False), (True, False), (False, True)],
    ids=["nothing", "the-same-wakes", "nothing-further-on"],
)
async def test_a_server_that_never_waits_is_not_hammered(
    live: Live, wakes: bool, moves_on: bool
) -> None:
    """Neither with nothing to say, nor with the same wakes again and again, nor with nothing at an
    offset that grows."""
    server = Server(wakes=wakes, moves_on=moves_on)
    await follow(server, live, 60)
    assert 60 <= server.asked <= 70


@virtual
async def test_nor_is_one_that_never_says_that_it_is_at_its_end() -> None:
    server = Server(wakes=False, moves_on=True, at_end="false")
    await follow(server, "long-poll", 60, up_to_date=False)
    assert 60 <= server.asked <= 70


@virtual
@pytest.mark.parametrize("live", ["long-poll", "sse"])
async def test_what_moves_on_is_read_as_fast_as_it_comes(live: Live) -> None:
    server = Server(wakes=True, moves_on=True)
    assert await follow(server, live, 0.001) == 1000
