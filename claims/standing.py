"""Why an entity stands, in one sentence, and what would help.

An entity stands when nobody is working on what it has to do: its runner cannot or may not claim, it
is paused, it waits out a delay, its wake is unclaimed, or its work was given up. Pages,
confirmations and the API all use the functions here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from django.db.models import Count, IntegerField, OuterRef, Subquery
from django.db.models.functions import Coalesce

from claims.models import ConsumerClaim, DeadLetter, OrphanReason
from claims.reports import failures_of, held_by, with_failures, with_held
from core.clock import span_of, with_now
from core.prepared import Param, Select
from dispatch.models import DispatchState, DispatchStateQuerySet
from runners.health import fails
from runners.models import Runner


class Reason(StrEnum):
    """Why nobody is working; the names are the API's."""

    PAUSED = "paused"
    NO_RUNNER = "no_runner"
    RUNNER_DISABLED = "runner_disabled"
    RUNNER_NEVER_SEEN = "runner_never_seen"
    RUNNER_EXPIRED = "runner_expired"
    RUNNER_FULL = "runner_full"
    DELAYED = "delayed"
    UNCLAIMED = "unclaimed"
    NOT_WOKEN = "not_woken"
    ORPHANED = "orphaned"
    GIVEN_UP = "given_up"


class Remedy(StrEnum):
    """What an operator may do about it."""

    MOVE = "move"
    ENABLE = "enable"
    RESUME = "resume"
    WAKE = "wake"
    TAKE_BACK = "take back"
    TAKE_BACK_AND_MOVE = "take back and move"
    REDRIVE = "redrive"


CANNOT_WORK = (
    Reason.NO_RUNNER,
    Reason.RUNNER_DISABLED,
    Reason.RUNNER_NEVER_SEEN,
    Reason.RUNNER_EXPIRED,
)
"""Reasons that neither time nor a wake helps against."""


DEAD = (Reason.RUNNER_NEVER_SEEN, Reason.RUNNER_EXPIRED)
"""Reasons that mean that the runner is not there."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What keeps a runner from claiming: ``ci-17 is disabled``."""

    reason: Reason
    says: str
    remedies: Sequence[Remedy]

    @property
    def lasts(self) -> bool:
        """Whether it lasts until somebody acts; a full runner will have room again."""
        return self.reason in CANNOT_WORK


@dataclass(frozen=True, slots=True)
class Standing:
    """Why an entity stands, since when, and what would help, the likeliest first."""

    state: DispatchState
    """With its entity."""
    reason: Reason
    says: str
    since: datetime | None
    remedies: Sequence[Remedy]
    claim: ConsumerClaim | None = None
    """The orphaned one that holds it."""

    @property
    def lasts(self) -> bool:
        """Whether it stands until somebody does something."""
        return self.reason in (*CANNOT_WORK, Reason.PAUSED, Reason.ORPHANED, Reason.GIVEN_UP)

    def sentence(self, now: datetime) -> str:
        """The whole sentence: ``Stands for 40 min: ci-17 is disabled.``"""
        long = "" if self.since is None else f" for {span_of(now - self.since)}"
        return f"Stands{long}: {self.says}."


def trouble_of(runner: Runner | None, *, held: int, now: datetime) -> Trouble | None:
    """What keeps this runner, which has its liveness and holds ``held`` claims, from claiming."""
    if runner is None:
        return Trouble(Reason.NO_RUNNER, "it has no runner", [Remedy.MOVE])
    if not runner.enabled:
        remedies = [Remedy.MOVE, Remedy.ENABLE]
        return Trouble(Reason.RUNNER_DISABLED, f"{runner.pk} is disabled", remedies)
    lease_end = runner.liveness.lease_expires_at
    if lease_end is None:
        return Trouble(Reason.RUNNER_NEVER_SEEN, f"{runner.pk} has never been seen", [Remedy.MOVE])
    if lease_end <= now:
        says = f"{runner.pk} has been expired for {span_of(now - lease_end)}"
        return Trouble(Reason.RUNNER_EXPIRED, says, [Remedy.MOVE])
    limit = runner.max_concurrent_claims
    if limit is not None and held >= limit:
        says = f"{runner.pk} is full, with {held} of at most {limit} claims"
        return Trouble(Reason.RUNNER_FULL, says, [Remedy.MOVE])
    return None


