"""Whose turn it is among what is due: nobody waits until all that another has piled up is done."""

from itertools import chain
from typing import Any

from django.db import connection
from django.db.models import QuerySet

from core.clock import now_sql
from dispatch.models import Registration, Timer

_PENDING = {
    Registration: ("dispatch_registration", "due_at IS NOT NULL"),
    Timer: ("dispatch_timer", "failed_at IS NULL"),
}
_CREATORS = """
WITH RECURSIVE firsts (id) AS (
    SELECT id FROM (
        SELECT id FROM {table} WHERE {pending} ORDER BY creator, due_at, id LIMIT 1
    ) AS first
    UNION ALL
    SELECT (
        SELECT id FROM {table} WHERE {pending} AND creator > former.creator
        ORDER BY creator, due_at, id LIMIT 1
    )
    FROM firsts JOIN {table} AS former ON former.id = firsts.id
)
SELECT creator FROM firsts JOIN {table} AS each ON each.id = firsts.id
WHERE due_at <= {now} ORDER BY due_at LIMIT %s
"""


def share(due: "QuerySet[Any, Any]", limit: int) -> list[Any]:
    """At most ``limit`` of the due rows, the longest due first; more than that are shared out.

    Then each creator has an equal part, and what is left of it goes to the longest due again.
    ``due`` may be the values of a column.
    """
    longest = list(due[:limit])
    if len(longest) < limit:
        return longest
    creators = _creators(due.model, limit)
    each_most = limit // max(1, len(creators))
    theirs = [_of(creator, due)[:each_most] for creator in creators]
    return list(dict.fromkeys(chain(*theirs, longest)))[:limit]


def _of(creator: str, due: "QuerySet[Any, Any]") -> "QuerySet[Any, Any]":
    # As a range and in this order it is in one index alone. Of what is equal, PostgreSQL with old
    # statistics looks through all that is due.
    alone = due.filter(creator__gte=creator, creator__lte=creator)
    return alone.order_by("creator", "due_at", "pk")


def _creators(model: Any, limit: int) -> list[str]:
    """Creators who have something due, the longest due first.

    It costs a look into an index for each who has something pending, however much that is.
    """
    # The ORM has no recursion, and would read all that is due to find who has it.
    table, pending = _PENDING[model]
    sql = _CREATORS.format(table=table, pending=pending, now=now_sql())
    with connection.cursor() as cursor:
        cursor.execute(sql, [limit])
        return [creator for (creator,) in cursor.fetchall()]
