"""Reading a runner's wake stream: modes, offsets and headers, as the wire contract has them."""

import time
from collections.abc import Callable

import pytest

from api import streams
from tests.serving.conftest import Held, make_idle, tail
from tests.serving.test_metrics import figures
from tests.support import Answer, Api, Server, wait_until

ZERO = "0000000000000000_0000000000000000"
ONE = "0000000000000000_0000000000000001"
PAST = "0000000000000000_0000000000009999"
ANOTHER_EPOCH = "0000000000000001_0000000000000000"
MODES = ["", "&live=long-poll"]

# 2024-10-09T00:00Z, and the length of an interval of Stream-Cursor, in seconds.
CURSOR_EPOCH, CURSOR_INTERVAL = 1728432000, 20


@pytest.fixture(autouse=True)
def _no_wait(settings, monkeypatch):
    """A live read with nothing to tell ends at once."""
    settings.PULLWAKE_LONG_POLL_MS = 0
    monkeypatch.setattr(streams, "SSE_LENGTH_S", 0.0)


@pytest.fixture
def empty(alice: Api) -> Api:
    """Runner r1, without wakes."""
    alice.register()
    return alice


@pytest.fixture
def woken(empty: Api) -> Api:
    """Runner r1, with a wake."""
    empty.make_entity()
    empty.send()
    return empty


def read(api: Api, query: str = "", method: str = "GET", **headers: str) -> Answer:
    return api(method, f"/runners/r1/wake{query}", **headers)


# --- Events -----------------------------------------------------------------------------------


def test_it_gives_a_wake_as_the_contract_has_it(woken: Api):
    before = time.time()
    (event,) = read(woken).body
    assert isinstance(event.pop("ts"), int)
    assert event == {
        "type": "wake",
        # The first 16 hex digits of the SHA-256 of "/agent/e1".
        "subscription_id": "runner:r1:be48300294a5d343",
        "stream": "agent/e1/main",
        "generation": 1,
    }
    assert abs(woken.wakes()[0]["ts"] / 1000 - before) < 60


def test_it_exists_from_registration_on(empty: Api):
    answer = read(empty)
    assert (answer.status, answer.body) == (200, [])
    assert answer.headers["Stream-Next-Offset"] == ZERO


def test_it_gives_wakes_in_the_order_of_their_offsets(woken: Api):
    woken.make_entity("/agent/e2")
    woken.send("/agent/e2")
    assert [event["stream"] for event in woken.wakes()] == ["agent/e1/main", "agent/e2/main"]
    assert [event["stream"] for event in woken.wakes(offset=ONE)] == ["agent/e2/main"]


def test_it_no_longer_gives_a_wake_that_was_claimed(woken: Api):
    woken.claim()
    answer = read(woken, "?offset=-1")
    assert answer.body == []
    assert answer.headers["Stream-Next-Offset"] == ONE


# --- Offsets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("offset", ["-1", ZERO])
def test_it_gives_all_from_the_start(offset: str, mode: str, woken: Api):
    answer = read(woken, f"?offset={offset}{mode}")
    assert answer.status == 200
    assert len(answer.body) == 1
    assert answer.headers["Stream-Next-Offset"] == ONE
    assert answer.headers["Stream-Up-To-Date"] == "true"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("offset", [PAST, ANOTHER_EPOCH])
def test_it_heals_an_offset_past_the_tail(offset: str, mode: str, woken: Api):
    answer = read(woken, f"?offset={offset}{mode}")
    assert (answer.status, answer.body) == (200, [])
    assert answer.headers["Stream-Next-Offset"] == ONE
    assert answer.headers["Stream-Up-To-Date"] == "true"


def test_it_starts_at_the_tail_for_now(woken: Api):
    answer = read(woken, "?offset=now")
    assert (answer.status, answer.body) == (200, [])
    assert answer.headers["Stream-Next-Offset"] == ONE


@pytest.mark.parametrize("mode", [*MODES, "&live=sse"])
@pytest.mark.parametrize(
    "offset", ["", "0", "-2", "NOW", "1_1", f"{ZERO}0", f" {ZERO}", f"{ZERO}%0A", "%D9%A1" * 16]
)
def test_it_refuses_a_malformed_offset(offset: str, mode: str, woken: Api):
    assert read(woken, f"?offset={offset}{mode}").error == "INVALID_REQUEST"


@pytest.mark.parametrize("query", ["?live=long-poll", "?live=sse", "?offset=-1&live=true"])
def test_it_refuses_live_without_an_offset_or_of_another_kind(query: str, woken: Api):
    answer = read(woken, query)
    assert answer.status == 400
    assert answer.error == "INVALID_REQUEST"


# --- Long-poll --------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", ["now", ONE])
def test_it_answers_204_when_nothing_comes(offset: str, woken: Api):
    answer = read(woken, f"?offset={offset}&live=long-poll")
    assert (answer.status, answer.content) == (204, b"")
    assert answer.headers["Stream-Next-Offset"] == ONE
    assert answer.headers["Stream-Up-To-Date"] == "true"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert int(answer.headers["Stream-Cursor"]) > 0
    assert "Content-Type" not in answer.headers


