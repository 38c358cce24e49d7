"""Wakes: what runners were told, and what became of it."""

from typing import Any

from django.contrib import admin
from django.db.models import F, QuerySet
from django.http import HttpRequest

from claims.models import ConsumerClaim
from dispatch.models import Wake
from operators.kit.lists import (
    ENTITY,
    RUNNER,
    column,
    exact,
    moment_column,
    row_column,
    values,
    words,
)
from operators.kit.markup import badge, ident, lines, moment, page_of, quiet
from operators.kit.verbs import OperatorAdmin
from operators.remedies import stands


def _wake(wake: Any) -> str:
    link = ident(wake.wake_id, page_of("dispatch_wake", wake.pk))
    return lines(link, quiet(f"generation {wake.generation}"))


def _emitted(wake: Any) -> str:
    again = quiet(f"{wake.emissions} times") if wake.emissions > 1 else None
    return lines(moment(wake.emitted_at, wake.now), again)


@admin.register(Wake)
class WakeAdmin(OperatorAdmin):
    story_template = "operators/wake.html"
    list_display = (
        row_column("wake", _wake),
        column("status", lambda wake: badge(wake.status)),
        ENTITY,
        RUNNER,
        moment_column("created_at", "created"),
        column("last emitted", _emitted),
    )
    list_filter = (
        words("status", "status", values("status", Wake.Status.values)),
        exact("runner id", "runner", "runner_id"),
        exact("entity URL", "entity", "entity__url"),
    )
    search_fields = ("wake_id__exact",)
    search_help_text = "Whole wake id"

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        rows: QuerySet[Any] = super().get_queryset(request).annotate(entity_url=F("entity__url"))
        return rows

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        claims = ConsumerClaim.objects.filter(entity=row.entity_id, consumer_id=row.wake_id)
        outstanding = row.status == Wake.Status.OUTSTANDING
        told = stands(row.entity_id, row.now, request.user) if outstanding else {}
        return {"claim": claims.first(), **told}
