"""Probes and metrics of a runner, over HTTP: /livez, /readyz and /metrics."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

_PATIENCE = 5.0
"""Seconds for a request to arrive."""

Look = Callable[[], Mapping[str, Any]]
"""Gives the sixteen diagnostic fields, and `claims_active`."""

_METRICS = (
    ("pullwake_runner_connected", "gauge", "Whether the wake stream is being read.", "connected"),
    ("pullwake_runner_claims_active", "gauge", "Claims that are held now.", "claims_active"),
    ("pullwake_runner_events_total", "counter", "Wake events received.", "events_received"),
    ("pullwake_runner_claimed_total", "counter", "Claims that were granted.", "claims_succeeded"),
    ("pullwake_runner_skipped_total", "counter", "Claims with nothing to do.", "claims_skipped"),
    ("pullwake_runner_failed_total", "counter", "Claims that met an error.", "claims_failed"),
    (
        "pullwake_runner_reconnects_total",
        "counter",
        "Connections after the first.",
        "reconnect_count",
    ),
)


async def serve(look: Look, host: str | None, port: int) -> asyncio.Server:
    """Serve on this port, until the server is closed; all interfaces, if there is no `host`.

    Raises OSError for a port that cannot be had.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            async with asyncio.timeout(_PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_answer(head.split(b" ", 2), look()))
                await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, host, port, limit=16 * 1024)


def _answer(request: list[bytes], seen: Mapping[str, Any]) -> bytes:
    path = request[1].decode("latin-1").partition("?")[0]
    if request[0] not in (b"GET", b"HEAD"):
        status, body = "405 Method Not Allowed", "only GET\n"
    elif path == "/livez":
        status, body = "200 OK", "ok\n"
    elif path == "/readyz":
        problem = why_not_ready(seen)
        status, body = (
            ("503 Service Unavailable", f"{problem}\n") if problem else ("200 OK", "ok\n")
        )
    elif path == "/metrics":
        status, body = "200 OK", metrics(seen)
    else:
        status, body = "404 Not Found", "/livez, /readyz or /metrics\n"
    content = body.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if request[0] == b"HEAD" else content)


def why_not_ready(seen: Mapping[str, Any]) -> str | None:
    """What keeps the runner from taking work; None if nothing does."""
    if not seen["stream_connected"]:
        return f"it is {seen['status']}"
    if seen["last_heartbeat_ok"] is False:
        return "its last heartbeat failed"
    return None


def metrics(seen: Mapping[str, Any]) -> str:
    """In Prometheus's text format."""
    values = {**seen, "connected": int(seen["stream_connected"])}
    lines = []
    for name, kind, says, field in _METRICS:
        lines += [f"# HELP {name} {says}", f"# TYPE {name} {kind}", f"{name} {values[field]}"]
    return "\n".join(lines) + "\n"
