"""Which shared states an entity observes: what its manifest events say, whoever appends them."""

import hashlib
from collections.abc import Sequence
from typing import Any

from dispatch.models import DispatchState, SharedStateLink
from dispatch.streams import manifests


def follow(state: DispatchState, events: Sequence[Any]) -> None:
    """Record what these events, just appended to the stream of a locked entity, say it observes.

    This costs nothing if none of them is a manifest event that may name a shared state.
    """
    for key, name in manifests.observed(events).items():
        manifest = hashlib.sha256(key.encode()).hexdigest()
        said = SharedStateLink.objects.filter(entity_id=state.entity_id, manifest=manifest)
        if name is None:
            said.delete()
            continue
        said.exclude(name=name).delete()
        SharedStateLink.objects.get_or_create(
            entity_id=state.entity_id, manifest=manifest, name=name
        )
