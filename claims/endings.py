"""What ends a claim whatever its lease: an operator, or the end of its entity, runner or token.

Each goes through `lifecycle.end`, the one gate out of a claim, under the entity's lock.
"""

from collections.abc import Iterator
from typing import Any

from django.db import transaction
from django.db.models import Q, QuerySet

from claims import lifecycle, retention
from claims.lifecycle import Expiry
from claims.models import ClaimQuerySet, ConsumerClaim
from core.database import in_turns
from core.errors import InvalidSignal
from dispatch import deliveries, entities, shared_states, signals, timers, wakes
from dispatch.models import DispatchState, Entity, Wake, WakeQuerySet
from dispatch.streams import registrations, waiters
from runners import changes, registry, tokens
from runners.models import AccessToken, Runner, RunnerQuerySet

Status = ConsumerClaim.Status


TAKEN_BACK = "It was taken back by an operator."


def take_back(claim: ConsumerClaim, to: str | None = None) -> Expiry | None:
    """An operator takes a claim back; its holder, should it still be working, is fenced.

    ``to`` is the id of the runner to which the entity is then dispatched; raises NotFound. None if
    the claim ended meanwhile. The entity is woken again at once: it is not to blame.
    """
    with transaction.atomic():
        runner = None if to is None else registry.lock(to)
        state = wakes.lock_of(claim.entity_id or 0)
        if state is None:
            return None
        if runner is not None:
            entities.lock_row(state)  # it is written below, and comes before claims
        if not lifecycle.end(claim, state, Status.EXPIRED, error=TAKEN_BACK):
            return None
        if runner is not None:
            entities.touch(state)
            wakes.redirect(state, runner)
        next_wake = lifecycle.wake_next(claim, state)
    return Expiry(next_wake)


def holders(token: AccessToken) -> RunnerQuerySet:
    """The runners that the token's bearer may be: the one that it is for, or all of its owner."""
    runners = Runner.objects.filter(owner_principal=token.principal)
    if token.scope:
        return runners.none()
    return runners if token.runner_id is None else runners.filter(pk=token.runner_id)


def held_with(token: AccessToken) -> ClaimQuerySet:
    """The active claims that the token's bearer may hold, the oldest first."""
    return ConsumerClaim.objects.active().filter(runner__in=holders(token)).order_by("pk")


def revoke_and_take_back(token: AccessToken) -> int | None:
    """Revoke a token, and take back what its bearer may hold: how many; None if it was revoked.

    It waits until no server accepts the token any more: before that the bearer could claim again.
    Each claim is a transaction of its own.
    """
    if not tokens.revoke_at_once(token):
        return None
    return sum(take_back(claim) is not None for claim in held_with(token))


def kill(entity: Entity, signal: signals.Signal) -> signals.Signalled:
    """SIGKILL ends the entity at once, and fences its claim.

    Raises InvalidSignal for an entity that has ended.
    """
    with transaction.atomic():
        state = entities.lock(entity)
        if state.ended:
            raise InvalidSignal
        entities.touch(state)
        before = state.status
        holder = fence_holder(state)
        wakes.end(state, DispatchState.End.KILLED)
        signalled = signals.record(state, signal, before=before, changed=True)
        registrations.close(state, state.ended)
        wakes.withdraw(state)
        wakes.save(state)
        _reemit_refused(holder)
    return signalled


KEPT = 1_000
"""Of what a runner or an entity has behind it, the newest: that stays until it is deleted."""


def forget_past_of_entity(entity: Entity) -> None:
    """Before `delete_entity`: let go of claims and wakes that ended before the newest of them.

    See `forget_past_of_runner`. Its stream is its memory, and goes with it.
    """
    for batch in _past(entity.claims.ended()):
        with transaction.atomic():
            _locked(batch).update(entity=None)
    for batch in _past(_over(entity.wakes.all())):
        with transaction.atomic():
            _locked(batch).delete()