def says_failing(runner_id: str | None, failed: int, ended: int) -> str:
    """That a runner may claim but fails, in a clause; empty if it does not.

    Of its last ``ended`` claims, ``failed`` failed recently.
    """
    if not fails(failed, ended):
        return ""
    return f"{failed} of the last {ended} claims of {runner_id} failed"


def outlook(state: Any, *, held: int, now: datetime) -> str:
    """What happens to the work of an entity once it is free, in a clause: for confirmations.

    It promises nothing that a runner in trouble will not do. ``held`` is how many claims the
    entity's runner, which has its liveness, then holds.
    """
    if state.stop_requested:
        return "it stops"
    if state.ended:
        return f"it was {state.ended}"
    if not state.pending:
        return "it has no work left, so it is not woken"
    if state.paused:
        return "its work waits until it is resumed"
    trouble = trouble_of(state.runner, held=held, now=now)
    if trouble is None:
        return "it is woken at once"
    return f"its work waits, because {trouble.says}"


def of_runner(runner: str, **when: Any) -> dict[str, Any]:
    """Columns to annotate rows with: what the claims of the runner at this path say of it.

    ``held``, how many it holds; ``runner_failed`` and ``runner_ended``, as `failures_of` has them.
    """
    failed, ended = failures_of(runner, **when)
    return {"held": held_by(OuterRef(runner)), "runner_failed": failed, "runner_ended": ended}


def with_standing(states: DispatchStateQuerySet) -> DispatchStateQuerySet:
    """With the columns that `of` reads."""
    letters = DeadLetter.objects.filter(entity=OuterRef("pk"), redriven_at=None)
    given_up = letters.order_by().values("entity").annotate(n=Count("pk")).values("n")
    return (
        with_now(states.with_pending_since())
        .select_related("entity", "runner__liveness", "outstanding_wake")
        .annotate(
            # Failures are counted only for what failed itself.
            **of_runner("runner", failures__gt=0),
            given_up=Coalesce(Subquery(given_up, output_field=IntegerField()), 0),
        )
    )


_STATE = Select(lambda: with_standing(DispatchState.objects.filter(pk=Param("entity"))))
_CLAIM = Select(
    lambda: (
        ConsumerClaim.objects.active()
        .with_orphan_reason()
        .select_related("runner__liveness")
        .filter(entity=Param("entity"))
    )
)


def find(entity_id: int) -> Standing | None:
    """`of` this entity: one statement, and one more for a claim. None, too, if it was deleted."""
    state: Any = _STATE.first(entity=entity_id)
    if state is None:
        return None
    return of(state, _CLAIM.first(entity=entity_id) if state.claimed else None)


def of(state: Any, claim: Any = None) -> Standing | None:
    """Why an entity stands; None if somebody is working, or there is nothing to do.

    ``state`` is one of `with_standing`, ``claim`` its active one, with its orphan reason.
    """
    if state.claimed:
        return None if claim is None else _orphaned(state, claim)
    if state.closed:
        return None
    if not state.pending:
        return _given_up(state)
    reason, says, remedies = _why(state)
    return Standing(state, reason, says, state.pending_since, remedies)


