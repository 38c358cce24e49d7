"""How gunicorn serves Pullwake; `manage.py serve` starts it with this."""

import mmap
import os
import resource
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import environ

env = environ.Env()

_host = env.str("HOST", "127.0.0.1").strip("[]")
bind = f"{f'[{_host}]' if ':' in _host else _host}:{env.int('PORT', 8000)}"
# SQLite has one writer, and its waiters hear about each other only within a process.
workers = env.int("WEB_CONCURRENCY", 2) if env.str("DATABASE_URL", "").startswith("postgres") else 1
worker_class = "config.serving.worker.Worker"
# Each held long-poll is a connection.
worker_connections = 20_000
keepalive = 75
# The id of a shared state has up to 512 characters, which are up to 6 KiB where they are quoted.
limit_request_line = 8190
# All is sent by `peers.Peer.sendall`; gevent's own would only do the same, without its deadlines.
sendfile = False
timeout = 30
# The master waits for its workers' drain, and for what they finish after it.
graceful_timeout = 6 + env.int("PULLWAKE_DRAIN_S", 0)
control_socket_disable = True
# A header must not move the admin to another path.
forwarder_headers = ""
accesslog = None
loglevel = "warning"

# A connection is a file descriptor: take as many as the system grants.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (_hard, _hard))

# Where the workers keep their counters, so that any of them can report all of them. Created here,
# since prometheus-client looks for it when it is imported.
_prefix = f"pullwake-metrics-{os.getpid()}-"
_counted = Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""))
if not _counted.name.startswith(_prefix):  # else this is read again, after a SIGHUP
    _counted = Path(tempfile.mkdtemp(prefix=_prefix))
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(_counted)


def child_exit(server: Any, worker: Any) -> None:
    """Forget what an ended worker reported about its present; its counters stay.

    Like prometheus-client's mark_process_dead, which is not imported here: the master, from which
    the next worker is forked, is not patched by gevent.
    """
    for path in _counted.glob(f"gauge_live*_{worker.pid}.db"):
        with suppress(FileNotFoundError):
            path.unlink()


def on_exit(server: Any) -> None:
    """Remove the counters."""
    shutil.rmtree(_counted, ignore_errors=True)


_ready = mmap.mmap(-1, workers)
"""Which of the first workers are ready: they share it, since it is made before they are forked."""
_TOGETHER_S = 5.0
"""How long they wait for each other: one may be slow, or have ended."""


def post_worker_init(worker: Any) -> None:
    """Start what a server does besides answering, once Django is set up; then let callers in.

    The first workers do so together: of runners that wait to come back, the first to be ready would
    have all connections for as long as they last.
    """
    from config.serving import process

    worker.process = process.Process()
    worker.process.start()
    if worker.age <= workers:
        _ready[worker.age - 1] = 1
        deadline = time.monotonic() + _TOGETHER_S
        while 0 in _ready[:] and worker.alive and time.monotonic() < deadline:
            time.sleep(0.01)
