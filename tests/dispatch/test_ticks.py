"""What a cron expression wakes: registrations at its stream, and schedules of that type."""

import re
from base64 import urlsafe_b64encode
from datetime import timedelta

import msgspec
import pytest
from django.db.models.functions import Now

from core.clock import with_now
from dispatch import due
from dispatch.cron import PREFIX, Cron
from dispatch.models import Registration, Timer
from dispatch.streams import registrations
from tests.support import PAST

SCHEDULE = "/_electric/entities/agent/e1/schedules/s1"
HOURLY = Cron.parse("0 * * * *")


@pytest.fixture
def woken(alice):
    """Alice's runner r1 and entity /agent/e1, without work."""
    alice.register()
    alice.make_entity()
    return alice


def of_type(api, kind):
    return [event for event in api.events() if event["type"] == kind]


def cron(api, expression="0 * * * *", payload="do it", schedule=SCHEDULE, **facts):
    body = {"scheduleType": "cron", "expression": expression, "payload": payload, **facts}
    answer = api("PUT", schedule, body)
    assert answer.status == 200, answer
    return answer.body["txid"]


def come():
    """Let the time of every tick have come, and do what is due."""
    ticking = Registration.objects.filter(tick_at__isnull=False)
    assert ticking.update(tick_at=PAST, due_at=PAST)
    assert due.run() == 1
    assert due.run() == 0


def path_of(expression, timezone):
    said = msgspec.json.encode({"expression": expression, "timezone": timezone})
    return PREFIX + urlsafe_b64encode(said).rstrip(b"=").decode()


def register(api, path, condition=None, **facts):
    body = {
        "subscriberUrl": "/agent/e1",
        "sourceUrl": path,
        "condition": condition or {"on": "change"},
        **facts,
    }
    return api.post("/_electric/wake", body)


def test_a_cron_schedule_is_an_entry_of_the_manifest(woken):
    txid = cron(woken, timezone="us/pacific", debounceMs=5, timeoutMs=7)
    (event,) = of_type(woken, "manifest")
    assert event["key"] == "schedule:s1"
    assert event["headers"]["operation"] == "upsert"
    assert event["headers"]["txid"] == txid
    assert event["value"] == {
        "key": "schedule:s1",
        "kind": "schedule",
        "id": "s1",
        "scheduleType": "cron",
        "expression": "0 * * * *",
        "timezone": "America/Los_Angeles",
        "payload": "do it",
        "wake": {"on": "change", "debounceMs": 5, "timeoutMs": 7},
    }
    assert not Timer.objects.exists()


def test_a_tick_wakes_its_owner_and_says_what_to_do(woken):
    cron(woken, payload={"a": [1]})
    assert due.run() == 0
    come()
    (wake,) = of_type(woken, "wake")
    assert wake["value"] == {
        "timestamp": wake["value"]["timestamp"],
        "source": HOURLY.path,
        "timeout": False,
        "changes": [
            {
                "collection": "cron_tick",
                "kind": "insert",
                "key": "tick-1",
                "payload": {"a": [1]},
            }
        ],
    }
    assert re.fullmatch(r"wake-\d+-0000000000000000_0000000000000001", wake["key"])
    assert len(woken.wakes()) == 1
    come()
    assert of_type(woken, "wake")[-1]["value"]["changes"][0]["key"] == "tick-2"


def test_after_an_outage_it_ticks_once_and_then_from_now(woken):
    cron(woken, "* * * * *")
    Registration.objects.update(tick_at=Now() - timedelta(days=3), due_at=Now() - timedelta(days=3))
    assert due.run() == 1
    assert due.run() == 0
    assert len(of_type(woken, "wake")) == 1
    row = with_now(Registration.objects.all()).get()
    assert row.tick_at is not None
    assert timedelta() < row.tick_at - row.now <= timedelta(minutes=1)
    assert row.due_at == row.tick_at


def test_a_handlers_entry_does_the_same(woken):
    woken.send()
    claim = woken.claim()
    value = {
        "key": "schedule:s1",
        "kind": "schedule",
        "id": "s1",
        "scheduleType": "cron",
        "expression": "0 * * * *",
        "timezone": "Europe/Kyiv",
        "payload": 7,
    }
    event = {
        "type": "manifest",
        "key": "schedule:s1",
        "value": value,
        "headers": {"operation": "upsert"},
    }
    assert claim.append(event, token=claim.mint()).status == 204
    come()
    (wake,) = of_type(woken, "wake")
    assert wake["value"]["source"] == path_of("0 * * * *", "Europe/Kiev")
    assert wake["value"]["changes"][0]["payload"] == 7
    event = {"type": "manifest", "key": "schedule:s1", "headers": {"operation": "delete"}}
    assert claim.append(event, token=claim.mint()).status == 204
    assert not Registration.objects.exists()


def test_set_again_it_goes_on_and_says_what_it_says_now(woken):
    cron(woken, payload=1)
    come()
    cron(woken, payload=2)
    come()
    told = [event["value"]["changes"][0] for event in of_type(woken, "wake")]
    assert [(each["key"], each["payload"]) for each in told] == [("tick-1", 1), ("tick-2", 2)]


def test_another_expression_replaces_it(woken):
    cron(woken)
    cron(woken, "30 * * * *")
    assert Registration.objects.get().source_url == path_of("30 * * * *", "UTC")
    body = {"scheduleType": "future_send", "payload": 1, "fireAt": "2100-01-01"}
    assert woken("PUT", SCHEDULE, body).status == 200
    assert not Registration.objects.exists()
    assert Timer.objects.count() == 1
    cron(woken)
    assert Registration.objects.count() == 1
    assert not Timer.objects.exists()


