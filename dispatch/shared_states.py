"""Shared states: streams that several entities write to, each with an id that a writer chose.

An entity *has* the shared states that were put in its name, and *observes* those that its manifest
names. What it has is deleted with the last entity that has it. Observing gives an entity's creator
no rights; it lets the entity's runner use what the creator may use.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet

from core import quotas
from core.clock import with_now
from core.errors import Forbidden, NotFound
from core.identifiers import shared_state_name
from core.prepared import Param, Select
from core.principals import Principal
from dispatch import entities, types
from dispatch.models import (
    Entity,
    EntityType,
    SharedState,
    SharedStateLink,
    SharedStateProducer,
)
from dispatch.streams import append as streams
from dispatch.streams import producers, registrations
from dispatch.streams.append import Appended

_STATE = Select(lambda: SharedState.objects.filter(name=Param("name")))


def find(name: str) -> SharedState:
    """The shared state of this name. Raises NotFound."""
    state = _STATE.first(name=name)
    if state is None:
        raise NotFound(f"There is no shared state {name}.")
    return state


def at(url: str) -> SharedState | None:
    """The shared state at a URL, or None."""
    name = shared_state_name(url)
    return None if name is None else _STATE.first(name=name)


# --- Who may ----------------------------------------------------------------------------------


def may_use(state: SharedState, principal: Principal) -> bool:
    """Whether the principal may read and write a shared state.

    Those may who have the rights in an entity that has it, or own that entity's runner; and the
    same two for an entity that observes it, if its creator has the rights in one that has it.
    """
    links = SharedStateLink.objects.filter(name=state.name)
    having, observing = links.filter(manifest=""), links.exclude(manifest="")
    # The usual case, and it needs no look at types.
    if having.filter(_made(principal) | _runs(principal)).exists():
        return True
    if _concerned(having, principal).exists():
        return True
    return _creators_may(_concerned(observing, principal), having)


def may_use_for(state: SharedState, held: "QuerySet[Entity]") -> bool:
    """Whether a runner that holds these entities may read and write a shared state for them.

    It may for one that has it, and for one that observes it by its creator's rights.
    """
    links = SharedStateLink.objects.filter(name=state.name)
    having, of_held = links.filter(manifest=""), links.filter(entity__in=held)
    if of_held.filter(manifest="").exists():
        return True
    return _creators_may(of_held.exclude(manifest=""), having)


def _creators_may(observing: "Links", having: "Links") -> bool:
    """Whether one of those who made the observing entities has the rights in one that has it."""
    creators = observing.values_list("entity__created_by", flat=True)
    return any(
        _acted_on(having, Principal.parse(creator)).exists() for creator in creators.distinct()
    )


def require_use(state: SharedState, principal: Principal) -> None:
    """Raise Forbidden unless the principal may read and write a shared state."""
    if not may_use(state, principal):
        raise Forbidden("The shared state is of other principals' entities.")


Links = QuerySet[SharedStateLink]


def _concerned(links: Links, principal: Principal) -> Links:
    """Those of the entities in which the principal has the rights, or whose runner it owns."""
    return links.filter(_runs(principal) | _may_act(links, principal))


def _acted_on(links: Links, principal: Principal) -> Links:
    """Those of the entities in which the principal has the rights: `entities.may_act` for many."""
    return links.filter(_may_act(links, principal))


def _made(principal: Principal) -> Q:
    return Q(entity__created_by=principal.url)


def _runs(principal: Principal) -> Q:
    return Q(entity__dispatch_state__runner__owner_principal=principal.url)


def _may_act(links: Links, principal: Principal) -> Q:
    registered = EntityType.objects.exclude(registration="").filter(
        registration__in=links.values("entity__registration")
    )
    managed = [
        each.registration for each in registered if types.granted(each, principal, types.MANAGE)
    ]
    managing = Q(entity__registration__in=managed)
    return _made(principal) | managing if managed else _made(principal)


# --- Made, written and deleted ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Put:
    """A shared state, and whether this call made it."""

    state: SharedState
    is_new: bool


def put(caller: Principal, name: str, owner: Entity) -> Put:
    """Make the shared state of this name unless it exists, and let the owner have it.

    Raises Forbidden for an owner in which the caller lacks the rights, and for a shared state that
    the owner does not have yet and the caller may not use; RateLimited past
    PULLWAKE_MAX_SHARED_STATES; NotFound for an owner that was meanwhile deleted.
    """
    if not entities.may_act(owner, caller):
        raise Forbidden("The owner is not the caller's to act on.")
    own = SharedStateLink.objects.filter(entity=owner, name=name, manifest="")
    known = _STATE.first(name=name)
    if known is not None and own.exists():  # usual: each wake after the first puts it again
        return Put(known, is_new=False)
    with transaction.atomic():
        entities.lock(owner)
        state, is_new = _lock_or_make(caller, name)
        if not is_new and not own.exists():
            require_use(state, caller)
        SharedStateLink.objects.get_or_create(entity=owner, name=name, manifest="")
    return Put(state, is_new)


def _lock_or_make(caller: Principal, name: str) -> tuple[SharedState, bool]:
    others = SharedState.objects.filter(created_by=caller.url)
    while (state := _locking().filter(name=name).first()) is None:
        quotas.take("shared states", settings.PULLWAKE_MAX_SHARED_STATES, caller.url, others.count)
        # Where another call was first, what it made is looked up, unless it is gone again.
        with suppress(IntegrityError), transaction.atomic():
            return SharedState.objects.create(name=name, created_by=caller.url), True
    return state, False


def _locking() -> QuerySet[SharedState]:
    return SharedState.objects.select_for_update(no_key=True)


def append(
    state: SharedState, events: Sequence[Any], sequence: producers.Sequence | None = None
) -> Appended:
    """Append events to a shared state, and record deliveries for those who wait for such events.

    Raises NotFound, and what `producers.advance` raises.
    """
    with transaction.atomic():
        locked = with_now(_locking().filter(pk=state.pk)).first()
        if locked is None:
            raise NotFound("The shared state was deleted.")

        def reads(url: str) -> bool:
            return url == locked.created_by or may_use(locked, Principal.parse(url))

        appended = streams.append_shared(locked, events, sequence)
        if appended.is_new:
            SharedState.objects.filter(pk=state.pk).update(tail=appended.tail)
            after = appended.tail - len(events)
            registrations.fire(locked.urls, events, after, locked.now, reads)
    return appended


def await_writers(url: str) -> None:
    """Return once the appends in progress to the shared state at a URL, if it is one, are over.

    They may not have seen a registration that was just made: so they lie before its answer.
    """
    name = shared_state_name(url)
    if name is not None:
        with transaction.atomic():
            list(_locking().filter(name=name).values_list("pk"))


def leave(entity: Entity) -> list[str]:
    """Before a locked entity is deleted: delete the shared states that no other entity has.

    In the others its producer is forgotten: one that is made at its URL later begins its epochs
    anew, and would be fenced, or taken for its retry. Returns the URLs of what was deleted.
    """
    links = SharedStateLink.objects.all()
    own = links.filter(entity=entity)
    states = list(_locking().filter(name__in=own.values("name")).order_by("name"))
    if not states:
        return []
    own.delete()
    names = [each.name for each in states]
    had = set(links.filter(name__in=names, manifest="").values_list("name", flat=True))
    gone = [each for each in states if each.name not in had]
    SharedState.objects.filter(pk__in=[each.pk for each in gone]).delete()
    producers = [f"shared-state-{entity.url}-{name}" for name in names]
    SharedStateProducer.objects.filter(state__in=states, producer_id__in=producers).delete()
    return [url for each in gone for url in each.urls]
