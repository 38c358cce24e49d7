"""POST /_electric/entities/:type/:id/signal: every signal, in every status."""

from datetime import UTC, datetime

import pytest

from claims import lifecycle
from claims.models import ConsumerClaim
from core.clock import iso
from dispatch.models import DispatchState
from tests.support import lapse

SIGNAL = "/_electric/entities/agent/e1/signal"
HANDLERS = ("SIGINT", "SIGHUP", "SIGUSR")

# How /agent/e1 gets into each status. Until SIGSTOP has come into force it is running.
STATUSES = {
    "idle": [],
    "running": ["claim"],
    "running, to pause": ["claim", "SIGSTOP"],
    "paused": ["SIGSTOP"],
    "stopping": ["claim", "SIGTERM"],
    "stopped": ["SIGTERM"],
    "killed": ["SIGKILL"],
}
# (status, signal): the new state, and whether anything changed.
TABLE = {
    ("idle", "SIGSTOP"): ("paused", True),
    ("idle", "SIGCONT"): ("idle", False),
    ("idle", "SIGTERM"): ("stopped", True),
    ("idle", "SIGKILL"): ("killed", True),
    ("running", "SIGSTOP"): ("running", True),
    ("running", "SIGCONT"): ("running", False),
    ("running", "SIGTERM"): ("stopping", True),
    ("running", "SIGKILL"): ("killed", True),
    ("running, to pause", "SIGSTOP"): ("running", False),
    ("running, to pause", "SIGCONT"): ("running", True),
    ("running, to pause", "SIGTERM"): ("stopping", True),
    ("running, to pause", "SIGKILL"): ("killed", True),
    ("paused", "SIGSTOP"): ("paused", False),
    ("paused", "SIGCONT"): ("idle", True),
    ("paused", "SIGTERM"): ("stopped", True),
    ("paused", "SIGKILL"): ("killed", True),
    ("stopping", "SIGSTOP"): ("stopping", False),
    ("stopping", "SIGCONT"): ("stopping", False),
    ("stopping", "SIGTERM"): ("stopping", False),
    ("stopping", "SIGKILL"): ("killed", True),
}
ENDED = ("stopped", "killed")
# Of those in the table, the ones that the handler is to see.
UNHANDLED = {
    (status, signal)
    for status, signal in TABLE
    if "claim" in STATUSES[status] and signal in ("SIGSTOP", "SIGTERM")
} | {("paused", "SIGCONT")}


@pytest.fixture
def entity(alice):
    """Alice, whose /agent/e1 on r1 has one message."""
    alice.register()
    alice.make_entity(initialMessage="hi")
    return alice


@pytest.fixture
def claim(entity, status):
    """The entity brought into this status; its claim, if it has one."""
    held = None
    for step in STATUSES[status]:
        if step == "claim":
            held = entity.claim()
            held.token = held.mint()
        else:
            entity.signal("/agent/e1", step)
    assert entity.status() == status.partition(",")[0]
    return held


def signals(api):
    return [event for event in api.events() if event["type"] == "signal"]


def state():
    return DispatchState.objects.get()


@pytest.mark.parametrize(("status", "signal"), TABLE)
def test_it_is_handled(entity, claim, status, signal):
    new_state, changed = TABLE[status, signal]
    cursor = state().cursor
    answer = entity.post(SIGNAL, {"signal": signal, "reason": "why", "payload": {"n": 1}})
    assert answer.status == 200
    body = answer.body
    previous = status.partition(",")[0]
    assert body == {
        "url": "/agent/e1",
        "signal": signal,
        "previous_state": previous,
        "new_state": new_state,
        "created_at": body["created_at"],
        "txid": body["txid"],
    }
    assert entity.status() == new_state
    assert type(body["created_at"]) is type(body["txid"]) is int
    event = signals(entity)[-1]
    at = event["headers"]["timestamp"]
    handled = {
        "handled_at": at,
        "handled_by": "/_electric/server",
        "outcome": "transitioned" if changed else "ignored",
        "previous_state": previous,
        "new_state": new_state,
    }
    unhandled = (status, signal) in UNHANDLED
    assert event == {
        "type": "signal",
        "key": event["key"],
        "value": {
            "signal": signal,
            "status": "unhandled" if unhandled else "handled",
            "sender": "/principal/user%3Aalice",
            "timestamp": at,
            "reason": "why",
            "payload": {"n": 1},
            **({} if unhandled else handled),
        },
        "headers": {
            "operation": "insert",
            "timestamp": at,
            "txid": body["txid"],
            "offset": entity.get("/agent/e1/main").headers["Stream-Next-Offset"],
        },
    }
    assert at == iso(datetime.fromtimestamp(body["created_at"] / 1000, UTC))
    assert state().cursor == cursor


