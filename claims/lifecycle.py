"""The life of a claim: the only writer of `ConsumerClaim`.

A claim is the lease of one entity to one runner. Its identity and fencing token is its row,
(consumer_id, epoch); nothing that a process remembers decides anything. The transitions, from the
wire contract's rules 1 to 9:

=========  ==========  ============  ===========  ===========  ========
state      mint        renew         release      fail         end
=========  ==========  ============  ===========  ===========  ========
active     active      active        released     failed       expired or fenced
released   Fenced      Fenced        released ¹   Fenced       —
failed     Fenced      Fenced        Fenced       Fenced       —
expired    Fenced      Fenced        Fenced       Fenced       —
fenced     Fenced      Fenced        Fenced       Fenced       —
=========  ==========  ============  ===========  ===========  ========

`acquire` makes an active claim. *end* is `expire` (the lease lapsed), `take_back` (an operator says
so, whatever the lease), the runner's deletion, or a fence (SIGKILL, or the entity was deleted).
"Fenced" raises `config.errors.Fenced` and "—" finds nothing to do; both change nothing. Another
epoch than the claim's is Fenced in every state.

¹ The retry of a done whose answer was lost: nothing changes, ``entity_cleared`` is False.

A claim whose lease has lapsed is still active, and its holder's, until somebody expires it.

Each transition is one UPDATE that names consumer_id, epoch and ``status = 'active'``; its row
count is the verdict. Lock order: runner, dispatch state, claim, wake, tail of the wake stream.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import transaction
from django.db.models import BigIntegerField, F
from django.db.models.functions import Greatest, Now

from claims.models import ClaimQuerySet, ConsumerClaim
from config.errors import (
    AlreadyClaimed,
    ClaimLimitReached,
    Fenced,
    InvalidOffset,
    InvalidRequest,
    NoPendingWork,
    NotFound,
    NotRunning,
    PullwakeError,
    Unauthenticated,
)
from config.identifiers import hashed, new_secret
from config.orm import with_now
from config.prepared import Insert, Param, Select, Update
from dispatch import wakes
from dispatch.models import DispatchState, Entity, Wake
from runners.models import Runner

logger = logging.getLogger(__name__)

Status = ConsumerClaim.Status
Lock = Callable[[], DispatchState | None]

MAX_ERROR = 4096
"""Characters that are kept of a handler's error."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a callback proves itself with: the claim's identity and its token."""

    consumer_id: str
    epoch: int
    token: str
    wake_id: str | None = None


@dataclass(frozen=True, slots=True)
class Ack:
    """An offset up to which a stream, named by its path, has been worked off."""

    path: str
    offset: int


@dataclass(frozen=True, slots=True)
class Acquisition:
    """A claim was made: its secret token, and where the entity stood before."""

    claim: ConsumerClaim
    entity: Entity
    claim_token: str
    status: str
    cursor: int
    tail: int


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing to claim: the entity is paused, stopping, or at its end."""

    entity: Entity
    status: str


@dataclass(frozen=True, slots=True)
class Release:
    """A done was taken: whether it was this call that cleared the entity, and its next wake."""

    claim: ConsumerClaim
    entity_cleared: bool
    next_wake: Wake | None


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed was taken; the entity is woken again at ``retry_at``, or None with no work left."""

    claim: ConsumerClaim
    entity_cleared: bool
    retry_at: datetime | None


@dataclass(frozen=True, slots=True)
class Expiry:
    """A lapsed claim was taken back; None for ``next_wake`` when none is due now."""

    claim: ConsumerClaim
    next_wake: Wake | None


# --- Statements -------------------------------------------------------------------------------


def _identified(claims: ClaimQuerySet) -> ClaimQuerySet:
    return claims.filter(consumer_id=Param("consumer_id"), epoch=Param("epoch"))


def _proven(claims: ClaimQuerySet) -> ClaimQuerySet:
    of_wake = claims.filter(consumer_id=Param("wake_id"))
    return _identified(of_wake).filter(claim_token_hash=Param("claim_token_hash"))


def _proof(credentials: Credentials) -> dict[str, Any]:
    """What `_proven` compares; who names no wake means the claim's own."""
    wake_id = credentials.consumer_id if credentials.wake_id is None else credentials.wake_id
    return {
        "consumer_id": credentials.consumer_id,
        "wake_id": wake_id,
        # No claim has an epoch past what the column holds.
        "epoch": min(credentials.epoch, BigIntegerField.MAX_BIGINT),
        "claim_token_hash": hashed(credentials.token),
    }


