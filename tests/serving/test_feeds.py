"""Feeds as their readers wait for them, at real servers."""

from collections.abc import Callable

import msgspec
import pytest

from tests.serving.conftest import Held, make_idle, tail
from tests.support import Database, HttpApi, Server, Servers, wait_until

ENTITIES = "/_electric/feeds/entities"
RUNNERS = "/_electric/feeds/runners"

Hold = Callable[..., Held]


def read_to_end(api: HttpApi, path: str = ENTITIES) -> str:
    """The offset behind all rows."""
    answer = api.get(f"{path}?offset=-1")
    assert answer.headers["Stream-Up-To-Date"] == "true"
    offset: str = answer.headers["Stream-Next-Offset"]
    return offset


def waiting(hold: Hold, server: Server, path: str) -> Held:
    """A long-poll that waits."""
    api = server.client()
    separator = "&" if "?" in path else "?"
    held = hold(server, f"{path}{separator}offset={read_to_end(api, path)}&live=long-poll")
    tail(api, path)
    return held


def test_who_waits_is_told(server: Server, hold: Hold):
    api = make_idle(server.client())
    held = waiting(hold, server, ENTITIES)
    api.send()
    status, headers, body = held.answer()
    assert (status, [each["key"] for each in body]) == (200, ["/agent/e1"])
    assert headers["Stream-Up-To-Date"] == "true"
    assert api.get(f"{ENTITIES}?offset={headers['Stream-Next-Offset']}").body == []
    held = waiting(hold, server, RUNNERS)
    api.post("/_electric/runners/r1/disable")
    assert [each["key"] for each in held.answer()[2]] == ["r1"]


def test_who_waits_for_something_else_is_not(servers: Servers, hold: Hold):
    server = servers.lend(PULLWAKE_LONG_POLL_MS=700)
    api = make_idle(server.client())
    elsewhere = Held(server, f"{ENTITIES}?type=job&offset=now&live=long-poll")
    others = Held(server, f"{ENTITIES}?offset=now&live=long-poll", Electric_Principal="user:bob")
    told = waiting(hold, server, ENTITIES)
    api.send()
    assert told.answer()[0] == 200
    for held in (elsewhere, others):
        status, headers, _ = held.answer()
        assert status == 204
        # It went along with the feed's end.
        assert headers["Stream-Next-Offset"] > read_to_end(api)
        held.connection.close()


@pytest.mark.postgres
def test_it_tells_what_another_server_took(servers: Servers, hold: Hold):
    one, other = servers.lend_some(2)
    api = make_idle(other.client())
    held = waiting(hold, one, ENTITIES)
    api.send()
    assert [each["key"] for each in held.answer()[2]] == ["/agent/e1"]


def test_an_event_stream_goes_on(server: Server, hold: Hold):
    api = make_idle(server.client())
    lines = hold(server, f"{ENTITIES}?offset=-1&live=sse").lines()
    statuses = []
    for line in lines:
        if line.startswith("data:["):
            (event,) = msgspec.json.decode(line.removeprefix("data:"))
            statuses.append((event["value"]["status"], event["value"]["pending"]))
            if len(statuses) == 1:
                api.send()
            elif len(statuses) == 2:
                api.claim()
            else:
                break
    assert statuses == [("idle", False), ("idle", True), ("running", True)]


LOGGED = """
CREATE TABLE told (key text, told text);
CREATE FUNCTION log_told() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO told VALUES (NEW.key, NEW.told); RETURN NEW; END $$;
CREATE TRIGGER told AFTER UPDATE ON runners_change FOR EACH ROW EXECUTE FUNCTION log_told()
"""
GONE = "DROP TRIGGER told ON runners_change; DROP FUNCTION log_told; DROP TABLE told"
EXPIRE = """
UPDATE runners_runnerliveness SET last_seen_at = now(), lease_expires_at = now() - interval '1 s'
WHERE runner_id = ANY(%s)
"""


@pytest.mark.postgres
def test_of_several_servers_one_tells_what_a_runner_became(
    database: Database, start_server: Callable[..., Server]
):
    """And where that one is killed another does."""
    doomed, other = (
        start_server(PULLWAKE_REAPER_INTERVAL_MS=50, WEB_CONCURRENCY=2) for _ in range(2)
    )
    api = other.client()
    runners = [api.register(f"r{number}")["id"] for number in range(100)]
    first, then = runners[:50], runners[50:]

    def told() -> list[str]:
        rows = database.execute("SELECT key FROM told WHERE told = 'expired unhealthy'")
        return [key for (key,) in rows]

    database.execute(LOGGED)
    try:
        database.execute(EXPIRE, first)
        wait_until(lambda: set(told()) == set(first))
        database.execute(EXPIRE, then)
        wait_until(lambda: set(told()) & set(then))
        doomed.kill()
        wait_until(lambda: set(told()) == set(runners))
        assert sorted(told()) == sorted(runners)
    finally:
        database.execute(GONE)