def delete_entity(entity: Entity) -> None:
    """Delete an entity, its stream, and the shared states that only it has; fence an active claim.

    After `forget_past_of_entity`, or it may take too long. Raises NotFound.
    """
    with transaction.atomic():
        state = entities.lock(entity)
        # What others make for it, a registration or a timer, is there by now, or never will be.
        entities.lock_row(state)
        gone = shared_states.leave(entity)
        holder = fence_holder(state)
        # Its claims lose their reference to it, and come before registrations in the lock order.
        _locked(entity.claims.all())
        timers.let_go(entity.pk)
        registrations.forget(state, lambda row: deliveries.may_tell(row, entity), gone)
        entity.delete()
        changes.remove(changes.Kind.ENTITY, entity.url)
        waiters.announce(waiters.ENTITY_FEED)
        _reemit_refused(holder)


def forget_past_of_runner(runner: Runner) -> None:
    """Before `delete_runner`: let go of claims and wakes that ended before the newest of them.

    A batch in a transaction: all at once would pass the statement timeout where there are many, and
    then it could never be deleted. Should it not be deleted after all, it keeps the newest, which
    its health is told from. Raises NotFound.
    """
    for rows in (runner.claims.ended(), _over(runner.wakes.all())):
        for batch in _past(rows):
            with transaction.atomic():
                registry.lock_again(runner)
                _locked(batch).update(runner=None)


def delete_runner(found: Runner) -> None:
    """Delete a runner: its claims are taken back and their entities freed. Raises NotFound.

    After `forget_past_of_runner`, or it may take too long. Its entities keep their pending work,
    and have no runner until they are given one; an entity that was meanwhile dispatched to another
    runner is woken there.
    """
    with transaction.atomic():
        runner = registry.lock_again(found)
        states = _lock_concerned(runner)
        # Those that ended lose their reference to it, too, and come before registrations.
        _locked(runner.claims.all())
        claims = list(runner.claims.active().order_by("pk"))
        registrations.lock_at(states.values())
        for claim in claims:
            lifecycle.end(claim, states[claim.entity_id], Status.EXPIRED)
        freed = [states.pop(claim.entity_id) for claim in claims]
        # Another's may be among them: it was claimed as its lock was waited for, and no longer is.
        wakes.strand([each for each in states.values() if each.runner_id == runner.pk])
        for state in freed:
            if state.runner_id == runner.pk:
                wakes.redirect(state, None)
        # Tails are locked in the order of their runners.
        for state in sorted(freed, key=lambda each: each.runner_id or ""):
            wakes.settle(state)
        runner.delete()
        changes.remove(changes.Kind.RUNNER, found.pk)
        waiters.announce(waiters.RUNNER_FEED)


def _lock_concerned(runner: Runner) -> dict[int | None, DispatchState]:
    """The states, by entity, of entities that are dispatched to a runner or claimed by it."""
    held = runner.claims.active().values("entity_id")
    concerned = DispatchState.objects.filter(Q(runner=runner) | Q(entity_id__in=held))
    states = wakes.lock(concerned)
    while len(states) < concerned.count():
        # An entity was claimed and dispatched elsewhere while its lock was waited for.
        states = wakes.lock(concerned)
    return {state.entity_id: state for state in states}


def _past(rows: "QuerySet[Any]") -> "Iterator[QuerySet[Any]]":
    """These rows without the newest `KEPT`, a batch at a time, oldest first."""
    for newest in rows.order_by("-pk").values_list("pk", flat=True)[KEPT : KEPT + 1]:
        for batch in in_turns(retention.in_batches(rows.filter(pk__lte=newest), retention.BATCH)):
            yield rows.filter(pk__in=batch)


def _over(wakes: WakeQuerySet) -> WakeQuerySet:
    return wakes.exclude(status=Wake.Status.OUTSTANDING)


def _locked(rows: "QuerySet[Any]") -> "QuerySet[Any]":
    """These rows, locked in the order of their keys."""
    list(rows.order_by("pk").select_for_update().values_list("pk"))
    return rows


def fence_holder(state: DispatchState) -> Runner | None:
    """Fence the claim of a locked entity, if it has one: its runner."""
    if not state.claimed:
        return None
    claim = state.entity.claims.active().select_related("runner").get()
    lifecycle.end(claim, state, Status.FENCED)
    return claim.runner


def _reemit_refused(holder: Runner | None) -> None:
    if holder is not None:
        lifecycle.reemit_refused(holder)
