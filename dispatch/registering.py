"""Registering from without: a call names the subscriber and the source, and locks the source."""

from django.db import transaction

from core.database import lock_name
from dispatch import wakes
from dispatch.models import Entity
from dispatch.streams import registrations, sources
from dispatch.streams.registrations import Order


def register(subscriber: Entity, order: Order) -> None:
    """Have the subscriber woken for what happens at the source from now on, should it be to come.

    Raises what `registrations.register` raises.
    """
    url = order.source_url
    with transaction.atomic():
        if sources.is_entity(url) and not wakes.watch(url, order.watched):
            lock_name(url)
            wakes.watch(url, order.watched)  # it may have come while its name was waited for
        registrations.register(subscriber, order)
