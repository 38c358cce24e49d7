"""The life of a claim: the only writer of `ConsumerClaim`.

A claim is the lease of one entity to one runner. Its identity and fencing token is its row,
(consumer_id, epoch); nothing that a process remembers decides anything. The transitions, from the
wire contract's rules 1 to 9:

=========  ==========  ============  ===========  ===========  ===========  =================
state      mint        renew         release      fail         give_up      end
=========  ==========  ============  ===========  ===========  ===========  =================
active     active      active        released     failed       failed       expired or fenced
released   Fenced      Fenced        released ¹   Fenced       Fenced       —
failed     Fenced      Fenced        Fenced       Fenced       Fenced       —
expired    Fenced      Fenced        Fenced       Fenced       Fenced       —
fenced     Fenced      Fenced        Fenced       Fenced       Fenced       —
=========  ==========  ============  ===========  ===========  ===========  =================

`acquire` makes an active claim. `end` is the one gate out of it: for `release`, `fail` and
`give_up`, for `expire` (its lease lapsed), and for `claims.endings` (an operator or the deletion of
its runner takes it back, the kill or deletion of its entity fences it). "Fenced" raises
`core.errors.Fenced` and "—" finds nothing to do; both change nothing. Another epoch than the
claim's is Fenced in every state.

¹ The retry of a done whose answer was lost: nothing changes, ``entity_cleared`` is False.

A claim whose lease has lapsed is still active, and its holder's, until somebody expires it. Its
lease begins when the claim is made, after whatever it waited for.

Failures in a row delay an entity's next wake, unless the last `fail` says itself how long. A
`fail` counts, and so does an expiry while the runner lived and could be heard. The death of a
runner, of all servers or of the database is not the entity's failure (`ClaimQuerySet.blameless`):
it is woken at once, and the count stays. Should the death show only later, it is counted no more
(`pardon`). A `give_up` acks the work, keeps it as dead letters, and ends the row.

A runner may name its request to claim by a nonce. Should the answer be lost, the same request
again gets the same claim with the same token and a full lease, as long as the claim has not been
used. The token is the same because the lost request may yet arrive, as where a server was frozen:
it must not take the claim from whoever was answered meanwhile. So it is with a request to mint.

Each transition is one UPDATE that names consumer_id, epoch and that it has not ended; its row
count is the verdict. Lock order: dispatch state, claim, wake, tails of wake streams by runner id.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import BigIntegerField, DateTimeField, ExpressionWrapper, F
from django.db.models.functions import Greatest, Now

from claims import dead_letters
from claims.metrics import CLAIM_REQUESTS, CLAIM_WAIT, CLAIM_WORK, RUNNER_CLAIM_ENDS
from claims.models import ClaimQuerySet, ConsumerClaim
from core import log_facts
from core.clock import ClockNow, with_now
from core.database import can_skip_locked
from core.errors import (
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
from core.identifiers import derived_secret, hash_secret, new_secret
from core.metrics import runner_name, type_name
from core.prepared import Insert, Param, Select, Update, UpdateByKey, relate
from core.tracing import TraceContext
from dispatch import inbox, signals, wakes
from dispatch.models import DispatchState, Entity, Wake
from dispatch.streams import registrations, work
from runners.models import Runner

logger = logging.getLogger(__name__)

Status = ConsumerClaim.Status
Lock = Callable[[], DispatchState | None]

MAX_ERROR = 4096
"""Characters that are kept of a handler's error."""

NOT_BLAMED = "Its runner died, or no server was there to renew it: no failure of the entity's."
"""The error of an expired claim that is not counted as its entity's failure."""

FAILED_DELAY = timedelta(seconds=10)
"""Before an entity whose claim failed is woken again; doubles with each failure in a row."""
EXPIRED_DELAY = timedelta(seconds=1)
"""The same after a second expiry in a row; after the first there is none."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The proof that a callback carries: the claim's identity and its token."""

    consumer_id: str
    epoch: int
    token: str
    wake_id: str | None = None


@dataclass(frozen=True, slots=True)
class Ack:
    """An offset up to which the stream at a path has been processed."""

    path: str
    offset: int


