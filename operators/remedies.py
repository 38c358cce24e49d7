"""What helps an entity that stands, as buttons for those who may press them."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from claims import standing
from claims.standing import Remedy, Standing
from operators.kit.markup import list_of, verb_url

# For each: its label, the page that confirms it, the permissions, and the row that it acts on.
_BUTTONS = {
    Remedy.MOVE: ("Move", "dispatch_entity_move", ["dispatch.move_entity"], "entity"),
    Remedy.WAKE: ("Wake now", "dispatch_entity_wake", ["dispatch.wake_entity"], "entity"),
    Remedy.RESUME: ("Resume", "dispatch_entity_resume", ["dispatch.resume_entity"], "entity"),
    Remedy.ENABLE: ("Enable", "runners_runner_enable", ["runners.enable_runner"], "runner"),
    Remedy.TAKE_BACK: (
        "Take back",
        "claims_consumerclaim_expire",
        ["claims.expire_consumerclaim"],
        "claim",
    ),
    Remedy.TAKE_BACK_AND_MOVE: (
        "Take back and move",
        "claims_consumerclaim_expire-and-move",
        ["claims.expire_consumerclaim", "dispatch.move_entity"],
        "claim",
    ),
}


@dataclass(frozen=True, slots=True)
class Button:
    """A button, and where it is confirmed."""

    label: str
    url: str


def stands(entity_id: int, now: datetime, user: Any) -> dict[str, Any]:
    """For a page: why an entity ``stands``, in a sentence, and the ``remedies``, if it does."""
    found = standing.find(entity_id)
    if found is None:
        return {}
    return {"stands": found.sentence(now), "remedies": list(buttons(found, user))}


def buttons(found: Standing, user: Any) -> Iterator[Button]:
    """The remedies that this user may apply."""
    entity = found.state.entity
    about = {
        "entity": entity.pk,
        "runner": found.state.runner_id,
        "claim": found.claim and found.claim.pk,
    }
    for remedy in found.remedies:
        if remedy is Remedy.REDRIVE:
            if user.has_perm("claims.redrive_deadletter"):
                letters = list_of("claims_deadletter", entity=entity.url, redriven="no")
                yield Button("Redrive", letters)
            continue
        label, page, permissions, row = _BUTTONS[remedy]
        if user.has_perms(permissions):
            yield Button(label, verb_url(page, about[row]))
