"""The reaper: lapsed claims, stale wakes, delays that are over, and its distrust of itself."""

from datetime import timedelta

import pytest
from django.db import IntegrityError, OperationalError, connection
from django.db.models import F
from django.db.models.functions import Now

from claims import endings, lifecycle, reaper
from claims.models import ConsumerClaim, ServerPulse
from dispatch.models import DispatchState, Wake, subscription_key
from runners.models import RunnerLiveness
from tests.factories import ConsumerClaimFactory, RunnerFactory, WakeFactory, ago, handle
from tests.support import age_wakes, end_delay, lapse

NOTHING = reaper.Round()


def statuses():
    claims = ConsumerClaim.objects.order_by("pk").values_list("entity_url", "status")
    return dict(claims)


def state(url="/agent/e1"):
    return DispatchState.objects.get(entity__url=url)


@pytest.fixture
def three(alice):
    """Three active claims, all lapsed, the longest first."""
    then = {"claimed_at": ago(hours=1), "entity__runner__updated_at": ago(hours=2)}
    return [
        handle(alice, entity__url=f"/agent/e{4 - m}", lease_expires_at=ago(minutes=m), **then)
        for m in (3, 2, 1)
    ]


def test_it_has_nothing_to_do(claim):
    assert reaper.reap() == NOTHING
    assert claim.heartbeat().status == 200


# --- Lapsed claims ----------------------------------------------------------------------------


def test_it_expires_a_lapsed_claim_and_wakes_the_entity(claim):
    token = claim.mint()
    lapse(claim)
    assert reaper.reap() == reaper.Round(expired=1)
    assert claim.api.status() == "idle"
    assert claim.heartbeat().error == "FENCED"
    assert claim.append({"n": 1}, token=token).status == 401
    (wake,) = claim.api.wakes()
    assert wake["generation"] == claim.epoch + 1
    assert claim.api.claim().epoch == claim.epoch + 1


def test_it_wakes_no_entity_whose_work_was_acked(claim):
    claim.heartbeat(acks=[{"path": "/agent/e1/main", "offset": claim.tail}])
    lapse(claim)
    assert reaper.reap().expired == 1
    assert claim.api.wakes() == []


def test_it_stops_an_entity_that_was_asked_to(claim):
    claim.api.signal("/agent/e1", "SIGTERM")
    lapse(claim)
    reaper.reap()
    assert claim.api.status() == "stopped"


def test_it_leaves_a_paused_entity_unwoken(claim):
    claim.api.signal("/agent/e1", "SIGSTOP")
    lapse(claim)
    reaper.reap()
    assert claim.api.status() == "paused"
    assert claim.api.wakes() == []


def test_it_wakes_the_runner_that_the_entity_was_moved_to(claim):
    claim.api.register("r2")
    target = {"targets": [{"type": "runner", "runnerId": "r2"}]}
    claim.api("PATCH", "/_electric/entities/agent/e1", {"dispatch_policy": target})
    lapse(claim)
    reaper.reap()
    assert (len(claim.api.wakes("r1")), len(claim.api.wakes("r2"))) == (0, 1)


def test_an_entity_whose_claims_expire_again_and_again_is_woken_later_each_time(claim):
    delays = []
    for _ in range(14):
        lapse(claim)
        assert reaper.reap().expired == 1
        retry_at = state().retry_at
        if retry_at is None:
            delays.append(0)
        else:
            assert claim.api.wakes() == []
            ended_at = ConsumerClaim.objects.latest("pk").ended_at
            delays.append(round((retry_at - ended_at).total_seconds()))
            end_delay()
            assert reaper.reap().retried == 1
        claim = claim.api.claim()
    assert delays == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600]


def test_a_released_claim_resets_that_delay(claim):
    for _ in range(3):
        lapse(claim)
        claim = claim.api.claim("r1", {"subscription_id": subscription()})
    claim.done()
    claim.api.send()
    lapse(claim.api.claim())
    reaper.reap()
    assert len(claim.api.wakes()) == 1


def subscription():
    return f"runner:r1:{state().entity.subscription_key}"


def test_it_takes_the_longest_lapsed_first_and_no_more_than_its_limit(three):
    assert reaper.reap(limit=2).expired == 2
    assert statuses() == {"/agent/e1": "expired", "/agent/e2": "expired", "/agent/e3": "active"}
    assert reaper.reap(limit=2).expired == 1


