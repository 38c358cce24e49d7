"""Dead letters: work that handlers gave up, which operators see and redrive."""

from typing import Any

from django.contrib import admin
from django.db.models import F, OuterRef, QuerySet
from django.http import HttpRequest

from claims import dead_letters
from claims.models import DeadLetter
from claims.reports import held_by
from claims.standing import outlook
from dispatch.models import StreamEvent
from operators.kit.lists import ENTITY, column, exact, moment_column, row_column, where, words
from operators.kit.markup import badge, ident, page_of, readable, shortened
from operators.kit.verbs import OperatorAdmin, Order, Verb


def _effect(letter: Any) -> str:
    state = letter.entity.dispatch_state
    problem = dead_letters.why_not_redriven(letter, state)
    if problem is not None:
        raise problem
    appended = "The work is appended to its entity's stream anew"
    if state.claimed:
        return f"{appended}. The active claim handles it, or the next one does."
    state.last_work_offset = state.tail + 1  # after this verb
    return f"{appended}; {outlook(state, held=letter.held, now=letter.now)}."


def _redrive(letter: Any, order: Order) -> str:
    return f"redriven, txid {dead_letters.redrive(letter)}"


REDRIVE = Verb(
    "redrive",
    "Redrive",
    "claims.redrive_deadletter",
    "Redrive these dead letters?",
    _effect,
    _redrive,
    fits=lambda letter: not dead_letters.why_not_redriven(letter, letter.entity.dispatch_state),
)


def _state(letter: Any) -> str:
    return badge("redriven" if letter.redriven_at else "given up")


@admin.register(DeadLetter)
class DeadLetterAdmin(OperatorAdmin):
    verbs = (REDRIVE,)
    story_template = "operators/dead_letter.html"
    list_display = (
        row_column(
            "dead letter",
            lambda row: ident(str(row.pk), page_of("claims_deadletter", row.pk)),
        ),
        column("status", _state),
        ENTITY,
        column("reason", lambda row: shortened(row.reason, 80)),
        "attempts",
        moment_column("given_up_at", "given up"),
        moment_column("redriven_at", "redriven"),
    )
    list_filter = (
        words(
            "redriven",
            "redriven",
            {
                "no": ("not yet", where(redriven_at=None)),
                "yes": ("redriven", where(redriven_at__isnull=False)),
            },
        ),
        exact("entity URL", "entity", "entity__url"),
    )
    search_fields = ("entity__url__startswith",)
    search_parts = ("entity__url", "reason")
    search_help_text = "Part of the entity's URL, or of the reason"

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        rows: QuerySet[Any] = super().get_queryset(request).annotate(entity_url=F("entity__url"))
        return rows

    def with_prospects(self, rows: "QuerySet[Any]") -> "QuerySet[Any]":
        told: QuerySet[Any] = rows.select_related(
            "entity__dispatch_state__runner__liveness"
        ).annotate(held=held_by(OuterRef("entity__dispatch_state__runner")))
        return told

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        event = StreamEvent.objects.filter(entity=row.entity_id, offset=row.offset).first()
        return {"event": None if event is None else readable(event)}
