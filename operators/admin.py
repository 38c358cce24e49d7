"""Every page: Django's admin looks for them here."""

from operators import (
    audit,
    claim,
    entity,
    people,
    runner,
    shared_state,
    state,
    timer,
    token,
    wake,
)
from operators import type as entity_type

__all__ = [
    "audit",
    "claim",
    "entity",
    "entity_type",
    "people",
    "runner",
    "shared_state",
    "state",
    "timer",
    "token",
    "wake",
]