def _ended(status: ConsumerClaim.Status) -> dict[str, Any]:
    # The database's clock may step back, and a claim must come to its end for all that.
    ended_at = Greatest(Now(), F("claimed_at"))
    return {"status": status, "ended_at": ended_at, "write_token_hash": ""}


def _ending(status: ConsumerClaim.Status, *facts: str) -> Update:
    given: Any = {name: Param(name, ConsumerClaim._meta.get_field(name)) for name in facts}
    active = partial(_identified, ConsumerClaim.objects.active())
    return Update(active, **_ended(status), **given)


_ADD = Insert(ConsumerClaim)
_LOCK_LIMITED = Select(
    lambda: wakes.locking_limited(
        Runner.objects.filter(pk__in=_proven(ConsumerClaim.objects.all()).values("runner"))
    )
)
_LOCK = Select(
    lambda: (
        with_now(_proven(ConsumerClaim.objects.select_related("runner", "entity__dispatch_state")))
        .filter(entity__dispatch_state__isnull=False)
        .select_for_update(of=("entity__dispatch_state",))
    )
)
_MINT = Update(
    lambda: _proven(ConsumerClaim.objects.active()), write_token_hash=Param("write_token_hash")
)
_RENEW = Update(
    lambda: _proven(ConsumerClaim.objects.active()),
    returning=["lease_expires_at"],
    last_heartbeat_at=Now(),
    lease_expires_at=Now() + F("lease"),
)
_RELEASE = _ending(Status.RELEASED, "acked_streams")
_FAIL = _ending(Status.FAILED, "error")


# --- Transitions ------------------------------------------------------------------------------


def acquire(runner: Runner, subscription_id: str | None = None) -> Acquisition | Done | None:
    """Claim for this runner the entity of this subscription, or its oldest wake.

    None when the runner has no such entity, or no wake at all. A lapsed claim that stands in the
    way is expired on the spot. Raises NotRunning for a disabled runner, InvalidRequest for another
    runner's subscription, AlreadyClaimed, NoPendingWork and ClaimLimitReached, in this order.
    """
    if not runner.enabled:
        raise NotRunning("The runner is disabled.")
    key = _subscription_key(runner, subscription_id)
    if key:
        return _acquire(runner, partial(wakes.lock_subscribed, runner.pk, key))
    oldest = partial(wakes.lock_oldest, runner.pk)
    while (found := _acquire(runner, oldest)) is None and runner.wakes.outstanding().exists():
        pass  # another claimer was first at the oldest: then the next oldest is the oldest
    return found


def _subscription_key(runner: Runner, subscription_id: str | None) -> str:
    """The entity part of ``runner:<runner id>:<entity part>``; "" if there is none."""
    own = f"runner:{runner.pk}"
    whole, _, key = f"{own if subscription_id is None else subscription_id}:".partition(f"{own}:")
    key = key.removesuffix(":")
    # The entity part is a hash: one with a colon is of a runner whose id begins as this one's.
    if whole or ":" in key:
        raise InvalidRequest.field("/subscription_id", "it is another runner's")
    return key


def _acquire(runner: Runner, lock: Lock) -> Acquisition | Done | None:
    with transaction.atomic():
        verdict = _try_acquire(runner, lock)
    # Raised after the commit: a lapsed claim that was met stays expired.
    if isinstance(verdict, PullwakeError):
        raise verdict
    if isinstance(verdict, Acquisition):
        logger.info("claim acquired", extra=_facts(verdict.claim))
    return verdict


