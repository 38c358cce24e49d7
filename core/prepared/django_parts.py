"""The undocumented parts of Django's ORM that `core.prepared` uses.

Each has a test in tests/core/test_django_parts.py, run on every supported Django.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import (
    AutoField,
    BooleanField,
    CharField,
    DateTimeField,
    DurationField,
    ForeignKey,
    IntegerField,
    Model,
    QuerySet,
    TextField,
)
from django.db.models.expressions import Col
from django.db.models.query import get_related_populators
from django.db.models.sql import InsertQuery, UpdateQuery

__all__ = [
    "Col",
    "Shape",
    "insert_compiler",
    "relate",
    "select_compiler",
    "shape_of",
    "stored_by",
    "update_compiler",
    "wrap_cursor",
]

wrap_cursor = BaseDatabaseWrapper._prepare_cursor  # type: ignore[attr-defined]
"""Django's wrapper for a cursor of the driver: it translates errors and logs queries."""


def stored_by(field: Any, connection: BaseDatabaseWrapper) -> Callable[[Any], Any] | None:
    """What makes a field's values, but None, those to send; None where they are sent as they are.

    Without this, a field's `get_db_prep_save` would ask anew for each value what kind it is.
    """
    while isinstance(field, ForeignKey):
        field = field.target_field
    match field:
        case None | CharField() | TextField() | BooleanField() | AutoField():
            return None
        case DateTimeField() | DurationField() if connection.vendor == "postgresql":
            return None
        case IntegerField():
            # PostgreSQL would prepare a statement anew for each size of a number.
            ops: Any = connection.ops
            return type(ops.adapt_integerfield_value(0, field.get_internal_type()))
    return partial(field.get_db_prep_save, connection=connection)


@dataclass(frozen=True, slots=True)
class Shape:
    """How a row of a ``SELECT`` becomes an instance, as Django's ModelIterable has it."""

    model: Any
    names: Sequence[str]
    columns: slice
    related: Sequence[Any]
    annotations: Sequence[tuple[str, int]]


def select_compiler(rows: "QuerySet[Any, Any]", connection: BaseDatabaseWrapper) -> Any:
    """The compiler of a queryset's ``SELECT``."""
    return rows.query.get_compiler(connection=connection)


def shape_of(rows: "QuerySet[Any, Any]", compiler: Any, alias: str) -> Shape:
    """The shape of a compiled ``SELECT`` of model rows."""
    selected = compiler.select
    info = compiler.klass_info
    fields = info["select_fields"]
    columns = slice(fields[0], fields[-1] + 1)
    modes = [rows._fetch_mode] if hasattr(rows, "_fetch_mode") else []  # Django 6.1 and later
    related = get_related_populators(info, selected, alias, *modes)
    _point_one_way(related)
    return Shape(
        model=info["model"],
        names=[each[0].target.attname for each in selected[columns]],
        columns=columns,
        related=related,
        annotations=list((compiler.annotation_col_map or {}).items()),
    )


def relate(row: Model, name: str, other: Model) -> None:
    """Set a one-to-one relation of a row, and none back, as an assignment would.

    Rows that refer to each other are freed by the garbage collector alone, which with ten thousand
    held requests stops everything for half a second.
    """
    field: Any = row._meta.get_field(name)
    setattr(row, field.attname, other.pk)
    field.set_cached_value(row, other)
    if field.remote_field.is_cached(other):
        field.remote_field.delete_cached_value(other)


def _point_one_way(related: Sequence[Any]) -> None:
    """Let no row refer back to the one that it was selected with, as in `relate`."""
    for each in related:
        each.remote_setter = lambda *_: None
        _point_one_way(each.related_populators)


def update_compiler(
    rows: "QuerySet[Any, Any]", values: dict[str, Any], connection: BaseDatabaseWrapper
) -> Any:
    """The compiler of an ``UPDATE`` of a queryset's rows."""
    query: Any = rows.query.chain(UpdateQuery)
    query.add_update_values(values)
    query.annotations = {}
    return query.get_compiler(connection=connection)


def insert_compiler(
    model: type[Model], fields: list[Any], row: Any, key: Any, connection: BaseDatabaseWrapper
) -> Any:
    """The compiler of an ``INSERT`` of one row, answering its key."""
    query = InsertQuery(model)
    query.insert_values(fields, [row], raw=True)
    compiler: Any = query.get_compiler(connection=connection)
    compiler.returning_fields = [key]
    return compiler
