"""Stopping a server: what is held is answered, what is in flight finishes, nothing is lost."""

import os
import signal
import socket
import time
from collections.abc import Callable

import pytest

from tests.serving.conftest import Held, long_poll, make_idle, tail
from tests.support import Server, wait_until

pytestmark = pytest.mark.anew

SOON_S = 2.0


def stop(server: Server, how: str) -> float:
    """Stop it as an init system or as a terminal would: how many seconds it took."""
    assert server.process is not None
    began = time.monotonic()
    if how == "Ctrl-C":
        os.killpg(server.process.pid, signal.SIGINT)
    else:
        server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    return time.monotonic() - began


@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
def test_it_answers_what_it_holds_and_is_gone(how: str, mortal: Server, hold: Callable[..., Held]):
    server = mortal
    api = make_idle(server.client())
    offset = tail(api)
    polls = [hold(server, long_poll(offset)) for _ in range(3)]
    events = hold(server, f"/runners/r1/wake?offset={offset}&live=sse").lines()
    assert next(events) == "event: control"
    tail(api)
    assert stop(server, how) < SOON_S
    for poll in polls:
        status, headers, _ = poll.answer()
        assert status == 204
        assert headers["Stream-Next-Offset"] == offset
        assert headers["Stream-Up-To-Date"] == "true"
    assert "data" not in "".join(list(events)[1:])  # it came to its end, and not to an error
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
def test_it_is_gone_when_nobody_asks_anything(how: str, mortal: Server):
    # An idle keep-alive connection is nobody.
    make_idle(mortal.client())
    assert stop(mortal, how) < SOON_S
    assert "Traceback" not in mortal.log.read_text()


@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
def test_it_finds_everything_again(how: str, mortal: Server):
    api = make_idle(mortal.client())
    api.send(payload="first")
    claim = api.claim()
    token = claim.mint()
    api.send(payload="second")
    events = api.events()
    stop(mortal, how)
    mortal.start()
    assert api.events() == events
    assert api.status() == "running"
    assert claim.append({"type": "line"}, token=token).status == 204
    assert claim.done().body == {"ok": True, "next_wake": True, "entity_cleared": True}
    assert [event["generation"] for event in api.wakes()] == [2]


@pytest.mark.postgres
def test_it_finishes_what_is_in_flight(mortal: Server, hold: Callable[..., Held]):
    server, database = mortal, mortal.database
    make_idle(server.client())
    with database.hold("LOCK TABLE dispatch_streamevent IN EXCLUSIVE MODE"):
        send = hold(server, "/_electric/entities/agent/e1/send", b'{"payload": 1}')
        wait_until(database.waiting)
        assert server.process is not None
        server.process.terminate()
        # It takes no more: so it has heard, and still waits for what it began.
        wait_until(lambda: not listens(server))
    status, _, body = send.answer()
    assert status == 200
    assert set(body) == {"txid"}
    assert server.process.wait(10) == 0
    assert database.execute("SELECT count(*) FROM dispatch_wake") == [(1,)]


def listens(server: Server) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.port)) == 0


@pytest.mark.postgres
def test_two_workers_stop_as_one(start_server: Callable[..., Server], hold: Callable[..., Held]):
    server = start_server(WEB_CONCURRENCY=2)
    offset = tail(make_idle(server.client()))
    polls = [hold(server, long_poll(offset)) for _ in range(8)]
    tail(server.client())
    assert stop(server, "Ctrl-C") < SOON_S
    assert [poll.answer()[0] for poll in polls] == [204] * 8
    assert "Traceback" not in server.log.read_text()


def test_it_drains_before_it_stops(start_server: Callable[..., Server], hold: Callable[..., Held]):
    """Proxies see that it is not ready, and meanwhile whoever comes is served, and sent away."""
    server = start_server(PULLWAKE_DRAIN_S=3)
    api = make_idle(server.client())
    offset = tail(api)
    poll = hold(server, long_poll(offset))
    tail(api)
    assert server.process is not None
    began = time.monotonic()
    server.process.terminate()
    wait_until(lambda: api.get("/readyz").status == 503)
    answer = api.get("/livez")
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    assert api.get("/readyz").headers["Retry-After"]
    # What is held is still told of a wake, and that its connection is over.
    api.send()
    status, headers, body = poll.answer()
    assert (status, len(body), headers["Connection"]) == (200, 1, "close")
    assert server.process.wait(10) == 0
    assert 3 <= time.monotonic() - began < 3 + SOON_S
    assert "Traceback" not in server.log.read_text()


@pytest.mark.postgres
def test_it_is_gone_though_a_request_waits_for_a_lock(mortal: Server, hold: Callable[..., Held]):
    server, database = mortal, mortal.database
    make_idle(server.client())
    with database.hold("SELECT FROM dispatch_dispatchstate FOR UPDATE"):
        hold(server, "/_electric/entities/agent/e1/send", b'{"payload": 1}')
        wait_until(database.waiting)
        assert stop(server, "SIGTERM") < SOON_S
