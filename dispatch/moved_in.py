"""Entities from another server: made in bulk, each with its stream and its place in it.

`dispatch.entities.create` makes one; this makes many, in a few statements. The other server decided
who may and what is allowed; the caller has checked the facts against our rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.db import transaction

from core.bodies import JsonObject
from core.clock import iso, with_now
from core.database import lock_name, take_as_long_as_needed
from core.identifiers import new_txid
from dispatch import wakes
from dispatch.entities import created_events
from dispatch.models import (
    DispatchState,
    Entity,
    EntityType,
    Registration,
    subscription_key,
)
from dispatch.streams import log
from runners.models import Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """An entity as another server had it.

    ``generation`` is above every epoch that was granted there. ``events`` are those of its main
    stream, of which the first ``acked`` are done; None: all. ``pending``: it was about to be woken.
    If no event is left to do, for instance without its stream, it is woken by an event that says
    so.
    """

    url: str
    created_by: str
    created_at: datetime
    updated_at: datetime
    generation: int
    args: JsonObject = field(default_factory=dict)
    tags: JsonObject = field(default_factory=dict)
    sandbox: JsonObject | None = None
    parent: str = ""
    entity_type: EntityType | None = None
    runner_id: str | None = None
    paused: bool = False
    ended: str = ""
    pending: bool = False
    events: Sequence[JsonObject] = ()
    acked: int | None = None


def take_over(arrivals: Sequence[Arrival]) -> int:
    """Make these entities, parents before their children, and wake those that are due: how many.

    All of them or none. Raises IntegrityError for a URL that exists. A runner that does not exist
    is left out.
    """
    urls = [each.url for each in arrivals]
    with transaction.atomic():
        take_as_long_as_needed()
        wanted = {each.runner_id for each in arrivals if each.runner_id is not None}
        kept = Runner.objects.select_for_update(no_key=True).filter(pk__in=wanted).order_by("pk")
        runners = {each.pk: each for each in kept}
        lock_name(*urls)
        watched = set(
            Registration.objects.filter(source_url__in=urls).values_list("source_url", flat=True)
        )
        rows = Entity.objects.bulk_create([_entity(each) for each in arrivals])
        now = with_now(Entity.objects.filter(pk=rows[0].pk)).get().now  # type: ignore[attr-defined]
        states, streams = [], []
        for entity, arrival in zip(rows, arrivals, strict=True):
            state = DispatchState(
                entity=entity,
                runner=runners.get(arrival.runner_id or ""),
                generation=arrival.generation,
                paused=arrival.paused,
                ended=arrival.ended,
            )
            state.now = now
            if entity.url in watched:
                state.watched = DispatchState.Watched.FOR_CHANGES
            events = _stream(entity, arrival)
            begun = len(events) - len(arrival.events)
            state.cursor = len(events) if arrival.acked is None else begun + arrival.acked
            states.append(state)
            streams.append((state, events))
        log.take_over(streams)
        log.take_over(
            [
                (state, [_woken_by(state)])
                for state, arrival in zip(states, arrivals, strict=True)
                if arrival.pending and not state.pending and not state.ended
            ]
        )
        return wakes.begin_all(states)


def _entity(arrival: Arrival) -> Entity:
    entity_type = arrival.entity_type
    return Entity(
        type=arrival.url.split("/")[1],
        registration="" if entity_type is None else entity_type.registration,
        url=arrival.url,
        subscription_key=subscription_key(arrival.url),
        tags=dict(arrival.tags),
        spawn_args=arrival.args,
        sandbox=arrival.sandbox,
        parent=arrival.parent,
        created_by=arrival.created_by,
        created_at=arrival.created_at,
        updated_at=arrival.updated_at,
    )


def _stream(entity: Entity, arrival: Arrival) -> list[JsonObject]:
    """Its events, beginning with its creation, even if the other server did not keep that."""
    if any(event["type"] == "entity_created" for event in arrival.events):
        return list(arrival.events)
    begin = created_events(entity, arrival.entity_type, entity.created_at, new_txid())
    return [*begin, *arrival.events]


def _woken_by(state: DispatchState) -> JsonObject:
    """The event that wakes an entity whose work did not come along."""
    at = iso(state.now)
    value = {"timestamp": at, "source": state.entity.url, "timeout": False, "changes": []}
    headers = {"operation": "insert", "timestamp": at, "txid": new_txid()}
    return {"type": "wake", "key": "wake-moved-in", "value": value, "headers": headers}