@dataclass(frozen=True, slots=True)
class Acquisition:
    """A claim was made: its secret token, and where the entity's stream stood.

    ``just_past`` is the offset before the first work past the cursor, or the tail if there is none.
    ``attempt`` is 1, or more after failures in a row. ``waited`` is how long the wake was
    unclaimed; None if a request is answered again. ``sent`` is the trace position at which the
    first message to be handled was sent.
    """

    claim: ConsumerClaim
    entity: Entity
    claim_token: str
    cursor: int
    just_past: int
    attempt: int
    waited: timedelta | None = None
    sent: TraceContext | None = None


@dataclass(frozen=True, slots=True)
class NotAwake:
    """Nothing can be claimed: the entity is paused, stopping, stopped or killed."""


@dataclass(frozen=True, slots=True)
class Release:
    """A done was accepted: whether this call cleared the entity, and its next wake."""

    entity_cleared: bool
    next_wake: Wake | None


_RELEASED_BEFORE = Release(entity_cleared=False, next_wake=None)


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed was accepted: the entity is woken again at ``retry_at``, or not, if it stops."""

    retry_at: datetime | None


@dataclass(frozen=True, slots=True)
class Expiry:
    """A claim was expired or taken back; ``next_wake`` is None when none is due now."""

    next_wake: Wake | None


# --- Making a claim ---------------------------------------------------------------------------


def acquire(
    runner: Runner, subscription_id: str | None = None, nonce: str = ""
) -> Acquisition | NotAwake | None:
    """Claim for this runner the entity of this subscription, or the one with its oldest wake.

    A request that repeats an earlier nonce of the runner's gets the same answer again. None when
    the runner has no such entity, or no wake at all. A lapsed claim that stands in the way is
    expired on the spot. Raises NotRunning for a disabled runner, InvalidRequest for another
    runner's subscription, AlreadyClaimed, NoPendingWork and ClaimLimitReached, in this order.
    """
    try:
        verdict = _acquire_asked(runner, subscription_id, nonce)
    except PullwakeError as refusal:
        CLAIM_REQUESTS.labels(refusal.code.lower()).inc()
        raise
    match verdict:
        case Acquisition():
            outcome = "claimed" if verdict.waited is not None else "claimed_before"
        case NotAwake():
            outcome = "not_awake"
        case None:
            outcome = "nothing"
    CLAIM_REQUESTS.labels(outcome).inc()
    return verdict


def _acquire_asked(
    runner: Runner, subscription_id: str | None, nonce: str
) -> Acquisition | NotAwake | None:
    if not runner.enabled:
        raise NotRunning("The runner is disabled.")
    key = _subscription_key(runner, subscription_id)
    nonce_hash = hash_secret(nonce) if nonce else ""
    if key:
        return _acquire(runner, partial(wakes.lock_subscribed, runner.pk, key), nonce_hash)
    oldest = partial(wakes.lock_oldest, runner.pk)
    if nonce_hash:
        made = _made_before(runner, nonce_hash).first()
        if made is not None:
            oldest = partial(wakes.lock_claimed, made.entity_id or 0)
    own = runner.wakes.outstanding().filter(runner__owner_principal=runner.owner_principal)
    while (found := _acquire(runner, oldest, nonce_hash)) is None and own.exists():
        # Another claimer took the oldest first: now the next oldest is the oldest.
        oldest = partial(wakes.lock_oldest, runner.pk)
    return found


def _subscription_key(runner: Runner, subscription_id: str | None) -> str:
    """The entity part of ``runner:<runner id>:<entity part>``; "" if there is none."""
    own = f"runner:{runner.pk}"
    whole, _, key = f"{own if subscription_id is None else subscription_id}:".partition(f"{own}:")
    key = key.removesuffix(":")
    # The entity part is a hash; one with a colon belongs to an id that begins like this one.
    if whole or ":" in key:
        raise InvalidRequest.field("/subscription_id", "it is another runner's")
    return key


def _acquire(runner: Runner, lock: Lock, nonce_hash: str) -> Acquisition | NotAwake | None:
    with transaction.atomic():
        verdict = _try_acquire(runner, lock, nonce_hash)
    # Raised after the commit: a lapsed claim that was found stays expired.
    if isinstance(verdict, PullwakeError):
        raise verdict
    if isinstance(verdict, Acquisition):
        logger.info("claim acquired", extra=_facts(verdict.claim))
        if verdict.waited is not None:
            waited_s = max(verdict.waited.total_seconds(), 0.0)
            CLAIM_WAIT.labels(type_name(verdict.entity.type)).observe(waited_s)
    return verdict


def _try_acquire(
    runner: Runner, lock: Lock, nonce_hash: str
) -> Acquisition | NotAwake | PullwakeError | None:
    state = lock()
    if state is None:
        return None
    if state.claimed and nonce_hash:
        again = _answer_again(runner, state, nonce_hash)
        if again is not None:
            return again
    if (state.runner_id, state.runner_owner) != (runner.pk, runner.owner_principal):
        # Since its claim was found, that ended, and it was dispatched elsewhere; or the runner is
        # deleted, and its id another principal's.
        return None
    if state.closed or (state.paused and not state.claimed):
        return NotAwake()
    if state.outstanding_wake_id is None:
        problem = _make_claimable(state)
        if problem is not None:
            # It may have been asked to pause once its claim ends, which has just lapsed.
            return problem if state.awake or state.claimed else NotAwake()
    wake_id, generation = wakes.take(state)
    if _free_places(runner) == 0:
        wakes.put_back(state)
        return ClaimLimitReached()
    acquisition = _create(runner, state, wake_id, generation, nonce_hash)
    wakes.save(state)
    return acquisition


def _make_claimable(state: DispatchState) -> PullwakeError | None:
    """Bring about an outstanding wake, expiring a lapsed claim if need be; or say why not."""
    if state.claimed:
        holder = state.entity.claims.active().select_related("runner").get()
        if not _expire_lapsed(holder, state):
            return AlreadyClaimed()
        # Somebody is here to do the work, so the delay need not pass first.
        state.retry_at = None
        wake_next(holder, state)
    else:
        wakes.settle(state)
    return NoPendingWork() if state.outstanding_wake_id is None else None


_ADD = Insert(
    ConsumerClaim,
    # The time of this statement, which waits for no lock: so the lease is whole.
    claimed_at=Now(),
    lease_expires_at=ExpressionWrapper(
        Now() + Param("lease", ConsumerClaim._meta.get_field("lease")), DateTimeField()
    ),
)


def _create(
    runner: Runner, state: DispatchState, wake_id: str, generation: int, nonce_hash: str
) -> Acquisition:
    token = _token("pwc", wake_id, generation, nonce_hash)
    claim = ConsumerClaim(
        consumer_id=wake_id,
        epoch=generation,
        entity=state.entity,
        entity_url=state.entity.url,
        runner=runner,
        runner_name=runner.pk,
        lease=timedelta(milliseconds=runner.claim_lease_ms),
        delivered_offset=state.tail,
        claim_token_hash=hash_secret(token),
        nonce_hash=nonce_hash,
    )
    _ADD.add(claim)
    waited = state.now - (state.last_wake_at or state.now)
    return _told_of(claim, state, token, waited)


def _told_of(
    claim: ConsumerClaim, state: DispatchState, token: str, waited: timedelta | None = None
) -> Acquisition:
    just_past = state.given_offset - 1 if state.given_offset else claim.delivered_offset
    attempt = state.failures + 1
    sent = TraceContext.load(state.first_trace)
    return Acquisition(claim, state.entity, token, state.cursor, just_past, attempt, waited, sent)


def _token(prefix: str, consumer_id: str, epoch: int, nonce_hash: str) -> str:
    """A new one for this claim, or that of the request with this nonce."""
    if not nonce_hash:
        return new_secret(prefix)
    return derived_secret(settings.SECRET_KEY, prefix, consumer_id, str(epoch), nonce_hash)


def _made_before(runner: Runner, nonce_hash: str) -> ClaimQuerySet:
    """The claim that a request with this nonce made and that is still unused."""
    return ConsumerClaim.objects.active().unused().filter(runner=runner, nonce_hash=nonce_hash)


def _answer_again(runner: Runner, state: DispatchState, nonce_hash: str) -> Acquisition | None:
    """The claim of a locked entity, if a request with this nonce made it, and lost its answer."""
    made = _made_before(runner, nonce_hash).filter(entity=state.entity)
    claim = made.first()
    if claim is None:
        return None
    token = _token("pwc", claim.consumer_id, claim.epoch, nonce_hash)
    # Another's hash stands where SECRET_KEY has changed since.
    again = made.update(
        claim_token_hash=hash_secret(token), lease_expires_at=ClockNow() + F("lease")
    )
    return _told_of(claim, state, token) if again else None


def take_over(ended: Sequence[ConsumerClaim]) -> None:
    """Store claims that ended on another server: as history, which opens nothing.

    Raises ValueError for one that is active.
    """
    if any(each.status == ConsumerClaim.Status.ACTIVE for each in ended):
        raise ValueError("Only claims that ended can be history.")
    ConsumerClaim.objects.bulk_create(ended, ignore_conflicts=True)


# --- Holding it -------------------------------------------------------------------------------


def authenticate(consumer_id: str, token: str) -> ConsumerClaim:
    """The claim, in whatever state, that has this token.

    Raises NotFound for an unknown consumer, Unauthenticated for a token that is not the claim's.
    """
    claims = ConsumerClaim.objects.select_related("runner")
    claim = claims.filter(consumer_id=consumer_id).first()
    if claim is None:
        raise NotFound("There is no such consumer.")
    if claim.claim_token_hash != hash_secret(token):
        raise Unauthenticated("The claim token is not this consumer's.")
    return claim


def _identified(claims: ClaimQuerySet) -> ClaimQuerySet:
    epoch = Param("epoch", ConsumerClaim._meta.get_field("epoch"))
    return claims.filter(consumer_id=Param("consumer_id"), epoch=epoch)


def _proven(claims: ClaimQuerySet) -> ClaimQuerySet:
    of_wake = claims.filter(consumer_id=Param("wake_id"))
    return _identified(of_wake).filter(claim_token_hash=Param("claim_token_hash"))


def _proof(credentials: Credentials) -> dict[str, Any]:
    """The values that `_proven` compares; credentials that name no wake mean the claim's own."""
    wake_id = credentials.consumer_id if credentials.wake_id is None else credentials.wake_id
    return {
        "consumer_id": credentials.consumer_id,
        "wake_id": wake_id,
        # No claim has an epoch beyond the column's range.
        "epoch": min(credentials.epoch, BigIntegerField.MAX_BIGINT),
        "claim_token_hash": hash_secret(credentials.token),
    }