def _try_acquire(runner: Runner, lock: Lock) -> Acquisition | Done | PullwakeError | None:
    # Two claims for two entities must not both find the last place free.
    _lock_if_limited(runner)
    state = lock()
    if state is None:
        return None
    status = state.status(claimed=False)
    if not state.awake:
        return Done(state.entity, "stopping" if state.stop_requested else status)
    if state.outstanding_wake_id is None:
        problem = _make_claimable(state)
        if problem is not None:
            return problem
    taken = wakes.take(state, runner)
    if taken is None:
        return ClaimLimitReached()
    acquisition = _create(runner, state, status, *taken)
    state.last_claimed_at = state.now
    wakes.save(state)
    return acquisition


def _make_claimable(state: DispatchState) -> PullwakeError | None:
    """Bring about an outstanding wake, over a lapsed claim if need be; or say why there is none."""
    holder = with_now(state.entity.claims.active().select_related("runner")).first()
    if holder is not None:
        assert holder.lease_expires_at is not None  # noqa: S101  an active claim has a lease
        if holder.lease_expires_at > holder.now:
            return AlreadyClaimed()
        if not _expire(ConsumerClaim.objects.lapsed(), holder, state):  # it was renewed meanwhile
            return AlreadyClaimed()
        # Somebody is here to do the work, so it need not wait out the delay.
        state.retry_at = None
        _freed(holder, state)
    else:
        wakes.settle(state, claimed=False)
    return NoPendingWork() if state.outstanding_wake_id is None else None


def _create(
    runner: Runner, state: DispatchState, status: str, wake_id: str, generation: int
) -> Acquisition:
    token = new_secret("pwc")
    lease = timedelta(milliseconds=runner.claim_lease_ms)
    claim = ConsumerClaim(
        consumer_id=wake_id,
        epoch=generation,
        entity=state.entity,
        entity_url=state.entity.url,
        runner=runner,
        runner_name=runner.pk,
        claimed_at=state.now,
        lease=lease,
        lease_expires_at=state.now + lease,
        delivered_offset=state.tail,
        claim_token_hash=hashed(token),
    )
    _ADD.add(claim)
    return Acquisition(claim, state.entity, token, status, state.cursor, state.tail)


def authenticate(consumer_id: str, token: str) -> ConsumerClaim:
    """The claim, in whatever state, whose token this is.

    Raises NotFound for an unknown consumer, Unauthenticated for a token that is not its.
    """
    claims = ConsumerClaim.objects.select_related("runner")
    claim = claims.filter(consumer_id=consumer_id).first()
    if claim is None:
        raise NotFound("There is no such consumer.")
    if claim.claim_token_hash != hashed(token):
        raise Unauthenticated("The claim token is not this consumer's.")
    return claim


def mint(credentials: Credentials) -> str:
    """A new write token for an active claim; the former one is dead. See `_refusal` for errors."""
    token = new_secret("pww")
    if not _MINT.count(**_proof(credentials), write_token_hash=hashed(token)):
        raise _refusal(credentials)
    return token


def renew(credentials: Credentials, acks: Sequence[Ack] = ()) -> datetime:
    """Renew the lease for its full length, counted from now: when it ends. Acks move the cursor.

    Raises InvalidOffset for a bad ack, then nothing is renewed; see `_refusal` for other errors.
    """
    if not acks:
        return _renewed(credentials)
    with transaction.atomic():
        claim = _found(credentials)
        state = _lock_state(claim)
        expires_at = _renewed(credentials)
        _acknowledge(state, claim, acks)
        wakes.save(state)
    return expires_at


def _renewed(credentials: Credentials) -> datetime:
    rows = _RENEW.returned(**_proof(credentials))
    if not rows:
        raise _refusal(credentials)
    expires_at: datetime = rows[0][0]
    return expires_at


