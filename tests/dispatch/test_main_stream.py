"""/:type/:id/main: what is read, and appends under a claim."""

from io import BytesIO

import msgspec
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from api import streams
from dispatch.models import DispatchState, StreamEvent
from tests.support import Api

MAIN = "/agent/e1/main"


def offset(number):
    return f"0000000000000000_{number:016d}"


@pytest.fixture
def held(alice):
    """An active claim of /agent/e1, with its write token as ``held.token``."""
    alice.register()
    alice.make_entity(initialMessage="hi")
    claim = alice.claim()
    claim.token = claim.mint()
    return claim


def appended(api):
    """The events after the creation and the message."""
    return api.get(f"{MAIN}?offset={offset(2)}").body


# --- Reading ----------------------------------------------------------------------------------


def test_it_begins_with_the_entity_and_gives_what_came(held):
    answer = held.api.get(MAIN)
    assert answer.status == 200
    assert [event["type"] for event in answer.body] == ["entity_created", "inbox"]
    assert answer.headers["Stream-Next-Offset"] == offset(2) == held.tail
    assert answer.headers["Stream-Up-To-Date"] == "true"


@pytest.mark.parametrize("live", ["long-poll", "sse"])
def test_a_live_read_begins_just_past_an_offset(held, live, monkeypatch):
    monkeypatch.setattr(streams, "SSE_LENGTH_S", 0.0)
    answer = held.api.get(f"{MAIN}?offset={offset(1)}_1&live={live}")
    assert answer.status == 200
    assert b'"inbox"' in answer.content
    assert b'"entity_created"' not in answer.content


def test_an_appends_answer_does_not_pass_work_that_came_after_the_claim(held):
    one = {"type": "text", "key": "t", "value": {}, "headers": {"operation": "insert"}}
    producer = {"Producer_Id": "p", "Producer_Epoch": "0"}

    def append(seq):
        answer = held.append(one, token=held.token, **producer, Producer_Seq=str(seq))
        return answer.headers["Stream-Next-Offset"]

    assert append(0) == offset(3)
    held.api.send()  # at 4
    held.api.send()
    assert append(1) == append(1) == f"{offset(3)}_1"
    held.heartbeat(acks=[{"path": MAIN, "offset": offset(4)}])
    assert append(2) == f"{offset(4)}_1"
    assert held.api("HEAD", MAIN).headers["Stream-Next-Offset"] == offset(7)


def test_a_head_tells_the_tail(held):
    answer = held.api("HEAD", MAIN)
    assert (answer.status, answer.content) == (200, b"")
    assert answer.headers["Stream-Next-Offset"] == offset(2)
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("after", "types"),
    [
        ("-1", ["entity_created", "inbox"]),
        (offset(1), ["inbox"]),
        (f"{offset(1)}_1", ["inbox"]),
        (offset(2), []),
        (f"{offset(2)}_1", []),
        ("now", []),
    ],
)
def test_it_gives_what_lies_past_the_offset(held, after, types):
    answer = held.api.get(f"{MAIN}?offset={after}")
    assert [event["type"] for event in answer.body] == types
    assert answer.headers["Stream-Next-Offset"] == offset(2)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_it_does_not_know_the_stream(held, method):
    assert held.api(method, "/agent/unknown/main").status == 404


@pytest.mark.parametrize("header", ["Electric_Claim_Token", "Authorization"])
@pytest.mark.parametrize("path", ["/agent/unknown/main", "/agent/e2/main"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_a_token_does_not_tell_which_streams_there_are(held, method, path, header):
    held.api.make_entity("/agent/e2")
    for token in (held.token, held.body["claimToken"], "pww_unknown"):
        value = token if header == "Electric_Claim_Token" else f"Bearer {token}"
        answer = Api(**{header: value})(method, path, {"n": 1})
        assert answer.status == 401, (token, answer)


@pytest.mark.parametrize("path", ["/agent/unknown/main", MAIN])
def test_whether_it_exists_is_not_told_by_who_waits_for_the_body_or_a_lock(held, path):
    sent = BytesIO(b"{}")
    with CaptureQueriesContext(connection) as statements:
        answer = held.api.client.generic(
            "POST",
            path,
            content_type="application/json",
            headers={"Electric-Claim-Token": "pww_unknown", "Transfer-Encoding": "chunked"},
            **{"wsgi.input": sent},
        )
    assert (answer.status_code, sent.tell(), len(statements)) == (401, 0, 1)


def test_each_event_gets_the_offset_just_after_it(held):
    events = [{"n": n, "headers": {"operation": "insert", "more": 1}} for n in range(3)]
    assert held.append(*events, token=held.token).status == 204
    held.append({"n": 3, "headers": {"operation": "update"}}, token=held.token)
    assert [event["headers"]["offset"] for event in appended(held.api)] == [
        offset(n) for n in (3, 4, 5, 6)
    ]
    assert appended(held.api)[0]["headers"]["more"] == 1
    # Reading from such an offset gives what comes after that very event.
    after = appended(held.api)[1]["headers"]["offset"]
    assert [event["n"] for event in held.api.get(f"{MAIN}?offset={after}").body] == [2, 3]


def test_an_offset_that_the_writer_made_up_is_not_kept(held):
    event = {"headers": {"operation": "insert", "offset": "made up"}}
    held.append(event, token=held.token)
    assert appended(held.api)[0]["headers"]["offset"] == offset(3)


@pytest.mark.parametrize(
    "event",
    [
        {"n": 1},
        {"headers": {}},
        {"headers": {"operation": 1}},
        {"headers": {"operation": None}},
        {"headers": "insert"},
        "text",
        7,
        None,
        {"n": 12345678901234567890, "f": 1e300, "s": "\N{SNOWMAN}"},
    ],
)
def test_other_events_are_given_as_they_came(held, event):
    assert held.append(event, token=held.token).status == 204
    assert appended(held.api) == [event]


# --- Appending --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "events"),
    [
        ({"n": 1}, [{"n": 1}]),
        ([{"n": 1}, {"n": 2}], [{"n": 1}, {"n": 2}]),
        ([[{"n": 1}, {"n": 2}], {"n": 3}], [[{"n": 1}, {"n": 2}], {"n": 3}]),
        ([[]], [[]]),
    ],
    ids=str,
)
def test_it_appends_an_event_or_an_array_flattened_one_level(held, body, events):
    answer = held.api.post(MAIN, body, Electric_Claim_Token=held.token)
    assert (answer.status, answer.content) == (204, b"")
    assert answer.headers["Stream-Next-Offset"] == offset(2 + len(events))
    assert appended(held.api) == events


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"nonsense", b'{"a": 1} {"b": 2}', b"[1,"])
def test_it_refuses_what_is_no_event(held, body):
    answer = held.api.post(MAIN, body, Electric_Claim_Token=held.token)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert appended(held.api) == []


