"""Shared states: which entities have one or observe it, and what was written to it."""

from typing import Any

from django.contrib import admin
from django.db.models import F, OuterRef, Subquery
from django.http import HttpRequest

from dispatch.models import Entity, SharedState, SharedStateLink
from operators.kit.lists import column, exact, moment_column, row_column
from operators.kit.markup import ident, page_of, principal, readable
from operators.kit.verbs import OperatorAdmin

SHOWN = 20
"""Of a shared state's entities and events, or of an entity's shared states, on one page."""


@admin.register(SharedState)
class SharedStateAdmin(OperatorAdmin):
    story_template = "operators/shared_state.html"
    list_display = (
        row_column(
            "shared state",
            lambda row: ident(row.name, page_of("dispatch_sharedstate", row.pk)),
        ),
        column("events", lambda row: row.tail),
        column("made by", lambda row: principal(row.created_by)),
        moment_column("created_at", "created"),
    )
    list_filter = (
        exact(
            "entity URL",
            "entity",
            lambda rows, url: rows.filter(
                name__in=SharedStateLink.objects.filter(entity__url=url).values("name")
            ),
        ),
    )
    search_fields = ("name__exact",)
    search_parts = ("name",)
    search_help_text = "Part of the id"

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        links = SharedStateLink.objects.filter(name=row.name).order_by("manifest", "pk")
        found = links.annotate(entity_url=F("entity__url"))[:SHOWN]
        return {
            "creator": principal(row.created_by),
            "links": list(found),
            "events": [readable(event) for event in row.events.order_by("-offset")[:SHOWN]],
        }


def shared_states_of(entity: Entity) -> list[Any]:
    """For an entity's page: those that it has or observes; no ``state`` if yet to come."""
    state = SharedState.objects.filter(name=OuterRef("name")).values("pk")
    links = SharedStateLink.objects.filter(entity=entity.pk).order_by("pk")
    return list(links.annotate(state=Subquery(state))[:SHOWN])
