"""Main streams of the existing server, from a folder: ``<type>/<id>/main.json`` or ``.jsonl``.

The first is the JSON array that a GET of ``/<type>/<id>/main`` answers, the second the same with an
event a line. Each event has, then, ``headers.offset``, which says what of them was acked.
"""

from pathlib import Path

from core.bodies import JsonObject, decode
from core.errors import InvalidRequest
from moving.report import NotTaken

_KEYED = ("inbox", "wake", "signal")
"""Events that are work, which is looked for by key."""
_MAX_KEY = 256


def read(folder: Path, url: str) -> list[JsonObject] | None:
    """The events of an entity's main stream, or None if it has no file. Raises NotTaken."""
    base = folder.joinpath(*url.split("/")[1:])
    for name in ("main.json", "main.jsonl"):
        path = base / name
        if path.is_file():
            try:
                return _checked(_events(path))
            except (OSError, InvalidRequest) as problem:
                raise NotTaken(f"its {name} cannot be taken: {problem}") from None
    return None


def _events(path: Path) -> list[JsonObject]:
    raw = path.read_bytes()
    if path.suffix == ".json":
        return decode(raw, list[JsonObject])
    return [decode(line, JsonObject) for line in raw.splitlines() if line.strip()]


def _checked(events: list[JsonObject]) -> list[JsonObject]:
    for event in events:
        if not isinstance(event.get("type"), str):
            raise NotTaken("an event in its file has no type")
        key = event.get("key")
        if event["type"] in _KEYED and not (isinstance(key, str) and 1 <= len(key) <= _MAX_KEY):
            raise NotTaken(f"the key of each {event['type']} has 1 to {_MAX_KEY} characters")
    return events


def count_acked(events: list[JsonObject], offset: str) -> int:
    """How many of these events lie up to an acked offset; offsets are compared as texts."""
    acked = 0
    for number, event in enumerate(events, start=1):
        headers = event.get("headers")
        own = headers.get("offset") if isinstance(headers, dict) else None
        if isinstance(own, str) and own <= offset:
            acked = number
    return acked
