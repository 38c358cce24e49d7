"""The sixteen diagnostic fields a runner reports about itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .clock import Clock
from .machine import State

_UNREPORTED = frozenset({"last_heartbeat_at", "last_error_at"})
"""Every heartbeat, and every failed one, sets one of these: as changes to report at once they
would make each heartbeat ask for the next."""

_MAX_ERROR = 1_000


class Diagnostics:
    """What is true of this run of the runner. `changed` is called when something newly is."""

    def __init__(self, clock: Clock, changed: Callable[[], None] = lambda: None) -> None:
        self._clock = clock
        self._changed = changed
        self._fields: dict[str, Any] = {
            "status": State.STOPPED.value,
            "started_at": None,
            "stream_connected": False,
            "stream_connected_since": None,
            "reconnect_count": 0,
            "events_received": 0,
            "last_heartbeat_ok": None,
            "last_heartbeat_at": None,
            "last_claim_at": None,
            "last_claim_result": None,
            "last_dispatch_at": None,
            "claims_succeeded": 0,
            "claims_skipped": 0,
            "claims_failed": 0,
            "last_error": None,
            "last_error_at": None,
        }

    def as_dict(self) -> dict[str, Any]:
        """All sixteen, by their names on the wire."""
        return dict(self._fields)

    def state(self, before: State, state: State) -> None:
        streaming = state is State.STREAMING
        changes: dict[str, Any] = {"status": state.value, "stream_connected": streaming}
        if before is State.STOPPED:
            changes["started_at"] = self._clock.stamp()
        if streaming:
            changes["stream_connected_since"] = self._clock.stamp()
        elif before is State.STREAMING:
            changes["stream_connected_since"] = None
        self._set(changes)

    def goodbye(self) -> None:
        """What is true by the time the last heartbeat arrives."""
        self._set({"status": State.STOPPED.value})

    def reconnected(self) -> None:
        self._set({"reconnect_count": self._fields["reconnect_count"] + 1})

    def received(self) -> None:
        self._set({"events_received": self._fields["events_received"] + 1})

    def heartbeat(self, ok: bool) -> None:
        """`last_heartbeat_at` is when one last arrived."""
        changes: dict[str, Any] = {"last_heartbeat_ok": ok}
        if ok:
            changes["last_heartbeat_at"] = self._clock.stamp()
        self._set(changes)

    def claim(self, result: str) -> None:
        """`result` is one of claimed, no_work, error."""
        count = {"claimed": "claims_succeeded", "no_work": "claims_skipped"}.get(
            result, "claims_failed"
        )
        self._set(
            {
                "last_claim_result": result,
                "last_claim_at": self._clock.stamp(),
                count: self._fields[count] + 1,
            }
        )

    def dispatched(self) -> None:
        self._set({"last_dispatch_at": self._clock.stamp()})

    def error(self, message: str) -> None:
        self._set(
            {"last_error": printable(message, _MAX_ERROR), "last_error_at": self._clock.stamp()}
        )

    def _set(self, changes: dict[str, Any]) -> None:
        new = {name: value for name, value in changes.items() if self._fields[name] != value}
        self._fields.update(new)
        if new.keys() - _UNREPORTED:
            self._changed()


def printable(text: str, limit: int) -> str:
    """`text` without what a database or JSON parser might refuse: NUL and lone surrogates."""
    clean = text.replace("\0", "�").encode("utf-8", "replace").decode()
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