def test_cancelled_it_ticks_no_more(woken):
    cron(woken)
    assert woken("DELETE", SCHEDULE).status == 200
    assert not Registration.objects.exists()


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_its_owners_end_is_its_own(woken, signal):
    cron(woken)
    woken.signal("/agent/e1", signal)
    Registration.objects.update(tick_at=PAST, due_at=PAST)
    due.run()
    assert not Registration.objects.exists()
    assert of_type(woken, "wake") == []


def test_a_subscriber_is_answered_with_the_path_that_it_registered(woken):
    indian = path_of("0 9 * * *", "Asia/Kolkata")  # as a newer ICU has it
    cron(woken, "0 9 * * *", timezone="Asia/Kolkata")
    assert Registration.objects.get().source_url == path_of("0 9 * * *", "Asia/Calcutta")
    assert register(woken, indian, manifestKey="schedule:s1").status == 204
    cron(woken, "0 9 * * *", timezone="Asia/Kolkata")
    come()
    (wake,) = of_type(woken, "wake")
    assert wake["value"]["source"] == indian
    assert wake["value"]["changes"][0]["payload"] == "do it"


def test_one_zone_by_two_names_is_registered_once(woken):
    for zone in ("Asia/Calcutta", "Asia/Kolkata"):
        assert register(woken, path_of("0 9 * * *", zone)).status == 204
    assert Registration.objects.count() == 1
    come()
    (wake,) = of_type(woken, "wake")
    assert wake["value"]["source"] == path_of("0 9 * * *", "Asia/Kolkata")
    assert "payload" not in wake["value"]["changes"][0]


def test_it_is_unregistered_by_each_name_of_its_zone(woken):
    for zone in ("Asia/Calcutta", "Asia/Kolkata"):
        assert register(woken, path_of("0 9 * * *", zone)).status == 204
    assert register(woken, HOURLY.path).status == 204
    for source in (f"{PREFIX}none", path_of("0 9 * * *", "Asia/Calcutta")):
        body = {"subscriberUrl": "/agent/e1", "sourceUrl": source}
        assert woken.post("/_electric/wake/unregister", body).status == 204
    assert Registration.objects.get().source_url == HOURLY.path


def test_an_observed_cron_of_a_manifest_ticks(woken):
    woken.send()
    claim = woken.claim()
    for config in ({"expression": "0 * * * *", "timezone": "UTC"}, {"streamUrl": HOURLY.path}):
        value = {"kind": "source", "sourceType": "cron", "config": config, "wake": {"on": "change"}}
        event = {"type": "manifest", "key": "source:c", "value": value}
        event["headers"] = {"operation": "upsert"}
        assert claim.append(event, token=claim.mint()).status == 204
        assert Registration.objects.get().source_url == HOURLY.path


def test_debounced_it_comes_later_with_all_ticks(woken):
    cron(woken, debounceMs=60_000)
    for _ in range(2):
        ticking = Registration.objects.filter(tick_at__isnull=False)
        ticking.update(tick_at=PAST, due_at=PAST)
        due.run()
        assert of_type(woken, "wake") == []
    Registration.objects.update(deliver_at=PAST, due_at=PAST)
    due.run()
    (wake,) = of_type(woken, "wake")
    assert [each["key"] for each in wake["value"]["changes"]] == ["tick-1", "tick-2"]


def test_a_wait_that_is_over_before_the_first_tick_is_told(woken):
    cron(woken, timeoutMs=1000)
    Registration.objects.update(timeout_at=PAST, due_at=PAST)
    due.run()
    (wake,) = of_type(woken, "wake")
    assert (wake["value"]["timeout"], wake["value"]["changes"]) == (True, [])
    row = Registration.objects.get()
    assert row.due_at == row.tick_at


@pytest.mark.parametrize(
    ("path", "condition", "field"),
    [
        (f"{PREFIX}nonsense", None, "/sourceUrl"),
        (path_of("* * * *", "UTC"), None, "/sourceUrl"),
        (path_of("* * * * *", "Moon"), None, "/sourceUrl"),
        (PREFIX + "A" * 2030, None, "/sourceUrl"),
        (HOURLY.path, "runFinished", "/condition"),
        (HOURLY.path, {"on": "change", "collections": ["runs"]}, "/condition"),
        (HOURLY.path, {"on": "change", "ops": ["delete"]}, "/condition"),
    ],
)
def test_what_could_never_tick_is_refused(woken, path, condition, field):
    answer = register(woken, path, condition)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert answer.body["error"]["details"][0]["path"] == field
    assert not Registration.objects.exists()


def test_so_many_are_told_in_one_transaction_the_longest_due_first(woken, monkeypatch):
    monkeypatch.setattr(registrations, "DUE_TOGETHER", 2)
    for minute in range(3):
        cron(woken, f"{minute} * * * *", schedule=f"{SCHEDULE}{minute}")
    for age, row in enumerate(Registration.objects.order_by("pk")):
        row.tick_at = row.due_at = PAST - timedelta(minutes=age)
        row.save()
    assert [due.run(), due.run(), due.run()] == [2, 1, 0]
    told = [wake["value"]["source"] for wake in of_type(woken, "wake")]
    assert told == [path_of(f"{minute} * * * *", "UTC") for minute in (1, 2, 0)]


def test_a_paused_subscribers_ticks_wait(woken):
    cron(woken)
    woken.signal("/agent/e1", "SIGSTOP")
    come()
    assert len(of_type(woken, "wake")) == 1
    assert woken.wakes() == []
