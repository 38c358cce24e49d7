"""What an entity waits for, who waits for it, and its children."""

from typing import Any

from dispatch.models import Entity, Registration

SHOWN = 20
"""Rows of a table, the newest."""


def family_of(entity: Any) -> dict[str, Any]:
    """The rows of these tables, for the page of an entity."""
    watchers = Registration.objects.filter(source_url=entity.url).select_related("subscriber")
    # A child is younger, and nearly always its parent's creator's: an index finds these.
    children = Entity.objects.filter(
        created_by=entity.created_by, parent=entity.url, pk__gt=entity.pk
    ).select_related("dispatch_state")
    return {
        "waits": list(entity.registrations.order_by("-pk")[:SHOWN]),
        "watchers": list(watchers.order_by("-pk")[:SHOWN]),
        "children": list(children.order_by("-pk")[:SHOWN]),
    }
