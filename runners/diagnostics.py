"""The sixteen diagnostic fields of a runner: each is kept only if valid; others are dropped."""

import sys
from collections.abc import Callable
from typing import Any

from core.bodies import JsonObject, clean_text

MAX_TEXT = 4096
"""Characters of a diagnostic text; a longer one is cut, for an error's beginning tells most."""

STATUSES = ("stopped", "starting", "connecting", "streaming", "reconnecting", "stopping")
CLAIM_RESULTS = ("claimed", "no_work", "error", None)

_INVALID = object()


def _one_of(*choices: str | None) -> Callable[[Any], Any]:
    def clean(value: Any) -> Any:
        known = value is None or isinstance(value, str)
        return value if known and value in choices else _INVALID

    return clean


def _boolean(value: Any) -> Any:
    return value if isinstance(value, bool) else _INVALID


def _text(value: Any) -> Any:
    if value is None:
        return None
    return clean_text(value, MAX_TEXT) if isinstance(value, str) else _INVALID


def _count(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _INVALID
    return value if 0 <= value <= sys.float_info.max else _INVALID


FIELDS: dict[str, Callable[[Any], Any]] = {
    "status": _one_of(*STATUSES),
    "stream_connected": _boolean,
    "last_heartbeat_ok": _boolean,
    "last_claim_result": _one_of(*CLAIM_RESULTS),
    **dict.fromkeys(
        (
            "started_at",
            "stream_connected_since",
            "last_error",
            "last_error_at",
            "last_heartbeat_at",
            "last_claim_at",
            "last_dispatch_at",
        ),
        _text,
    ),
    **dict.fromkeys(
        (
            "reconnect_count",
            "events_received",
            "claims_succeeded",
            "claims_skipped",
            "claims_failed",
        ),
        _count,
    ),
}


def cleaned(reported: Any) -> JsonObject:
    """The valid fields of a report, whatever it is; empty when there are none."""
    if not isinstance(reported, dict):
        return {}
    fields = {name: clean(reported[name]) for name, clean in FIELDS.items() if name in reported}
    return {name: value for name, value in fields.items() if value is not _INVALID}
