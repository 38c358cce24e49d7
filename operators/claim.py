"""Claims, as operators see them and take them back."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.db.models import OuterRef, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest

from claims import endings
from claims.models import ClaimQuerySet, ConsumerClaim, OrphanReason
from claims.reports import held_by
from claims.standing import Trouble, outlook, trouble_of
from core.clock import span_of
from core.errors import Fenced
from dispatch.models import DispatchState, Wake
from dispatch.streams import offsets
from operators import timeline
from operators.kit.forms import TargetForm, propose_heir
from operators.kit.lists import (
    ENTITY,
    SPANS,
    ages,
    column,
    exact,
    moment_column,
    newest_of,
    row_column,
    values,
    where,
    words,
)
from operators.kit.markup import (
    badge,
    claim_link,
    counted,
    ident,
    lines,
    list_of,
    moment,
    page_of,
    quiet,
    runner_link,
    shortened,
    tone,
    took,
)
from operators.kit.verbs import OperatorAdmin, Order, Verb

Status = ConsumerClaim.Status

# --- Take back --------------------------------------------------------------------------------


def _ended(claim: Any) -> Fenced:
    return Fenced(f"It has already ended: {claim.status}.")


def _effect(claim: Any) -> str:
    if claim.status != Status.ACTIVE:
        raise _ended(claim)
    work = f"{claim.entity_url} is freed; {_outlook(claim)}."
    if not claim.orphan_reason:
        return (
            "Taken back although nothing is wrong with it: its handler is fenced, and any work it"
            f" has not reported is done again. {work}"
        )
    return f"Taken back, as {OrphanReason(claim.orphan_reason).label}. {work}"


def _held_then(claim: Any) -> int:
    """How many claims the entity's runner then holds: its own makes room for one more."""
    return int(claim.held - (claim.runner_id == claim.entity.dispatch_state.runner_id))


def _outlook(claim: Any) -> str:
    return outlook(claim.entity.dispatch_state, held=_held_then(claim), now=claim.now)


def _trouble(claim: Any) -> Trouble | None:
    runner = claim.entity.dispatch_state.runner
    return trouble_of(runner, held=_held_then(claim), now=claim.now)


def _take_back(claim: Any, order: Order) -> str:
    expiry = endings.take_back(claim)
    if expiry is None:
        claim.refresh_from_db(fields=["status"])
        raise _ended(claim)
    if expiry.next_wake is None:
        return "freed"
    trouble = _trouble(claim)
    lost = trouble is not None and trouble.lasts
    return (
        f"freed; its work waits for {claim.entity.dispatch_state.runner_id}"
        if lost
        else "freed and woken again"
    )


TAKE_BACK = Verb(
    "expire",
    "Take back",
    "claims.expire_consumerclaim",
    "Take these claims back, and free their entities?",
    _effect,
    _take_back,
    danger=True,
    fits=lambda claim: bool(claim.status == Status.ACTIVE),
)


def _effect_of_moving(claim: Any) -> str:
    if claim.status != Status.ACTIVE:
        raise _ended(claim)
    state = claim.entity.dispatch_state
    why = "although nothing is wrong with it: its handler is fenced"
    if claim.orphan_reason:
        why = f"as {OrphanReason(claim.orphan_reason).label}"
    then = "to whose owner it is then readable"
    if state.pending and not state.paused and not state.stop_requested:
        then = (
            f"woken there, and readable to that runner's owner; {state.runner_id} gets it no more"
        )
    return f"Taken back, {why}. {claim.entity_url} is dispatched to the runner named below, {then}."


def _take_back_and_move(claim: Any, order: Order) -> str:
    target = order.data["target"]
    expiry = endings.take_back(claim, target)
    if expiry is None:
        claim.refresh_from_db(fields=["status"])
        raise _ended(claim)
    order.log(claim.entity, f"Move: to {target}, as its claim was taken back")
    return f"freed, and moved to {target}"


TAKE_BACK_AND_MOVE = Verb(
    "expire-and-move",
    "Take back and move",
    "claims.expire_consumerclaim",
    "Take these claims back, and dispatch their entities to another runner?",
    _effect_of_moving,
    _take_back_and_move,
    form=TargetForm,
    proposes=lambda claims: propose_heir(
        (each.runner for each in claims),
        (each.entity.created_by for each in claims if each.entity is not None),
    ),
    also="dispatch.move_entity",
    danger=True,
    fits=lambda claim: bool(claim.status == Status.ACTIVE),
)

# --- Filters ----------------------------------------------------------------------------------

STATUS = {
    **values("status", Status.values),
    # A constraint says the same; with both, a planner expects few rows, and does not search for
    # them among all that ended.
    "active": ("active", where(status=Status.ACTIVE, ended_at=None)),
}
ORPHANED = {
    "any": ("for any reason", lambda rows: rows.active().exclude(orphan_reason="")),
    **{
        reason.value: (reason.label, where(status=Status.ACTIVE, orphan_reason=reason.value))
        for reason in OrphanReason
    },
}


def _with_error(rows: Any, text: str) -> Any:
    return newest_of(rows.filter(error__icontains=text))


ENDED = [status for status in Status if status != Status.ACTIVE]
# With the status an index finds them, even if none is new.
ENDED_WITHIN = {
    word: (f"in the last {word}", where(status__in=ENDED, ended_at__gt=Now() - span))
    for word, (span, _) in SPANS.items()
}

# --- Claims -----------------------------------------------------------------------------------


