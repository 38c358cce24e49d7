"""Ctrl+K: whatever has this text in its id, URL, tags or last error, by the lists' own searches."""

from typing import Any

from django.contrib import admin
from django.db.models import F
from django.http import HttpRequest
from unfold.dataclasses import SearchResult

from claims.models import ConsumerClaim
from dispatch.models import Entity, EntityType, Wake
from operators.kit.markup import page_of
from runners.models import Runner

SHOWN = 8
"""Rows of a kind."""

_KINDS = (
    (Runner, "dns", "runner"),
    (Entity, "token", "entity"),
    (ConsumerClaim, "lock_clock", "claim"),
    (Wake, "notifications_active", "wake"),
    (EntityType, "category", "entity type"),
)


def anything(request: HttpRequest, term: str) -> list[SearchResult]:
    """The first rows of each kind that this reader may see: one statement a kind."""
    found = []
    for model, icon, kind in _KINDS:
        listed: Any = admin.site.get_model_admin(model)
        if not listed.has_view_permission(request):
            continue
        rows, _ = listed.get_search_results(request, model._default_manager.all(), term)
        of_entities = model in (ConsumerClaim, Wake)
        if of_entities:
            rows = rows.annotate(whose=F("entity__url"))
        found += [
            SearchResult(
                title=str(row),
                description=f"{kind} of {row.whose}" if of_entities else kind,
                link=page_of(model._meta.label_lower.replace(".", "_"), row.pk),
                icon=icon,
            )
            for row in rows.order_by(listed.row_order)[:SHOWN]
        ]
    return found
