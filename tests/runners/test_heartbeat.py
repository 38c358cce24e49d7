"""POST /_electric/runners/:id/heartbeat."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from django.db import connection

from runners.models import RunnerLiveness
from tests.factories import ago
from tests.support import JSON

PATH = "/_electric/runners/r1/heartbeat"
OFFSET = "0000000000000000_0000000000000042"


@pytest.fixture
def runner(alice):
    """Alice's runner r1, which has not been seen."""
    return alice.register()


def at(text):
    return datetime.fromisoformat(text)


def lease(answer):
    """How long the heartbeat's lease is, in milliseconds."""
    assert answer.status == 200, answer
    runner = answer.body
    length = at(runner["liveness_lease_expires_at"]) - at(runner["last_seen_at"])
    return length / timedelta(milliseconds=1)


def stored():
    return RunnerLiveness.objects.values_list(
        "last_seen_at", "lease_expires_at", "wake_stream_offset", "diagnostics"
    ).get(pk="r1")


def refuses(answer, *paths):
    """It is refused, names these fields, and has changed nothing of a runner never seen."""
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert tuple(each["path"] for each in answer.body["error"]["details"]) == paths
    assert stored() == (None, None, None, None)
    return True


def test_no_body_is_a_lease_of_30_s(alice, runner):
    answer = alice.post(PATH)
    assert lease(answer) == 30_000
    assert answer.body == alice.get("/_electric/runners/r1").body


@pytest.mark.parametrize("lease_ms", [1_000, 90_000, 3_600_000])
def test_it_takes_a_lease_within_bounds(alice, runner, lease_ms):
    assert lease(alice.post(PATH, {"lease_ms": lease_ms})) == lease_ms


@pytest.mark.parametrize(
    "lease_ms", [999, 3_600_001, 0, -5_000, 1e300, 2**70, "90000", None, True, [90_000]]
)
def test_it_refuses_a_lease_out_of_bounds(alice, runner, lease_ms):
    assert refuses(alice.post(PATH, {"lease_ms": lease_ms}), "/lease_ms")


def test_a_lease_need_not_be_whole(alice, runner):
    """A runner of 10 s / 3 between its heartbeats names three times that."""
    assert alice.post(PATH, b'{"lease_ms": 9999.999999999998}').status == 200


@pytest.mark.parametrize("hours", [0, 5])
def test_it_takes_an_explicit_expiry_in_any_zone(alice, runner, hours):
    zone = timezone(timedelta(hours=hours))
    expiry = (datetime.now(zone) + timedelta(minutes=10)).isoformat(timespec="milliseconds")
    answer = alice.post(PATH, {"liveness_lease_expires_at": expiry, "lease_ms": 5_000})

    kept = answer.body["liveness_lease_expires_at"]
    assert kept.endswith("Z")
    assert at(kept) == at(expiry)


@pytest.mark.parametrize(
    "expiry",
    [
        "not a date",
        "",
        "3000-01-01T00:00:00.000Z",
        "2020-01-01T00:00:00.000Z",
        "2026-13-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-12:00",
        pytest.param(lambda now: (now + timedelta(minutes=62)).isoformat(), id="too late"),
        pytest.param(lambda now: (now + timedelta(minutes=5)).strftime("%FT%T"), id="no zone"),
        pytest.param(lambda now: (now + timedelta(minutes=5)).timestamp(), id="a number"),
        None,
    ],
)
def test_it_refuses_an_expiry_that_is_no_date_within_bounds(alice, runner, expiry):
    if callable(expiry):
        expiry = expiry(datetime.now(UTC))
    assert refuses(
        alice.post(PATH, {"liveness_lease_expires_at": expiry}), "/liveness_lease_expires_at"
    )


@pytest.mark.parametrize("field", ["wake_stream_offset", "wakeStreamOffset"])
@pytest.mark.parametrize("offset", ["-1", OFFSET])
def test_it_commits_an_offset(alice, runner, field, offset):
    assert alice.post(PATH, {field: offset}).body["wake_stream_offset"] == offset


@pytest.mark.parametrize("field", ["wake_stream_offset", "wakeStreamOffset"])
@pytest.mark.parametrize(
    "offset", ["", "now", "-2", "42", "0_42", f"{OFFSET}\n", OFFSET[:-1] + "x", 42, None, "-1\x00"]
)
def test_it_refuses_what_is_no_offset(alice, runner, field, offset):
    assert refuses(alice.post(PATH, {field: offset}), f"/{field}")


