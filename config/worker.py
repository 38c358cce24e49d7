"""The gunicorn worker: gevent's, that stops at once and answers what it holds."""

import gc
import logging
import os
import time
from contextlib import suppress
from functools import partial
from typing import Any

from gevent import sleep
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.workers.ggevent import GeventWorker


class Worker(GeventWorker):  # type: ignore[misc]
    """Serves until SIGTERM; then held requests are answered, those in flight finish, and it exits.

    gunicorn's own waits for idle keep-alive connections too, and looks once a second.
    """

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
        from config.errors import error_response, translate  # Django is set up by now

        response = error_response(translate(exc))
        head = (
            f"HTTP/1.1 {response.status_code} {response.reason_phrase}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(response.content)}\r\n\r\n"
        )
        with suppress(OSError):
            client.sendall(head.encode() + response.content)

    def run(self) -> None:
        """Serve until stopped."""
        from django.conf import settings
        from django.db import connection

        from claims.reaper import Housekeeper  # Django is set up by now
        from dispatch.streams.waiters import hub

        # What was loaded stays, and requests leave no garbage: little is left to collect, and each
        # full collection would go through all that ten thousand held requests hold.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 10, 100)
        if settings.SQLITE:
            # When the last connection closes, SQLite syncs the disk four times (a heartbeat: 2.0 ms
            # rather than 0.95 ms, seconds on a busy disk): one stays open.
            connection.ensure_connection()
        self.stopping = Event()
        servers = [self._serve(each) for each in self.sockets]
        housekeeper = Housekeeper()
        housekeeper.start()
        while self.alive:
            self.notify()
            self.stopping.wait(timeout=0.5)
        housekeeper.stop()
        for server in servers:
            server.close()
        hub.close()
        deadline = time.monotonic() + self.cfg.graceful_timeout
        while self.in_flight and time.monotonic() < deadline:
            self.notify()
            sleep(0.01)
        logging.shutdown()
        # Python would take apart all that it has imported, for most of a second.
        os._exit(0)

    def _serve(self, socket: Any) -> StreamServer:
        socket.setblocking(1)
        server = StreamServer(
            socket, handle=partial(self.handle, socket), spawn=Pool(self.worker_connections)
        )
        if self.cfg.workers > 1:
            server.max_accept = 1
        server.start()
        return server
