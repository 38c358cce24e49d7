"""Lists in pages: at most ``limit`` rows, no answer past 8 MiB, and a link to the next page."""

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import TypeVar
from urllib.parse import urlencode

import msgspec
from django.conf import settings
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse

from core.bodies import parameter
from core.errors import InvalidRequest
from core.identifiers import is_number

Row = TypeVar("Row", bound=Model)

MAX_LIMIT = 1000
MAX_BYTES = 8 * 1024 * 1024
_CHUNK = 20


def base_url(request: HttpRequest) -> str:
    """Where callers reach this server: PULLWAKE_PUBLIC_URL, else the address of this call."""
    return settings.PULLWAKE_PUBLIC_URL or f"{request.scheme}://{request.get_host()}"


def limit_of(request: HttpRequest) -> int:
    """How many rows a page may have. Raises InvalidRequest for what is not 1 to 1000."""
    text = parameter(request, "limit")
    if text is None:
        return MAX_LIMIT
    if not (is_number(text, 4) and 1 <= int(text) <= MAX_LIMIT):
        raise InvalidRequest.field("/limit", f"expected 1 to {MAX_LIMIT}")
    return int(text)


def answer_page(
    request: HttpRequest,
    limit: int,
    rows: "QuerySet[Row] | Iterator[Row]",
    body: Callable[[Row], object],
    place: Callable[[Row], tuple[str, str]],
) -> HttpResponse:
    """A page of ordered ``rows``; ``place`` is the parameter that asks for what follows a row."""
    texts: list[bytes] = []
    size = 2
    last = None
    headers = {}
    for row in islice(rows if isinstance(rows, Iterator) else _chunks(rows), limit + 1):
        text = msgspec.json.encode(body(row))
        size += len(text) + 1
        if len(texts) == limit or (texts and size > MAX_BYTES):
            assert last is not None  # noqa: S101  a text comes of a row
            asked = {name: value for name, value in request.GET.items() if name != place(last)[0]}
            query = urlencode([*asked.items(), place(last)])
            headers["Link"] = f'<{base_url(request)}{request.path}?{query}>; rel="next"'
            break
        texts.append(text)
        last = row
    return HttpResponse(
        b"[" + b",".join(texts) + b"]", content_type="application/json", headers=headers
    )


def _chunks(rows: "QuerySet[Row]") -> Iterator[Row]:
    """The rows, a few at a time: a thousand large ones are never held at once."""
    for start in count(step=_CHUNK):
        chunk = list(rows[start : start + _CHUNK])
        yield from chunk
        if len(chunk) < _CHUNK:
            return
