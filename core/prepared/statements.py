"""Statements that are compiled once, for the few that runners run all the time.

Django builds and compiles a query each time that it runs, which takes several times as long as
running it (docs/performance.md has the numbers). A prepared statement is written like any other
query, with a `Param` for each value that differs between runs, and is compiled by its first run.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Generic, TypeVar

from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.db.models import Expression, Model, QuerySet

from core.prepared import django_parts as parts
from core.prepared.psycopg_parts import LoggedCursor, ServerCursor

M = TypeVar("M", bound=Model)
Row = tuple[Any, ...]
Take = Callable[[Iterable[Row]], list[Row]]


class Param(Expression):
    """A value that each run supplies under this name.

    ``field`` says how it is stored; without one it is text or a number, as every database takes it.
    """

    def __init__(self, name: str, field: Any = None) -> None:
        super().__init__(output_field=field)
        self.name = name
        self.stored_as = field

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, tuple["Param"]]:  # type: ignore[override]
        """A placeholder, whose value is this param until a run binds it."""
        return "%s", (self,)


class _Statement:
    """SQL with params, and what its rows' columns become."""

    def __init__(
        self,
        sql: str,
        params: Sequence[Any],
        compiler: Any,
        columns: list[Any],
        take: Take | None = None,
        replanned: bool = False,
    ) -> None:
        bound = [each for each in params if not isinstance(each, str | int)]
        self._names = [each.name for each in bound if isinstance(each, Param)]
        # The places of what is the same in each run, and of what must be stored as its column is.
        self._fixed: list[tuple[int, Any]] = []
        self._stored: list[tuple[int, Callable[[Any], Any]]] = []
        for place, each in enumerate(bound):
            if not isinstance(each, Param):
                self._fixed.append((place, each))
            elif (store := parts.stored_by(each.stored_as, connection)) is not None:
                self._stored.append((place, store))
        self._sql = _with_literals(sql, params)
        self._compiler = compiler
        self._converters = compiler.get_converters(columns)
        self._answers = bool(columns)
        self._take = take
        self._replanned = replanned

    def run(self, values: dict[str, Any]) -> tuple[int, list[Row]]:
        """Run it: how many rows it concerned, and the rows that it returned."""
        # Looked up once: each use of `django.db.connection` asks which thread this is.
        database = connections[DEFAULT_DB_ALIAS]
        params = [values[name] for name in self._names]
        for place, value in self._fixed:
            params.insert(place, value)
        for place, store in self._stored:
            if params[place] is not None:
                params[place] = store(params[place])
        count, rows = execute(
            database,
            self._sql,
            params,
            answers=self._answers,
            take=self._take,
            replanned=self._replanned,
        )
        if self._converters:
            rows = [tuple(r) for r in self._compiler.apply_converters(rows, self._converters)]
        return count, rows


def execute(
    database: Any,
    sql: str,
    params: Sequence[Any],
    *,
    answers: bool,
    take: Take | None = None,
    replanned: bool = False,
) -> tuple[int, list[Row]]:
    """Run a statement: how many rows it concerned, and those that it ``answers`` with.

    SQLite reads a row when it is fetched: there ``take`` may leave those that it has no use for.

    PostgreSQL prepares it, because its parameters are bound on the server, unless it is to be
    ``replanned``. Where nobody looks on, it needs nothing of Django's cursor but its errors, and
    that a broken transaction runs nothing.
    """
    if database.vendor == "postgresql":
        if database.connection is None:
            database.ensure_connection()
        if not (database.queries_logged or database.execute_wrappers):
            database.validate_no_broken_transaction()
            with database.wrap_database_errors, ServerCursor(database.connection) as cursor:
                cursor.execute(sql, params, prepare=False if replanned else None)
                return cursor.rowcount, cursor.fetchall() if answers else []
        kind = LoggedCursor if database.queries_logged else ServerCursor
        looked_at = parts.wrap_cursor(database, kind(database.connection))
    else:
        looked_at = database.cursor()
    with looked_at:
        looked_at.execute(sql, params)
        if take is not None and database.vendor == "sqlite":
            return looked_at.rowcount, take(looked_at)
        rows = looked_at.fetchall() if answers else []
        return looked_at.rowcount, rows


def _with_literals(sql: str, params: Sequence[Any]) -> str:
    """The SQL with the texts and numbers that never change written out.

    A plan for any value of ``status`` could not use an index of the active rows.
    """
    return filled(sql, map(literal, params))


def filled(sql: str, texts: Iterator[str]) -> str:
    """The SQL with these in place of its params."""
    return re.sub(r"(?<!%)%s", lambda _: next(texts), sql)


def literal(value: Any) -> str:
    """A text or a number as SQL; of anything else the place of a param."""
    if isinstance(value, str):
        value = value.replace("'", "''").replace("%", "%%")
        return f"'{value}'"
    return str(value) if isinstance(value, int) else "%s"


class _Prepared(ABC):
    _statement: _Statement | None = None

    def _run(self, values: dict[str, Any]) -> tuple[int, list[Row]]:
        if self._statement is None:
            # Set only when all is compiled, since another thread may run it at the same time.
            self._statement = self._compiled()
        return self._statement.run(values)

    @abstractmethod
    def _compiled(self) -> _Statement: ...


