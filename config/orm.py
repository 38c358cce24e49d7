"""What the ORM lacks for requests: the database's time, and to wait without a connection."""

from typing import Any, TypeVar

from django.db import connection, models
from django.db.models.functions import Now

Rows = TypeVar("Rows", bound="models.QuerySet[Any]")


def with_now(rows: Rows) -> Rows:
    """Rows with ``now``, the database's time of the statement that fetches them."""
    timed: Rows = rows.annotate(now=Now())
    return timed


def hand_back() -> None:
    """Give the connection back to the pool; inside a transaction it is still needed."""
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()
