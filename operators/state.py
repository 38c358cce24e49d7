"""Dispatch states: the locked rows, as they are. An entity's page explains what they mean."""

from typing import Any

from django.contrib import admin
from django.db.models import F, QuerySet
from django.http import HttpRequest, HttpResponseRedirect

from dispatch.models import DispatchState, DispatchStateQuerySet
from operators.kit.lists import ENTITY, RUNNER, column, exact, moment_column, where, words
from operators.kit.markup import NOTHING, page_of
from operators.kit.verbs import OperatorAdmin

WORK = {
    "waiting": ("pending, could be done, and unclaimed", DispatchStateQuerySet.waiting),
    "pending": ("pending", DispatchStateQuerySet.pending),
    "unclaimed": ("pending, and unclaimed", lambda rows: rows.pending().filter(active_epoch=None)),
    "stranded": ("pending, and no runner", DispatchStateQuerySet.stranded),
    "failing": ("keeps failing", DispatchStateQuerySet.failing),
    "delayed": ("waits after a failure", where(retry_at__isnull=False)),
    "woken": ("woken, unclaimed", where(outstanding_wake__isnull=False)),
}
"""What stands between an entity and its work."""


def _flags(state: Any) -> str:
    said = {
        "paused": state.paused,
        "stopping": state.stop_requested,
        state.ended: state.ended,
        "woken": state.outstanding_wake_id,
        "pending": state.pending,
    }
    return ", ".join(word for word, holds in said.items() if holds) or NOTHING


@admin.register(DispatchState)
class DispatchStateAdmin(OperatorAdmin):
    list_display = (
        ENTITY,
        RUNNER,
        "generation",
        column(
            "cursor, work, tail", lambda row: f"{row.cursor}, {row.last_work_offset}, {row.tail}"
        ),
        column("flags", _flags),
        "failures",
        moment_column("last_wake_at", "woken"),
        moment_column("last_claimed_at", "claimed"),
        moment_column("last_released_at", "released"),
    )
    list_filter = (
        words("work", "work", WORK),
        exact("runner id", "runner", "runner_id"),
    )
    search_fields = ("entity__url__startswith",)
    search_parts = ("entity__url",)
    search_help_text = "Part of the entity's URL"

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        rows: QuerySet[Any] = super().get_queryset(request).annotate(entity_url=F("entity__url"))
        return rows

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> Any:
        return HttpResponseRedirect(page_of("dispatch_entity", object_id))
