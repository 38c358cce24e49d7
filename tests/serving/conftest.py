"""Requests that a server holds."""

from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import msgspec
import pytest

from tests.support import JSON, HttpApi, Server

PRINCIPAL = {"Electric-Principal": "user:alice"}


class Held:
    """A request that has been sent, and whose answer is read when the test wants it."""

    def __init__(
        self, server: Server, path: str, body: bytes | None = None, **headers: str
    ) -> None:
        self.connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            named.setdefault("Content-Type", JSON)
        method = "GET" if body is None else "POST"
        if body is not None:
            named.setdefault("Content-Type", "application/json")
        self.connection.request(method, path, body, {**PRINCIPAL, **named})

    def answer(self) -> tuple[int, Any, Any]:
        """Its status, headers and JSON body, None without one."""
        response = self.connection.getresponse()
        content = response.read()
        return response.status, response.headers, msgspec.json.decode(content) if content else None

    def lines(self) -> Iterator[str]:
        """The lines of its body, as they come."""
        response = self.connection.getresponse()
        assert response.status == 200
        for line in response:
            yield line.decode().rstrip("\n")


@pytest.fixture
def hold() -> Iterator[Callable[..., Held]]:
    """Send requests that the test reads later: ``hold(server, path)``."""
    requests: list[Held] = []

    def send(*args: Any, **headers: Any) -> Held:
        requests.append(Held(*args, **headers))
        return requests[-1]

    yield send
    for each in requests:
        each.connection.close()


def make_idle(api: HttpApi) -> HttpApi:
    """Runner r1 and an entity of it without work."""
    api.register()
    api.make_entity()
    return api


def tail(api: HttpApi, path: str = "/runners/r1/wake") -> str:
    """The offset of the newest event of a stream.

    A server reads requests in the order they came; after some of these, one that was sent before
    them waits for news.
    """
    for _ in range(5):
        offset: str = api("HEAD", path).headers["Stream-Next-Offset"]
    return offset


def long_poll(offset: str, runner_id: str = "r1") -> str:
    """The address of a long-poll of a wake stream."""
    return f"/runners/{runner_id}/wake?offset={offset}&live=long-poll"
