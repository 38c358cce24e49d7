"""What Django's ORM lacks for a guarded transition: the database's time, and RETURNING."""

from typing import Any, TypeVar

from django.core.exceptions import EmptyResultSet
from django.db import connection, connections, models
from django.db.models.expressions import Col
from django.db.models.functions import Now
from django.db.models.sql import UpdateQuery

Rows = TypeVar("Rows", bound="models.QuerySet[Any]")


def with_now(rows: Rows) -> Rows:
    """Rows with ``now``, the database's time of the statement that fetches them."""
    timed: Rows = rows.annotate(now=Now())
    return timed


def hand_back() -> None:
    """Give the connection back to the pool; inside a transaction it is still needed."""
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()


def update_returning(
    queryset: "models.QuerySet[Any]", returning: list[str], **values: Any
) -> list[tuple[Any, ...]]:
    """`QuerySet.update`, answering the named fields of each row that it changed.

    One statement, so that the verdict and the new value cannot come apart. For filters on the
    table itself only.
    """
    query: UpdateQuery = queryset.query.chain(UpdateQuery)  # type: ignore[assignment]
    query.add_update_values(values)
    query.annotations = {}
    using = connections[queryset.db]
    compiler = query.get_compiler(connection=using)
    try:
        sql, params = compiler.as_sql()
    except EmptyResultSet:  # a filter that no row can meet, such as a number past the column's
        return []
    fields = [queryset.model._meta.get_field(name) for name in returning]
    quote = using.ops.quote_name
    columns = [Col(queryset.model._meta.db_table, field) for field in fields]
    with using.cursor() as cursor:
        cursor.execute(f"{sql} RETURNING {', '.join(quote(f.column) for f in fields)}", params)
        rows = cursor.fetchall()
    converters = compiler.get_converters(columns)
    return [tuple(row) for row in compiler.apply_converters(rows, converters)]