@pytest.mark.parametrize("status", [status for status in STATUSES if status not in ENDED])
@pytest.mark.parametrize("signal", HANDLERS)
def test_it_is_left_to_the_handler_and_changes_nothing(entity, claim, status, signal):
    before = entity.status()
    answer = entity.post(SIGNAL, {"signal": signal})
    assert (answer.body["previous_state"], answer.body["new_state"]) == (before, before)
    assert entity.status() == before
    event = signals(entity)[-1]
    assert event["value"] == {
        "signal": signal,
        "status": "unhandled",
        "sender": "/principal/user%3Aalice",
        "timestamp": event["headers"]["timestamp"],
    }
    assert state().last_work_offset == state().tail


@pytest.mark.parametrize("status", ENDED)
@pytest.mark.parametrize("signal", [*HANDLERS, "SIGSTOP", "SIGCONT", "SIGTERM", "SIGKILL"])
def test_an_ended_entity_takes_none(entity, claim, status, signal):
    before = entity.events()
    answer = entity.post(SIGNAL, {"signal": signal})
    assert (answer.status, answer.error) == (409, "INVALID_SIGNAL")
    assert (entity.events(), entity.status()) == (before, status)


def test_the_tables_walk_every_signal_and_status():
    signals_of_the_contract = {"SIGSTOP", "SIGCONT", "SIGTERM", "SIGKILL"}
    living = [status for status in STATUSES if status not in ENDED]
    assert set(TABLE) == {(status, each) for status in living for each in signals_of_the_contract}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"signal": "SIGFOO"},
        {"signal": "sigterm"},
        {"signal": 15},
        {"signal": "SIGTERM", "reason": 7},
        {"signal": "SIGTERM", "reason": "x" * 4097},
        [],
    ],
    ids=lambda body: str(body)[:40],
)
def test_it_refuses_a_bad_body(entity, body):
    answer = entity.post(SIGNAL, body)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert signals(entity) == []


# --- What they do to wakes and claims ---------------------------------------------------------


@pytest.mark.parametrize("signal", HANDLERS)
def test_what_is_left_to_the_handler_is_work(alice, signal):
    alice.register()
    alice.make_entity()
    alice.signal("/agent/e1", signal)
    assert len(alice.wakes()) == 1
    assert alice.claim().done().body["next_wake"] is False


@pytest.mark.parametrize("signal", ["SIGSTOP", "SIGCONT"])
def test_what_is_handled_is_no_work(alice, signal):
    alice.register()
    alice.make_entity()
    alice.signal("/agent/e1", signal)
    assert (alice.wakes(), state().pending) == ([], False)


@pytest.mark.parametrize("signal", ["SIGSTOP", "SIGTERM", "SIGKILL"])
def test_it_withdraws_the_outstanding_wake(entity, signal):
    entity.signal("/agent/e1", signal)
    assert entity.wakes() == []


def test_resuming_wakes_with_a_new_generation(entity):
    entity.signal("/agent/e1", "SIGSTOP")
    entity.signal("/agent/e1", "SIGCONT")
    (wake,) = entity.wakes()
    assert wake["generation"] == 2


def test_pausing_and_resuming_again_and_again_leaves_one_wake(entity):
    for _ in range(5):
        entity.signal("/agent/e1", "SIGSTOP")
        entity.signal("/agent/e1", "SIGSTOP")
        entity.signal("/agent/e1", "SIGCONT")
        entity.signal("/agent/e1", "SIGCONT")
    assert len(entity.wakes()) == 1


def test_a_pause_during_a_claim_comes_once_it_ends(entity):
    claim = entity.claim()
    entity.signal("/agent/e1", "SIGSTOP")
    entity.send()
    assert claim.heartbeat().status == 200
    assert claim.done().body == {"ok": True, "next_wake": False, "entity_cleared": True}
    assert (entity.status(), entity.wakes()) == ("paused", [])
    entity.signal("/agent/e1", "SIGCONT")
    assert entity.claim().epoch == 2


def test_a_pause_that_was_taken_back_during_the_claim_does_not_come(entity):
    claim = entity.claim()
    entity.signal("/agent/e1", "SIGSTOP")
    entity.signal("/agent/e1", "SIGCONT")
    claim.done()
    assert entity.status() == "idle"


@pytest.mark.parametrize("end", ["done", "fail"])
def test_a_stop_during_a_claim_comes_once_it_ends(entity, end):
    claim = entity.claim()
    token = claim.mint()
    entity.signal("/agent/e1", "SIGTERM")
    assert claim.append({"n": 1}, token=token).status == 204
    assert getattr(claim, end)().body["entity_cleared"] is True
    assert (entity.status(), entity.wakes()) == ("stopped", [])


def test_a_stop_does_not_wake_for_what_is_pending(entity):
    claim = entity.claim()
    entity.send()
    entity.signal("/agent/e1", "SIGTERM")
    assert claim.done().body["next_wake"] is False
    assert entity.status() == "stopped"