_MINT = Update(
    lambda: _proven(ConsumerClaim.objects.unended()),
    returning=["entity_url"],
    write_token_hash=Param("write_token_hash"),
)


def mint(credentials: Credentials, nonce: str = "") -> str:
    """A write token for an active claim; a former one that differs opens nothing.

    It is a new one, or the same again for the same nonce. Raises as `_refusal`.
    """
    nonce_hash = hash_secret(nonce) if nonce else ""
    token = _token("pww", credentials.consumer_id, credentials.epoch, nonce_hash)
    rows = _MINT.returned(**_proof(credentials), write_token_hash=hash_secret(token))
    if not rows:
        raise _refusal(credentials)
    log_facts.note(entity=rows[0][0])
    return token


_RENEW = UpdateByKey(
    lambda: _proven(ConsumerClaim.objects.unended()),
    "consumer_id",
    returning=["lease_expires_at", "entity_url"],
    last_heartbeat_at=Now(),
    lease_expires_at=Now() + F("lease"),
)


def renew(credentials: Credentials, acks: Sequence[Ack] = ()) -> datetime:
    """Renew the lease for its full length from now: when it ends. Acks move the cursor, and what
    the claim took from the queue up to there is done.

    Raises InvalidOffset for a bad ack, and then renews nothing; see `_refusal` for other errors.
    """
    if not acks:
        return _renew(credentials)
    with transaction.atomic():
        claim, state = _lock(credentials)
        expires_at = _renew(credentials)
        _acknowledge(state, claim, acks)
        if state.given_offset is None:
            work.finish(state, up_to=state.cursor)
        wakes.save(state)
    return expires_at


