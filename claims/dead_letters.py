"""Dead letters: work that a handler gave up. The only writer of `DeadLetter`.

Work that was given up is acked, so that it blocks nothing that came after it, and kept, so that an
operator sees it and can redrive it.
"""

import uuid

import msgspec
from django.db import transaction
from django.db.models.functions import Now

from claims.models import ConsumerClaim, DeadLetter
from core.bodies import JsonObject
from core.clock import iso
from core.errors import InvalidRequest, PullwakeError
from core.identifiers import new_id
from dispatch import entities, inbox, wakes
from dispatch.models import DispatchState, StreamEvent
from dispatch.streams import log

REDRIVEN_BEFORE = "It was redriven before."


def keep(
    claim: ConsumerClaim, state: DispatchState, *, after: int, attempts: int, reason: str
) -> None:
    """Keep the work past the offset ``after`` that this claim has just acked; the caller saves.

    A queued message is work wherever the cursor is: all that were acked are cancelled, or they
    would wake the entity again at once.
    """
    acked = StreamEvent.objects.filter(
        entity=state.entity_id, work=True, offset__gt=after, offset__lte=state.cursor
    )
    queued = list(inbox.queued(state, up_to=state.cursor))
    offsets = {*acked.values_list("offset", flat=True), *(each.offset for each in queued)}
    letters = [
        DeadLetter(
            entity_id=state.entity_id,
            offset=offset,
            reason=reason,
            attempts=attempts,
            runner_name=claim.runner_name,
        )
        for offset in sorted(offsets)
    ]
    DeadLetter.objects.bulk_create(letters)
    inbox.cancel(state, [each.key for each in queued])


def why_not_redriven(letter: DeadLetter, state: DispatchState) -> PullwakeError | None:
    """The error that forbids redriving it; None if it may be redriven."""
    if letter.redriven_at is not None:
        return InvalidRequest(REDRIVEN_BEFORE)
    return entities.why_not_sent(state)


def redrive(letter: DeadLetter) -> str:
    """Append the work to its entity's stream again, and wake it: the txid.

    Raises NotFound for a deleted entity, NotRunning for one that is stopping, stopped or killed,
    InvalidRequest if it was redriven before.
    """
    with transaction.atomic():
        state = entities.lock_open(letter.entity)
        unsent = DeadLetter.objects.filter(pk=letter.pk, redriven_at=None)
        if not unsent.update(redriven_at=Now()):
            raise InvalidRequest(REDRIVEN_BEFORE)
        txid = str(uuid.uuid4())
        given_up = StreamEvent.objects.get(entity=letter.entity, offset=letter.offset)
        event: JsonObject = msgspec.json.decode(given_up.data)
        # Under a new key: inserting a known key is an update, which is not work of its own.
        again = {
            **event,
            "key": new_id("redriven"),
            "value": {**event.get("value", {}), "timestamp": iso(state.now)},
            "headers": {"operation": "insert", "txid": txid},
        }
        log.append(state, [again])
        wakes.settle(state)
    return txid
