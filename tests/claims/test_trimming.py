"""What a living entity keeps of its stream by its type's retention, and what readers are told."""

import pytest

from api import streams
from claims import retention, trimming
from dispatch.models import DispatchState, SharedStateEvent, StreamEvent
from dispatch.streams import offsets
from tests.factories import ago
from tests.support import end_delay, prune

MAIN = "/agent/e1/main"
TYPES = "/_electric/entity-types"


def retain(api, **limits):
    body = {"name": "agent", "description": "Talks", "retention": limits or None}
    assert api.post(TYPES, body).status == 201


def offset(number):
    return offsets.encode(number)


def trim(size=100):
    """Remove what need not be kept: how many events went, as it was foretold."""
    foretold = trimming.count(size)
    removed = list(trimming.trim(size))
    assert foretold == sum(removed)
    assert not any(each > size for each in removed)
    return sum(removed)


def left():
    return list(StreamEvent.objects.order_by("offset").values_list("offset", flat=True))


@pytest.fixture
def talker(alice):
    """Alice, with an entity that keeps 2 acked events, and has 6: its creation and 5 messages."""
    retain(alice, events=2)
    alice.register()
    alice.make_entity()
    for number in range(5):
        alice.send(key=f"m{number}")
    alice.claim().done()
    return alice


# --- What goes --------------------------------------------------------------------------------


def test_a_type_keeps_all_unless_it_says_otherwise(talker):
    retain(talker)
    assert trim() == 0
    assert len(left()) == 6


@pytest.mark.parametrize("size", [1, 100])
def test_the_oldest_acked_events_go(talker, size):
    assert trim(size) == 4
    assert left() == [5, 6]
    assert trim() == 0


def test_they_go_when_they_are_too_old(talker):
    retain(talker, days=3)
    StreamEvent.objects.filter(offset__lte=2).update(created_at=ago(days=3, seconds=1))
    StreamEvent.objects.filter(offset=3).update(created_at=ago(days=2))
    assert trim() == 2
    assert left() == [3, 4, 5, 6]


def test_of_two_limits_the_one_that_is_met_first_holds(talker):
    retain(talker, events=4, days=3)
    StreamEvent.objects.filter(offset__lte=3).update(created_at=ago(days=4))
    assert trim() == 3
    retain(talker, events=1, days=3)
    assert trim() == 2
    assert left() == [6]


def test_pruning_removes_them_too(talker):
    assert prune()[retention.ACKED] == 4


# --- What stays -------------------------------------------------------------------------------


def test_what_is_not_acked_stays(talker):
    retain(talker, events=1)
    talker.send(key="unacked")
    talker.send(key="unacked-too")
    assert trim() == 5
    assert left() == [6, 7, 8]


def test_nothing_goes_while_a_claim_is_active(talker):
    talker.send()
    claim = talker.claim()
    assert trim() == 0
    claim.done()
    assert trim() == 5


def test_a_queued_message_stays_until_it_was_taken(talker):
    retain(talker, events=1)
    talker.send(key="queued", mode="queued")
    talker.send()
    talker.send()
    claim = talker.claim()
    assert claim.done(claim.tail).status == 200
    assert trim() == 6
    assert left() == [7, 8, 9]
    token = (claim := talker.claim()).mint()
    taken = {"type": "inbox", "key": "queued", "value": {"status": "processed"}}
    claim.append({**taken, "headers": {"operation": "update"}}, token=token)
    claim.done(claim.tail)
    assert trim() == 2


def test_a_dead_letter_stays_while_it_can_be_redriven(talker):
    retain(talker, events=1)
    talker.send(key="hopeless")
    talker.claim().call({"failed": True, "error": "no", "give_up": True})
    for _ in range(2):
        talker.send()
        talker.claim().done()
    assert trim() == 6
    assert left() == [7, 8, 9]


def test_a_message_stays_while_a_timer_has_its_key(talker):
    retain(talker, events=1)
    talker.send(key="once", afterMs=60_000)
    talker.send(key="once")
    for _ in range(2):
        talker.send()
    talker.claim().done()
    assert trim() == 6
    assert left()[0] == 7


