"""What is known of the request that is being answered: each of its log lines says it.

structlog's contextvars do the same with a variable for each fact, and look through all variables
for each line; this is one, for a fifth of the CPU (docs/performance.md).
"""

from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

_known: ContextVar[dict[str, Any] | None] = ContextVar("log_facts", default=None)


def begin(**facts: Any) -> None:
    """Forget the request before, and begin with these facts of a new one."""
    _known.set(facts)


def note(**facts: Any) -> None:
    """Add facts of the request, where it becomes known; outside of requests nothing is kept."""
    known = _known.get()
    if known is not None:
        known.update(facts)


def known() -> dict[str, Any]:
    """The facts of the request."""
    return dict(_known.get() or {})


def add_to(logger: Any, name: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor that adds them to a line."""
    return {**known(), **line}