def _renew(credentials: Credentials) -> datetime:
    rows = _RENEW.returned(**_proof(credentials))
    if not rows:
        raise _refusal(credentials)
    expires_at: datetime
    ((expires_at, entity_url),) = rows
    log_facts.note(entity=entity_url)
    return expires_at


# --- Ending it --------------------------------------------------------------------------------


def release(credentials: Credentials, acks: Sequence[Ack] | None = None) -> Release:
    """The work is done: apply the acks, end the claim, free the entity, wake it if work is left.

    Without acks (None) everything that the claim was given is acked. If the claim achieved nothing,
    and work is left, the entity waits as after a failure. Raises InvalidOffset for a bad ack; see
    `_refusal` for other errors. A claim that was already released is not released again.
    """
    with transaction.atomic():
        try:
            claim, state = _lock(credentials)
        except Fenced:
            if _find(credentials).status == Status.RELEASED:  # and then its entity was deleted
                return _RELEASED_BEFORE
            raise
        if claim.status == Status.RELEASED:
            return _RELEASED_BEFORE
        stalled = _is_stalled(state, claim, acks)
        told = _acks_kept(claim, acks)
        error = "The done acked none of the work." if stalled else ""
        if not end(claim, state, Status.RELEASED, blamed=stalled, acks=told, error=error):
            # It is as it was before the lock was waited for: another done of its may have won.
            claim.refresh_from_db()
            if claim.status == Status.RELEASED:
                return _RELEASED_BEFORE
            raise Fenced
        _acknowledge(state, claim, acks)
        next_wake = wake_next(claim, state)
    return Release(entity_cleared=True, next_wake=next_wake)


