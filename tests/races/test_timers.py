"""Timers that several fire at once, and what they meet: each is sent once, or cancelled."""

from collections import Counter

import msgspec
import pytest

from dispatch import firing
from dispatch.models import Timer
from tests.races.conftest import both_orders
from tests.support import come_due, wait_until

pytestmark = [pytest.mark.postgres]

SCHEDULE = "/_electric/entities/agent/e1/schedules/s1"


@pytest.fixture
def scheduled(alice):
    """Alice's /agent/e1 with a schedule whose time has come, and /agent/e2 with a delayed send."""
    alice.register()
    alice.make_entity()
    alice.make_entity("/agent/e2")
    body = {"scheduleType": "future_send", "payload": "s1", "fireAt": "2100-01-01"}
    assert alice("PUT", SCHEDULE, body).status == 200
    alice.send("/agent/e2", afterMs=60_000)
    come_due()
    return alice


def sent(api, url="/agent/e1"):
    return sum(event["type"] == "inbox" for event in api.events(url))


def test_two_that_fire_share_what_is_due_and_wait_for_nobody(scheduled, line):
    line.hold("tail")
    first = line.join(lambda: firing.fire_due(limit=1))
    second = line.join(lambda: firing.fire_due(limit=1))
    third = line.join(firing.fire_due)
    assert third.result(timeout=10) == 0  # the others have them
    line.let_go("tail")
    assert (first.result(timeout=10), second.result(timeout=10)) == (1, 1)
    assert sent(scheduled) == sent(scheduled, "/agent/e2") == 1
    assert len(scheduled.wakes()) == 2


def test_it_goes_round_an_entity_that_another_has_locked(scheduled, line):
    line.hold("state of e1")
    assert firing.fire_due() == 1
    assert (sent(scheduled), sent(scheduled, "/agent/e2")) == (0, 1)
    line.let_go("state of e1")
    wait_until(firing.fire_due)
    assert sent(scheduled) == 1


@pytest.mark.parametrize("end", ["cancelled", "set anew", "killed", "deleted"])
@pytest.mark.parametrize("fires_first", [True, False])
def test_it_is_sent_or_ended_and_nobody_hangs(scheduled, line, end, fires_first):
    calls = {
        "cancelled": lambda: scheduled("DELETE", SCHEDULE),
        "set anew": lambda: scheduled(
            "PUT",
            SCHEDULE,
            {"scheduleType": "future_send", "payload": "s1", "fireAt": "2100-01-01"},
        ),
        "killed": lambda: scheduled.signal("/agent/e1", "SIGKILL"),
        "deleted": lambda: scheduled("DELETE", "/_electric/entities/agent/e1"),
    }
    if fires_first:
        line.hold("tail")
        fired = line.join(firing.fire_due)
        ended = line.join(calls[end])
        line.let_go("tail")
    else:
        line.hold("state of e1")
        ended = line.join(calls[end])
        fired = line.join(firing.fire_due)
        line.let_go("state of e1")
    assert fired.result(timeout=10) == (2 if fires_first else 1)
    ended.result(timeout=10)
    firing.fire_due()
    if end != "deleted":
        assert sent(scheduled) == (1 if fires_first else 0)
    assert sent(scheduled, "/agent/e2") == 1
    assert Timer.objects.count() == (1 if end == "set anew" else 0)


@both_orders("delayed", "delayed too")
def test_two_delayed_sends_of_one_key_are_one(scheduled, line, order):
    answers = line.meet(
        "state of e1",
        order,
        **{name: lambda: scheduled.send(key="k", afterMs=60_000) for name in order},
    )
    assert len(set(answers.values())) == 1
    assert Timer.objects.filter(key="k").count() == 1


@both_orders("scheduled", "deleted")
def test_a_schedules_target_is_deleted_meanwhile(scheduled, line, order):
    path = "/_electric/entities/agent/e2/schedules/s2"
    body = {"scheduleType": "future_send", "payload": 1, "fireAt": "2100-01-01"}
    answers = line.meet(
        "entity e1",
        order,
        scheduled=lambda: scheduled("PUT", path, {**body, "targetUrl": "/agent/e1"}),
        deleted=lambda: scheduled("DELETE", "/_electric/entities/agent/e1"),
    )
    assert answers["deleted"].status == 204
    known = Timer.objects.filter(schedule="s2").values_list("target", flat=True)
    assert (answers["scheduled"].status, *known) in [(200, None), (400,)]


# --- Real servers -----------------------------------------------------------------------------

TIMERS = 400


@pytest.mark.slow
def test_each_fires_once_though_servers_are_killed(start_server):
    """Two servers, both killed as soon as they have fired some, until none is left."""
    servers = [start_server(), start_server()]
    api, database = servers[0].client(), servers[0].database
    api.register()
    for number in range(20):
        api.make_entity(f"/agent/e{number}")
    for number in range(TIMERS):
        api.send(f"/agent/e{number % 20}", payload=number, afterMs=3_600_000)
    database.execute(
        "UPDATE dispatch_timer SET due_at = now() + mod(id, %s) * interval '10 ms'", TIMERS
    )

    def left():
        return database.execute("SELECT count(*) FROM dispatch_timer")[0][0]

    kills = 0
    while before := left():
        wait_until(lambda: left() < before, timeout=60)
        for server in servers:
            server.kill()
        for server in servers:
            server.start()
        kills += 1
    assert kills >= 1
    rows = database.execute("SELECT data FROM dispatch_streamevent WHERE message_key IS NOT NULL")
    payloads = Counter(msgspec.json.decode(data)["value"]["payload"] for (data,) in rows)
    assert payloads == dict.fromkeys(range(TIMERS), 1)
    assert len(api.wakes()) == 20
