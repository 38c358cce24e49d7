"""What the holder of an active claim writes with its write token: its entity's main stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from claims.models import ConsumerClaim
from core import log_facts
from core.errors import Unauthenticated
from core.identifiers import hash_secret
from core.prepared import Param, Select
from dispatch import schedules, shared_states, wakes
from dispatch.streams import append as streams
from dispatch.streams import manifests, producers, sources
from dispatch.streams import schedules as entries

NOT_THE_HOLDER = "The token is not one of the entity's active claim."


def _by_write_token(*related: str) -> Select[ConsumerClaim]:
    # One that ended has none: its status need not be asked.
    return Select(
        lambda: (
            ConsumerClaim.objects.filter(write_token_hash__gt="")
            .filter(write_token_hash=Param("token_hash"))
            .select_related(*related)
        )
    )


_CLAIM_OF = _by_write_token("entity", "runner")


def claim_of(token: str) -> ConsumerClaim | None:
    """The active claim with this write token, with its entity and its runner, or None."""
    return _CLAIM_OF.first(token_hash=hash_secret(token))


_HOLDER = _by_write_token("entity")


def hold(url: str, token: str) -> ConsumerClaim:
    """The active claim of the entity at this URL. Raises Unauthenticated for any but its token.

    The entity is not looked for, so that no other token tells whether it exists.
    """
    return _held(url, hash_secret(token))


def _held(url: str, token_hash: str) -> ConsumerClaim:
    claim = _HOLDER.first(token_hash=token_hash)
    if claim is None or claim.entity is None or claim.entity.url != url:
        raise Unauthenticated(NOT_THE_HOLDER)
    return claim


@dataclass(frozen=True, slots=True)
class Written:
    """Whether the events are new, the tail after them, and the oldest work since the claim.

    That work, if any, matters because a handler acks its own last append, and has not seen it.
    """

    is_new: bool
    tail: int
    unseen_work: int | None


def append(
    held: ConsumerClaim, events: Sequence[Any], sequence: producers.Sequence | None = None
) -> Written:
    """Append events to the main stream of a claim's entity; they do not wake it.

    Raises Unauthenticated unless the claim is active with the same write token as it was found
    with, and what `producers.advance` and `manifests.orders` raise.
    """
    entity = held.entity
    assert entity is not None  # noqa: S101  `hold` found it
    waits = manifests.waits(events) if manifests.ask_for_wakes(events) else []
    watched = [each for each in waits if sources.is_entity(each.source_url)]
    objections: dict[int, str] = {}
    if any(map(entries.is_one, events)):
        objections = schedules.objections(entity, events)
    for order in watched:
        wakes.watch(order.source_url, order.watched)
    with transaction.atomic():
        state = wakes.lock_of(entity.pk)
        if state is None:
            raise Unauthenticated(NOT_THE_HOLDER)
        claim = _held(entity.url, held.write_token_hash)
        log_facts.note(epoch=claim.epoch)
        appended = streams.append(state, events, sequence, objections)
        if appended.is_new:
            wakes.save(state)
        unseen = wakes.oldest_work(state, max(state.cursor, claim.delivered_offset))
    for order in watched:
        # Events being appended there meanwhile did not see the registration, and lie before it.
        wakes.watch(order.source_url, order.watched)
    for order in waits:
        shared_states.await_writers(order.source_url)
    return Written(appended.is_new, appended.tail, unseen)