def release(credentials: Credentials, acks: Sequence[Ack] | None = None) -> Release:
    """The work is done: apply the acks, end the claim, free the entity, wake it if work is left.

    Without acks (None) all that the claim delivered is acked. Raises InvalidOffset for a bad ack;
    see `_refusal` for other errors. A claim that was released before is not released again.
    """
    with transaction.atomic():
        claim, state = _lock(credentials)
        if claim.status == Status.RELEASED:
            return Release(claim, entity_cleared=False, next_wake=None)
        if state is None:
            raise Fenced("The entity was deleted.")
        if not _ended_by(_RELEASE, claim, acked_streams=_acked(claim, acks)):
            claim.refresh_from_db()
            if claim.status == Status.RELEASED:  # another delivery of this done was first
                return Release(claim, entity_cleared=False, next_wake=None)
            raise Fenced
        _acknowledge(state, claim, acks)
        state.failures = 0
        state.retry_at = None
        state.last_released_at = state.now
        next_wake = _freed(claim, state)
    logger.info("claim released", extra=_facts(claim))
    return Release(claim, entity_cleared=True, next_wake=next_wake)


def fail(credentials: Credentials, error: str = "") -> Failure:
    """The handler failed: end the claim, free the entity, and wake it again after a growing delay.

    The cursor stays. See `_refusal` for errors.
    """
    with transaction.atomic():
        claim, state = _lock(credentials)
        if claim.status != Status.ACTIVE or state is None:
            raise Fenced
        if not _ended_by(_FAIL, claim, error=error[:MAX_ERROR]):
            raise Fenced
        state.failures += 1
        wakes.backoff(state, wakes.FAILED_DELAY, state.failures)
        _freed(claim, state)
    logger.info("claim failed", extra=_facts(claim))
    return Failure(claim, entity_cleared=True, retry_at=state.retry_at)


def expire(claim: ConsumerClaim) -> Expiry | None:
    """Take back a claim whose lease has lapsed: None if it was renewed or ended meanwhile, or if
    another transaction has its entity in hand (then that one, or the next round, sees to it).
    """
    with transaction.atomic():
        _lock_if_limited(claim.runner)
        states = DispatchState.objects.filter(entity=claim.entity_id or 0)
        for state in wakes.lock(states, skip_locked=True):
            if not _expire(ConsumerClaim.objects.lapsed(), claim, state):
                return None
            next_wake = _freed(claim, state)
            logger.warning("claim expired", extra=_facts(claim))
            return Expiry(claim, next_wake)
    return None


def take_back(claim: ConsumerClaim) -> Expiry | None:
    """`expire` for an operator: whatever the lease, and waiting for whoever has the entity in hand.

    None if the claim ended meanwhile. Its holder, should it be at work after all, is fenced.
    """
    with transaction.atomic():
        _lock_if_limited(claim.runner)
        state = wakes.lock_of(claim.entity_id or 0)
        if state is None or not _expire(ConsumerClaim.objects.active(), claim, state):
            return None
        next_wake = _freed(claim, state)
    logger.warning("claim expired by an operator", extra=_facts(claim))
    return Expiry(claim, next_wake)


def end(claims: ClaimQuerySet, status: ConsumerClaim.Status) -> int:
    """Expire or fence those of these claims that are active, whatever their lease: how many.

    Inside the transaction of a caller that holds their dispatch states and settles them after.
    """
    return claims.active().update(**_ended(status))


def fence(claims: ClaimQuerySet) -> int:
    """`end` by fencing; what the holders' claim limits refused meanwhile is emitted again."""
    limited = Runner.objects.filter(max_concurrent_claims__isnull=False)
    holders = list(limited.filter(pk__in=claims.active().values("runner")).order_by("pk"))
    ended = end(claims, Status.FENCED)
    for runner in holders:
        wakes.reemit_oldest_if_at_limit(runner)
    return ended


def _found(credentials: Credentials) -> ConsumerClaim:
    """The claim in whatever state, if these are its credentials and its epoch.

    Raises what `authenticate` raises, and Fenced for another epoch or wake.
    """
    claim = authenticate(credentials.consumer_id, credentials.token)
    if claim.epoch != credentials.epoch:
        raise Fenced("The epoch is not this claim's.")
    if credentials.wake_id not in (None, claim.consumer_id):
        raise Fenced("The wake is not this claim's.")
    return claim


