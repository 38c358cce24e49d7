"""How much of their answers this process holds for readers that have not taken them yet.

A reader has a while to take each part of an answer. A few may be slow; many would fill the memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

MUCH = 64 * 1024 * 1024
"""Bytes: past these, readers are waited for more briefly."""

_bytes = 0


@contextmanager
def held(size: int) -> Iterator[None]:
    """So many bytes are held while the block runs."""
    global _bytes  # noqa: PLW0603  one for the process
    _bytes += size
    try:
        yield
    finally:
        _bytes -= size


def is_much() -> bool:
    """Whether it is so much that readers who are slow must go."""
    return _bytes > MUCH
