"""Timers: what will be sent at a time, by whom, and what could not be sent."""

import json
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from dispatch.models import Timer, TimerQuerySet
from operators.kit.lists import column, exact, moment_column, row_column, words
from operators.kit.markup import badge, entity_link, ident, lines, page_of, quiet
from operators.kit.verbs import OperatorAdmin

STATES = {
    "pending": ("pending", TimerQuerySet.pending),
    "late": ("late", TimerQuerySet.late),
    "failed": ("failed", TimerQuerySet.failed),
}


def _timer(timer: Any) -> str:
    said = f"message {timer.key}" if timer.key else None
    return lines(ident(timer.name, page_of("dispatch_timer", timer.pk)), quiet(said))


def _whom_for(timer: Any) -> str:
    return entity_link(timer.target_id, timer.target_url)


@admin.register(Timer)
class TimerAdmin(OperatorAdmin):
    unseen = ("message", "entry")
    story_template = "operators/timer.html"
    list_display = (
        row_column("timer", _timer),
        column("state", lambda timer: lines(badge(timer.state), quiet(timer.error))),
        column("for", _whom_for),
        column("by", lambda timer: entity_link(timer.owner_id, timer.owner_url or "")),
        moment_column("due_at", "due"),
        moment_column("created_at", "set"),
    )
    list_filter = (
        words("state", "state", STATES),
        exact("entity URL", "entity", "target__url"),
        exact("URL of whose schedule it is", "owner", "owner__url"),
    )
    search_fields = ("key__exact",)
    search_parts = ("key", "target__url")
    search_help_text = "Part of the message's key or of the entity's URL"

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        rows: Any = super().get_queryset(request)
        told: QuerySet[Any] = rows.with_owner_url()
        return told

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        facts = {"Message": row.message, "Entry in the manifest": row.entry}
        return {"facts": {name: text and json.loads(text) for name, text in facts.items()}}
