"""Each part of psycopg that `core.prepared.psycopg_parts` uses is there and does what it did."""

from contextlib import suppress

import psycopg
import pytest
from django.db import NotSupportedError, connection, transaction

from core.database import is_passing
from core.prepared.psycopg_parts import LoggedCursor, ServerCursor

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

ASKED = "SELECT %s + 4711"


def test_a_cursor_binds_at_the_server():
    """Which prepares a statement, as the connection's threshold is 0."""
    connection.ensure_connection()
    with ServerCursor(connection.connection) as cursor:
        cursor.execute(ASKED, [1])
        assert cursor.fetchone() == (4712,)
        cursor.execute("SELECT statement FROM pg_prepared_statements")
        assert ("SELECT $1 + 4711",) in cursor.fetchall()


def test_get_prepared_is_asked_at_each_execution(monkeypatch):
    """With the query as psycopg has converted it."""
    asked = []
    get_prepared = psycopg.Cursor._get_prepared

    def noted(self, pgq, prepare=None):
        asked.append(pgq.query)
        return get_prepared(self, pgq, prepare)

    monkeypatch.setattr(psycopg.Cursor, "_get_prepared", noted)
    connection.ensure_connection()
    with ServerCursor(connection.connection) as cursor:
        for _ in range(2):
            cursor.execute(ASKED, [1])
    assert asked == [b"SELECT $1 + 4711"] * 2


def test_django_looks_for_the_text_where_a_logged_cursor_keeps_it():
    connection.ensure_connection()
    with LoggedCursor(connection.connection) as cursor:
        cursor.execute(ASKED, [1])
        assert cursor._query is not None
        assert cursor._query.query == b"SELECT $1 + 4711"
        told = connection.ops.last_executed_query(cursor, ASKED, [1])
    assert told == "SELECT $1 + 4711"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("of", ["a transaction", "a savepoint"])
def test_what_is_prepared_outlives_a_rollback(of):
    """psycopg would prepare everything anew."""

    def ask():
        with ServerCursor(connection.connection) as cursor:
            cursor.execute(ASKED, [1])

    connection.ensure_connection()
    with suppress(ZeroDivisionError), transaction.atomic():
        ask()
        if of == "a transaction":
            raise ZeroDivisionError
        with suppress(ZeroDivisionError), transaction.atomic():
            ask()
            raise ZeroDivisionError
    with ServerCursor(connection.connection) as cursor:
        cursor.execute("SELECT statement FROM pg_prepared_statements")
        assert ("SELECT $1 + 4711",) in cursor.fetchall()
    ask()


@pytest.mark.django_db(transaction=True)
def test_what_is_prepared_is_forgotten_once_a_column_is_another():
    """As a migration beside running servers makes it; PostgreSQL refuses the plan for good."""

    def ask():
        with connection.wrap_database_errors, ServerCursor(connection.connection) as cursor:
            return cursor.execute("SELECT name FROM changing WHERE name = %s", ["n"]).fetchall()

    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE changing AS SELECT 'n'::varchar(3) AS name")
        ask()
        cursor.execute("ALTER TABLE changing ALTER name TYPE varchar(4)")
    with pytest.raises(NotSupportedError) as refused:
        ask()
    assert is_passing(refused.value)
    assert ask() == [("n",)]
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE changing")
