"""Cron expressions, their zones, and the path of the stream that stands for one."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import pytest

from dispatch import zones
from dispatch.cron import PREFIX, Cron

UTC = ZoneInfo("UTC")
ENSURE = "/_electric/observations/cron/ensure-stream"
MONDAY = datetime(2026, 11, 30, 12, 0, 0, 500_000, UTC)


@pytest.mark.parametrize(
    ("expression", "comes"),
    [
        ("* * * * *", "2026-11-30T12:01:00"),
        ("*/15 * * * *", "2026-11-30T12:15:00"),
        ("* * * * * *", "2026-11-30T12:00:01"),
        ("*/20 * * * * *", "2026-11-30T12:00:20"),
        ("0 0 9 * * *", "2026-12-01T09:00:00"),
        ("0 9 * * MON-FRI", "2026-12-01T09:00:00"),
        ("0 9 * jan sun", "2027-01-03T09:00:00"),
        ("0 9 * * 7", "2026-12-06T09:00:00"),
        ("0 0 L * *", "2026-12-31T00:00:00"),
        ("0 0 * * 5L", "2026-12-25T00:00:00"),
        ("0 0 * * MON#2", "2026-12-14T00:00:00"),
        ("0 12 ? * 1", "2026-12-07T12:00:00"),
        ("0 12 1 * ?", "2026-12-01T12:00:00"),
        ("0 0 12 ? * 1", "2026-12-07T12:00:00"),
        ("@daily", "2026-12-01T00:00:00"),
        ("@HOURLY", "2026-11-30T13:00:00"),
        ("@weekly", "2026-12-06T00:00:00"),
        ("@monthly", "2026-12-01T00:00:00"),
        ("@yearly", "2027-01-01T00:00:00"),
        (" 0  9 * * * ", "2026-12-01T09:00:00"),
        ("0 0 29 2 *", "2028-02-29T00:00:00"),
    ],
)
def test_when_it_comes(expression, comes):
    cron = Cron.parse(expression)
    assert cron.after(MONDAY) == datetime.fromisoformat(comes).replace(tzinfo=UTC)


def test_it_comes_at_the_zones_time_across_its_changes():
    cron = Cron.parse("0 9 * * *", "Europe/Berlin")
    summer = datetime(2026, 3, 28, 12, tzinfo=UTC)
    assert cron.after(summer) == datetime(2026, 3, 29, 7, tzinfo=UTC)
    assert cron.after(summer - timedelta(days=1)) == datetime(2026, 3, 28, 8, tzinfo=UTC)


def at(zone, text):
    """A time of a zone's clock, told by its offset."""
    return datetime.strptime(text, "%Y-%m-%d %H:%M %z").astimezone(ZoneInfo(zone))


@pytest.mark.parametrize("seconds", ["", "0 ", "00 "])
@pytest.mark.parametrize(
    ("expression", "now", "comes"),
    [
        # At 2:00 the clock went to 3:00.
        ("30 2 * * *", "2026-03-08 01:50 -0500", "2026-03-08 03:00 -0400"),
        ("30 2 * * *", "2026-03-08 03:00 -0400", "2026-03-09 02:30 -0400"),
        # At 2:00 the clock went back to 1:00: what ticked at the first 1:30 does not at the second.
        ("30 1 * * *", "2026-11-01 01:10 -0400", "2026-11-01 01:30 -0400"),
        ("30 1 * * *", "2026-11-01 01:40 -0400", "2026-11-02 01:30 -0500"),
        ("30 1 * * *", "2026-11-01 01:10 -0500", "2026-11-02 01:30 -0500"),
        ("15,45 1 * * *", "2026-11-01 01:20 -0500", "2026-11-02 01:15 -0500"),
        ("30 1-5 * * *", "2026-11-01 01:10 -0500", "2026-11-01 02:30 -0500"),
        ("*/30 * * * *", "2026-11-01 01:40 -0400", "2026-11-01 01:00 -0500"),
        ("*/30 * * * *", "2026-11-01 01:10 -0500", "2026-11-01 01:30 -0500"),
    ],
)
def test_it_comes_once_where_the_clock_is_changed(seconds, expression, now, comes):
    zone = "America/New_York"
    cron = Cron.parse(f"{seconds}{expression}", zone)
    assert cron.after(at(zone, now)).astimezone(UTC) == at(zone, comes).astimezone(UTC)


