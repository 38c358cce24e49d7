"""Each part of gunicorn that `config.serving.gunicorn_parts` names is there and does what it did.

And that what these parts are made into serves over TLS, which nothing else of ours looks at.
"""

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import httpx2
import pytest
from gevent.event import Event
from gevent.pool import Pool
from gunicorn.config import Config
from gunicorn.glogging import Logger

from config.serving.gunicorn_parts import (
    GeventWorker,
    ParseException,
    close_servers,
    ssl_context,
    start_servers,
)
from config.serving.gunicorn_parts import Server as ListeningServer
from config.serving.peers import let_in
from tests.support import ROOT, Database, Server


class Told(GeventWorker):  # type: ignore[misc]  # gunicorn ships no types
    """Notes what it is called with."""

    def __init__(self, *sockets: socket.socket, **settings: object) -> None:
        cfg = Config()
        for name, value in settings.items():
            cfg.set(name, value)
        super().__init__(1, os.getppid(), list(sockets), None, 30, cfg, Logger(cfg))
        self.calls: list[tuple[str, tuple[object, ...]]] = []

    def handle_request(self, *args: object) -> None:
        self.calls.append(("handle_request", args))

    def handle_error(self, *args: object) -> None:
        self.calls.append(("handle_error", args))


@pytest.fixture
def worker() -> Iterator[Callable[..., Told]]:
    """Make workers that never start: ``worker(socket, setting=value)``."""
    made: list[Told] = []

    def make(*sockets: socket.socket, **settings: object) -> Told:
        made.append(Told(*sockets, **settings))
        return made[-1]

    yield make
    for each in made:
        each.tmp.close()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def told_of(worker: Told, listener: socket.socket, sent: bytes) -> tuple[str, tuple[object, ...]]:
    """What a worker is called with when a connection brings this."""
    with socket.create_connection(listener.getsockname()) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        accepted, address = listener.accept()
        worker.handle(listener, accepted, address)
    (call,) = worker.calls
    return call


