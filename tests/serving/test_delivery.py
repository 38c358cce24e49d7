"""How soon a wake reaches a reader that waits for it, and by which ways."""

import secrets
import statistics
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.serving.conftest import Held, long_poll, make_idle, tail
from tests.support import Database, HttpApi, Server, Servers, wait_until

Hold = Callable[..., Held]

ROUNDS = 20
SOON_S = 0.05
LONG_POLL_S = 30.0
"""The default of PULLWAKE_LONG_POLL_MS."""


def assert_soon(hold: Hold, reading: Server, sender: HttpApi) -> None:
    """A reader that waits is told within `SOON_S` of a send's answer.

    Or, where the machine is so busy that it says nothing, within four requests' time.
    """
    delays, requests = [], []
    reader = reading.client()
    for _ in range(ROUNDS):
        held = hold(reading, long_poll(tail(sender)))
        tail(reader)
        began = time.monotonic()
        assert reader("HEAD", "/runners/r1/wake").status == 200
        requests.append(time.monotonic() - began)
        sender.send()
        sent = time.monotonic()
        status, _, body = held.answer()
        delays.append(time.monotonic() - sent)
        assert (status, len(body)) == (200, 1)
        held.connection.close()
        sender.claim().done()
    assert statistics.median(delays) < max(SOON_S, 4 * statistics.median(requests)), delays


def test_it_delivers_a_wake_within_50_ms_of_the_send(server: Server, hold: Hold):
    assert_soon(hold, server, make_idle(server.client()))


@pytest.mark.postgres
def test_it_delivers_what_another_server_took(servers: Servers, hold: Hold):
    one, other = servers.lend_some(2)
    assert_soon(hold, one, make_idle(other.client()))


@pytest.mark.postgres
def test_it_announces_again_after_its_announcer_was_killed(
    start_server: Callable[..., Server], database: Database, hold: Hold
):
    reading, sending = start_server(), start_server()
    api = make_idle(sending.client())
    announcing = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND query ~ '^SELECT pg_notify'"
    )
    ((announcer,),) = wait_until(lambda: database.execute(announcing))
    database.execute("SELECT pg_terminate_backend(%s)", announcer)
    held = hold(reading, long_poll(tail(api)))
    api.send()  # what this one announces is lost with the connection, and found by a sweep
    assert held.answer()[0] == 200
    api.claim().done()
    assert_soon(hold, reading, api)


def listeners(database: Database) -> list[Any]:
    """The process ids of the connections that listen."""
    found = database.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND state = 'idle' AND query IN ('LISTEN pullwake', 'SELECT 1')"
    )
    return [pid for (pid,) in found]


@pytest.mark.postgres
def test_it_delivers_after_its_listener_was_killed(server: Server, hold: Hold):
    api, database = make_idle(server.client()), server.database
    held = hold(server, long_poll(tail(api)))
    (listener,) = wait_until(lambda: listeners(database))
    database.execute("SELECT pg_terminate_backend(%s)", listener)
    # Until it listens again nobody hears; what was sent meanwhile is found when it does.
    began = time.monotonic()
    api.send()
    status, _, body = held.answer()
    assert (status, len(body)) == (200, 1)
    assert time.monotonic() - began < LONG_POLL_S / 2
    api.claim().done()
    wait_until(lambda: listeners(database) not in ([], [listener]))
    assert_soon(hold, server, api)


@pytest.mark.postgres
def test_it_listens_at_the_address_that_is_for_that(
    start_server: Callable[..., Server], database: Database, hold: Hold
):
    url = f"{database.url}?application_name=for_listening"
    server = start_server(PULLWAKE_LISTEN_URL=url)
    assert_soon(hold, server, make_idle(server.client()))
    named = "SELECT pid FROM pg_stat_activity WHERE application_name = 'for_listening'"
    assert {*listeners(database)} < {pid for (pid,) in database.execute(named)}


SWEPT_S = 2.0
"""What a lost hint may cost, on an idle machine; half a long-poll on one that is busy."""


@pytest.mark.postgres
def test_it_delivers_what_nobody_announced(start_server: Callable[..., Server], hold: Hold):
    """Nor does a server that is killed between its commit and its NOTIFY."""
    server = start_server()
    api = make_idle(start_server(PULLWAKE_NOTIFY=0).client())
    delays = []
    for _ in range(3):
        held = hold(server, long_poll(tail(api)))
        tail(api)
        api.send()
        began = time.monotonic()
        status, _, body = held.answer()
        delays.append(time.monotonic() - began)
        assert (status, len(body)) == (200, 1)
        claim = api.claim()
        token = claim.mint()
        held = hold(server, f"/agent/e1/main?offset={tail(api, '/agent/e1/main')}&live=long-poll")
        tail(api)
        claim.append({"type": "line"}, token=token)
        assert [each["type"] for each in held.answer()[2]] == ["line"]
        claim.done()
        shared = api.share()
        held = hold(server, f"{shared}?offset={tail(api, shared)}&live=long-poll")
        tail(api)
        api.post(shared, {"type": "line"})
        assert [each["type"] for each in held.answer()[2]] == ["line"]
    assert statistics.median(delays) < SWEPT_S, delays