def test_a_kill_fences_the_claim_at_once(entity):
    claim = entity.claim()
    token = claim.mint()
    before = state().cursor
    entity.signal("/agent/e1", "SIGKILL")
    assert claim.heartbeat().error == claim.done(claim.tail).error == "FENCED"
    assert claim.append({"n": 1}, token=token).status == 401
    assert ConsumerClaim.objects.get().status == "fenced"
    assert (entity.status(), state().cursor, entity.wakes()) == ("killed", before, [])


def rows_of(api):
    """The signals, as their events amount to."""
    found: dict[str, dict[str, str]] = {}
    for event in signals(api):
        found[event["key"]] = found.get(event["key"], {}) | event["value"]
    return list(found.values())


def test_resuming_a_paused_entity_is_work(alice):
    alice.register()
    alice.make_entity()
    alice.signal("/agent/e1", "SIGSTOP")
    alice.signal("/agent/e1", "SIGCONT")
    claim = alice.claim()
    assert claim.offset == "0000000000000000_0000000000000002_1"


@pytest.mark.parametrize("signal", ["SIGSTOP", "SIGTERM"])
def test_what_closes_a_claim_is_no_work(entity, signal):
    claim = entity.claim()
    entity.signal("/agent/e1", signal)
    assert state().last_work_offset == 2
    claim.done(claim.tail)
    assert not state().pending


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (["SIGSTOP"], [("SIGSTOP", "transitioned", "paused")]),
        (["SIGTERM"], [("SIGTERM", "transitioned", "stopped")]),
        (
            ["SIGSTOP", "SIGCONT"],
            [("SIGSTOP", "ignored", "idle"), ("SIGCONT", "transitioned", "running")],
        ),
        (
            ["SIGSTOP", "SIGTERM"],
            [("SIGSTOP", "transitioned", "stopped"), ("SIGTERM", "transitioned", "stopped")],
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("end", ["done", "fail", "expire"])
def test_the_end_of_the_claim_completes_what_its_handler_left(entity, sent, said, end):
    claim = entity.claim()
    for signal in sent:
        entity.signal("/agent/e1", signal)
    if end == "expire":
        lapse(claim)
        lifecycle.expire(ConsumerClaim.objects.get())
    else:
        getattr(claim, end)()
    assert {row["status"] for row in rows_of(entity)} == {"handled"}
    assert [(r["signal"], r["outcome"], r["new_state"]) for r in rows_of(entity)] == said
    assert not state().signals_open


@pytest.mark.parametrize("signal", ["SIGSTOP", "SIGTERM", "SIGUSR"])
def test_the_handlers_own_update_handles_it(entity, signal):
    claim = entity.claim()
    entity.signal("/agent/e1", signal)
    key = signals(entity)[-1]["key"]
    value = {"status": "handled", "handled_by": "/agent/e1"}
    update = {"type": "signal", "key": key, "value": value, "headers": {"operation": "update"}}
    assert claim.append(update, token=claim.mint()).status == 204
    assert claim.done(claim.tail).body["next_wake"] is False
    assert [row["handled_by"] for row in rows_of(entity)] == ["/agent/e1"]
    assert len(signals(entity)) == 2


def test_a_handlers_word_on_another_signal_changes_nothing(entity):
    claim = entity.claim()
    entity.signal("/agent/e1", "SIGUSR")
    value = {"status": "handled", "handled_by": "/agent/e1"}
    update = {"type": "signal", "key": "other", "value": value, "headers": {"operation": "update"}}
    claim.append(update, token=claim.mint())
    assert claim.done(claim.tail).body["next_wake"] is True


# --- A closed stream --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("read", ["", "?offset=now", "?offset=now&live=long-poll"])
def test_a_killed_entitys_stream_is_closed(entity, method, read):
    path = f"/agent/e1/main{read}"
    assert "Stream-Closed" not in entity("HEAD", "/agent/e1/main").headers
    entity.signal("/agent/e1", "SIGKILL")
    answer = entity(method, path)
    assert answer.headers["Stream-Closed"] == "true"
    if method == "GET":
        assert answer.headers["Stream-Up-To-Date"] == "true"


def test_sse_of_a_closed_stream_says_so_and_ends(entity):
    entity.signal("/agent/e1", "SIGKILL")
    answer = entity.get("/agent/e1/main?offset=-1&live=sse")
    assert b'"streamClosed":true' in answer.content


@pytest.mark.parametrize("signal", ["SIGSTOP", "SIGTERM"])
def test_no_other_stream_is_closed(entity, signal):
    entity.signal("/agent/e1", signal)
    assert "Stream-Closed" not in entity.get("/agent/e1/main").headers


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGKILL"])
def test_an_ended_entity_stays_readable(entity, signal):
    entity.signal("/agent/e1", signal)
    assert [event["type"] for event in entity.events()] == ["entity_created", "inbox", "signal"]
