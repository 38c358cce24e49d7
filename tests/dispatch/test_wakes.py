"""Dispatch: when an entity is woken, where, and which wakes its runner's stream shows."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import connection, transaction

from claims import reaper
from core.database import HeldBriefly, take_as_long_as_needed
from dispatch import wakes
from dispatch.models import DispatchState, Wake
from runners.models import WakeStream
from tests.support import Api, age_wakes

E1 = "/_electric/entities/agent/e1"


def policy(runner_id):
    return {"dispatch_policy": {"targets": [{"type": "runner", "runnerId": runner_id}]}}


def tail(api, runner_id="r1"):
    offset: str = api("HEAD", f"/runners/{runner_id}/wake").headers["Stream-Next-Offset"]
    return offset


def generations(api, runner_id="r1"):
    return [wake["generation"] for wake in api.wakes(runner_id)]


@pytest.fixture
def idle(alice):
    """Alice's runners r1 and r2; /agent/e1 on r1 without work."""
    alice.register()
    alice.register("r2")
    alice.make_entity()
    return alice


def test_an_event_says_what_to_claim(idle):
    before = int(time.time() * 1000)
    idle.send()
    (wake,) = idle.wakes()
    key = hashlib.sha256(b"/agent/e1").hexdigest()[:16]
    assert wake == {
        "type": "wake",
        "subscription_id": f"runner:r1:{key}",
        "stream": "agent/e1/main",
        "generation": 1,
        "ts": wake["ts"],
    }
    assert isinstance(wake["ts"], int)
    assert abs(wake["ts"] - before) < 60_000
    assert idle.claim("r1", wake).epoch == 1


def test_a_new_entity_is_not_woken(idle):
    assert idle.wakes() == []


def test_many_messages_make_one_wake(idle):
    for _ in range(5):
        idle.send()
    assert generations(idle) == [1]
    assert Wake.objects.count() == 1


def test_a_message_to_a_woken_entity_writes_nothing_to_the_stream(idle):
    idle.send()
    seen = tail(idle)
    idle.send()
    idle.signal("/agent/e1", "SIGUSR")
    assert tail(idle) == seen


def test_each_entity_has_its_own_wake(idle):
    idle.make_entity("/agent/e2")
    idle.send()
    idle.send("/agent/e2")
    assert [wake["stream"] for wake in idle.wakes()] == ["agent/e1/main", "agent/e2/main"]


def test_it_wakes_the_runner_of_the_entity_alone(idle):
    idle.send()
    assert (len(idle.wakes("r1")), idle.wakes("r2")) == (1, [])


def test_appends_under_a_claim_do_not_wake(idle):
    idle.send()
    claim = idle.claim()
    claim.append({"type": "inbox", "key": "k", "value": {}}, token=claim.mint())
    assert claim.done().body["next_wake"] is False
    assert (idle.wakes(), DispatchState.objects.get().pending) == ([], False)


# --- Which wakes the stream shows -------------------------------------------------------------


def test_a_claimed_wake_is_no_longer_shown(idle):
    idle.send()
    idle.claim()
    assert idle.wakes() == []


def test_it_shows_no_old_wakes_from_the_start(idle):
    for _ in range(3):
        idle.send()
        idle.claim().done()
    idle.send()
    assert generations(idle) == [4]


def test_the_tail_moves_though_nothing_is_left_to_show(idle):
    start = tail(idle)
    idle.send()
    idle.claim().done()
    assert idle.wakes() == []
    assert tail(idle) > start


def test_an_offset_from_before_still_finds_the_next_wake(idle):
    idle.send()
    seen = tail(idle)
    idle.claim().done()
    idle.send()
    assert [wake["generation"] for wake in idle.wakes(offset=seen)] == [2]


@pytest.mark.parametrize("call", ["register", "enable"])
def test_it_emits_unclaimed_wakes_again_when_a_runner_comes_back(idle, call):
    idle.make_entity("/agent/e2")
    idle.send()
    idle.send("/agent/e2")
    before = idle.wakes()
    seen = tail(idle)
    if call == "register":
        idle.register()
    else:
        idle.post("/_electric/runners/r1/disable")
        assert idle.wakes(offset=seen) == []
        idle.post("/_electric/runners/r1/enable")
    again = idle.wakes(offset=seen)
    assert [{**wake, "ts": 0} for wake in again] == [{**wake, "ts": 0} for wake in before]
    assert len(idle.wakes()) == 2


def test_it_emits_nothing_again_that_was_claimed(idle):
    idle.send()
    idle.claim()
    seen = tail(idle)
    idle.register()
    assert (idle.wakes(), tail(idle)) == ([], seen)


def test_only_the_owner_reads_it(idle, bob):
    idle.send()
    answer = bob.get("/runners/r1/wake?offset=-1")
    assert (answer.status, answer.error) == (403, "UNAUTHORIZED")


# --- Another runner ---------------------------------------------------------------------------


def test_a_move_takes_the_outstanding_wake_along(idle):
    idle.send()
    old = idle.wakes()[0]
    idle("PATCH", E1, policy("r2"))
    assert (generations(idle, "r1"), generations(idle, "r2")) == ([], [2])
    assert idle.try_claim("r1", old).status == 204
    assert idle.claim("r2").epoch == 2


