"""Messages, before they are events of a stream."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """A message to be sent.

    ``sender`` is the URL of a principal or an entity; ``principal`` the URL of the principal whose
    rights were used, ``agent`` that of the entity that speaks. A queued message without a
    ``position`` goes to the end of the queue. ``trace`` is where it was sent, a dumped
    `core.tracing.TraceContext`.
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
