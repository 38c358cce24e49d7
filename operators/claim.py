"""Claims, as operators see them and take them back."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest

from claims import endings
from claims.models import ConsumerClaim, OrphanReason
from core.errors import Fenced
from dispatch.models import DispatchState, Wake
from dispatch.streams import offsets
from operators.kit import ExactFilter, OperatorAdmin, Order, Verb, WordFilter, where
from operators.markup import (
    badge,
    claim_link,
    entity_link,
    ident,
    lines,
    list_of,
    moment,
    page_of,
    quiet,
    runner_link,
    span_of,
    took,
)

Status = ConsumerClaim.Status

# --- Expire -----------------------------------------------------------------------------------


def _ended(claim: Any) -> Fenced:
    return Fenced(f"It has ended meanwhile: {claim.status}.")


def _effect(claim: Any) -> str:
    if claim.status != Status.ACTIVE:
        raise _ended(claim)
    work = f"{claim.entity_url} is freed{_and_then(claim.entity.dispatch_state)}"
    if not claim.orphan_reason:
        return (
            "Expires although nothing is wrong with it: its handler is fenced, and what it has"
            f" not reported is done again. {work}"
        )
    return f"Expires: {OrphanReason(claim.orphan_reason).label}. {work}"


def _and_then(state: DispatchState) -> str:
    if state.stop_requested:
        return ", and stops."
    if not state.pending:
        return "; nothing is left to do, so it is not woken."
    if not state.awake or state.runner_id is None:
        why = "it has no runner" if state.runner_id is None else state.status
        return f"; its work waits: {why if state.runner_id is None else f'it is {why}'}."
    return ", and woken again at once."


def _expire(claim: Any, order: Order) -> str:
    expiry = endings.take_back(claim)
    if expiry is None:
        claim.refresh_from_db(fields=["status"])
        raise _ended(claim)
    return "freed and woken again" if expiry.next_wake is not None else "freed"


EXPIRE = Verb(
    "expire",
    "Expire",
    "claims.expire_consumerclaim",
    "Take back these claims, and free their entities?",
    _effect,
    _expire,
    danger=True,
    fits=lambda claim: bool(claim.status == Status.ACTIVE),
)

# --- Filters ----------------------------------------------------------------------------------


class StatusFilter(WordFilter):
    """By status."""

    title = "status"
    parameter_name = "status"
    words = {
        **{status.value: (status.value, where(status=status.value)) for status in Status},
        # A constraint says the same twice; a planner that hears it twice expects few, and so does
        # not search for them among all that ended.
        "active": ("active", where(status=Status.ACTIVE, ended_at=None)),
    }


class OrphanedFilter(WordFilter):
    """By whether nobody can be at work on it, and why."""

    title = "orphaned"
    parameter_name = "orphaned"
    words = {
        "any": ("for any reason", lambda rows: rows.active().exclude(orphan_reason="")),
        **{
            reason.value: (
                reason.label,
                where(status=Status.ACTIVE, orphan_reason=reason.value),
            )
            for reason in OrphanReason
        },
    }


def _older(hours: float) -> Any:
    return lambda rows: rows.filter(claimed_at__lte=Now() - timedelta(hours=hours))


def _newer(hours: float) -> Any:
    return lambda rows: rows.filter(claimed_at__gt=Now() - timedelta(hours=hours))


def _ended_within(hours: float) -> Any:
    # With the status an index finds them, also where none is new.
    ended = [status for status in Status if status != Status.ACTIVE]
    return lambda rows: rows.filter(status__in=ended, ended_at__gt=Now() - timedelta(hours=hours))


class AgeFilter(WordFilter):
    """By when it was claimed."""

    title = "claimed"
    parameter_name = "age"
    words = {
        "hour": ("in the last hour", _newer(1)),
        "day": ("in the last day", _newer(24)),
        "week": ("in the last week", _newer(24 * 7)),
        "older-hour": ("more than an hour ago", _older(1)),
        "older-day": ("more than a day ago", _older(24)),
    }


class EndedFilter(WordFilter):
    """By when it ended."""

    title = "ended"
    parameter_name = "ended"
    words = {
        span: (f"in the last {span}", _ended_within(hours))
        for span, hours in (("hour", 1), ("day", 24), ("week", 24 * 7))
    }


class RunnerFilter(ExactFilter):
    """By runner."""

    title = "runner id"
    parameter_name = "runner"
    lookup = "runner_id"


class EntityFilter(ExactFilter):
    """By entity."""

    title = "entity URL"
    parameter_name = "entity"
    lookup = "entity__url"


# --- Claims -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened in a claim's life, or will."""

    what: str
    when: datetime | None
    more: Any = ""
    tone: str = "idle"


