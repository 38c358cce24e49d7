"""How many rows of a kind a principal may have, counted where a row is made, but not for every row.

The limit is soft: what is left is handed out in portions, so that a large count is not repeated for
each new row, and several processes may hand out at once.
"""

from collections.abc import Callable

from core.errors import RateLimited

RETRY_AFTER_S = 60
_PART = 16
_MOST_KNOWN = 10_000

_room: dict[tuple[str, int, str], int] = {}


def take(noun: str, limit: int, owner: str, count: Callable[[], int]) -> None:
    """Take one of the owner's places; a ``limit`` of 0 means no limit. Raises RateLimited."""
    if not limit:
        return
    key = (noun, limit, owner)
    room = _room.pop(key, 0)
    if not room:
        used = count()
        if used >= limit:
            raise RateLimited(
                f"There are {used} {noun} already; {limit} are allowed.",
                retry_after_s=RETRY_AFTER_S,
            )
        room = max(1, (limit - used) // _PART)
    if len(_room) >= _MOST_KNOWN:
        _room.clear()
    if room > 1:
        _room[key] = room - 1
