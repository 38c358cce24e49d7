"""Stream offsets: opaque and increasing for readers, a count of events internally.

``<offset>_1`` is a separate place for clients, who compare offsets as strings: just before the
first work after that offset. Internally it equals that offset.
"""

import re

from core.errors import InvalidRequest

START, NOW = "-1", "now"
_FORM = re.compile(r"([0-9]{16})_([0-9]{16})(?:_1)?")
_MAX = 10**16


def encode(offset: int) -> str:
    """The wire form of an offset."""
    return f"0000000000000000_{offset:016d}"


def encode_just_past(offset: int) -> str:
    """The wire form of the place between an offset and the next event."""
    return f"{encode(offset)}_1"


def parse(text: str) -> int:
    """Parse an offset; -1 is the start. Raises ValueError for any other form."""
    if text == START:
        return 0
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError("expected -1, now, or an offset that a stream gave")
    # The first half is a stream's epoch: a stream of another epoch than ours is past every tail.
    return _MAX if int(match[1]) else int(match[2])


def decode(text: str, path: str = "/offset") -> int:
    """`parse` for a field of a request, at the JSON pointer ``path``. Raises InvalidRequest."""
    try:
        return parse(text)
    except ValueError as problem:
        raise InvalidRequest.field(path, str(problem)) from None