def test_a_claim_that_was_renewed_after_it_looked_is_left(three):
    looked = list(reaper.expirable())
    three[0].heartbeat()
    assert [lifecycle.expire(claim) is not None for claim in looked] == [False, True, True]
    assert statuses()["/agent/e1"] == "active"


def test_of_two_reapers_that_looked_at_once_one_expires(three):
    looked = [list(reaper.expirable()), list(reaper.expirable())]
    expired = [[lifecycle.expire(claim) is not None for claim in claims] for claims in looked]
    assert expired == [[True] * 3, [False] * 3]
    assert {each.failures for each in DispatchState.objects.all()} == {1}
    assert Wake.objects.outstanding().count() == 3


def test_a_claim_that_cannot_be_expired_keeps_no_other_from_it(three):
    poison = ConsumerClaim.objects.get(entity_url="/agent/e1").consumer_id

    def refused(execute, sql, params, many, context):
        if sql.startswith('UPDATE "claims_consumerclaim"') and poison in params:
            raise IntegrityError("refused")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(refused):
        assert reaper.reap().expired == 2
    assert statuses() == {"/agent/e1": "active", "/agent/e2": "expired", "/agent/e3": "expired"}


def test_a_database_that_goes_away_ends_the_round(three):
    def away(execute, sql, params, many, context):
        if sql.startswith('UPDATE "claims_consumerclaim"'):
            raise OperationalError("away")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(away), pytest.raises(OperationalError):
        reaper.reap()
    assert set(statuses().values()) == {"active"}


# --- Its distrust of itself -------------------------------------------------------------------


def pulse(seen_s, resumed_s):
    """The last server's pulse was so long ago, and the first after an outage so long ago."""
    ServerPulse.objects.update_or_create(
        pk=1,
        defaults={
            "seen_at": Now() - timedelta(seconds=seen_s),
            "resumed_at": Now() - timedelta(seconds=resumed_s),
        },
    )


def test_it_expires_nothing_while_no_server_could_be_called(claim):
    lapse(claim)
    pulse(seen_s=60, resumed_s=3600)
    assert reaper.servers_away_since() is not None
    assert reaper.reap().expired == 0


def test_it_expires_nothing_until_a_lease_after_a_server_came_back(claim):
    lapse(claim)
    pulse(seen_s=60, resumed_s=3600)
    reaper.pulse()
    assert reaper.servers_away_since() is None
    assert reaper.reap().expired == 0
    pulse(seen_s=0, resumed_s=29)
    assert reaper.reap().expired == 0
    pulse(seen_s=0, resumed_s=31)
    assert reaper.reap().expired == 1


def test_a_pulse_in_time_is_no_return(claim):
    pulse(seen_s=4, resumed_s=3600)
    reaper.pulse()
    pulses = ServerPulse.objects.get()
    assert pulses.seen_at - pulses.resumed_at > timedelta(minutes=50)


def test_the_first_pulse_ever_counts_as_a_return(db):
    reaper.pulse()
    assert ServerPulse.objects.get().seen_at == ServerPulse.objects.get().resumed_at


def test_it_goes_on_after_a_lease_where_the_clock_was_set_back(db):
    """And not only once the clock says again when a server came back."""
    pulse(seen_s=-7200, resumed_s=-7200)
    reaper.pulse()
    pulses = ServerPulse.objects.get()
    assert pulses.seen_at == pulses.resumed_at


def test_a_lease_is_no_longer_than_it_is_where_the_clock_was_set_back(three):
    """Else a dead runner's claim would hold its entity for as long as the clock went back."""
    ahead, held, _ = (each.body["consumerId"] for each in three)
    claims = ConsumerClaim.objects.filter(consumer_id__in=[ahead, held])
    claims.update(lease_expires_at=Now() + F("lease"))
    kept = claims.get(consumer_id=held).lease_end
    claims.filter(consumer_id=ahead).update(lease_expires_at=ago(hours=-2))
    assert reaper.reap().expired == 1
    assert claims.get(consumer_id=held).lease_end == kept
    assert claims.get(consumer_id=ahead).lease_end < kept + timedelta(minutes=1)
    lapse(three[0])
    assert reaper.reap().expired == 1


