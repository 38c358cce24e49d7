"""Who waits for another is told: at once, in time, by any server, and after one was killed."""

import time

import pytest

from tests.support import Server, Servers, wait_until

PARENT, CHILD = "/agent/parent", "/agent/child"
HOLD = """
    SELECT FROM dispatch_dispatchstate JOIN dispatch_entity ON entity_id = id
    WHERE url = '/agent/parent' FOR UPDATE OF dispatch_dispatchstate
"""


def family(server: Server, **facts):
    """The API, with a parent that waits for changes of its child."""
    api = server.client()
    api.register()
    for url in (PARENT, CHILD):
        api.make_entity(url)
    body = {"subscriberUrl": PARENT, "sourceUrl": CHILD, "condition": {"on": "change"}, **facts}
    assert api.post("/_electric/wake", body).status == 204
    return api


def told(api, url=PARENT):
    return [each["value"] for each in api.events(url) if each["type"] == "wake"]


def test_it_is_told_at_once(server: Server):
    api = family(server)
    took = []
    for number in range(1, 6):
        api.send(CHILD)
        began = time.monotonic()
        wait_until(lambda number=number: len(told(api)) == number)
        took.append(time.monotonic() - began)
    # Not by the clock, which looks twice a second: most of five would be later.
    assert sorted(took)[2] < 0.25
    assert {each["stream"] for each in api.wakes()} == {"agent/parent/main", "agent/child/main"}


@pytest.mark.parametrize("facts", [{"debounceMs": 300}, {"timeoutMs": 300}], ids=str)
def test_what_is_due_by_the_clock_is_not_late(server: Server, facts):
    api = family(server, **facts)
    if "debounceMs" in facts:
        api.send(CHILD)
    began = time.monotonic()
    wait_until(lambda: told(api), timeout=5)
    assert time.monotonic() - began < 2
    assert [each["timeout"] for each in told(api)] == ["timeoutMs" in facts]


def test_any_of_several_servers_tells_it_once(servers: Servers):
    one, other = servers.lend_some(2, WEB_CONCURRENCY=1)
    if one.database.path is not None:
        pytest.skip("SQLite has one server")
    api, others = family(one), other.client()
    for number in range(40):
        (api, others)[number % 2].send(CHILD, key=f"m{number}")
    keys = {f"m{number}" for number in range(40)}
    wait_until(lambda: keys <= {e["key"] for wake in told(api) for e in wake["changes"]})
    assert sum(len(wake["changes"]) for wake in told(api)) == 40


@pytest.mark.postgres
def test_a_server_that_is_killed_before_it_told_leaves_it_to_the_next(mortal: Server):
    api = family(mortal)
    with mortal.database.hold(HOLD):
        api.send(CHILD)
        mortal.kill()
    deliveries = "SELECT count(*) FROM dispatch_delivery"
    assert mortal.database.execute(deliveries) == [(1,)]
    assert mortal.database.execute(
        "SELECT count(*) FROM dispatch_streamevent WHERE data LIKE '%%\"wake\"%%'"
    ) == [(0,)]
    mortal.start()
    wait_until(lambda: told(api))
    wait_until(lambda: mortal.database.execute(deliveries) == [(0,)])
    assert len(told(api)) == 1
