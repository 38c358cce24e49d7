"""The undocumented parts of gunicorn and gevent that `config.serving.worker` uses.

Of `GeventWorker`: the overridden init_process, handle_exit, handle_quit, handle, handle_request,
handle_error and run; the attributes alive, cfg, sockets and worker_connections; and notify. Of its
requests: version and headers. Of the socket that `handle` is given, gunicorn uses recv, sendall and
what a plain socket does alike. Of gevent's `StreamServer`: wrap_socket_and_handle, do_read,
do_handle, start_accepting and stop_accepting. Each has a test in
tests/serving/test_gunicorn_parts.py.
"""

import os
import time
from contextlib import suppress
from functools import partial
from typing import Any

from gevent import sleep
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.http.errors import ParseException
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

from config.serving.peers import keep_little, turn_away

__all__ = [
    "GeventWorker",
    "ParseException",
    "close_servers",
    "require_plain",
    "ssl_context",
    "start_servers",
]

HANDSHAKE_S = 0.05
"""Seconds that a peer which began to connect may take to have done so."""


def require_plain(req: Any) -> None:
    """Raise ParseException for a request that gunicorn takes, and RFC 9112 does not.

    It reads a body as it is in its chunks, whatever else was done to it before.
    """
    if req.version >= (1, 1) and not any(name == "HOST" for name, _ in req.headers):
        raise ParseException("it names no Host")
    for name, value in req.headers:
        if name == "TRANSFER-ENCODING" and value.lower() != "chunked":
            raise ParseException(f"no Transfer-Encoding but chunked is taken, not {value!r}")


class Server(StreamServer):  # type: ignore[misc]
    """gevent's server, with a deadline for the TLS handshake, and an end to accepting."""

    patience_s: float
    is_closing = False

    def start_accepting(self) -> None:
        """Accept, unless this closes: gevent begins again in the first round of its loop."""
        if not self.is_closing:
            super().start_accepting()

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> Any:
        """A connection over TLS."""
        client_socket.settimeout(self.patience_s)
        with suppress(TimeoutError):
            return super().wrap_socket_and_handle(client_socket, address)


class Listener:
    """What gunicorn asks of a connection's listener: its name, also once it is closed."""

    def __init__(self, socket: Any) -> None:
        self._name = socket.getsockname()

    def getsockname(self) -> Any:
        """Where the connection came in."""
        return self._name


def start_servers(worker: Any, patience_s: float) -> list[Server]:
    """A started server for each of the worker's sockets, as gunicorn's own worker makes them."""
    tls = {"ssl_context": ssl_context(worker.cfg)} if worker.cfg.is_ssl else {}
    servers = []
    for socket in worker.sockets:
        socket.setblocking(1)
        keep_little(socket)
        handle = partial(worker.handle, Listener(socket))
        server = Server(socket, handle=handle, spawn=Pool(worker.worker_connections), **tls)
        server.patience_s = patience_s
        if worker.cfg.workers > 1:
            server.max_accept = 1
        server.start()
        servers.append(server)
    return servers


def close_servers(servers: list[Server]) -> None:
    """Accept what has connected already, and then nobody: a refused client tries another server."""
    for server in servers:
        server.is_closing = True
        server.stop_accepting()
        turn_away(server.socket)
    deadline = time.monotonic() + HANDSHAKE_S
    while time.monotonic() < deadline:
        for server in servers:
            while accepted := server.do_read():
                server.do_handle(*accepted)
        sleep(0.001)
    for server in servers:
        # At once: gevent closes in the loop's next round, and resets whoever connects until then.
        os.close(server.socket.detach())