def test_a_claim_still_takes_over_while_the_reaper_waits(claim):
    lapse(claim)
    pulse(seen_s=0, resumed_s=0)
    assert claim.api.claim("r1", {"subscription_id": subscription()}).epoch == 2


def test_it_notes_what_it_did(three):
    pulse(seen_s=0, resumed_s=3600)
    reaper.reap()
    noted = ServerPulse.objects.get()
    assert (noted.expired, noted.reemitted, noted.retried) == (3, 0, 0)
    assert noted.reaped_at is not None


# --- Stale wakes ------------------------------------------------------------------------------


@pytest.fixture
def waiting(alice):
    """Two entities of r1 whose wakes nobody has claimed."""
    r1 = RunnerFactory.create(id="r1")
    for name in ("e1", "e2"):
        WakeFactory.create(entity__url=f"/agent/{name}", entity__runner=r1)
    return alice


def test_it_emits_a_stale_wake_again_with_its_generation_at_a_new_offset(waiting):
    before = waiting.wakes()
    seen = waiting("HEAD", "/runners/r1/wake").headers["Stream-Next-Offset"]
    age_wakes(entity__url="/agent/e1")
    assert reaper.reap() == reaper.Round(reemitted=1)
    (again,) = waiting.wakes(offset=seen)
    assert {**again, "ts": 0} == {**before[0], "ts": 0}
    # It is moved, not copied.
    assert [wake["stream"] for wake in waiting.wakes()] == ["agent/e2/main", "agent/e1/main"]
    assert Wake.objects.get(entity__url="/agent/e1").emissions == 2
    assert reaper.reap() == NOTHING


def test_it_waits_as_long_as_the_setting_says(waiting, settings):
    Wake.objects.update(emitted_at=F("emitted_at") - timedelta(seconds=5))
    assert reaper.reap() == NOTHING
    settings.PULLWAKE_WAKE_REEMIT_MS = 4000
    assert reaper.reap().reemitted == 2


@pytest.mark.parametrize("lease_ms", [5_000, 65_000])
def test_it_waits_for_one_lease_of_the_runner(waiting, lease_ms):
    waiting.register(claim_lease_ms=lease_ms)
    Wake.objects.update(emitted_at=Now() - timedelta(seconds=5))
    assert reaper.reap().reemitted == (2 if lease_ms == 5_000 else 0)


def test_it_emits_nothing_again_for_a_runner_that_is_away_until_it_is_back(waiting):
    beat(waiting, alive=False)
    age_wakes()
    assert reaper.reap() == NOTHING
    beat(waiting, alive=True)
    assert reaper.reap().reemitted == 2


def test_it_does_not_go_on_for_ever_for_a_runner_that_never_was_there(waiting):
    Wake.objects.update(created_at=Now() - timedelta(hours=2))
    age_wakes()
    assert reaper.reap() == NOTHING
    beat(waiting, alive=True)
    assert reaper.reap().reemitted == 2


def test_it_emits_the_stalest_first_and_no_more_than_its_limit(waiting):
    age_wakes()
    Wake.objects.filter(entity__url="/agent/e2").update(emitted_at=Now() - timedelta(days=1))
    assert reaper.reap(limit=1).reemitted == 1
    assert [wake["stream"] for wake in waiting.wakes()] == ["agent/e1/main", "agent/e2/main"]


def test_it_emits_nothing_again_that_was_claimed_or_withdrawn(waiting):
    waiting.claim()
    waiting.signal("/agent/e2", "SIGSTOP")
    Wake.objects.update(emitted_at=Now() - timedelta(days=1))
    assert reaper.reap() == NOTHING


def test_it_emits_nothing_again_for_a_disabled_runner(waiting):
    waiting.post("/_electric/runners/r1/disable")
    age_wakes()
    assert reaper.reap() == NOTHING


def test_it_emits_the_stale_wakes_of_every_runner(waiting):
    waiting.register("r2")
    waiting.make_entity("/agent/e3", "r2", initialMessage="hi")
    age_wakes()
    assert reaper.reap().reemitted == 3
    assert (len(waiting.wakes("r1")), len(waiting.wakes("r2"))) == (2, 1)


