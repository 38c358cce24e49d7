"""Peers that take for ever, to send a request or to take an answer, are cut; others are served."""

import math
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPResponse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from config.serving import peers
from config.serving.peers import Peer, turn_away
from config.serving.worker import Worker
from core import unread
from tests.serving.conftest import long_poll, make_idle, tail
from tests.support import Server, wait_until

PATIENCE = {"PULLWAKE_PEER_TIMEOUT_S": 1}
HEAD = (
    "POST /_electric/runners/r1/heartbeat HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    "Electric-Principal: user:alice\r\nContent-Type: application/json\r\n"
)


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    """A peer with little room for an answer."""
    with closing(socket.socket()) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(("127.0.0.1", server.port))
        yield peer


def dripped(peer: socket.socket, drop: bytes) -> bytes:
    """What the server says until it closes, to a peer that sends a drop whenever it waits."""
    received, began = b"", time.monotonic()
    peer.settimeout(0.05)
    while time.monotonic() - began < 20:
        try:
            more = peer.recv(65536)
        except TimeoutError:
            peer.sendall(drop)
            continue
        except ConnectionResetError:
            return received
        if not more:
            return received
        received += more
    raise AssertionError("It is served for as long as it drips.")


@pytest.mark.parametrize(
    "framing", ["Content-Length: 100000\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"]
)
def test_a_body_that_drips_is_cut(servers, framing):
    server = servers.lend(**PATIENCE)
    server.client().register()
    drop = b" " if "Length" in framing else b"1\r\n \r\n"
    with connected(server) as peer:
        peer.sendall((HEAD + framing).encode())
        answer = dripped(peer, drop)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"INVALID_REQUEST" in answer
    assert "Traceback" not in server.log.read_text()


def test_a_body_that_began_with_the_request_before_it_is_cut(servers):
    """Its first bytes were there already, so that none is waited for before its time runs."""
    server = servers.lend(**PATIENCE)
    before = "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with connected(server) as peer:
        peer.sendall((before + HEAD + "Content-Length: 100000\r\n\r\n{").encode())
        answer = dripped(peer, b"")  # until it is closed, and not kept for another request
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 400 " in answer


@pytest.mark.parametrize("before", ["", "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"])
def test_a_head_that_drips_is_cut(servers, before):
    server = servers.lend(**PATIENCE)
    with connected(server) as peer:
        peer.sendall(before.encode() + b"GET /livez HTTP/1.1\r\nX-Long: ")
        answer = dripped(peer, b"x")
    assert answer.count(b"HTTP/1.1") == bool(before)
    assert "Traceback" not in server.log.read_text()


def test_each_request_of_a_connection_has_its_own_time(servers):
    server = servers.lend(**PATIENCE, PULLWAKE_LONG_POLL_MS=1500)
    offset = tail(make_idle(server.client()))
    with connected(server) as peer:
        for path in (long_poll(offset), long_poll(offset), "/livez"):
            peer.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode())
            assert server.client().get("/livez").status == 200  # the server has read that much
            peer.sendall(b"Electric-Principal: user:alice\r\n\r\n")
            answer = HTTPResponse(peer)
            answer.begin()
            answer.read()
        assert answer.status == 200


def ask_for_much(server: Server, peer: socket.socket) -> None:
    """Ask for a stream of several MiB as server-sent events."""
    api = server.client()
    api.make_entity(runner_id=None)
    for _ in range(3):
        api.send(payload="x" * 1_000_000)
    peer.sendall(
        b"GET /agent/e1/main?offset=-1&live=sse HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Electric-Principal: user:alice\r\n\r\n"
    )


def test_a_reader_that_does_not_read_is_cut(servers):
    server = servers.lend(**PATIENCE, PULLWAKE_MAX_STREAMS=1, PULLWAKE_LONG_POLL_MS=100)
    with connected(server) as peer:
        ask_for_much(server, peer)
        api = server.client()
        path = "/agent/e1/main?offset=now&live=long-poll"
        wait_until(lambda: api("HEAD", "/agent/e1/main").status == 200)
        assert api.get(path).status == 429
        # Its place is free again: what the server did for it is over.
        wait_until(lambda: api.get(path).status != 429)
        assert len(dripped(peer, b"")) < 3_000_000
    assert "Traceback" not in server.log.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for its connections")
def test_a_file_that_is_not_read_is_cut_and_is_no_error(servers):
    server = servers.lend(**PATIENCE)
    path = "/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"
    with connected(server) as peer:
        peer.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        wait_until(lambda: _is_closed(server, peer), what="the server to give up")
    assert "Traceback" not in server.log.read_text()


