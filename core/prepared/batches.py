"""What many requests ask of the database at the same moment, asked in one statement.

A round trip costs more than most of what is said in it (docs/performance.md has the numbers). So
requests of one process that are there together, and ask the same of different rows, share a
statement; and while it is answered, the next gathers. Nobody waits for company.

Only outside of transactions, which have a connection of their own, and on PostgreSQL: on SQLite
nothing else runs meanwhile.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.db.models import BooleanField, Func, Model, QuerySet

from core.database import hand_back, is_passing, note_trouble
from core.prepared.statements import Param, Row, Select, Update, filled, literal

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Model)
Q = TypeVar("Q")
A = TypeVar("A")


class _Batch(Generic[Q, A]):
    """Questions by the key of the row that each is about, and their answers."""

    def __init__(self) -> None:
        self.questions: dict[str, Q] = {}
        self.answers: Mapping[str, A] = {}
        self.error: Exception | None = None
        self.over = threading.Event()


class Batches(Generic[Q, A]):
    """Answers questions by ``one``, which takes a row's key and a question, or by ``many``.

    ``many`` waits for no row's lock. What it leaves unanswered is asked by ``one``; so is all of
    it, if it fails, unless that is because the database is away.
    """

    def __init__(
        self, one: Callable[[str, Q], A], many: Callable[[dict[str, Q]], Mapping[str, A]]
    ) -> None:
        self._one = one
        self._many = many
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._next: _Batch[Q, A] = _Batch()

    def ask(self, key: str, question: Q) -> A:
        """The answer; raises what ``one`` raises, and what the database's being away does."""
        database = connections[DEFAULT_DB_ALIAS]
        if database.vendor != "postgresql" or database.in_atomic_block:
            return self._one(key, question)
        with self._lock:
            batch = self._next
            leads = not batch.questions
            joins = key not in batch.questions
            if joins:
                batch.questions[key] = question
        if not joins:  # of two that ask of one row, each has an answer of its own
            return self._one(key, question)
        # Those that wait could hold all connections, and who asks for them needs one.
        if leads:
            self._answer(batch)
        else:
            hand_back()
            batch.over.wait()
        if batch.error is not None:
            raise batch.error
        if key in batch.answers:
            return batch.answers[key]
        return self._one(key, question)

    def _answer(self, batch: _Batch[Q, A]) -> None:
        """Wait until the batch before is answered, while others join this one, and answer it."""
        try:
            hand_back()
            with self._turn:
                time.sleep(0)  # whose request is there already joins
                self._close(batch)
                # Who is alone asks when nobody's turn is held: a row's lock may be waited for.
                if len(batch.questions) > 1:
                    batch.answers = self._many(batch.questions)
        except Exception as exc:  # noqa: BLE001  who asked raises it, or asks alone
            note_trouble(logger, "a batch of statements failed", exc)
            if is_passing(exc):
                batch.error = exc
        finally:  # also where this thread is ended
            self._close(batch)
            batch.over.set()

    def _close(self, batch: _Batch[Q, A]) -> None:
        """Let nobody join any more."""
        with self._lock:
            if self._next is batch:
                self._next = _Batch()


class OneOf(Func):
    """The condition, on PostgreSQL, that a text is one of a param's, which is a list."""

    output_field = BooleanField()
    arg_joiner = " = ANY ("
    template = "%(expressions)s)"


class ByKey(Generic[M]):
    """A prepared ``SELECT`` of one of these rows by its key, or of those that many ask for."""

    def __init__(self, build: "Callable[[], QuerySet[M]]") -> None:
        one = Select(lambda: build().filter(pk=Param("key")))
        many: Select[Any] = Select(lambda: build().filter(OneOf("pk", Param("keys"))))
        self._batches: Batches[None, M | None] = Batches(
            lambda key, _: one.first(key=key),
            lambda asked: {row.pk: row for row in many.all(keys=list(asked))},
        )

    def first(self, key: str) -> M | None:
        """The row with this key, or None."""
        return self._batches.ask(key, None)


class UpdateByKey:
    """A prepared ``UPDATE`` of one row, or of those for which many ask it at the same moment.

    ``key`` is a unique column of texts, and the param that names the row; what else is compared or
    written are params, columns, texts and numbers. A row that another transaction holds is updated
    by itself, so that nobody waits for it who asked of other rows.
    """

    def __init__(
        self,
        build: "Callable[[], QuerySet[Any]]",
        key: str,
        returning: Sequence[str] = (),
        **values: Any,
    ) -> None:
        one = Update(build, (key, *returning), **values)
        many = _UpdateOfMany(build, (key, *returning), **values)
        self._key = key
        self._batches = Batches(lambda _, values: one.returned(**values), many.update)

    def count(self, **values: Any) -> int:
        """1 if it changed the row, or else 0."""
        return len(self.returned(**values))

    def returned(self, **values: Any) -> list[Row]:
        """The ``returning`` fields of the row, if it changed it."""
        return [row[1:] for row in self._batches.ask(values[self._key], values)]


class _UpdateOfMany(Update):
    """The same ``UPDATE`` for each of many rows, of those that nobody holds."""

    def update(self, asked: dict[str, dict[str, Any]]) -> dict[str, list[Row]]:
        """What it returns of each row that it changed, by the row's key."""
        rows = json.dumps(list(asked.values()), default=str)
        return {row[0]: [row] for row in self.returned(asked=rows, keys=list(asked))}

    def _written(self, meta: Any, sql: str, params: Sequence[Any]) -> tuple[str, Sequence[Any]]:
        quote = connection.ops.quote_name
        table, pk = quote(meta.db_table), quote(meta.pk.column)
        key = quote(meta.get_field(self._returning[0]).column)
        named = {each.name: each for each in params if isinstance(each, Param)}
        told = ", ".join(f"{quote(name)} {_kind(each)}" for name, each in named.items())
        update, _, where = filled(sql, map(_asked, params)).partition(" WHERE ")
        return (
            f"WITH told AS (SELECT * FROM jsonb_to_recordset(%s::jsonb) AS told ({told})),"  # noqa: S608
            f" asked AS (SELECT {table}.{pk} AS of_row, asked.* FROM {table}, told AS asked"
            f" WHERE {table}.{key} = ANY (%s) AND {where}"
            f" FOR NO KEY UPDATE OF {table} SKIP LOCKED)"
            f" {update} FROM asked WHERE {table}.{pk} = asked.of_row AND {where}"
        ), [Param("asked"), Param("keys")]


def _kind(param: Param) -> str:
    return "text" if param.stored_as is None else str(param.stored_as.db_type(connection))


def _asked(value: Any) -> str:
    if isinstance(value, Param):
        return f"asked.{connection.ops.quote_name(value.name)}"
    return literal(value)