def test_handle_answers_a_request_by_handle_request(worker, listener):
    name, args = told_of(worker(listener), listener, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert name == "handle_request"
    listener_name, request, _, _ = args
    assert listener_name == listener.getsockname()
    assert getattr(request, "path", None) == "/livez"
    assert getattr(request, "version", None) == (1, 1)
    assert getattr(request, "headers", None) == [("HOST", "x")]


def test_handle_answers_what_is_no_request_by_handle_error(worker, listener):
    name, args = told_of(worker(listener), listener, b"no request\r\n\r\n")
    assert name == "handle_error"
    request, _, _, error = args
    assert request is None
    assert isinstance(error, ParseException)


def test_it_has_its_sockets_its_settings_and_how_many_it_may_take(worker, listener):
    made = worker(listener, worker_connections=17, workers=3, graceful_timeout=7)
    assert made.sockets == [listener]
    assert made.worker_connections == 17
    assert (made.cfg.workers, made.cfg.graceful_timeout) == (3, 7)
    assert not made.cfg.is_ssl
    assert made.alive is True


def test_who_has_connected_when_servers_close_is_taken():
    taken: list[object] = []

    def handle(_: object, address: object) -> None:
        taken.append(address)

    server = ListeningServer(("127.0.0.1", 0), handle=handle, spawn=Pool(2))
    server.start()
    address = server.address
    with (
        socket.create_connection(address) as first,
        socket.create_connection(address) as second,
    ):
        close_servers([server])
        server.pool.join()
        assert taken == [first.getsockname(), second.getsockname()]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_servers_that_close_as_they_start_accept_nothing_more(worker, capfd):
    """gevent began again in the loop's next round, on a socket by then closed here alone."""
    with gevent.socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with gevent.socket.socket(fileno=os.dup(listening.fileno())) as another_workers:
            servers = start_servers(worker(listening, worker_connections=10), 1.0)
            close_servers(servers)
            let_in(another_workers)
            with socket.create_connection(another_workers.getsockname()):
                gevent.socket.wait_read(another_workers.fileno())
                another_workers.accept()[0].close()
                gevent.sleep()  # whoever else was told of the connection looks for it
    assert capfd.readouterr().err == ""


def test_a_connection_that_begins_once_nobody_listens_has_come_in_somewhere(worker):
    """On a busy machine it began so late, and ended with an error about a bad descriptor."""
    with gevent.socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = listening.getsockname()
        made = worker(listening, worker_connections=10)
        closed, names = Event(), []

        def handle(listener: Any, client: Any, _: Any) -> None:
            closed.wait()
            names.append(listener.getsockname())
            client.close()

        made.handle = handle
        servers = start_servers(made, 1.0)
        with socket.create_connection(address):
            close_servers(servers)
            closed.set()
            servers[0].pool.join()
    assert names == [address]


def test_notify_tells_the_master_that_it_lives(worker):
    made = worker()
    os.utime(made.tmp.fileno(), (1, 1))
    assert made.tmp.last_update() == 1
    made.notify()
    assert made.tmp.last_update() > 1


# --- In a process of its own, as gevent patches all that there is --------------------------------

LIFE = """
import os, signal, gevent
from gunicorn.config import Config
from gunicorn.glogging import Logger
from config.serving.gunicorn_parts import GeventWorker

class Worker(GeventWorker):
    def init_process(self):
        print("init_process")
        super().init_process()

    def load_wsgi(self):
        print("Django is set up")

    def handle_quit(self, sig, frame):
        print("handle_quit", signal.Signals(sig).name)

    def handle_exit(self, sig, frame):
        super().handle_exit(sig, frame)
        print("handle_exit", signal.Signals(sig).name, self.alive)

    def run(self):
        print("run", self.alive)
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            gevent.sleep(0.05)

cfg = Config()
cfg.set("post_worker_init", lambda worker: print("post_worker_init"))
Worker(1, os.getppid(), [], None, 30, cfg, Logger(cfg)).init_process()
"""


@pytest.fixture(scope="module")
def life():
    """What a worker is called with from its start to its end, a line each."""
    done = subprocess.run(
        [sys.executable, "-c", LIFE], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.server
def test_init_process_comes_first_and_run_last_once_django_is_set_up(life):
    assert life[:4] == ["init_process", "Django is set up", "post_worker_init", "run True"]


def test_sigint_and_sigquit_are_handle_quit(life):
    assert life[4:6] == ["handle_quit SIGINT", "handle_quit SIGQUIT"]


def test_sigterm_is_handle_exit_which_ends_its_life(life):
    assert life[6:] == ["handle_exit SIGTERM False"]


def test_what_is_imported_before_gevent_patches_knows_no_django():
    found = "import sys, config.serving.worker; print('django' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", found], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "False\n", done.stderr


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    folder: Path = tmp_path_factory.mktemp("tls")
    made, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", made),
        ],
        check=True,
        capture_output=True,
    )
    return made, key


def test_ssl_context_has_the_certificate(worker, certificate):
    made, key = certificate
    settings = worker(certfile=str(made), keyfile=str(key)).cfg
    assert settings.is_ssl
    context = ssl_context(settings)
    assert isinstance(context, ssl.SSLContext)


def test_it_serves_over_tls_and_not_in_plain_http(certificate, database: Database, tmp_path: Path):
    made, key = certificate
    arguments = f"--certfile {made} --keyfile {key}"
    trusted = ssl.create_default_context(cafile=made)
    env = {"GUNICORN_CMD_ARGS": arguments, "PULLWAKE_PEER_TIMEOUT_S": "1"}
    server = Server(database.url, tmp_path / "server.log", env, tls=trusted)
    try:
        server.start()
        assert server.url.startswith("https://")
        answer = httpx2.get(f"{server.url}/livez", verify=trusted)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f"{server.url.replace('https', 'http')}/livez")
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as silent:
            assert silent.recv(1) == b""  # who does not shake hands is cut
        assert server.stop() < 2
    finally:
        server.close()
