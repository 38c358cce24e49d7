"""Ids that callers choose, and stream offsets: their forms, from the wire contract."""

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from urllib.parse import unquote

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
    """Whether this is a valid id."""
    return _ID.fullmatch(text) is not None


def is_number(text: str, digits: int) -> bool:
    """Whether this is a whole number of that many decimal digits at the most."""
    return text.isascii() and text.isdecimal() and len(text) <= digits


def is_entity_url(text: str) -> bool:
    """Whether this is a valid entity URL, ``/type/id``."""
    root, *ids = text.split("/")
    return not root and len(ids) == 2 and all(map(is_id, ids))


SHARED_STATE_PREFIX = "/_electric/shared-state/"
MAX_SHARED_STATE_NAME = 512
"""Characters."""


def is_shared_state_name(text: str) -> bool:
    """Whether this is a valid shared state id; it may hold slashes."""
    return 1 <= len(text) <= MAX_SHARED_STATE_NAME and text.isprintable()


def shared_state_name(url: str) -> str | None:
    """The id in a shared state's URL, percent-decoded; None if the URL is not a shared state's."""
    if not url.startswith(SHARED_STATE_PREFIX):
        return None
    name = unquote(url.removeprefix(SHARED_STATE_PREFIX), errors="replace")
    return name if is_shared_state_name(name) else None


def require_id(*ids: str) -> None:
    """Raise NotFound for an id in an address that cannot name anything."""
    if not all(map(is_id, ids)):
        raise NotFound


def new_id(prefix: str) -> str:
    """``prefix_`` and 24 random hex digits."""
    return f"{prefix}_{secrets.token_hex(12)}"


def new_txid() -> int:
    """A new transaction number, exact in JavaScript; clients look for it in an event's headers."""
    return secrets.randbits(53)


def new_secret(prefix: str) -> str:
    """A new bearer secret of 256 random bits; the prefix says what it opens."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def derived_secret(key: str, prefix: str, *facts: str) -> str:
    """A bearer secret like `new_secret`'s, the same for the same facts to whoever has the key."""
    message = "\0".join(("pullwake.secret", prefix, *facts))
    digest = hmac.digest(key.encode(), message.encode(), "sha256")
    return f"{prefix}_{urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def hash_secret(secret: str) -> str:
    """The hash that is stored of a secret.

    A secret has 256 random bits, so plain SHA-256 is enough: nobody can search that space.
    """
    return hashlib.sha256(secret.encode()).hexdigest()
