"""What can be watched: entities, cron expressions, and other streams, by their URLs."""

import re

from core.errors import InvalidRequest
from core.identifiers import ID_REGEX, shared_state_name
from dispatch.cron import PREFIX, Cron

MAX_URL = 2048
"""Bytes of a source's URL: an index holds no more."""

# No entity type has one of these names: `api.fields.RESERVED_TYPES`.
_ENTITY = re.compile(rf"/(?!_(?:electric|cron|entities|webhooks)/){ID_REGEX}/{ID_REGEX}")
_UNSERVED = {
    "/_entities/": "lists of entities are not served yet",
    "/_webhooks/": "webhook sources are not served yet",
}


def is_entity(url: str) -> bool:
    """Whether this is an entity's URL, and not another stream's."""
    return _ENTITY.fullmatch(url) is not None


def is_cron(url: str) -> bool:
    """Whether this is a cron expression's path."""
    return url.startswith(PREFIX)


def require_served(url: str, path: str) -> str:
    """The URL of a source. Raises InvalidRequest for one that this server cannot watch.

    ``path`` is the JSON pointer of the field.
    """
    for prefix, problem in _UNSERVED.items():
        if url.startswith(prefix):
            raise InvalidRequest.field(path, problem)
    is_known = is_entity(url) or is_cron(url) or shared_state_name(url) is not None
    if not is_known or len(url.encode()) > MAX_URL:
        raise InvalidRequest.field(path, "not the URL of an entity, or of a stream served here")
    if is_cron(url):
        try:
            Cron.of(url)
        except ValueError as problem:
            raise InvalidRequest.field(path, str(problem)) from None
    return url