def _refusal(credentials: Credentials) -> PullwakeError:
    """Why `_proven` found nothing active. Raises what `_found` raises."""
    _found(credentials)
    return Fenced()


def _lock(credentials: Credentials) -> tuple[ConsumerClaim, DispatchState | None]:
    """`_found`, and the dispatch state of its entity, locked; None when that was deleted.

    The limited runner is locked before, as for whatever ends a claim. The claim is as it was before
    the lock was waited for.
    """
    proof = _proof(credentials)
    _LOCK_LIMITED.all(**proof)
    claim = _LOCK.first(**proof)
    if claim is None:
        return _found(credentials), None
    assert claim.entity is not None  # noqa: S101  it is joined by its dispatch state
    state = claim.entity.dispatch_state
    state.now = claim.now
    return claim, state


def _lock_if_limited(runner: Runner | None) -> None:
    if runner is not None and runner.max_concurrent_claims is not None:
        wakes.lock_limited(Runner.objects.filter(pk=runner.pk))


def _lock_state(claim: ConsumerClaim) -> DispatchState:
    if claim.entity_id is not None:
        state = wakes.lock_of(claim.entity_id)
        if state is not None:
            return state
    raise Fenced("The entity was deleted.")


def _ended_by(ending: Update, claim: ConsumerClaim, **facts: Any) -> bool:
    """Whether this call ended the claim."""
    return bool(ending.count(consumer_id=claim.consumer_id, epoch=claim.epoch, **facts))


def _expire(among: ClaimQuerySet, claim: ConsumerClaim, state: DispatchState) -> bool:
    """Whether this call expired the claim; counts the failure and sets the delay."""
    this = among.filter(consumer_id=claim.consumer_id, epoch=claim.epoch)
    ended = this.update(**_ended(Status.EXPIRED))
    if ended:
        state.failures += 1
        wakes.backoff(state, wakes.EXPIRED_DELAY, state.failures - 1)
    return bool(ended)


def _freed(claim: ConsumerClaim, state: DispatchState) -> Wake | None:
    """What follows the end of a claim: the entity's next wake, and its runner's refused ones."""
    runner = claim.runner
    if runner is None or runner.max_concurrent_claims is None:
        return wakes.settle(state, claimed=False)
    if state.runner_id is not None and state.runner_id < runner.pk:
        # Two wake streams: their tails are locked in the order of their runners.
        next_wake = wakes.settle(state, claimed=False)
        wakes.reemit_oldest_if_at_limit(runner)
        return next_wake
    # First in the stream, so that a busy entity does not keep the others waiting for ever.
    wakes.reemit_oldest_if_at_limit(runner)
    return wakes.settle(state, claimed=False)


def _acked(claim: ConsumerClaim, acks: Sequence[Ack] | None) -> list[dict[str, Any]]:
    if acks is None:
        return [{"path": f"{claim.entity_url}/main", "offset": claim.delivered_offset}]
    return [{"path": ack.path, "offset": ack.offset} for ack in acks]


def _acknowledge(state: DispatchState, claim: ConsumerClaim, acks: Sequence[Ack] | None) -> None:
    """Move the cursor; raises InvalidOffset, and nothing is applied."""
    if acks is None:
        state.cursor = max(state.cursor, claim.delivered_offset)
        return
    for ack in acks:
        if ack.path != state.entity.stream_path:
            raise InvalidOffset(f"{ack.path} is not this entity's stream.")
        if not state.cursor <= ack.offset <= state.tail:
            raise InvalidOffset
    state.cursor = max([state.cursor, *(ack.offset for ack in acks)])


def _facts(claim: ConsumerClaim) -> dict[str, Any]:
    """What the log says of a claim."""
    return {
        "consumer_id": claim.consumer_id,
        "epoch": claim.epoch,
        "entity": claim.entity_url,
        "runner": claim.runner_name,
    }
