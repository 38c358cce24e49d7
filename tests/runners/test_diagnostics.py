"""The diagnostics of a heartbeat: sixteen fields, each kept only if valid."""

from collections.abc import Iterable
from typing import Any

import pytest

PATH = "/_electric/runners/r1/heartbeat"

STATUSES = ("stopped", "starting", "connecting", "streaming", "reconnecting", "stopping")
BOOLEANS = ("stream_connected", "last_heartbeat_ok")
TEXTS = (
    "started_at",
    "stream_connected_since",
    "last_error",
    "last_error_at",
    "last_heartbeat_at",
    "last_claim_at",
    "last_dispatch_at",
)
COUNTS = (
    "reconnect_count",
    "events_received",
    "claims_succeeded",
    "claims_skipped",
    "claims_failed",
)
ALL = {
    "status": "streaming",
    "last_claim_result": "claimed",
    **dict.fromkeys(BOOLEANS, True),
    **dict.fromkeys(TEXTS, "2026-05-19T11:01:11.631Z"),
    **dict.fromkeys(COUNTS, 7),
}


def each(names: Iterable[str], *values: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name in names for value in values]


VALID = [
    *each(["status"], *STATUSES),
    *each(["last_claim_result"], "claimed", "no_work", "error", None),
    *each(BOOLEANS, True, False),
    *each(TEXTS, "", "x" * 4096, "🙂", None),
    *each(COUNTS, 0, 1.5, 2**53),
]
INVALID = [
    *each(["status"], "online", "", None, 1, ["streaming"], {}),
    *each(["last_claim_result"], "done", "", False, 0, []),
    *each(BOOLEANS, None, 1, 0, "true", []),
    *each(TEXTS, 7, True, ["x"], {}),
    *each(COUNTS, -1, -0.5, "7", None, True, [7]),
]


@pytest.fixture
def report(alice):
    """Report diagnostics of Alice's runner r1; what is stored then."""
    alice.register()

    def reported(diagnostics):
        answer = alice.post(PATH, {"diagnostics": diagnostics})
        assert answer.status == 200, answer
        stored = alice.get("/_electric/runners/r1").body
        assert answer.body == stored
        assert alice.get("/_electric/runners/r1/health").body["client"] == stored.get("diagnostics")
        return stored.get("diagnostics")

    return reported


def test_it_keeps_all_sixteen(report):
    assert len(ALL) == 16
    assert report(ALL) == ALL


@pytest.mark.parametrize(("name", "value"), VALID)
def test_it_keeps_a_valid_field(report, name, value):
    assert report({name: value}) == {name: value}


@pytest.mark.parametrize(("name", "value"), INVALID)
def test_it_drops_an_invalid_field_and_keeps_the_others(report, name, value):
    kept = {other: ALL[other] for other in ALL if other != name}
    assert report({**ALL, name: value}) == kept


def test_it_drops_unknown_keys(report):
    assert report({"status": "streaming", "hostname": "laptop", "a\x00b": 1}) == {
        "status": "streaming"
    }


def test_a_nul_never_reaches_the_database(report):
    assert report({"last_error": "bad\x00byte"}) == {"last_error": "bad\ufffdbyte"}


@pytest.mark.parametrize(
    ("escaped", "kept"),
    [
        (r"cut \ud83d", "cut \ufffd"),
        (r"\uDE00 cut", "\ufffd cut"),
        (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (r"\\ud83d", r"\ud83d"),
    ],
)
def test_half_an_emoji_never_reaches_the_database(alice, escaped, kept):
    """JavaScript cuts a text between the two halves, and writes the one that is left."""
    alice.register()
    body = f'{{"diagnostics": {{"last_error": "{escaped}", "{escaped}": 1}}}}'
    answer = alice.post(PATH, body.encode())
    assert answer.status == 200, answer
    assert answer.body["diagnostics"] == {"last_error": kept}


def test_an_over_long_text_is_cut(report):
    assert report({"last_error": "x" * 100_000}) == {"last_error": "x" * 4096}


@pytest.mark.parametrize("number", [2**63, 2**64, 10**400])
def test_a_number_however_big_is_no_error(report, number):
    kept = report({"status": "streaming", "events_received": number})
    assert kept["status"] == "streaming"


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400, "9" * 5000, "9" * 5000 + ".5"])
def test_an_infinite_number_is_dropped(alice, number):
    """As JavaScript reads it; the heartbeat is none the worse."""
    alice.register()
    told = f'{{"status": "streaming", "events_received": {number}, "nobody": [{number}]}}'
    answer = alice.post(PATH, f'{{"lease_ms": 90000, "diagnostics": {told}}}'.encode())
    assert (answer.status, answer.body["diagnostics"]) == (200, {"status": "streaming"}), answer


@pytest.mark.parametrize("told", ['{"a": 1e999}} x', '{"a": 1e999, "b": NaN}}', '{"a": 1e999'])
def test_what_is_no_json_is_refused_after_such_a_number_too(alice, told):
    alice.register()
    answer = alice.post(PATH, f'{{"diagnostics": {told}'.encode())
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")


def test_a_lease_that_is_infinite_is_named(alice):
    alice.register()
    answer = alice.post(PATH, b'{"lease_ms": 1e999}')
    assert [each["path"] for each in answer.body["error"]["details"]] == ["/lease_ms"]


def test_what_is_valid_replaces_the_stored_as_a_whole(report):
    report(ALL)
    assert report({"status": "stopped", "reconnect_count": -1}) == {"status": "stopped"}


@pytest.mark.parametrize("nothing_valid", [{}, {"status": "online", "reconnect_count": "7"}])
def test_if_none_is_valid_the_stored_stay(report, nothing_valid):
    report(ALL)
    assert report(nothing_valid) == ALL


def test_with_none_valid_ever_there_are_none(report):
    assert report({"status": "online"}) is None


@pytest.mark.parametrize("no_object", [None, "streaming", 7, [ALL]])
def test_what_is_no_object_fails_no_heartbeat(report, no_object):
    """Diagnostics only report: a runner is not to expire for what it says of itself."""
    report(ALL)
    assert report(no_object) == ALL
