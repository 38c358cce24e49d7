"""Reads the events of a stream without fetching more than a page of them at a time.

A stream may hold thousands of events of 1 MiB each; every reader of their texts gets them here.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from django.db import connection
from django.db.models import Case, F, Func, IntegerField, QuerySet, RowRange, Sum, When, Window
from django.db.models.functions import Coalesce
from django.db.models.lookups import LessThanOrEqual

PAGE_EVENTS = 1000
"""Events in one page at the most."""
PAGE_BYTES = 1024 * 1024
"""Bytes after which a page is cut; one event is always given whole."""

_LOOKED_FOR = 1024
"""Characters of a key: SQLite takes no pattern of more than 50 000 bytes."""


class Bytes(Func):
    """The length of a text, which PostgreSQL reports without fetching the text."""

    output_field = IntegerField()
    function = "OCTET_LENGTH"

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """Older versions only count characters."""
        return self.as_sql(compiler, connection, function="LENGTH", **context)


def rows(events: "QuerySet[Any]") -> "QuerySet[Any, tuple[int, str | None]]":
    """The first events by offset, of which `take` makes a page on SQLite."""
    told: Any = "data"
    if connection.vendor == "postgresql":
        before = Window(Sum(Bytes("data")), order_by="offset", frame=RowRange(start=None, end=-1))
        told = Case(When(LessThanOrEqual(Coalesce(before, 0), PAGE_BYTES), then=F("data")))
    return events.order_by("offset").values_list("offset", told)[:PAGE_EVENTS]


def take(found: "Iterable[tuple[Any, ...]]") -> "list[tuple[Any, ...]]":
    """Fetch rows up to the first past the page's bytes, whose text is left out.

    SQLite would read every text to add up lengths, but reads a row only when it is fetched.
    """
    taken: list[tuple[Any, ...]] = []
    size = 0
    for offset, text in found:
        if size > PAGE_BYTES:
            return [*taken, (offset, None)]
        taken.append((offset, text))
        size += len(text)
    return taken


def page(events: "QuerySet[Any]") -> "list[tuple[int, str | None]]":
    """The first events by offset: the offset, and the text, or None past the page's bytes."""
    found = rows(events)
    if connection.vendor == "postgresql":
        return list(found)
    return take(found.iterator(chunk_size=1))


def scan(events: "QuerySet[Any]") -> Iterator[tuple[int, str]]:
    """The offset and the text of each of these events, oldest first."""
    after = -1
    while True:
        found = page(events.filter(offset__gt=after))
        told = [(offset, text) for offset, text in found if text is not None]
        yield from told
        if len(told) == len(found) < PAGE_EVENTS:
            return
        after = told[-1][0]


def naming(events: "QuerySet[Any]", key: str) -> "QuerySet[Any]":
    """Those of these events that may name this key, wherever they do."""
    return events.filter(data__contains=msgspec.json.encode(key).decode()[:_LOOKED_FOR])