def test_what_is_left_out_keeps_its_value(alice, runner):
    alice.post(PATH, {"wake_stream_offset": OFFSET, "diagnostics": {"status": "streaming"}})
    again = alice.post(PATH, {"lease_ms": 90_000})

    assert lease(again) == 90_000
    assert again.body["wake_stream_offset"] == OFFSET
    assert again.body["diagnostics"] == {"status": "streaming"}


def test_it_renews(alice, runner):
    first = alice.post(PATH).body
    assert alice.post(PATH).body["last_seen_at"] >= first["last_seen_at"]
    seen, expires, *_ = stored()
    assert expires - seen == timedelta(seconds=30)


def test_it_leaves_the_runner_itself_alone(alice, runner):
    after = alice.post(PATH).body
    assert {name: after[name] for name in runner} == runner


def test_a_disabled_runner_may_report(alice, runner):
    alice.post("/_electric/runners/r1/disable")
    assert alice.post(PATH).status == 200


def test_it_refuses_anothers_runner(alice, bob, runner):
    answer = bob.post(PATH)
    assert (answer.status, answer.error) == (403, "UNAUTHORIZED")
    assert stored() == (None, None, None, None)


def test_it_does_not_find_an_unknown_runner(alice, runner):
    answer = alice.post("/_electric/runners/r2/heartbeat")
    assert (answer.status, answer.error) == (404, "NOT_FOUND")


@pytest.mark.parametrize("body", [b"[]", b"7", b'"x"', b"null"])
def test_it_takes_an_object_alone(alice, runner, body):
    assert refuses(alice.post(PATH, body), "")


def test_unknown_fields_do_no_harm(alice, runner):
    assert alice.post(PATH, {"runner_id": "r2", "status": "online"}).status == 200


def test_an_empty_body_needs_no_content_type(alice, runner):
    assert alice.post(PATH, Content_Type="").status == 200
    assert alice.post(PATH, b"{}", Content_Type=f"{JSON}; charset=utf-8").status == 200


def updates():
    """How many updates of liveness, and of these HOT ones, the session has not told of yet."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables"
            " WHERE relname = 'runners_runnerliveness'"
        )
        return cursor.fetchone()


@pytest.mark.postgres
def test_it_touches_no_index(alice, runner):
    """However many runners there are, and however often they report, no index grows of it."""
    all_before, hot_before = updates()
    reports: tuple[Any, ...] = (
        {},
        {"lease_ms": 90_000, "wake_stream_offset": "-1"},
        {"diagnostics": {"status": "streaming"}},
    )
    for body in reports:
        assert alice.post(PATH, body).status == 200
    all_after, hot_after = updates()
    assert (all_after - all_before, hot_after - hot_before) == (3, 3)


@pytest.mark.postgres
def test_it_alone_does_not_wait_for_the_disk(alice):
    def waits():
        with connection.cursor() as cursor:
            cursor.execute("SHOW synchronous_commit")
            return cursor.fetchone() == ("on",)

    alice.register()
    alice.make_entity(initialMessage="hi")
    claim = alice.claim()
    claim.heartbeat()
    claim.done()
    assert waits()
    alice.post("/_electric/runners/r1/heartbeat")
    assert not waits()


# --- Two processes of one id --------------------------------------------------------------------

EARLIER, LATER = "2026-05-19T11:01:11.631Z", "2026-05-19T11:02:11.631Z"


def other_process(alice, started_at, status="streaming", **facts):
    """What the answer says of another process, to one that was started then."""
    told = {"status": status, "started_at": started_at}
    answer = alice.post("/_electric/runners/r1/heartbeat", {"diagnostics": told, **facts})
    assert answer.status == 200
    return answer.headers.get("Pullwake-Other-Process")


def test_each_process_hears_of_the_other(alice, runner):
    assert other_process(alice, EARLIER) is None
    assert other_process(alice, EARLIER) is None
    assert other_process(alice, LATER) == "true"
    assert other_process(alice, EARLIER) == "true"


def test_but_not_of_one_that_said_goodbye(alice, runner):
    other_process(alice, EARLIER, "stopped")
    assert other_process(alice, LATER) is None


def test_nor_of_one_that_fell_silent(alice, runner):
    other_process(alice, EARLIER)
    RunnerLiveness.objects.update(lease_expires_at=ago(seconds=1))
    assert other_process(alice, LATER) is None


def test_nor_without_diagnostics(alice, runner):
    other_process(alice, EARLIER)
    answer = alice.post("/_electric/runners/r1/heartbeat", {})
    assert "Pullwake-Other-Process" not in answer.headers
