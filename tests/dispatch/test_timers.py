"""send with afterMs: accepted or refused now, sent at its time, once."""

from datetime import timedelta

import pytest
from django.db.models import F

from core.clock import with_now
from dispatch import firing
from dispatch.models import Timer
from dispatch.streams import log
from tests.support import come_due

SEND = "/_electric/entities/agent/e1/send"
YEAR_MS = 365 * 24 * 3_600_000


@pytest.fixture
def woken(alice):
    """Alice's runner r1 and entity /agent/e1, without work."""
    alice.register()
    alice.make_entity()
    return alice


def messages(api, url="/agent/e1"):
    return [event for event in api.events(url) if event["type"] == "inbox"]


def test_it_is_sent_when_its_time_has_come(woken):
    txid = woken.send(afterMs=60_000, mode="queued", position="p1", key="k1", type="chat")
    assert messages(woken) == woken.wakes() == []
    assert firing.fire_due() == 0
    come_due()
    assert firing.fire_due() == 1
    (event,) = messages(woken)
    assert (event["key"], event["headers"]["txid"]) == ("k1", txid)
    assert event["value"] == {
        "from": "/principal/user%3Aalice",
        "from_principal": "/principal/user%3Aalice",
        "payload": "hi",
        "mode": "queued",
        "status": "pending",
        "position": "p1",
        "message_type": "chat",
        "timestamp": event["value"]["timestamp"],
    }
    assert len(woken.wakes()) == 1
    assert not Timer.objects.exists()
    assert firing.fire_due() == 0


def test_it_is_due_that_much_later_by_the_databases_clock(woken):
    woken.send(afterMs=60_000.5)
    (timer,) = with_now(Timer.objects.all())
    assert timedelta(seconds=50) < timer.due_at - timer.now < timedelta(seconds=61)


@pytest.mark.parametrize("after", [0, -1, -1e300])
def test_nothing_or_less_is_at_once(woken, after):
    woken.send(afterMs=after)
    assert len(messages(woken)) == 1


def test_a_year_is_the_longest(woken):
    woken.send(afterMs=YEAR_MS)
    answer = woken.post(SEND, {"payload": "hi", "afterMs": YEAR_MS + 1})
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert answer.body["error"]["details"][0]["path"] == "/afterMs"
    assert Timer.objects.count() == 1


def test_without_a_key_it_gets_one_that_says_so(woken):
    txid = woken.send(afterMs=1)
    come_due()
    firing.fire_due()
    assert messages(woken)[0]["key"] == f"scheduled-task-{txid}"


def test_it_is_refused_now_if_it_would_be(woken):
    schemas = {"chat": {"type": "string"}}
    woken.post(
        "/_electric/entity-types", {"name": "doc", "description": "", "inbox_schemas": schemas}
    )
    woken.make_entity("/doc/d1")
    bad = woken.post(
        "/_electric/entities/doc/d1/send", {"payload": 1, "type": "chat", "afterMs": 9}
    )
    assert (bad.status, bad.error) == (400, "INVALID_REQUEST")
    woken.signal("/agent/e1", "SIGKILL")
    closed = woken.post(SEND, {"payload": 1, "afterMs": 9})
    assert (closed.status, closed.error) == (409, "NOT_RUNNING")
    assert not Timer.objects.exists()


def test_the_same_key_twice_is_one_message(woken):
    first = woken.send(payload=1, key="k", afterMs=1000)
    assert woken.send(payload=2, key="k", afterMs=1000) == first
    come_due()
    assert firing.fire_due() == 1
    assert [event["value"]["payload"] for event in messages(woken)] == [1]
    assert woken.send(payload=3, key="k", afterMs=1000) == first
    assert not Timer.objects.exists()


def test_one_that_was_sent_at_once_meanwhile_is_not_sent_again(woken):
    woken.send(payload=1, key="k", afterMs=1000)
    woken.send(payload=2, key="k")
    come_due()
    assert firing.fire_due() == 1
    assert [event["value"]["payload"] for event in messages(woken)] == [2]


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGKILL"])
def test_one_for_an_entity_at_its_end_is_dropped_and_kept_to_be_seen(woken, signal):
    woken.send(afterMs=1000)
    woken.signal("/agent/e1", signal)
    before = woken.events()
    come_due()
    assert firing.fire_due() == 1
    (timer,) = Timer.objects.failed()
    assert timer.error == "The entity is stopping, stopped or killed."
    assert woken.events() == before
    assert firing.fire_due() == 0


def test_one_for_an_entity_that_was_deleted_reaches_no_other_of_its_name(woken):
    woken.send(afterMs=1000)
    assert woken("DELETE", "/_electric/entities/agent/e1").status == 204
    woken.make_entity()
    come_due()
    assert firing.fire_due() == 1
    assert messages(woken) == []
    assert Timer.objects.failed().get().error == "The entity /agent/e1 was deleted."


def test_one_for_a_paused_entity_waits_in_its_stream(woken):
    woken.send(afterMs=1000)
    woken.signal("/agent/e1", "SIGSTOP")
    come_due()
    firing.fire_due()
    assert len(messages(woken)) == 1
    assert woken.wakes() == []


def test_many_at_once_come_in_the_order_of_their_times_and_make_one_wake_each(woken):
    woken.make_entity("/agent/e2")
    for number in range(5):
        for url in ("/agent/e1", "/agent/e2"):
            woken.send(url, payload=number, afterMs=(5 - number) * 1000)
    Timer.objects.update(due_at=F("due_at") - timedelta(hours=1))
    assert firing.fire_due(limit=4) == 4
    assert firing.fire_due() == 6
    for url in ("/agent/e1", "/agent/e2"):
        assert [each["value"]["payload"] for each in messages(woken, url)] == [4, 3, 2, 1, 0]
    assert len(woken.wakes()) == 2


def test_one_that_cannot_be_sent_is_set_aside_and_keeps_nobody_from_it(woken, monkeypatch):
    for payload in ("a", "poison", "b"):
        woken.send(payload=payload, afterMs=1000)
    come_due()
    append = log.append

    def refuse(state, events, **facts):
        if events[0]["value"].get("payload") == "poison":
            raise ValueError("poison")
        append(state, events, **facts)

    monkeypatch.setattr(log, "append", refuse)
    assert firing.fire_due() == 3
    assert [each["value"]["payload"] for each in messages(woken)] == ["a", "b"]
    assert Timer.objects.failed().get().error == "The server failed; its log says how."
    assert firing.fire_due() == 0
