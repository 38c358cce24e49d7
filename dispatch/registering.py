"""Registering by a call, which names subscriber and source; an entity as a source is locked."""

from django.db import transaction

from core.database import lock_name
from dispatch import shared_states, wakes
from dispatch.models import Entity
from dispatch.streams import registrations, sources
from dispatch.streams.registrations import Order


def register(subscriber: Entity, order: Order) -> None:
    """Wake the subscriber for what happens at the source from now on; the source may not exist yet.

    Raises what `registrations.hold` and `registrations.register` raise.
    """
    url = order.source_url
    with transaction.atomic():
        if sources.is_entity(url) and not wakes.watch(url, order.watched):
            lock_name(url)
            wakes.watch(url, order.watched)  # it may have been made while its name was waited for
        registrations.register(subscriber, order, registrations.hold(subscriber))
    shared_states.await_writers(url)
