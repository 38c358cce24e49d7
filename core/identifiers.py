"""Ids that callers choose, and the offsets of streams: their forms, from the wire contract."""

import hashlib
import re
import secrets

from core.errors import NotFound

# In Python, unlike in JSON Schema, $ also stands before a last newline; hence the look-ahead.
ID_REGEX = r"(?!\.\.?(?:/|$))[A-Za-z0-9._~:@+-]{1,128}"
"""Ids of runners, entity types and entities, in an address."""
ID_PATTERN = rf"^{ID_REGEX}$(?!\n)"
"""The same in a body."""

OFFSET_PATTERN = r"^(-1|[0-9]{16}_[0-9]{16})$(?!\n)"
"""A place in a stream: -1 is its start."""

_ID = re.compile(ID_PATTERN)


def is_id(text: str) -> bool:
    """Whether this may be an id."""
    return _ID.fullmatch(text) is not None


def is_entity_url(text: str) -> bool:
    """Whether this may be an entity's URL, ``/type/id``."""
    root, *ids = text.split("/")
    return not root and len(ids) == 2 and all(map(is_id, ids))


def require_id(*ids: str) -> None:
    """Raise NotFound for an id in an address that could name nothing."""
    if not all(map(is_id, ids)):
        raise NotFound


def new_id(prefix: str) -> str:
    """``prefix_`` and 24 random hex digits."""
    return f"{prefix}_{secrets.token_hex(12)}"


def new_txid() -> int:
    """A transaction's number, as clients look for it in an event's headers; JavaScript's own."""
    return secrets.randbits(53)


def new_secret(prefix: str) -> str:
    """A bearer secret of 256 random bits; the prefix tells what it opens."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def hash_secret(secret: str) -> str:
    """What is stored of a secret. It has 256 random bits, so a plain SHA-256 cannot be searched."""
    return hashlib.sha256(secret.encode()).hexdigest()