@admin.register(ConsumerClaim)
class ConsumerClaimAdmin(OperatorAdmin):
    """Who holds which entity, since when and for how long; and how each claim ended."""

    verbs = (EXPIRE,)
    unseen = ("acked_streams", "claim_token_hash", "write_token_hash", "delivered_offset", "lease")
    story_template = "operators/claim.html"
    list_display = ("claim", "state", "entity_", "runner_", "claimed", "heartbeat", "ends")
    list_display_links = None
    list_filter = (StatusFilter, OrphanedFilter, RunnerFilter, EntityFilter, AgeFilter, EndedFilter)
    search_fields = ("consumer_id",)
    search_help_text = "Consumer id, whole"

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        """Claims with why they are orphaned."""
        rows: Any = super().get_queryset(request)
        told: QuerySet[Any] = rows.with_orphan_reason()
        return told

    def with_prospects(self, rows: "QuerySet[Any]") -> "QuerySet[Any]":
        """Claims with the dispatch state, which says whether the entity is woken again."""
        return rows.select_related("entity__dispatch_state")

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Any]", search_term: str
    ) -> tuple["QuerySet[Any]", bool]:
        """By the whole consumer id, which an index finds."""
        term = search_term.strip()
        return (queryset.filter(consumer_id=term) if term else queryset), False

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """The claim's whole story."""
        return {
            "reason": OrphanReason(row.orphan_reason).label if row.orphan_reason else "",
            "steps": list(_steps(row)),
            "delivered": offsets.encode(row.delivered_offset),
            "acks": [
                (ack["path"], offsets.encode(ack["offset"])) for ack in row.acked_streams or []
            ],
            "others_url": list_of("claims_consumerclaim", entity=row.entity_url),
        }

    @admin.display(description="claim")
    def claim(self, claim: Any) -> str:
        """Its consumer id and its epoch."""
        return lines(claim_link(claim.pk, claim.consumer_id), quiet(f"epoch {claim.epoch}"))

    @admin.display(description="status")
    def state(self, claim: Any) -> str:
        """Its status, or why it is orphaned."""
        if claim.orphan_reason:
            why = OrphanReason(claim.orphan_reason).label
            since = moment(claim.orphaned_since, claim.now)
            return lines(badge("orphaned", "bad"), why, since)
        error = claim.error if len(claim.error) <= 80 else f"{claim.error[:79]}…"
        return lines(badge(claim.status), error)

    @admin.display(description="entity")
    def entity_(self, claim: Any) -> str:
        """What it holds."""
        return entity_link(claim.entity_id, claim.entity_url)

    @admin.display(description="runner")
    def runner_(self, claim: Any) -> str:
        """Who holds it."""
        return runner_link(claim.runner_id, claim.runner_name)

    @admin.display(description="claimed")
    def claimed(self, claim: Any) -> str:
        """Since when."""
        return moment(claim.claimed_at, claim.now)

    @admin.display(description="last heartbeat")
    def heartbeat(self, claim: Any) -> str:
        """When it was last renewed."""
        return moment(claim.last_heartbeat_at, claim.now)

    @admin.display(description="lease or end")
    def ends(self, claim: Any) -> str:
        """When its lease ends, or when it ended."""
        if claim.ended_at is not None:
            held = took(claim.ended_at - claim.claimed_at)
            return lines(moment(claim.ended_at, claim.now), quiet(f"held for {held}"))
        lapsed = claim.lease_expires_at <= claim.now
        ends = moment(claim.lease_expires_at, claim.now)
        return lines(badge("lapsed", "bad") if lapsed else quiet("lease ends"), ends)


def _steps(claim: Any) -> Iterator[Step]:
    wake = Wake.objects.filter(wake_id=claim.consumer_id).first()
    if wake is not None:
        yield Step("The entity was woken", wake.created_at, f"generation {wake.generation}")
        if wake.emissions > 1:
            yield Step(
                "The wake was last emitted again", wake.emitted_at, f"{wake.emissions} times"
            )
    waited = "" if wake is None else f"{took(claim.claimed_at - wake.created_at)} after the wake"
    yield Step("The runner claimed it", claim.claimed_at, waited, "info")
    if claim.last_heartbeat_at is not None:
        yield Step("Its last heartbeat renewed the lease", claim.last_heartbeat_at)
    if claim.status == Status.ACTIVE:
        over = claim.lease_expires_at <= claim.now
        said = "Its lease lapsed" if over else "Its lease ends"
        yield Step(
            said, claim.lease_expires_at, f"{span_of(claim.lease)} long", "bad" if over else "idle"
        )
        return
    held = f"after {took(claim.ended_at - claim.claimed_at)}"
    yield Step(f"It ended: {claim.status}", claim.ended_at, held, str(badge_tone(claim.status)))
    yield from _after(claim)


def _after(claim: Any) -> Iterator[Step]:
    if claim.entity_id is None:
        yield Step("The entity was deleted", None)
        return
    wake = (
        Wake.objects.filter(entity=claim.entity_id, generation__gt=claim.epoch)
        .order_by("generation")
        .first()
    )
    if wake is None:
        yield _still_to_come(DispatchState.objects.get(pk=claim.entity_id))
        return
    yield Step(
        "The entity was woken again",
        wake.created_at,
        ident(wake.wake_id, page_of("dispatch_wake", wake.pk)),
    )
    following = ConsumerClaim.objects.filter(consumer_id=wake.wake_id).first()
    if following is not None:
        link = claim_link(following.pk, following.consumer_id)
        by = lines(link, f"by {following.runner_name}, now {following.status}")
        yield Step("The next claim", following.claimed_at, by, "info")


def _still_to_come(state: DispatchState) -> Step:
    """What became of an entity that was not woken since."""
    if state.retry_at is not None:
        failures = f"{state.failures} failure{'' if state.failures == 1 else 's'} in a row"
        return Step("The entity is woken again", state.retry_at, failures)
    why = "nothing is left to do"
    if state.ended:
        why = f"it was {state.ended}"
    elif state.pending:
        why = "it has no runner" if state.runner_id is None else "its work waits until it resumes"
    return Step("The entity was not woken again", None, why)


def badge_tone(status: str) -> str:
    """The colour of a claim's end."""
    return {"released": "good", "failed": "bad", "expired": "bad"}.get(status, "warn")
