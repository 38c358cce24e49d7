"""Timers: what will be sent at a time, by whom, and what could not be sent."""

import json
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from core.clock import with_now
from dispatch.cron import Cron
from dispatch.models import LATE, Registration, Timer, TimerQuerySet
from operators.kit.lists import column, exact, moment_column, row_column, words
from operators.kit.markup import badge, entity_link, ident, lines, list_of, page_of, quiet
from operators.kit.verbs import OperatorAdmin

SHOWN = 10
"""Of an entity's timers, on its page."""

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
    search_help_text = "Whole key of the message"

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        rows: Any = super().get_queryset(request)
        told: QuerySet[Any] = rows.with_owner_url()
        return told

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        facts = {"Message": row.message, "Entry in the manifest": row.entry}
        return {"facts": {name: text and json.loads(text) for name, text in facts.items()}}


def timers_of(entity: Any, now: datetime) -> dict[str, Any]:
    """For an entity's page: timers for it or by it, failed and late before pending; its ticks."""
    rows: Any = Timer.objects.filter(Q(target=entity.pk) | Q(owner=entity.pk))
    ticking = Registration.objects.filter(subscriber=entity.pk, tick_at__isnull=False)
    return {
        "timers": list(with_now(rows.defer("message", "entry")).order_by("due_at", "pk")[:SHOWN]),
        "ticks": [_tick(each, now) for each in ticking.order_by("tick_at")[:SHOWN]],
        "timers_url": list_of("dispatch_timer", entity=entity.url),
    }


def _tick(row: Registration, now: datetime) -> dict[str, Any]:
    late = row.tick_at is not None and row.tick_at <= now - LATE
    state = "late" if late else "pending"
    return {"cron": Cron.of(row.source_url), "at": row.tick_at, "state": state}