class Values(_Prepared):
    """A prepared ``SELECT`` of what a queryset's ``values_list`` names.

    ``take`` is what fetches its rows on SQLite; see `execute`. ``replanned``: PostgreSQL plans it
    each time that it runs, by how large the tables are then.
    """

    def __init__(
        self,
        build: "Callable[[], QuerySet[Any, Any]]",
        take: Take | None = None,
        *,
        replanned: bool = False,
    ) -> None:
        self._build = build
        self._take = take
        self._replanned = replanned

    def all(self, **values: Any) -> list[Row]:
        """The rows for these values of its params."""
        return self._run(values)[1]

    def first(self, **values: Any) -> Row | None:
        """The first of `all`."""
        return next(iter(self.all(**values)), None)

    def _compiled(self) -> _Statement:
        rows = self._build()
        compiler = parts.select_compiler(rows, connection)
        sql, params = compiler.as_sql()
        columns = [each[0] for each in compiler.select]
        self._note(rows, compiler)
        return _Statement(sql, params, compiler, columns, self._take, self._replanned)

    def _note(self, rows: "QuerySet[Any, Any]", compiler: Any) -> None:
        """Keep what is needed of a compiled query: each thread that compiles it notes the same."""


class Select(Values, Generic[M]):
    """A prepared ``SELECT`` of a model's rows, with what it annotates and relates to."""

    def __init__(self, build: "Callable[[], QuerySet[M]]") -> None:
        super().__init__(build)

    def all(self, **values: Any) -> list[M]:  # type: ignore[override]  # rows of another kind
        """The rows for these values of its params."""
        return [self._instance(row) for row in super().all(**values)]

    def first(self, **values: Any) -> M | None:  # type: ignore[override]  # a row of another kind
        """The first of `all`."""
        return next(iter(self.all(**values)), None)

    def _note(self, rows: "QuerySet[Any, Any]", compiler: Any) -> None:
        self._shape = parts.shape_of(rows, compiler, connection.alias)

    def _instance(self, row: Row) -> M:
        shape = self._shape
        instance: M = shape.model.from_db(connection.alias, shape.names, row[shape.columns])
        for related in shape.related:
            related.populate(row, instance)
        for name, place in shape.annotations:
            setattr(instance, name, row[place])
        return instance


class Update(_Prepared):
    """A prepared ``UPDATE``; its filters may use columns of the table itself only."""

    def __init__(
        self,
        build: "Callable[[], QuerySet[Any]]",
        returning: Sequence[str] = (),
        **values: Any,
    ) -> None:
        self._build = build
        self._returning = returning
        self._values = values

    def count(self, **values: Any) -> int:
        """How many rows it changed: the verdict of a guarded transition."""
        return self._run(values)[0]

    def returned(self, **values: Any) -> list[Row]:
        """The ``returning`` fields of each row that it changed."""
        return self._run(values)[1]

    def _compiled(self) -> _Statement:
        rows = self._build()
        compiler = parts.update_compiler(rows, self._values, connection)
        meta = rows.model._meta
        columns = [parts.Col(meta.db_table, meta.get_field(name)) for name in self._returning]
        sql, params = self._written(meta, *compiler.as_sql())
        if columns:
            sql = f"{sql} RETURNING {', '.join(compiler.compile(each)[0] for each in columns)}"
        return _Statement(sql, params, compiler, columns)

    def _written(self, meta: Any, sql: str, params: Sequence[Any]) -> tuple[str, Sequence[Any]]:
        """The statement and its params, as Django compiled it for a table."""
        return sql, params


class Insert(_Prepared):
    """A prepared ``INSERT`` of one row: all its columns but a key that the database gives.

    ``values`` are the columns that the database computes, also from params that are not columns.
    """

    def __init__(self, model: type[Model], **values: Expression) -> None:
        self._model = model
        self._values = values

    def add(self, row: Model, **values: Any) -> None:
        """Insert a row, and give it its key."""
        ((row.pk,),) = self._run({**vars(row), **values})[1]

    def _compiled(self) -> _Statement:
        key: Any = self._model._meta.pk
        columns = self._model._meta.concrete_fields
        fields = [each for each in columns if each is not key or not key.db_returning]
        given = {field.attname: Param(field.attname, field) for field in fields}
        row: Any = SimpleNamespace(**{**given, **self._values})
        compiler = parts.insert_compiler(self._model, fields, row, key, connection)
        ((sql, bound),) = compiler.as_sql()
        return _Statement(sql, bound, compiler, [parts.Col(self._model._meta.db_table, key)])


class SaveChanged:
    """Prepared ``UPDATE``s, each of the columns of a row that changed together."""

    def __init__(self, model: type[Model]) -> None:
        self._model = model
        self._updates: dict[tuple[str, ...], Update] = {}

    @cached_property
    def _columns(self) -> list[str]:
        fields = self._model._meta.concrete_fields
        return [field.attname for field in fields if not field.primary_key]

    def save(self, row: Model, kept: dict[str, Any]) -> None:
        """Write back what is another now than is ``kept``, if anything is, and keep it."""
        values = vars(row)
        changed = tuple([name for name in self._columns if values[name] != kept[name]])
        if not changed:
            return
        update = self._updates.get(changed)
        if update is None:
            update = self._updates[changed] = self._update(changed)
        update.count(**values)
        for name in changed:
            kept[name] = values[name]

    def _update(self, changed: Sequence[str]) -> Update:
        meta: Any = self._model._meta
        key = meta.pk
        fields = [meta.get_field(name) for name in changed]
        written: dict[str, Any] = {field.name: Param(field.attname, field) for field in fields}
        rows = self._model._default_manager.filter(pk=Param(key.attname, key))
        return Update(lambda: rows, **written)