def test_a_move_to_the_same_runner_changes_nothing(idle):
    idle.send()
    seen = tail(idle)
    idle("PATCH", E1, policy("r1"))
    assert (generations(idle), tail(idle)) == ([1], seen)


def test_a_move_without_work_wakes_nobody(idle):
    idle("PATCH", E1, policy("r2"))
    assert (idle.wakes("r1"), idle.wakes("r2")) == ([], [])


def test_a_running_claim_stays_where_it_is(idle):
    idle.send()
    claim = idle.claim()
    idle("PATCH", E1, policy("r2"))
    idle.send()
    assert claim.heartbeat().status == 200
    assert idle.wakes("r2") == []
    assert claim.done().body["next_wake"] is True
    assert (generations(idle, "r1"), generations(idle, "r2")) == ([], [2])


def test_moves_there_and_back_leave_one_wake(idle):
    idle.send()
    for runner_id in ("r2", "r1", "r2", "r1"):
        idle("PATCH", E1, policy(runner_id))
    assert (generations(idle, "r1"), generations(idle, "r2")) == ([5], [])


def test_an_entity_without_a_runner_keeps_its_work_until_it_has_one(alice):
    alice.register()
    alice.make_entity(runner_id=None)
    alice.send()
    assert DispatchState.objects.get().pending is True
    alice("PATCH", E1, policy("r1"))
    assert generations(alice) == [1]


def test_a_deleted_runners_entities_keep_their_work_until_they_have_another(idle):
    idle.send()
    idle("DELETE", "/_electric/runners/r1")
    assert "dispatch_policy" not in idle.get(E1).body
    idle.send()
    idle("PATCH", E1, policy("r2"))
    assert generations(idle, "r2") == [2]


def test_a_deleted_runners_claims_expire_and_their_work_waits(idle):
    idle.send()
    claim = idle.claim()
    assert idle("DELETE", "/_electric/runners/r1").status == 204
    assert (idle.status(), claim.done().error) == ("idle", "FENCED")
    idle("PATCH", E1, policy("r2"))
    assert idle.claim("r2").epoch == 2


def test_a_deleted_runners_claim_frees_what_was_moved_to_another(idle):
    idle.send()
    idle.claim()
    idle("PATCH", E1, policy("r2"))
    idle("DELETE", "/_electric/runners/r1")
    assert generations(idle, "r2") == [2]


def test_whoever_registers_the_same_id_inherits_nothing(idle, bob):
    idle.send()
    idle("DELETE", "/_electric/runners/r1")
    bob.register("r1")
    assert bob.wakes("r1") == []
    assert "dispatch_policy" not in idle.get(E1).body
    assert bob.get(E1).status == 403


# --- Paused and ended -------------------------------------------------------------------------


@pytest.mark.parametrize("signal", ["SIGSTOP", "SIGTERM", "SIGKILL"])
def test_nothing_wakes_an_entity_that_is_not_awake(idle, signal):
    idle.send()
    idle.signal("/agent/e1", signal)
    seen = tail(idle)
    idle.register()
    idle("PATCH", E1, policy("r2"))
    idle("PATCH", E1, policy("r1"))
    assert reaper.reap() == reaper.Round()
    assert (idle.wakes("r1"), idle.wakes("r2"), tail(idle)) == ([], [], seen)


def test_a_wake_that_is_emitted_again_keeps_its_age_for_the_claim(idle):
    idle.send()
    idle.make_entity("/agent/e2")
    idle.send("/agent/e2")
    age_wakes(entity__url="/agent/e1")
    reaper.reap()
    assert idle.claim().body["entity"]["url"] == "/agent/e1"


def test_a_stranger_wakes_nobody(idle):
    assert Api("user:mallory").post(f"{E1}/send", {"payload": 1}).status == 403
    assert idle.wakes() == []


@contextmanager
def undone() -> Iterator[None]:
    """A transaction whose settings end with it, as that of a test is still under way."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def idle_allowed() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SHOW idle_in_transaction_session_timeout")
        (allowed,) = cursor.fetchone()
    return str(allowed)


@pytest.mark.postgres
def test_no_session_that_holds_a_runners_tail_is_idle_for_long(idle):
    """All entities of the runner need it: a server that is frozen with it would hold them up."""
    for hold in (lambda: wakes.lock_tail("r1"), idle.send):
        assert idle_allowed() == "1min"
        with undone():
            hold()
            assert idle_allowed() == "10s"
    with undone():
        take_as_long_as_needed()
        wakes.lock_tail("r1")
        assert idle_allowed() == "0"


@pytest.mark.postgres
def test_where_the_setting_is_off_the_roles_own_limit_holds(idle, settings):
    settings.PULLWAKE_IDLE_TRANSACTION_TIMEOUT_MS = 0
    with undone(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = '3s'")
        assert WakeStream.objects.filter(HeldBriefly(), runner="r1").exists()
        assert idle_allowed() == "3s"