BAD_EXPRESSIONS = (
    "",
    " ",
    "*",
    "* * * *",
    "* * * * * * *",
    "60 * * * *",
    "* 24 * * *",
    "* * 0 * *",
    "* * 30 2 *",
    "* * * 13 *",
    "* * * * 8",
    "? * * * *",
    "*/0 * * * *",
    "5-1 * * * *",
    "@never",
    "* * */20 * 1L",
    "0 0 * * \N{SUPERSCRIPT TWO}L",
    "* * * * *\n* * * * *",
    "*" * 300,
)


@pytest.mark.parametrize("expression", BAD_EXPRESSIONS)
def test_what_is_no_expression(alice, expression):
    with pytest.raises(ValueError):
        Cron.parse(expression)
    for method, path, facts in (
        ("POST", ENSURE, {}),
        ("PUT", f"{entity(alice)}/schedules/s1", {"scheduleType": "cron", "payload": 1}),
    ):
        answer = alice(method, path, {"expression": expression, **facts})
        assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
        assert answer.body["error"]["details"][0]["path"] == "/expression"


def entity(api):
    api("PUT", "/_electric/entities/agent/e1", {})
    return "/_electric/entities/agent/e1"


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("UTC", "UTC"),
        ("utc", "UTC"),
        ("Etc/UTC", "UTC"),
        ("GMT", "UTC"),
        ("Etc/GMT+5", "Etc/GMT+5"),
        ("US/Pacific", "America/Los_Angeles"),
        ("Asia/Kolkata", "Asia/Calcutta"),
        ("Asia/Calcutta", "Asia/Calcutta"),
        ("Europe/Kyiv", "Europe/Kiev"),
        ("europe/berlin", "Europe/Berlin"),
        ("America/Argentina/Buenos_Aires", "America/Buenos_Aires"),
    ],
)
def test_a_zones_name_is_icus(alice, name, canonical):
    assert zones.canonical(name) == canonical
    answer = alice.post(ENSURE, {"expression": "0 9 * * *", "timezone": name})
    path = answer.body["streamUrl"]
    coded = path.removeprefix(PREFIX)
    assert urlsafe_b64decode(coded + "=" * (-len(coded) % 4)).decode() == (
        f'{{"expression":"0 9 * * *","timezone":"{canonical}"}}'
    )


def test_every_zone_has_one_and_icus_name_of_it_is_itself():
    every = zones._canonical()
    assert len(every) > 590
    for name in every.values():
        assert zones.canonical(name) == name
        assert ZoneInfo(name).key == name


@pytest.mark.parametrize("zone", ["", "Moon", "../etc/passwd", "Factory", "+02:00", "x" * 256])
def test_what_is_no_zone(alice, zone):
    answer = alice.post(ENSURE, {"expression": "0 9 * * *", "timezone": zone})
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert answer.body["error"]["details"][0]["path"] == "/timezone"


def test_its_stream_is_the_path_that_runtimes_compute(alice):
    answer = alice.post(ENSURE, {"expression": "*/5 * * * *"})
    assert answer.status == 200
    assert answer.body == {
        "streamUrl": "/_cron/eyJleHByZXNzaW9uIjoiKi81ICogKiAqICoiLCJ0aW1lem9uZSI6IlVUQyJ9"
    }


def path_of(said):
    return PREFIX + urlsafe_b64encode(msgspec.json.encode(said)).rstrip(b"=").decode()


def test_a_path_is_read_whichever_icu_its_zone_is_of():
    path = path_of({"expression": "0 9 * * *", "timezone": "Asia/Kolkata"})
    assert Cron.of(path) == Cron("0 9 * * *", "Asia/Calcutta")


@pytest.mark.parametrize(
    "path",
    [
        PREFIX,
        f"{PREFIX}%",
        f"{PREFIX}A",
        f"{PREFIX}\N{SNOWMAN}",
        path_of([]),
        path_of({"expression": "0 9 * * *"}),
        path_of({"expression": 5, "timezone": "UTC"}),
        path_of({"expression": "0 9 * *", "timezone": "UTC"}),
        PREFIX + urlsafe_b64encode(b"\xff").decode(),
    ],
)
def test_what_is_no_path_of_one(path):
    with pytest.raises(ValueError):
        Cron.of(path)