@pytest.mark.parametrize(
    "events",
    [[{}] * 10_001, [{"type": "manifest", "key": "k"}] * 1_001, [{"type": "inbox"}] * 1_001],
    ids=["events", "manifest", "inbox"],
)
def test_an_append_of_too_many_is_refused(held, events):
    for token, error in (("pww_unknown", "UNAUTHORIZED"), (held.token, "PAYLOAD_TOO_LARGE")):
        assert held.api.post(MAIN, events, Electric_Claim_Token=token).error == error
    assert appended(held.api) == []
    held.api.share("s1")
    assert held.api.post("/_electric/shared-state/s1", events).error == "PAYLOAD_TOO_LARGE"


def test_it_refuses_another_content_type(held):
    answer = held.api.post(
        MAIN, b"{}", Electric_Claim_Token=held.token, **{"Content-Type": "text/plain"}
    )
    assert (answer.status, answer.error) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("header", ["Electric_Claim_Token", "Authorization"])
def test_its_write_token_comes_in_either_header(held, header):
    value = held.token if header == "Electric_Claim_Token" else f"Bearer {held.token}"
    assert Api(**{header: value}).post(MAIN, {"n": 1}).status == 204


def tokens(held):
    """What does not let anybody write."""
    held.api.make_entity("/agent/e2", initialMessage="hi")
    other = held.api.claim()
    return {
        "none": {},
        "the claim token": {"Electric_Claim_Token": held.body["claimToken"]},
        "unknown": {"Electric_Claim_Token": "pww_unknown"},
        "another entity's": {"Electric_Claim_Token": other.mint()},
        "another entity's as bearer": {"Authorization": f"Bearer {other.mint()}"},
        "two": {"Electric_Claim_Token": held.token, "Authorization": "Bearer pww_other"},
        "a bad bearer": {"Electric_Claim_Token": held.token, "Authorization": "Bearer pwa_bad"},
    }


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"{", {}),
        (b"[]", {}),
        (b"{}", {"Content_Type": "text/plain"}),
        (b"{}", {"Producer_Id": "p"}),
        (b" " * 2_000_000, {}),
    ],
)
def test_who_may_not_write_is_not_told_what_an_event_looks_like(held, body, headers):
    answer = held.api.post(MAIN, body, Electric_Claim_Token="pww_unknown", **headers)
    assert (answer.status, answer.error) == (401, "UNAUTHORIZED")
    assert held.api.post(MAIN, body, Electric_Claim_Token=held.token, **headers).status >= 400


@pytest.mark.parametrize(
    "name",
    [
        "none",
        "the claim token",
        "unknown",
        "another entity's",
        "another entity's as bearer",
        "two",
        "a bad bearer",
    ],
)
def test_nobody_writes_without_the_write_token(held, name):
    answer = held.api.post(MAIN, {"n": 1}, **tokens(held)[name])
    assert (answer.status, answer.error) == (401, "UNAUTHORIZED")
    assert appended(held.api) == []


def test_the_write_token_of_an_ended_claim_is_dead_also_under_a_newer_claim(held):
    held.fail()
    held.api.send()
    newer = held.api.claim()
    assert held.append({"n": 1}, token=held.token).status == 401
    assert newer.append({"n": 2}, token=newer.mint()).status == 204


