"""The gunicorn worker: gevent's, with a quick stop that answers held requests.

Nothing of Django is imported here: it is set up after gevent has replaced Python's blocking parts;
otherwise database drivers would block the whole process while they wait.
"""

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gevent import Timeout, sleep
from gevent.event import Event

from config.serving.gunicorn_parts import (
    GeventWorker,
    ParseException,
    close_servers,
    require_plain,
    start_servers,
)
from config.serving.peers import Peer, let_in
from core.errors import InvalidRequest

if TYPE_CHECKING:
    from config.serving.process import Process


FINISH_S = 1.3
"""Seconds that requests have to come and finish in; one may wait for a lock for longer.

The rest of the two that a stop may take is for what comes before and after, on a busy machine.
"""

FINISH_DRAINED_S = 4.5
"""The same after a drain, for which somebody waits anyway: longer than for a lock, by default."""

ARRIVE_S = 1.0
"""Seconds of these that a request has to arrive in: nothing is lost with one that has not."""

FLUSH_S = 1.0
"""Seconds that the last spans and errors have to be sent in, where any are."""


class Worker(GeventWorker):  # type: ignore[misc]
    """Serves until SIGTERM, and on for PULLWAKE_DRAIN_S, while proxies see that it is not ready.

    Then held requests are answered, those in flight finish, and it exits. From SIGTERM on each
    answer is its connection's last. gunicorn's own worker waits for idle keep-alive connections,
    too, and checks once a second.
    """

    process: "Process"
    """Set once Django is set up, by gunicorn.conf.py."""

    def init_process(self) -> None:
        """Prepare, then serve."""
        self.in_flight: dict[Any, Peer] = {}
        self.expected: set[Any] = set()
        self.stopping: Event | None = None
        self.hurried = Event()
        super().init_process()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM."""
        super().handle_exit(sig, frame)
        if self.stopping is not None:
            self.stopping.set()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGINT and SIGQUIT: the same without a drain, since Ctrl-C reaches worker and master."""
        self.hurried.set()
        self.handle_exit(sig, frame)

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """One connection, whose peer has deadlines.

        Its first request is expected at once: proxies connect when they have one.
        """
        peer = Peer(client, self.process.peer_timeout_s)
        self.expected.add(peer)
        try:
            super().handle(listener, peer, addr)
        finally:
            self.expected.discard(peer)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        """One request, counted while it is in flight."""
        self.expected.discard(sock)
        require_plain(req)
        sock.begin()
        self.in_flight[req] = sock
        try:
            return super().handle_request(listener_name, req, sock, addr)
        finally:
            del self.in_flight[req]
            sock.idle()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what never became a request with an error in the contract's shape, and close."""
        error: BaseException = exc
        if isinstance(exc, ParseException):
            error = InvalidRequest(f"The request is not HTTP that this server takes: {exc}.")
        response = self.process.answer(error)
        head = (
            f"HTTP/1.1 {response.status_code} {response.reason_phrase}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(response.content)}\r\n\r\n"
        )
        with suppress(OSError):
            client.sendall(head.encode() + response.content)

    def run(self) -> None:
        """Serve until stopped."""
        self.stopping = Event()
        servers = start_servers(self, self.process.peer_timeout_s)
        while self.alive:
            self.notify()
            for server in servers:
                let_in(server.socket)
            self.stopping.wait(timeout=0.5)
        for req in self.in_flight:
            req.force_close()
        drain_s = self.process.drain()
        self._notify_until(time.monotonic() + drain_s, self.hurried.is_set)
        close_servers(servers)
        self.process.stop()
        finish_s = FINISH_DRAINED_S if drain_s and not self.hurried.is_set() else FINISH_S
        self.arrived_by = time.monotonic() + ARRIVE_S
        self._notify_until(time.monotonic() + finish_s, self._is_done)
        with Timeout(FLUSH_S, False):
            self.process.flush()
        logging.shutdown()
        # Python would dismantle everything that it has imported, for most of a second.
        os._exit(0)

    def _is_done(self) -> bool:
        if time.monotonic() > self.arrived_by:
            return all(peer.is_waited_for for peer in self.in_flight.values())
        return not self.in_flight and not self.expected

    def _notify_until(self, deadline: float, over: Callable[[], bool]) -> None:
        """Go on serving, and keep the master informed, until then or until it is over."""
        while time.monotonic() < deadline:
            self.notify()
            # First, for whom it took last is not known before.
            sleep(0.01)
            if over():
                return