def fail(
    credentials: Credentials, error: str = "", *, retry_after: timedelta | None = None
) -> Failure:
    """The handler failed: end the claim, free the entity, and wake it again after a delay.

    The delay is ``retry_after``, or else grows with each failure in a row. The cursor stays;
    ``error`` is at most `MAX_ERROR` characters. See `_refusal` for errors.
    """
    with transaction.atomic():
        claim, state = _lock(credentials)
        if not end(claim, state, Status.FAILED, blamed=True, error=error):
            raise Fenced
        if retry_after is not None:
            state.retry_at = state.now + retry_after
        wake_next(claim, state)
    return Failure(state.retry_at)


def give_up(credentials: Credentials, reason: str = "", acks: Sequence[Ack] | None = None) -> None:
    """The handler gives up its work: end the claim, and keep what it acks as dead letters.

    Without acks (None) that is everything that the claim was given. What arrived since wakes the
    entity at once. Raises InvalidOffset for a bad ack; see `_refusal` for other errors.
    """
    with transaction.atomic():
        claim, state = _lock(credentials)
        told, before, attempts = _acks_kept(claim, acks), state.cursor, state.failures + 1
        if not end(claim, state, Status.FAILED, acks=told, error=reason):
            raise Fenced
        _acknowledge(state, claim, acks)
        dead_letters.keep(claim, state, after=before, attempts=attempts, reason=reason)
        if state.watched:
            registrations.tell_of_errors(state, claim.delivered_offset, given_up=reason)
        wake_next(claim, state)


def expire(claim: ConsumerClaim) -> Expiry | None:
    """End a claim whose lease has lapsed.

    None if it was renewed or ended meanwhile, or if another transaction has locked its entity (then
    that one, or the next round, takes care of it).
    """
    with transaction.atomic():
        state = wakes.try_lock(DispatchState.objects.filter(pk=claim.entity_id or 0))
        if state is None or not _expire_lapsed(claim, state):
            return None
        next_wake = wake_next(claim, state)
    return Expiry(next_wake)


def redate(*, limit: int) -> int:
    """Let leases that a clock which was set back since has dated begin anew: how many.

    Those whose holder lives are renewed anyway; a dead one's would last for as long as that took.
    """
    ahead = ConsumerClaim.objects.dated_ahead()
    some = ahead.select_for_update(skip_locked=can_skip_locked()).values("pk")[:limit]
    with transaction.atomic():
        return ahead.filter(pk__in=some).update(
            lease_expires_at=ExpressionWrapper(Now() + F("lease"), DateTimeField())
        )


def _expire_lapsed(claim: ConsumerClaim, state: DispatchState) -> bool:
    blamed = _is_blamed(claim)
    error = "" if blamed else NOT_BLAMED
    return end(claim, state, Status.EXPIRED, lapsed=True, blamed=blamed, error=error)


def pardon(claim: ConsumerClaim) -> bool:
    """Stop counting the expiry of one of `pardonable` as a failure: whether this call did so.

    An entity that another transaction has locked is left to the next round.
    """
    with transaction.atomic():
        state = wakes.try_lock(DispatchState.objects.filter(pk=claim.entity_id or 0))
        counted = ConsumerClaim.objects.pardonable().filter(pk=claim.pk)
        if state is None or not counted.update(error=NOT_BLAMED):
            return False
        ended_at = claim.ended_at or state.now
        if state.failures and (state.last_claimed_at or ended_at) <= ended_at:
            state.failures -= 1
            state.retry_at = None
            wakes.settle(state)
    return True


