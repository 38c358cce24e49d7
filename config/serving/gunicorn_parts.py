"""The parts of gunicorn that `config.serving.worker` uses and that no documentation promises.

Of `GeventWorker`: the overridden init_process, handle, handle_exit, handle_quit, handle_request,
handle_error and run; the attributes alive, cfg, sockets and worker_connections; and notify, handle.
Of gevent's `StreamServer`: do_read, do_handle and stop_accepting. Each has a test in
tests/serving/test_gunicorn_parts.py.
"""

import os
from functools import partial
from typing import Any

from gevent import sleep
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.http.errors import ParseException
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

__all__ = ["GeventWorker", "ParseException", "close_servers", "ssl_context", "start_servers"]


def start_servers(worker: Any) -> list[StreamServer]:
    """A started server for each of the worker's sockets, as gunicorn's own worker makes them."""
    tls = {"ssl_context": ssl_context(worker.cfg)} if worker.cfg.is_ssl else {}
    servers = []
    for socket in worker.sockets:
        socket.setblocking(1)
        handle = partial(worker.handle, socket)
        server = StreamServer(socket, handle=handle, spawn=Pool(worker.worker_connections), **tls)
        if worker.cfg.workers > 1:
            server.max_accept = 1
        server.start()
        servers.append(server)
    return servers


def close_servers(servers: list[StreamServer]) -> None:
    """Take what has connected already, and then nobody: who is refused tries another server."""
    for server in servers:
        server.stop_accepting()
        # Each begins while the listener is there, whose name gunicorn asks for.
        sleep(0)
        while accepted := server.do_read():
            server.do_handle(*accepted)
            sleep(0)
        # At once: gevent closes in the loop's next round, and resets who connects until then.
        os.close(server.socket.detach())