def _why(state: Any) -> tuple[Reason, str, Sequence[Remedy]]:
    if state.paused:
        return Reason.PAUSED, "it is paused", [Remedy.RESUME]
    trouble = trouble_of(state.runner, held=state.held, now=state.now)
    if trouble is not None and trouble.lasts:
        return trouble.reason, trouble.says, trouble.remedies
    if state.retry_at is not None and state.retry_at > state.now:
        failed = "1 failure" if state.failures == 1 else f"{state.failures} failures in a row"
        left = span_of(state.retry_at - state.now)
        says = f"it waits {left} more, after {failed}"
        failing = says_failing(state.runner_id, state.runner_failed, state.runner_ended)
        if not failing:
            return Reason.DELAYED, says, [Remedy.WAKE]
        return Reason.DELAYED, f"{says}; {failing}", [Remedy.MOVE, Remedy.WAKE]
    if trouble is not None:
        return trouble.reason, trouble.says, trouble.remedies
    wake = state.outstanding_wake
    if wake is None:  # the reaper's next round wakes it
        return Reason.NOT_WOKEN, "it is about to be woken", [Remedy.WAKE]
    woken = f"{state.runner_id} was woken {span_of(state.now - wake.created_at)} ago"
    remedies = [Remedy.WAKE, Remedy.MOVE]
    return Reason.UNCLAIMED, f"{woken} and has not claimed it since", remedies


def _given_up(state: Any) -> Standing | None:
    if not state.given_up:
        return None
    work = "a message" if state.given_up == 1 else f"{state.given_up} messages"
    says = f"its handler gave up {work}"
    return Standing(state, Reason.GIVEN_UP, says, None, [Remedy.REDRIVE])


def _orphaned(state: Any, claim: Any) -> Standing | None:
    """A disabled runner that lives keeps its claims to the end."""
    now = state.now
    lapsed = claim.lease_expires_at <= now
    if not claim.orphan_reason:
        return None
    trouble = trouble_of(claim.runner, held=0, now=now)
    if claim.orphan_reason == OrphanReason.RUNNER_DISABLED and not lapsed:
        return None
    says = f"its claim's lease lapsed {span_of(now - claim.lease_expires_at)} ago"
    if claim.runner is None:
        says = f"{claim.runner_name}, which claimed it, is gone"
    elif trouble is not None and trouble.lasts:
        says = f"{trouble.says}, and holds its claim"
    remedies = [Remedy.TAKE_BACK_AND_MOVE, Remedy.TAKE_BACK]
    if trouble is None:
        remedies.reverse()
    return Standing(state, Reason.ORPHANED, says, claim.orphaned_since, remedies, claim)


def of_all(pks: Iterable[int]) -> dict[int, Standing]:
    """`of` these entities, by their keys: one statement, and one more where some are claimed."""
    states: Any = list(with_standing(DispatchState.objects.filter(pk__in=list(pks))))
    claimed = [state.pk for state in states if state.claimed]
    claims = {}
    if claimed:
        active: Any = ConsumerClaim.objects.active().with_orphan_reason()
        rows = active.select_related("runner__liveness").filter(entity__in=claimed)
        claims = {claim.entity_id: claim for claim in rows}
    found = ((state.pk, of(state, claims.get(state.pk))) for state in states)
    return {pk: standing for pk, standing in found if standing is not None}


# --- Who could take over ----------------------------------------------------------------------

_CANDIDATES = 200
"""Runners that are looked at for one with room."""


def heir_of(owner: str, kind: str | None, but: Iterable[str] = ()) -> Runner | None:
    """The online runner of this owner's that could best take over.

    It is of this kind, if one is named, has room, holds the fewest claims, and its own claims do
    not fail. ``but`` are the ids of the runners that it takes over from.
    """
    able = Runner.objects.able().filter(owner_principal=owner).exclude(pk__in=but)
    if kind is not None:
        able = able.filter(kind=kind)
    found: list[Any] = list(with_failures(with_held(able)).order_by("pk")[:_CANDIDATES])
    free = [
        each
        for each in found
        if (each.max_concurrent_claims is None or each.held < each.max_concurrent_claims)
        and not fails(each.failed, each.ended)
    ]
    return min(free, key=lambda each: each.held, default=None)
