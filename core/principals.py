"""Who acts: a principal ``kind:id``, whose canonical URL is ``/principal/`` + its encoded key."""

import re
import string
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar
from urllib.parse import quote, unquote

_KINDS = ("user", "agent", "service", "system")
_KEY = re.compile(rf"({'|'.join(_KINDS)}):([^/\x00-\x1f\x7f]+)")
URL_PREFIX = "/principal/"
# So that both ends write the same URL.
UNENCODED = "!'()*"
"""What encodeURIComponent leaves alone besides letters, digits and ``_.-~``."""
URL_CHARACTERS = f"{string.ascii_letters}{string.digits}_.-~%{UNENCODED}"
"""All that a canonical URL holds after its prefix."""
MAX_URL_LENGTH = 512


@dataclass(frozen=True)
class Principal:
    """A user, agent, service or system account; equal when their keys are."""

    kind: str
    id: str

    KINDS: ClassVar = _KINDS

    # Django REST framework's idea of a user, which this stands in for.
    is_authenticated: ClassVar = True

    @cached_property
    def key(self) -> str:
        """``kind:id``."""
        return f"{self.kind}:{self.id}"

    @cached_property
    def url(self) -> str:
        """The canonical URL, the only form that is stored or compared."""
        return _url_of(self.key)

    @classmethod
    def parse(cls, text: str) -> "Principal":
        """Parse a key, a canonical URL, or a URL whose segment is not encoded.

        Raises ValueError for anything else.
        """
        return _parse(text)


@lru_cache(maxsize=4096)
def _url_of(key: str) -> str:
    return URL_PREFIX + quote(key, safe=UNENCODED)


@lru_cache(maxsize=4096)
def _parse(text: str) -> Principal:
    key = text
    if text.startswith(URL_PREFIX):
        key = unquote(text.removeprefix(URL_PREFIX), errors="strict")
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"expected kind:id with kind one of {', '.join(_KINDS)}")
    principal = Principal(match[1], match[2])
    if len(principal.url) > MAX_URL_LENGTH:
        raise ValueError(f"longer than {MAX_URL_LENGTH} characters as a URL")
    return principal


DEVELOPER = Principal("system", "dev-local")
"""Who calls without any credential, in development mode alone."""