@pytest.mark.postgres
def test_it_delivers_though_its_listener_is_let_in_no_more(
    start_server: Callable[..., Server], database: Database, hold: Hold
):
    name = f"listener_{secrets.token_hex(4)}"
    database.execute(f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD '{name}'")
    try:
        address = urlsplit(database.url)
        netloc = f"{name}:{name}@127.0.0.1:{address.port}"
        server = start_server(PULLWAKE_LISTEN_URL=address._replace(netloc=netloc).geturl())
        api, reader = make_idle(start_server().client()), server.client()
        hold(server, long_poll(tail(api)))
        wait_until(lambda: listeners(database))
        database.execute(f"ALTER ROLE {name} NOLOGIN")
        database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", name
        )
        wait_until(lambda: "pullwake_listener_up 0.0" in reader.get("/metrics").content.decode())
        held = hold(server, long_poll(tail(api)))
        tail(api)
        api.send()
        assert held.answer()[0] == 200
    finally:
        database.execute(f"DROP ROLE {name}")


SEND = """
import time
from dispatch import entities
from dispatch.messages import Message
from dispatch.models import Entity
entities.send(Entity.objects.get(), Message("hi", "/principal/user%3Aalice"))
print(time.monotonic())
"""


def test_it_delivers_what_another_process_wrote(server: Server, hold: Hold):
    """A management command, say: on SQLite nothing tells of it but the database itself."""
    api = make_idle(server.client())
    held = hold(server, long_poll(tail(api)))
    command = server.database.manage("shell", "--verbosity=0", "--command", SEND)
    status, _, body = held.answer()
    assert (status, len(body)) == (200, 1), command.stderr
    # Long before the wait was over, when whoever waits looks anyway; the clock is the machine's.
    assert time.monotonic() - float(command.stdout) < LONG_POLL_S / 2


APPEND = """
import time
from dispatch import shared_states
shared_states.append(shared_states.find("s1"), [{"type": "line"}])
print(time.monotonic())
"""


def test_it_delivers_what_another_process_wrote_to_a_shared_state(server: Server, hold: Hold):
    api = make_idle(server.client())
    shared = api.share()
    held = hold(server, f"{shared}?offset={tail(api, shared)}&live=long-poll")
    command = server.database.manage("shell", "--verbosity=0", "--command", APPEND)
    status, _, body = held.answer()
    assert (status, len(body)) == (200, 1), command.stderr
    assert time.monotonic() - float(command.stdout) < LONG_POLL_S / 2


def test_it_tells_all_readers_of_a_stream_and_no_others(
    start_server: Callable[..., Server], hold: Hold
):
    server = start_server(PULLWAKE_LONG_POLL_MS=2000)
    api = make_idle(server.client())
    api.register("r2")
    readers = [hold(server, long_poll(tail(api))) for _ in range(3)]
    other = hold(server, long_poll(tail(api, "/runners/r2/wake"), "r2"))
    tail(api)
    api.send()
    assert [len(each.answer()[2]) for each in readers] == [1, 1, 1]
    assert other.answer()[0] == 204


def test_it_tells_of_an_event_of_a_main_stream(server: Server, hold: Hold):
    api = make_idle(server.client())
    api.send()
    claim = api.claim()
    token = claim.mint()
    held = hold(server, f"/agent/e1/main?offset={tail(api, '/agent/e1/main')}&live=long-poll")
    tail(api)
    claim.append({"type": "line"}, token=token)
    assert [each["type"] for each in held.answer()[2]] == ["line"]


def test_it_tells_of_an_event_of_a_shared_state(server: Server, hold: Hold):
    api = make_idle(server.client())
    shared, other = api.share("debate-/moderator/x"), api.share("s2")
    waiting = [
        hold(server, f"{path}?offset={tail(api, path)}&live=long-poll") for path in (shared, other)
    ]
    streamed = hold(server, f"{shared}?offset=-1&live=sse").lines()
    tail(api)
    began = time.monotonic()
    api.post(shared, {"type": "line"})
    assert [each["type"] for each in waiting[0].answer()[2]] == ["line"]
    assert '"line"' in next(line for line in streamed if line.startswith("data:["))
    assert time.monotonic() - began < LONG_POLL_S / 2
    api.post(other, {"type": "other"})
    assert [each["type"] for each in waiting[1].answer()[2]] == ["other"]


@pytest.mark.postgres
def test_it_tells_of_what_another_server_took_for_a_shared_state(servers: Servers, hold: Hold):
    one, other = servers.lend_some(2)
    api = make_idle(other.client())
    shared = api.share()
    held = hold(one, f"{shared}?offset={tail(api, shared)}&live=long-poll")
    tail(one.client())
    api.post(shared, {"type": "line"})
    assert [each["type"] for each in held.answer()[2]] == ["line"]