@pytest.mark.parametrize("finished", [True, False])
def test_what_a_parent_is_to_be_told_of_a_run_stays(talker, finished):
    retain(talker, events=1)
    talker.make_entity("/agent/parent")
    watch = {"subscriberUrl": "/agent/parent", "sourceUrl": "/agent/e1", "condition": "runFinished"}
    assert talker.post("/_electric/wake", watch).status == 204
    talker.send()
    claim = talker.claim()
    if finished:
        done = {"type": "run", "key": "r", "value": {"status": "completed"}}
        claim.append({**done, "headers": {"operation": "update"}}, token=claim.mint())
        claim.done(offset(8))
    else:
        claim.done()
    of_source = DispatchState.objects.get(entity__url="/agent/e1")
    assert of_source.cursor == 7 + finished
    talker.send()
    assert trim() == (7 if finished else 0)


def test_entities_of_another_registration_keep_theirs(talker):
    assert talker("DELETE", f"{TYPES}/agent").status == 204
    retain(talker, events=1)
    assert trim() == 0


def test_the_stream_of_an_entity_at_its_end_is_left_to_the_other_retention(talker):
    talker.signal("/agent/e1", "SIGKILL")
    assert trim() == 0


# --- What readers are told --------------------------------------------------------------------


def test_from_the_start_a_reader_is_given_what_is_left(talker):
    whole = talker.get(MAIN)
    assert "Stream-Earliest-Offset" not in whole.headers
    trim()
    for start in ("", "?offset=-1", f"?offset={offset(0)}"):
        answer = talker.get(f"{MAIN}{start}")
        assert answer.body == whole.body[4:]
        assert answer.headers["Stream-Earliest-Offset"] == offset(4)
        assert answer.headers["Stream-Next-Offset"] == offset(6)
    assert talker.get(f"{MAIN}?offset={offset(4)}").body == whole.body[4:]


@pytest.mark.parametrize("live", ["", "&live=long-poll", "&live=sse"])
def test_where_events_were_removed_a_reader_is_told_so(talker, live):
    trim()
    answer = talker.get(f"{MAIN}?offset={offset(3)}{live}")
    assert (answer.status, answer.error) == (410, "OFFSET_GONE")
    assert answer.body["error"]["details"] == {"earliest_offset": offset(4)}
    assert answer.headers["Stream-Earliest-Offset"] == offset(4)


@pytest.mark.parametrize("live", ["long-poll", "sse"])
def test_a_live_reader_from_the_start_is_given_what_is_left(talker, live, monkeypatch):
    monkeypatch.setattr(streams, "SSE_LENGTH_S", 0.0)
    trim()
    answer = talker.get(f"{MAIN}?offset=-1&live={live}")
    assert answer.headers["Stream-Earliest-Offset"] == offset(4)
    assert (b"m2" in answer.content, b"m3" in answer.content) == (False, True)


def test_where_nothing_is_left_a_reader_is_told_so(talker):
    StreamEvent.objects.all().delete()
    assert talker.get(MAIN).body == []
    assert talker.get(MAIN).headers["Stream-Earliest-Offset"] == offset(6)
    assert talker.get(f"{MAIN}?offset={offset(5)}").status == 410
    assert talker.get(f"{MAIN}?offset={offset(6)}").body == []


def test_an_entity_goes_on_as_before(talker):
    trim()
    talker.send(key="more")
    claim = talker.claim()
    token = claim.mint()
    event = {"type": "text", "key": "t", "value": {}, "headers": {"operation": "insert"}}
    assert claim.append(event, token=token).headers["Stream-Next-Offset"] == offset(8)
    claim.fail()
    end_delay()
    assert [each["key"] for each in talker.events()] == ["m3", "m4", "more", "t"]


def test_so_is_one_of_a_shared_state(talker):
    path = talker.share()
    for _ in range(3):
        talker.post(path, {"type": "note", "key": "k", "value": {}})
    SharedStateEvent.objects.filter(offset__lte=2).delete()
    answer = talker.get(f"{path}?offset={offset(1)}")
    assert (answer.status, answer.error) == (410, "OFFSET_GONE")
    assert talker.get(path).headers["Stream-Earliest-Offset"] == offset(2)