def _is_blamed(claim: ConsumerClaim) -> bool:
    """Whether its expiry would count as a failure of the entity's handler."""
    return not ConsumerClaim.objects.blameless().filter(pk=claim.pk).exists()


def _ending(claims: Callable[[], ClaimQuerySet]) -> Update:
    # The database's clock may step back, and a claim must end all the same.
    ended_at = Greatest(Now(), F("claimed_at"))
    acks = Param("acked_streams", ConsumerClaim._meta.get_field("acked_streams"))
    return Update(
        lambda: _identified(claims()),
        status=Param("status"),
        ended_at=ended_at,
        write_token_hash="",
        acked_streams=acks,
        error=Param("error"),
    )


_END = _ending(ConsumerClaim.objects.unended)
_END_LAPSED = _ending(ConsumerClaim.objects.lapsed)


def end(
    claim: ConsumerClaim,
    state: DispatchState,
    status: ConsumerClaim.Status,
    *,
    lapsed: bool = False,
    blamed: bool = False,
    acks: Sequence[dict[str, Any]] = (),
    error: str = "",
) -> bool:
    """The one gate out of a claim: whether this call ended it, and so freed its entity.

    The caller has locked ``state``, the entity's, and saves it afterwards. ``lapsed`` ends the
    claim only if its lease is over. After a failure or an expiry, what it took from the queue waits
    there again. An end that the entity's handler is ``blamed`` for is one more failure in a row and
    delays the next wake, except after a first expiry; a done that acks none of its work is such an
    end. Any other done ends the row, and so does a failure without blame: its handler gave up.
    """
    ending = _END_LAPSED if lapsed else _END
    facts = {"status": status, "acked_streams": list(acks), "error": error}
    if not ending.count(consumer_id=claim.consumer_id, epoch=claim.epoch, **facts):
        return False
    claim.status = status
    state.active_epoch = None
    outcome = _OUTCOMES.get((status, blamed), str(status))
    transaction.on_commit(partial(_note_end, claim, state, outcome))
    if state.given_offset is None:  # it took messages from the queue
        if status in (Status.FAILED, Status.EXPIRED):
            inbox.put_back(state, claim.epoch)
        else:
            work.finish(state)
    if state.signals_open and status != Status.FENCED:  # a fence ends the entity
        signals.complete(state, claim.delivered_offset)
    if status == Status.RELEASED and state.watched:
        registrations.tell_of_errors(state, claim.delivered_offset)
    if blamed:
        state.failures += 1
        delay = _next_delay(status, state.failures)
        state.retry_at = state.now + delay if delay else None
    elif status in (Status.RELEASED, Status.FAILED):
        state.failures, state.retry_at = 0, None
    if status == Status.RELEASED:
        state.last_released_at = state.now
    return True


_OUTCOMES = {(Status.RELEASED, True): "stalled", (Status.FAILED, False): "given_up"}
"""What an end is called, by its status and whether it is blamed, where that is not its status."""


def _next_delay(status: ConsumerClaim.Status, failures: int) -> timedelta:
    """How long an entity waits after ``failures`` in a row, the last of which ended like this."""
    if status == Status.EXPIRED:
        return wakes.delay(EXPIRED_DELAY, failures - 1)
    return wakes.delay(FAILED_DELAY, failures)


def wake_next(claim: ConsumerClaim, state: DispatchState) -> Wake | None:
    """After the end of a claim: emit the entity's next wake, and its runner's refused ones."""
    runner = claim.runner
    if runner is None or runner.max_concurrent_claims is None:
        return wakes.settle(state)
    earlier = state.runner_id is not None and state.runner_id < runner.pk
    if earlier or state.stop_requested:
        # Two wake streams: their tails are locked in the order of their runners. And an entity that
        # stops is closed for its watchers, which comes before any tail.
        next_wake = wakes.settle(state)
        reemit_refused(runner)
        return next_wake
    # First in the stream, so that a busy entity does not keep the others waiting for ever.
    reemit_refused(runner)
    return wakes.settle(state)


