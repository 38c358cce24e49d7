"""The gunicorn worker: gevent's, that stops at once and answers what it holds."""

import logging
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gevent import sleep
from gevent.event import Event

from config.serving.gunicorn_parts import GeventWorker, ParseException, start_servers
from core.errors import InvalidRequest

if TYPE_CHECKING:
    from config.serving.process import Process


class Worker(GeventWorker):  # type: ignore[misc]
    """Serves until SIGTERM; then held requests are answered, those in flight finish, and it exits.

    gunicorn's own waits for idle keep-alive connections too, and looks once a second.
    """

    process: "Process"
    """Set once Django is set up, by gunicorn.conf.py."""

    def init_process(self) -> None:
        """Prepare, then serve."""
        self.in_flight = 0
        self.stopping: Event | None = None
        super().init_process()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM."""
        super().handle_exit(sig, frame)
        if self.stopping is not None:
            self.stopping.set()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGINT and SIGQUIT: the same, as Ctrl-C reaches the worker as well as its master."""
        self.handle_exit(sig, frame)

    def handle_request(self, *args: Any) -> Any:
        """One request, counted while it is in flight."""
        self.in_flight += 1
        try:
            return super().handle_request(*args)
        finally:
            self.in_flight -= 1

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what never became a request in the one shape of errors, and close."""
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
        servers = start_servers(self)
        while self.alive:
            self.notify()
            self.stopping.wait(timeout=0.5)
        for server in servers:
            server.close()
        self.process.stop()
        deadline = time.monotonic() + self.cfg.graceful_timeout
        while self.in_flight and time.monotonic() < deadline:
            self.notify()
            sleep(0.01)
        logging.shutdown()
        # Python would take apart all that it has imported, for most of a second.
        os._exit(0)
