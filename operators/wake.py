"""Wakes: what runners were told, and what became of it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import F, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest

from claims.models import ConsumerClaim
from claims.standing import of_runner
from core.errors import NoPendingWork
from dispatch.models import Wake
from operators.entity import MOVE, WAKE
from operators.kit.lists import (
    ENTITY,
    RUNNER,
    column,
    exact,
    moment_column,
    row_column,
    values,
    where,
    words,
)
from operators.kit.markup import badge, ident, lines, moment, page_of, quiet
from operators.kit.verbs import OperatorAdmin, Order, Verb
from operators.remedies import stands


def _wake(wake: Any) -> str:
    link = ident(wake.wake_id, page_of("dispatch_wake", wake.pk))
    return lines(link, quiet(f"generation {wake.generation}"))


def _emitted(wake: Any) -> str:
    again = quiet(f"{wake.emissions} times") if wake.emissions > 1 else None
    return lines(moment(wake.emitted_at, wake.now), again)


def _is_open(wake: Any) -> bool:
    return bool(wake.status == Wake.Status.OUTSTANDING)


def _of_its_entity(verb: Verb) -> Verb:
    """An entity's verb, for the entity whose unclaimed wake this is."""

    def told(wake: Any) -> Any:
        if not _is_open(wake):
            raise NoPendingWork(f"It is {wake.status}.")
        for known in ("held", "now", "runner_failed", "runner_ended"):
            setattr(wake.entity, known, getattr(wake, known))
        return wake.entity

    def act(wake: Any, order: Order) -> str:
        entity = told(wake)
        said = verb.act(entity, order)
        order.log(entity, f"{verb.label}: {said}")
        return said

    return replace(
        verb,
        question=verb.question.replace("these entities", "the entities of these wakes"),
        effect=lambda wake: verb.effect(told(wake)),
        act=act,
        proposes=lambda wakes: verb.proposes([wake.entity for wake in wakes]),
        fits=lambda wake: _is_open(wake) and verb.fits(told(wake)),
    )


OLD = timedelta(minutes=2)
"""An unclaimed wake that is older is worth a look."""

AGES = {
    "old": ("more than two minutes ago", where(created_at__lte=Now() - OLD)),
    "hour": ("more than an hour ago", where(created_at__lte=Now() - timedelta(hours=1))),
}


@admin.register(Wake)
class WakeAdmin(OperatorAdmin):
    verbs = tuple(_of_its_entity(verb) for verb in (WAKE, MOVE))
    told = True
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
        words("created", "age", AGES),
        exact("runner id", "runner", "runner_id"),
        exact("entity URL", "entity", "entity__url"),
    )
    search_fields = ("wake_id__exact",)
    search_parts = ("wake_id", "entity__url", "runner__id")
    search_help_text = "Part of an id or of the entity's URL"

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        rows: QuerySet[Any] = super().get_queryset(request).annotate(entity_url=F("entity__url"))
        return rows

    def with_prospects(self, rows: "QuerySet[Any]") -> "QuerySet[Any]":
        told: QuerySet[Any] = rows.select_related(
            "entity__dispatch_state__outstanding_wake", "entity__dispatch_state__runner__liveness"
        ).annotate(**of_runner("entity__dispatch_state__runner"))
        return told

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        claims = ConsumerClaim.objects.filter(entity=row.entity_id, consumer_id=row.wake_id)
        outstanding = row.status == Wake.Status.OUTSTANDING
        told = stands(row.entity_id, row.now, request.user) if outstanding else {}
        return {"claim": claims.first(), **told}