# --- A runner's limit -------------------------------------------------------------------------


def _free_places(runner: Runner) -> int | None:
    """How many more claims the runner may hold; None without a limit.

    Two claims for two entities must not both take the last place, so a limited runner's claims are
    counted under the lock of its wake stream's tail, the last in the lock order.
    """
    if runner.max_concurrent_claims is None:
        return None
    wakes.lock_tail(runner.pk)
    held = ConsumerClaim.objects.active().filter(runner=runner).count()
    return max(runner.max_concurrent_claims - held, 0)


def reemit_refused(runner: Runner) -> None:
    """After a claim of a runner at its limit ended: emit again the wakes that it was refused."""
    free = _free_places(runner)
    if free:
        wakes.reemit_refused(runner, free)


# --- Refusals ---------------------------------------------------------------------------------


def _find(credentials: Credentials) -> ConsumerClaim:
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
    """Why `_proven` found nothing active. Raises what `_find` raises."""
    _find(credentials)
    return Fenced()


_LOCK = Select(
    lambda: (
        with_now(_proven(ConsumerClaim.objects.select_related("runner", "entity__dispatch_state")))
        .filter(entity__dispatch_state__isnull=False)
        .select_for_update(of=("entity__dispatch_state",))
    )
)


def _lock(credentials: Credentials) -> tuple[ConsumerClaim, DispatchState]:
    """Lock the dispatch state of the claim's entity: the claim, in whatever state, and that.

    The claim is as it was before the lock was waited for. Raises what `_find` raises, and Fenced
    where the entity was deleted.
    """
    claim = _LOCK.first(**_proof(credentials))
    if claim is None:
        _find(credentials)
        raise Fenced("The entity was deleted.")
    assert claim.entity is not None  # noqa: S101  it is joined by its dispatch state
    state = claim.entity.dispatch_state
    relate(state, "entity", claim.entity)
    state.now = claim.now
    log_facts.note(entity=claim.entity_url)
    return claim, wakes.remember(state)


# --- Acks -------------------------------------------------------------------------------------


def _acks_kept(claim: ConsumerClaim, acks: Sequence[Ack] | None) -> list[dict[str, Any]]:
    """The acks as they are stored with the claim."""
    if acks is None:
        return [{"path": f"{claim.entity_url}/main", "offset": claim.delivered_offset}]
    return [{"path": ack.path, "offset": ack.offset} for ack in acks]


def _acknowledge(state: DispatchState, claim: ConsumerClaim, acks: Sequence[Ack] | None) -> None:
    """Move the cursor. Raises InvalidOffset, and then applies nothing."""
    if acks is None:
        state.cursor = max(state.cursor, claim.delivered_offset)
        return
    for ack in acks:
        if ack.path != state.entity.stream_path:
            raise InvalidOffset(f"{ack.path} is not this entity's stream.")
        if not state.cursor <= ack.offset <= state.tail:
            raise InvalidOffset
    state.cursor = max([state.cursor, *(ack.offset for ack in acks)])


def _is_stalled(state: DispatchState, claim: ConsumerClaim, acks: Sequence[Ack] | None) -> bool:
    """Whether these acks leave work, and do not even cover the first that the claim was given.

    A queued message is not done with by an ack, nor by the lack of one: it has to be taken.
    """
    acked = [claim.delivered_offset] if acks is None else [ack.offset for ack in acks]
    cursor = max([state.cursor, *acked])
    left = state.last_work_offset > cursor or state.queue_waiting
    given = state.given_offset
    return left and given is not None and (given == 0 or cursor < given)


def _note_end(claim: ConsumerClaim, state: DispatchState, outcome: str) -> None:
    """Log and count a claim's end, once it is committed."""
    logger.info("claim ended: %s", claim.status, extra=_facts(claim))
    held_s = (state.now - claim.claimed_at).total_seconds()
    CLAIM_WORK.labels(type_name(state.entity.type), outcome).observe(max(held_s, 0.0))
    RUNNER_CLAIM_ENDS.labels(runner_name(claim.runner_name), outcome).inc()


def _facts(claim: ConsumerClaim) -> dict[str, Any]:
    """What the log says about a claim."""
    return {
        "consumer_id": claim.consumer_id,
        "epoch": claim.epoch,
        "entity": claim.entity_url,
        "runner": claim.runner_name,
    }