def _is_closed(server: Server, peer: socket.socket) -> bool:
    """Whether the server has closed its end, of which who does not read hears nothing (Linux)."""
    ports = f":{server.port:04X}", f":{peer.getsockname()[1]:04X}"
    ends = [line.split()[1:4] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return not any(
        here.endswith(ports[0]) and there.endswith(ports[1]) and state == "01"  # established
        for here, there, state in ends
    )


@pytest.mark.anew
def test_it_stops_in_time_though_peers_take_for_ever(start_server):
    server = start_server()
    with connected(server) as reader, connected(server) as head, connected(server) as body:
        ask_for_much(server, reader)
        head.sendall(b"GET /livez HTTP/1.1\r\n")
        body.sendall((HEAD + "Content-Length: 100000\r\n\r\n{").encode())
        assert server.client().get("/livez").status == 200
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert server.process.wait(30) == 0
        assert time.monotonic() - began < 2
    assert "Traceback" not in server.log.read_text()


def test_a_stop_waits_for_work_and_less_long_for_what_still_arrives():
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        peer = Peer(ours, 30)
        theirs.sendall(b"POST")
        peer.recv(4)
        arriving = threading.Thread(target=peer.recv, args=(1,))
        arriving.start()
        wait_until(lambda: peer.is_waited_for)
        worker: Any = SimpleNamespace(in_flight={"a": peer}, expected={"b"}, arrived_by=math.inf)
        assert not Worker._is_done(worker)
        worker.arrived_by = 0.0
        assert Worker._is_done(worker)
        theirs.sendall(b"!")
        arriving.join()
        assert not Worker._is_done(worker)


@pytest.mark.parametrize(
    "path", ["/agent/e1/main", "/_electric/shared-state/s1", "/_electric/entities/agent/e1/send"]
)
def test_bodies_that_drip_hold_no_connection_to_the_database(servers, path):
    server = servers.lend(PULLWAKE_DB_POOL=2)
    api = server.client()
    make_idle(api)
    api.share("s1")
    who = "Electric-Claim-Token: pww_unknown" if "shared" not in path else ""
    head = HEAD.replace("/_electric/runners/r1/heartbeat", path) + who
    with ExitStack() as open_:
        for _ in range(6):
            peer = open_.enter_context(connected(server))
            peer.sendall(f"{head.rstrip()}\r\nContent-Length: 1000\r\n\r\n{{".encode())
        for _ in range(6):
            assert server.client().get("/livez").status == 200  # the server has read that much
        assert api.post("/_electric/runners/r1/heartbeat", {}).status == 200
        assert api.get("/readyz").status == 200


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to look at packets")
def test_a_listener_that_is_to_close_takes_who_has_connected_and_nobody_more():
    """Else there is always one more, whom closing it resets with a request under way."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        address = listener.getsockname()
        with closing(socket.create_connection(address)) as before:
            turn_away(listener)
            with closing(socket.socket()) as late:
                late.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    late.connect(address)
            before.sendall(b"hello")
            accepted, _ = listener.accept()
            with closing(accepted):
                assert accepted.recv(5) == b"hello"
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
HEAD_OF_A_STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def peer_and_reader():
    """A peer, and the other end of its connection, which reads what has been sent."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(0)
        yield Peer(ours, 5), theirs


def test_the_head_of_an_answer_is_sent_with_its_body(peer_and_reader):
    peer, theirs = peer_and_reader
    peer.sendall(ANSWER)
    with pytest.raises(BlockingIOError):
        theirs.recv(1000)
    peer.sendall(b"{}")
    assert theirs.recv(1000) == ANSWER + b"{}"


def test_a_long_answer_comes_whole(peer_and_reader):
    peer, theirs = peer_and_reader
    theirs.settimeout(5)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n"
    body = bytes(range(250)) * 1200
    peer.sendall(head)
    sending = threading.Thread(target=peer.sendall, args=(body,))
    sending.start()
    received = b""
    while len(received) < len(head + body):
        received += theirs.recv(65536)
    sending.join()
    assert received == head + body


def test_who_does_not_read_must_go_soon_where_much_is_held(monkeypatch):
    """Many who take nothing of 8 MiB, each for half a minute, would fill the memory."""
    monkeypatch.setattr(unread, "MUCH", 1_000_000)
    monkeypatch.setattr(peers, "HURRIED_S", 0.05)
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        began = time.monotonic()
        with pytest.raises(ConnectionResetError):
            Peer(ours, 60).sendall(b"x" * 2_000_000)
        assert time.monotonic() - began < 30
    assert unread._bytes == 0


def test_a_head_that_no_body_follows_is_sent_once_it_is_answered(peer_and_reader):
    peer, theirs = peer_and_reader
    peer.sendall(ANSWER)
    peer.idle()
    assert theirs.recv(1000) == ANSWER


def test_the_head_of_a_stream_is_sent_at_once(peer_and_reader):
    peer, theirs = peer_and_reader
    peer.sendall(HEAD_OF_A_STREAM)
    assert theirs.recv(1000) == HEAD_OF_A_STREAM