@admin.register(ConsumerClaim)
class ConsumerClaimAdmin(OperatorAdmin):
    verbs = (TAKE_BACK_AND_MOVE, TAKE_BACK)
    unseen = ("acked_streams", "claim_token_hash", "write_token_hash", "delivered_offset", "lease")
    told = True
    story_template = "operators/claim.html"
    list_display = (
        row_column(
            "claim",
            lambda row: lines(claim_link(row.pk, row.consumer_id), quiet(f"epoch {row.epoch}")),
        ),
        "state",
        ENTITY,
        column("runner", lambda row: runner_link(row.runner_id, row.runner_name)),
        moment_column("claimed_at", "claimed"),
        moment_column("last_heartbeat_at", "heartbeat"),
        "ends",
    )
    list_filter = (
        words("status", "status", STATUS),
        words("orphaned", "orphaned", ORPHANED),
        exact("runner id", "runner", "runner_id"),
        exact("entity URL", "entity", "entity__url"),
        exact("text of the error", "error", _with_error, is_of_newest=True),
        words("claimed", "age", ages("claimed_at")),
        words("ended", "ended", ENDED_WITHIN),
        words("work", "work", {"quiet": ("writes nothing for ten minutes", ClaimQuerySet.quiet)}),
    )
    search_fields = ("consumer_id__exact",)
    search_parts = ("consumer_id", "entity_url", "runner_name", "error")
    search_help_text = "Part of an id, a URL or an error"

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        rows: Any = super().get_queryset(request)
        told: QuerySet[Any] = rows.with_orphan_reason()
        return told

    def with_prospects(self, rows: "QuerySet[Any]") -> "QuerySet[Any]":
        told: QuerySet[Any] = rows.select_related(
            "runner__liveness", "entity__dispatch_state__runner__liveness"
        ).annotate(held=held_by(OuterRef("entity__dispatch_state__runner")))
        return told

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        return {
            "reason": OrphanReason(row.orphan_reason).label if row.orphan_reason else "",
            "steps": list(_steps(row)),
            "timeline": row.entity and timeline.around(_state_of(row), row),
            "delivered": offsets.encode(row.delivered_offset),
            "acks": [(ack["path"], _offset(ack["offset"])) for ack in row.acked_streams or []],
            "others_url": list_of("claims_consumerclaim", entity=row.entity_url),
        }

    @admin.display(description="status")
    def state(self, claim: Any) -> str:
        if claim.orphan_reason:
            why = OrphanReason(claim.orphan_reason).label
            return lines(badge("orphaned"), why, moment(claim.orphaned_since, claim.now))
        return lines(badge(claim.status), shortened(claim.error, 80))

    @admin.display(description="lease or end")
    def ends(self, claim: Any) -> str:
        if claim.ended_at is not None:
            held = took(claim.ended_at - claim.claimed_at)
            return lines(moment(claim.ended_at, claim.now), quiet(f"held for {held}"))
        lapsed = claim.lease_expires_at <= claim.now
        ends = moment(claim.lease_expires_at, claim.now)
        return lines(badge("lapsed") if lapsed else quiet("lease ends"), ends)


def _state_of(claim: Any) -> Any:
    claim.entity.dispatch_state.now = claim.now
    return claim.entity.dispatch_state


# --- A claim's story --------------------------------------------------------------------------


def _offset(said: int | str) -> str:
    """The wire form of an acked offset; a claim of another server's has that server's own."""
    return said if isinstance(said, str) else offsets.encode(said)


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened in a claim's life, or will."""

    what: str
    when: datetime | None
    more: Any = ""
    tone: str = "idle"


def _steps(claim: Any) -> Iterator[Step]:
    wake = Wake.objects.filter(wake_id=claim.consumer_id).first()
    waited = ""
    if wake is not None:
        waited = f"{took(claim.claimed_at - wake.created_at)} after the wake"
        yield Step("The entity was woken", wake.created_at, f"generation {wake.generation}")
        if wake.emissions > 1:
            times = f"{wake.emissions} times in all"
            yield Step("The wake was last emitted again", wake.emitted_at, times)
    yield Step("The runner claimed it", claim.claimed_at, waited, "info")
    if claim.last_heartbeat_at is not None:
        yield Step("Its last heartbeat renewed the lease", claim.last_heartbeat_at)
    if claim.status == Status.ACTIVE:
        lapsed = claim.lease_expires_at <= claim.now
        what, how = ("Its lease lapsed", "bad") if lapsed else ("Its lease ends", "idle")
        yield Step(what, claim.lease_expires_at, f"{span_of(claim.lease)} long", how)
        return
    held = f"after {took(claim.ended_at - claim.claimed_at)}"
    yield Step(f"It ended: {claim.status}", claim.ended_at, held, tone(claim.status))
    yield from _after(claim)


def _after(claim: Any) -> Iterator[Step]:
    if claim.entity_id is None:
        yield Step("The entity was deleted", None)
        return
    later = Wake.objects.filter(entity=claim.entity_id, generation__gt=claim.epoch)
    wake = later.order_by("generation").first()
    if wake is None:
        yield _not_woken_since(DispatchState.objects.get(pk=claim.entity_id))
        return
    link = ident(wake.wake_id, page_of("dispatch_wake", wake.pk))
    yield Step("The entity was woken again", wake.created_at, link)
    following = ConsumerClaim.objects.filter(consumer_id=wake.wake_id).first()
    if following is not None:
        link = claim_link(following.pk, following.consumer_id)
        by = lines(link, f"by {following.runner_name}, now {following.status}")
        yield Step("The next claim", following.claimed_at, by, "info")


def _not_woken_since(state: DispatchState) -> Step:
    if state.retry_at is not None:
        failures = f"{counted(state.failures, 'failure')} in a row"
        return Step("The entity is woken again", state.retry_at, failures)
    why = "it has no work left"
    if state.ended:
        why = f"it was {state.ended}"
    elif state.pending:
        why = "it has no runner" if state.runner_id is None else "its work waits until it resumes"
    return Step("The entity was not woken again", None, why)
