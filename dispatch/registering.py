"""Registering by a call, which names subscriber and source; an entity as a source is locked.

But for one that the subscriber's creator may not read, and so is told nothing of yet: that one is
not kept from others while a lock of the subscriber's is waited for.
"""

from django.db import transaction

from core.database import lock_name
from core.principals import Principal
from dispatch import entities, shared_states, wakes
from dispatch.models import Entity
from dispatch.streams import registrations, sources
from dispatch.streams.registrations import Order


def register(subscriber: Entity, order: Order) -> None:
    """Wake the subscriber for what happens at the source from now on; the source may not exist yet.

    Raises what `registrations.hold` and `registrations.register` raise.
    """
    url = order.source_url
    if _is_kept_from(subscriber, url):
        wakes.watch(url, order.watched)
        with transaction.atomic():
            registrations.register(subscriber, order, registrations.hold(subscriber))
        wakes.watch(url, order.watched)  # another may have been made at its URL meanwhile
        return
    with transaction.atomic():
        if sources.is_entity(url) and not wakes.watch(url, order.watched):
            lock_name(url)
            wakes.watch(url, order.watched)  # it may have been made while its name was waited for
        registrations.register(subscriber, order, registrations.hold(subscriber))
    shared_states.await_writers(url)


def _is_kept_from(subscriber: Entity, url: str) -> bool:
    """Whether there is an entity at the URL, and the subscriber's creator may not read it."""
    source = entities.at(url) if sources.is_entity(url) and url != subscriber.url else None
    return source is not None and not entities.may_read(
        source, Principal.parse(subscriber.created_by)
    )
