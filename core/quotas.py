"""How many rows of a kind one may have: counted where a row is made, and not for every one.

The limit is soft: what is left is handed out in parts, so that a count of many rows is not made for
each new one, and several processes may hand out at once.
"""

from collections.abc import Callable

from core.errors import RateLimited

RETRY_AFTER_S = 60
_PART = 16
_MOST_KNOWN = 10_000

_room: dict[tuple[str, int, str], int] = {}


def take(noun: str, limit: int, owner: str, count: Callable[[], int]) -> None:
    """Take a place among the owner's; ``limit`` 0 is none. Raises RateLimited."""
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
