"""Imports every page, since Django's admin looks for them here."""

from operators import (
    audit,
    claim,
    dead_letter,
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
    "dead_letter",
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