def test_appends_leave_the_cursor_and_the_work_alone(held):
    before = DispatchState.objects.get()
    held.append({"n": 1}, token=held.token)
    after = DispatchState.objects.get()
    assert (after.cursor, after.last_work_offset) == (before.cursor, before.last_work_offset)
    assert after.tail == before.tail + 1


def test_a_stream_is_its_entitys_alone(held):
    held.api.make_entity("/agent/e2")
    held.append({"n": 1}, token=held.token)
    assert [event["type"] for event in held.api.events("/agent/e2")] == ["entity_created"]


# --- Idempotent producers ---------------------------------------------------------------------


def produce(held, seq, epoch=0, producer="p", **event):
    return held.append(
        {"seq": seq, **event},
        token=held.token,
        Producer_Id=producer,
        Producer_Epoch=str(epoch),
        Producer_Seq=str(seq),
    )


def test_what_is_new_is_told_with_its_place(held):
    answer = produce(held, 0)
    assert (answer.status, answer.content) == (200, b"")
    assert answer.headers["Stream-Next-Offset"] == offset(3)
    assert (answer.headers["Producer-Epoch"], answer.headers["Producer-Seq"]) == ("0", "0")
    assert produce(held, 1).status == 200


@pytest.mark.parametrize("seq", [0, 1])
def test_a_duplicate_is_appended_once(held, seq):
    produce(held, 0)
    produce(held, 1)
    answer = produce(held, seq)
    assert answer.status == 204
    assert answer.headers["Stream-Next-Offset"] == offset(4)
    assert [event["seq"] for event in appended(held.api)] == [0, 1]


@pytest.mark.parametrize(("seq", "received"), [(2, "2"), (99, "99")])
def test_a_gap_says_what_was_expected(held, seq, received):
    produce(held, 0)
    answer = produce(held, seq)
    assert (answer.status, answer.error) == (409, "PRODUCER_GAP")
    assert answer.headers["Producer-Expected-Seq"] == "1"
    assert answer.headers["Producer-Received-Seq"] == received
    assert len(appended(held.api)) == 1


def test_an_unknown_producer_begins_at_0(held):
    answer = produce(held, 5)
    assert (answer.status, answer.error) == (409, "PRODUCER_GAP")
    assert answer.headers["Producer-Expected-Seq"] == "0"


def test_a_lower_epoch_is_fenced(held):
    produce(held, 0, epoch=3)
    answer = produce(held, 1, epoch=2)
    assert (answer.status, answer.error) == (403, "PRODUCER_FENCED")
    assert answer.headers["Producer-Epoch"] == "3"
    assert len(appended(held.api)) == 1


def test_a_new_epoch_begins_at_0(held):
    produce(held, 0)
    produce(held, 1)
    answer = produce(held, 2, epoch=1)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert produce(held, 0, epoch=1).status == 200
    assert produce(held, 2).error == "PRODUCER_FENCED"


def test_producers_do_not_know_each_other(held):
    produce(held, 0, producer="p")
    assert produce(held, 0, producer="q").status == 200


def test_producers_of_other_entities_do_not_either(held):
    produce(held, 0)
    held.api.make_entity("/agent/e2", initialMessage="hi")
    other = held.api.claim()
    other.token = other.mint()
    assert produce(other, 0).status == 200


def test_a_producer_goes_on_under_the_next_claim(held):
    produce(held, 0)
    held.fail()
    held.api.send()
    newer = held.api.claim()
    newer.token = newer.mint()
    assert produce(newer, 0).status == 204
    assert produce(newer, 1).status == 200


HEADERS = {"Producer_Id": "p", "Producer_Epoch": "0", "Producer_Seq": "0"}


@pytest.mark.parametrize("missing", HEADERS)
def test_the_headers_come_all_or_none(held, missing):
    headers = {name: value for name, value in HEADERS.items() if name != missing}
    answer = held.append({"n": 1}, token=held.token, **headers)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert answer.body["error"]["details"][0]["path"] == "/" + missing.replace("_", "-")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Producer_Id", ""),
        ("Producer_Id", "x" * 257),
        ("Producer_Epoch", "-1"),
        ("Producer_Epoch", "1.0"),
        ("Producer_Epoch", ""),
        ("Producer_Seq", "x"),
        ("Producer_Seq", str(2**53)),
    ],
)
def test_it_refuses_a_bad_producer_header(held, name, value):
    answer = held.append({"n": 1}, token=held.token, **{**HEADERS, name: value})
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert appended(held.api) == []


def test_an_array_is_one_step_of_a_producer(held):
    answer = held.append({"n": 1}, {"n": 2}, token=held.token, **HEADERS)
    assert answer.headers["Stream-Next-Offset"] == offset(4)
    again = held.append({"n": 1}, {"n": 2}, token=held.token, **HEADERS)
    assert (again.status, len(appended(held.api))) == (204, 2)


def test_events_are_kept_as_the_text_that_readers_get(held):
    held.append({"n": 1.0, "headers": {"operation": "insert"}}, token=held.token)
    row = StreamEvent.objects.latest("offset")
    assert msgspec.json.decode(row.data) == appended(held.api)[0]
