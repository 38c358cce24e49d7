"""Messages, before they are events of a stream."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent to an entity.

    ``sender`` is a principal's or an entity's URL; ``principal`` that of the principal whose
    rights held, ``agent`` that of the entity that speaks. Without a ``position`` a queued message
    goes to the end of the queue. ``trace`` is where it was sent: a `core.tracing.TraceContext`, as
    that is kept.
    """

    payload: Any
    sender: str
    key: str | None = None
    type: str | None = None
    mode: str = "immediate"
    position: str | None = None
    principal: str | None = None
    agent: str | None = None
    trace: str | None = None