def test_its_204_passes_over_wakes_that_were_claimed(woken: Api):
    woken.claim()
    answer = read(woken, f"?offset={ZERO}&live=long-poll")
    assert answer.status == 204
    assert answer.headers["Stream-Next-Offset"] == ONE


@pytest.mark.parametrize("offset", ["-1", "now"])
def test_its_cursor_is_the_interval_that_it_is(offset: str, woken: Api):
    before = int(time.time() - CURSOR_EPOCH) // CURSOR_INTERVAL
    cursor = int(read(woken, f"?offset={offset}&live=long-poll").headers["Stream-Cursor"])
    assert before <= cursor <= int(time.time() - CURSOR_EPOCH) // CURSOR_INTERVAL


@pytest.mark.parametrize(
    ("given", "ahead"), [("now", 1), ("later", 1), ("earlier", None), ("mist", None), ("-5", None)]
)
def test_its_cursor_is_past_the_readers_own(given: str, ahead: int | None, woken: Api):
    now = int(time.time() - CURSOR_EPOCH) // CURSOR_INTERVAL
    own = {"now": now + 1, "later": now + 1000, "earlier": now - 1000}.get(given, given)
    answer = read(woken, f"?offset=-1&live=long-poll&cursor={own}")
    cursor = int(answer.headers["Stream-Cursor"])
    if ahead is None:
        assert now <= cursor <= now + 1
    else:
        assert cursor == int(own) + ahead


def test_a_catch_up_read_has_no_cursor(woken: Api):
    assert "Stream-Cursor" not in read(woken, "?offset=-1").headers


# --- Caching ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}'])
def test_it_answers_304_to_the_etag_it_gave(form: str, woken: Api):
    etag = read(woken, "?offset=-1").headers["ETag"]
    answer = read(woken, "?offset=-1", If_None_Match=form.format(etag))
    assert (answer.status, answer.content) == (304, b"")
    assert answer.headers["ETag"] == etag
    assert answer.headers["Stream-Next-Offset"] == ONE
    assert answer.headers["Stream-Up-To-Date"] == "true"


def test_it_gives_another_etag_when_there_is_more(woken: Api):
    etag = read(woken, "?offset=-1").headers["ETag"]
    woken.make_entity("/agent/e2")
    woken.send("/agent/e2")
    answer = read(woken, "?offset=-1", If_None_Match=etag)
    assert answer.status == 200
    assert answer.headers["ETag"] != etag


@pytest.mark.parametrize("query", ["", "?offset=-1"])
def test_it_is_not_kept_by_caches_that_others_read(query: str, woken: Api):
    assert read(woken, query).headers["Cache-Control"] == "private, no-cache"


def test_a_long_poll_is_not_kept_at_all(woken: Api):
    assert read(woken, "?offset=-1&live=long-poll").headers["Cache-Control"] == "no-store"


def test_a_head_tells_the_tail(woken: Api):
    answer = read(woken, method="HEAD")
    assert (answer.status, answer.content) == (200, b"")
    assert answer.headers["Stream-Next-Offset"] == ONE
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


# --- Who may, and what nobody may do ----------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?offset=-1", "?offset=now&live=long-poll"])
def test_only_the_owner_may_read_it(query: str, woken: Api, bob: Api):
    answer = read(bob, query)
    assert (answer.status, answer.error) == (403, "UNAUTHORIZED")


def test_it_is_no_runner_of_anybodys(alice: Api):
    assert read(alice).error == "NOT_FOUND"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nobody_writes_to_it(method: str, woken: Api):
    answer = read(woken, method=method)
    assert answer.error == "METHOD_NOT_ALLOWED"
    assert answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "query", ["?offset=-1", "?offset=-1&live=long-poll", "?offset=-1&live=sse"]
)
@pytest.mark.parametrize("state", ["disabled", "unknown parameter", "body", "odd cursor"])
def test_it_never_answers_a_well_formed_read_with_4xx(state: str, query: str, woken: Api):
    """The existing client tries again at once, for ever."""
    if state == "disabled":
        woken.post("/_electric/runners/r1/disable")
    query += {"unknown parameter": "&x=1", "odd cursor": "&cursor=mist"}.get(state, "")
    answer = woken(
        "GET", f"/runners/r1/wake{query}", b"{" if state == "body" else None, Accept="text/html"
    )
    assert answer.status == 200


@pytest.mark.parametrize("mode", ["long-poll", "sse"])
def test_who_waits_is_not_told_of_anothers_runner_by_the_same_id(
    mode: str, mortal: Server, hold: Callable[..., Held]
):
    alice, bob = make_idle(mortal.client()), mortal.client("user:bob")
    held = hold(mortal, f"/runners/r1/wake?offset={tail(alice)}&live={mode}")
    begun = held.connection.getresponse() if mode == "sse" else None
    wait_until(lambda: figures(alice)[f'pullwake_held_reads{{mode="{mode}"}}'] == 1)
    assert alice("DELETE", "/_electric/runners/r1").status == 204
    bob.register()
    bob.make_entity("/agent/bobs", initialMessage="hi")
    answer = begun or held.connection.getresponse()
    assert answer.status == (200 if mode == "sse" else 404)
    assert b"bobs" not in answer.read()
    assert "Traceback" not in mortal.log.read_text()
