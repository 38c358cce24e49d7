"""Reading a stream as server-sent events."""

import re
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from api import streams
from api.throttles import Hold
from core import unread
from dispatch.models import Entity
from dispatch.streams.reads import EventsOf
from tests.serving.conftest import Held, make_idle, tail
from tests.support import Answer, Api, Server

ZERO = "0000000000000000_0000000000000000"
ONE = "0000000000000000_0000000000000001"


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch):
    """The answer ends when what is there has been told."""
    monkeypatch.setattr(streams, "SSE_LENGTH_S", 0.0)


@pytest.fixture
def woken(alice: Api) -> Api:
    """Runner r1, with a wake."""
    alice.register()
    alice.make_entity()
    alice.send()
    return alice


def read(api: Api, offset: str = "-1", more: str = "") -> Answer:
    return api.get(f"/runners/r1/wake?offset={offset}&live=sse{more}")


def told(answer: Answer) -> list[tuple[str, Any]]:
    """The events of an answer, each by its name and its decoded data; comments are passed over."""
    text = re.sub(r"^:.*\n\n", "", answer.content.decode(), flags=re.MULTILINE)
    blocks = re.findall(r"event: (\w+)\n((?:data:.*\n)+)\n", text)
    assert "".join(f"event: {name}\n{data}\n" for name, data in blocks) == text
    return [
        (name, msgspec.json.decode("\n".join(re.findall(r"data: ?(.*)", data))))
        for name, data in blocks
    ]


def test_it_tells_the_wakes_and_then_where_they_end(woken: Api):
    (data, events), (control, place) = told(read(woken))
    assert data == "data"
    assert [event["stream"] for event in events] == ["agent/e1/main"]
    assert control == "control"
    assert int(place.pop("streamCursor")) > 0
    assert place == {"streamNextOffset": ONE, "upToDate": True}


def test_what_a_reader_has_not_taken_counts_as_held(woken: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unread, "MUCH", 100_000)
    woken.send(payload="x" * 200_000)
    path = "/agent/e1/main?offset=-1&live=sse"
    response: Any = woken.client.get(path, headers=woken.headers)
    pieces = iter(response.streaming_content)
    next(pieces)
    assert unread.is_much()
    assert len(list(pieces)) > 1
    assert not unread.is_much()


def test_it_tells_only_the_place_when_there_is_nothing(woken: Api):
    ((control, place),) = told(read(woken, "now"))
    assert (control, place["streamNextOffset"], place["upToDate"]) == ("control", ONE, True)


def test_it_heals_an_offset_past_the_tail(woken: Api):
    answer = read(woken, "0000000000000000_0000000000009999")
    assert answer.status == 200
    assert [place["streamNextOffset"] for _, place in told(answer)] == [ONE]


def test_its_cursor_is_past_the_readers_own(woken: Api):
    *_, (_, place) = told(read(woken, more="&cursor=999999999"))
    assert place["streamCursor"] == "1000000000"


def test_its_headers_are_those_of_an_event_stream(woken: Api):
    answer = read(woken)
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Stream-Next-Offset"] == ZERO


def test_it_tells_a_main_stream_just_so(woken: Api):
    data, control = told(woken.get("/agent/e1/main?offset=-1&live=sse"))
    assert [event["type"] for event in data[1]] == ["entity_created", "inbox"]
    assert control[1]["streamNextOffset"] == data[1][-1]["headers"]["offset"]


# --- On a server, as it comes -----------------------------------------------------------------


def until_up_to_date(lines: Iterator[str]) -> list[tuple[str, Any]]:
    """The events that come up to the one that says that there are no more."""
    found: list[tuple[str, Any]] = []
    for line in lines:
        if line.startswith("event:"):
            name = line.removeprefix("event: ")
        elif line.startswith("data:"):
            found.append((name, msgspec.json.decode(line.removeprefix("data:"))))
            if name == "control" and found[-1][1].get("upToDate"):
                break
    return found


def test_it_tells_what_comes_while_it_is_read(server: Server, hold: Callable[..., Held]):
    api = make_idle(server.client())
    lines = hold(server, "/runners/r1/wake?offset=-1&live=sse").lines()
    assert [name for name, _ in until_up_to_date(lines)] == ["control"]
    for generation in (1, 2):
        api.send()
        (_, events), (_, place) = until_up_to_date(lines)
        assert [event["generation"] for event in events] == [generation]
        assert place["streamNextOffset"] == tail(api)
        api.claim().done()


def test_it_is_up_to_date_only_with_the_last_page(server: Server, hold: Callable[..., Held]):
    api = make_idle(server.client())
    api.send()
    claim = api.claim()
    claim.append(*[{"n": number} for number in range(1500)], token=claim.mint())
    lines = hold(server, "/agent/e1/main?offset=-1&live=sse").lines()
    (_, first), (_, place), (_, rest), (_, last) = until_up_to_date(lines)
    assert len(first) == 1000
    assert "upToDate" not in place
    assert len(rest) == 502
    assert last["upToDate"] is True


def test_a_reader_that_does_not_read_holds_one_copy_of_a_page(alice: Api):
    """A hundred such readers held 700 MB: the events, their text, its bytes and those to send."""
    alice.register()
    alice.make_entity()
    length = 900_000
    alice.send(payload="x" * length)
    source = EventsOf(Entity.objects.get().pk, bool)
    source.read(0)  # compiled, and connected
    tracemalloc.start()
    answer = streams._sse(source, 0, None, Hold("alice", "sse"), None)
    sent: Any = answer.streaming_content
    begin = next(sent)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    answer.close()
    assert begin.startswith(b'event: data\ndata:[{"type":"entity_created"')
    assert held < 1.5 * length