# --- Whose fault it was -----------------------------------------------------------------------


E1 = {"subscription_id": f"runner:r1:{subscription_key('/agent/e1')}"}


def beat(api, *, alive):
    """The runner's heartbeat, with a lease that is over unless it is alive."""
    assert api.post("/_electric/runners/r1/heartbeat", {}).status == 200
    if not alive:
        RunnerLiveness.objects.update(lease_expires_at=Now() - timedelta(seconds=1))


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("who", ["reaper", "claim"])
def test_the_death_of_its_runner_is_not_the_entitys_failure(claim, alive, who):
    """However often: it would wait longer each time, for what others did."""
    for _ in range(4):
        lapse(claim)
        beat(claim.api, alive=alive)
        if who == "reaper":
            assert reaper.reap().expired == 1
            end_delay_if_any()
            reaper.reap()
        claim = claim.api.claim("r1", E1)
    assert DispatchState.objects.get().failures == (4 if alive else 0)


def end_delay_if_any():
    DispatchState.objects.filter(retry_at__isnull=False).update(
        retry_at=Now() - timedelta(seconds=1)
    )


def test_a_claim_that_nobody_could_renew_is_not_the_entitys_failure(claim):
    """The servers came back a moment ago; who claims over it does not wait for the reaper."""
    beat(claim.api, alive=True)
    ServerPulse.objects.all().delete()
    reaper.pulse()
    lapse(claim)
    claim.api.claim("r1", E1)
    assert DispatchState.objects.get().failures == 0


def test_a_runner_that_registers_anew_had_died(claim):
    """Its liveness lease never ran out: a supervisor was quicker."""
    beat(claim.api, alive=True)
    claim.api.register()
    lapse(claim)
    assert reaper.reap().expired == 1
    assert DispatchState.objects.get().failures == 0


def expired_too_soon(claim):
    """The claim's lease lapses before that of its runner, so the entity is blamed at first."""
    beat(claim.api, alive=True)
    DispatchState.objects.update(failures=1)
    lapse(claim)
    assert reaper.reap() == reaper.Round(expired=1)
    assert DispatchState.objects.get().failures == 2
    assert DispatchState.objects.get().retry_at is not None


def silent(**seen):
    RunnerLiveness.objects.update(lease_expires_at=Now() - timedelta(seconds=1), **seen)


def test_a_death_that_shows_later_is_counted_no_more(claim):
    expired_too_soon(claim)
    silent()
    assert reaper.reap().pardoned == 1
    assert (state().failures, state().retry_at) == (1, None)
    assert len(claim.api.wakes()) == 1
    assert reaper.reap().pardoned == 0  # once
    assert state().failures == 1


def test_so_is_one_after_which_another_process_registers(claim):
    expired_too_soon(claim)
    claim.api.register()
    assert reaper.reap().pardoned == 1
    assert state().failures == 1


def test_a_runner_that_was_heard_of_since_lived(claim):
    expired_too_soon(claim)
    silent(last_seen_at=Now())
    assert reaper.reap().pardoned == 0
    assert state().failures == 2


def test_what_failed_since_stays_counted(claim):
    expired_too_soon(claim)
    end_delay_if_any()
    reaper.reap()
    claim.api.claim("r1", E1).fail()
    silent()
    assert reaper.reap().pardoned == 1
    assert state().failures == 3


def test_what_an_operator_took_back_was_never_counted(claim):
    beat(claim.api, alive=True)
    DispatchState.objects.update(failures=1)
    endings.take_back(ConsumerClaim.objects.get())
    silent()
    assert reaper.reap().pardoned == 0
    assert state().failures == 1


# --- Beside it --------------------------------------------------------------------------------


def test_its_rounds_do_not_wait_for_all_that_is_pruned(db):
    ConsumerClaimFactory.create(released=True, claimed_at=ago(days=32), ended_at=ago(days=31))
    Wake.objects.update(emitted_at=ago(days=31))
    keeper = reaper.Housekeeper()
    keeper._prune(60)
    assert ConsumerClaim.objects.exists()  # it is not time yet
    keeper._prune_at = 0
    keeper._prune(0)
    assert (ConsumerClaim.objects.exists(), Wake.objects.exists()) == (False, True)
    keeper._prune(60)
    assert not Wake.objects.exists()
