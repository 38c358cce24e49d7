"""The existing server's PostgreSQL database, read in one snapshot that changes nothing.

Its tables are known by the columns that they have: before its migration 0007 ``runners`` has
``owner_user_id``, after it ``owner_principal``.
"""

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg
from django.db import connection, transaction
from psycopg import IsolationLevel
from psycopg.rows import dict_row
from psycopg.sql import SQL, Composable, Identifier
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.json import set_json_loads

from core.bodies import MAX_DEPTH

REQUIRED = {
    "entities": {"url", "type", "status", "parent", "created_at"},
    "runners": {"id"},
}
"""Tables, and columns of them, without which it is another database."""

READ = (
    "runners",
    "runner_runtime_diagnostics",
    "entity_types",
    "entity_type_permission_grants",
    "entities",
    "entity_dispatch_state",
    "consumer_claims",
    "scheduled_tasks",
    "wake_registrations",
)
"""The tables that are read row by row; of others the rows are counted."""

Row = dict[str, Any]

_NOTHING = SQL("")


class Unreadable(Exception):
    """Nothing can be read there; the message is a sentence that says why."""


class Source:
    """What one tenant has. ``now`` is when the snapshot was taken."""

    def __init__(self, source: "psycopg.Connection[Row]", tenant: str) -> None:
        self._source = source
        self.tenant = tenant
        self.columns: dict[str, set[str]] = {}
        named = source.execute(
            "SELECT c.table_name, c.column_name FROM information_schema.columns c"
            " JOIN information_schema.tables t USING (table_schema, table_name)"
            " WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
        )
        for row in named:
            self.columns.setdefault(row["table_name"], set()).add(row["column_name"])
        for table, columns in REQUIRED.items():
            if not columns <= self.columns.get(table, set()):
                raise Unreadable(
                    "This is no database of the existing server: it has no table "
                    f"{table} with {', '.join(sorted(columns))}."
                )
        self.now = source.execute("SELECT now()").fetchone()["now"]  # type: ignore[index]

    def rows(self, table: str, *, order: Sequence[str] = ()) -> Iterator[Row]:
        """The tenant's rows of a table, a thousand at a time; none where there is no such table."""
        if table not in self.columns:
            return
        known = [each for each in order if each in self.columns[table]]
        by = (
            SQL(" ORDER BY {}").format(SQL(", ").join(map(Identifier, known)))
            if known
            else _NOTHING
        )
        with self._source.cursor(name=f"moving_{table}") as cursor:
            cursor.itersize = 1000
            cursor.execute(
                SQL("SELECT * FROM {}{}{}").format(Identifier(table), self._own(table), by)
            )
            yield from cursor

    def named(self, table: str, column: str, keys: Sequence[str]) -> list[Row]:
        """The tenant's rows that have one of these values in the column."""
        return self._named(SQL("*"), table, column, keys)

    def epochs(self, urls: Sequence[str]) -> dict[str, int]:
        """The highest epoch of a claim of each of these entities that had one."""
        what = SQL("entity_url, max(epoch) AS epoch")
        rows = self._named(what, "consumer_claims", "entity_url", urls, SQL(" GROUP BY entity_url"))
        return {row["entity_url"]: row["epoch"] for row in rows}

    def urls(self) -> list[tuple[str, str]]:
        """Each entity's URL and its parent's or "", in the order in which they were made."""
        found = self._source.execute(
            SQL("SELECT url, parent FROM entities{} ORDER BY created_at, url").format(
                self._own("entities")
            )
        )
        return [(row["url"], row["parent"] or "") for row in found]

    def count(self, table: str) -> int:
        """How many rows the tenant has in a table."""
        found = self._source.execute(
            SQL("SELECT count(*) AS rows FROM {}{}").format(Identifier(table), self._own(table))
        )
        return int(found.fetchone()["rows"])  # type: ignore[index]

    def other_tenants(self) -> dict[str, int]:
        """How many entities and runners each of the others has."""
        others: dict[str, int] = {}
        for table in REQUIRED:
            if "tenant_id" in self.columns[table]:
                found = self._source.execute(
                    SQL(
                        "SELECT tenant_id, count(*) AS rows FROM {} WHERE tenant_id <> %s"
                        " GROUP BY tenant_id ORDER BY tenant_id"
                    ).format(Identifier(table)),
                    [self.tenant],
                )
                for row in found:
                    others[row["tenant_id"]] = others.get(row["tenant_id"], 0) + row["rows"]
        return others

    def _named(
        self,
        what: Composable,
        table: str,
        column: str,
        keys: Sequence[str],
        end: Composable = _NOTHING,
    ) -> list[Row]:
        if column not in self.columns.get(table, set()):
            return []
        statement = SQL("SELECT {} FROM {}{}{}{} = ANY({}){}").format(
            what,
            Identifier(table),
            self._own(table),
            SQL(" AND ") if "tenant_id" in self.columns[table] else SQL(" WHERE "),
            Identifier(column),
            list(keys),
            end,
        )
        return self._source.execute(statement).fetchall()

    def _own(self, table: str) -> Composable:
        if "tenant_id" not in self.columns[table]:
            return _NOTHING
        return SQL(" WHERE tenant_id = {}").format(self.tenant)


class _Time(TimestamptzLoader):
    """A time, or None for one that Python has none for: infinity, before Christ, after 9999."""

    def load(self, data: Any) -> Any:
        """Load it."""
        try:
            return super().load(data)
        except psycopg.DataError:
            return None


_TOO_DEEP: Any = json.loads("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
"""What no request may hold, either, and is refused with the same reason."""


def _json(data: str | bytes) -> Any:
    """The value, or `_TOO_DEEP`: how deep Python can read differs by its version.

    A value with a number of more digits than Python reads is given as it is, and refused with it.
    """
    try:
        return json.loads(data)
    except RecursionError:
        return _TOO_DEEP
    except ValueError:
        return msgspec.Raw(data)


@contextmanager
def opened(url: str, tenant: str) -> Iterator[Source]:
    """The database at an address. Raises Unreadable for one that cannot be read, and for ours."""
    try:
        with psycopg.connect(url, connect_timeout=10, row_factory=dict_row) as source:
            source.isolation_level = IsolationLevel.REPEATABLE_READ
            source.read_only = True
            source.adapters.register_loader("timestamptz", _Time)
            set_json_loads(_json, source)
            for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
                source.execute(SQL("SET LOCAL {} = 0").format(Identifier(name)))
            if _is_ours(source):
                raise Unreadable(
                    "This is the database that Pullwake itself is on (DATABASE_URL in its "
                    "environment). Name the existing server's."
                )
            yield Source(source, tenant)
    except psycopg.Error as problem:
        said = str(problem).strip().partition("\n")[0] or type(problem).__name__
        raise Unreadable(f"The existing server's database cannot be read: {said}") from None


def _is_ours(source: "psycopg.Connection[Row]") -> bool:
    """Whether a lock of ours is seen there: whatever the two addresses look like."""
    if connection.vendor != "postgresql":
        return False
    one, other = secrets.randbits(31), secrets.randbits(31)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [one, other])
        seen = source.execute(
            "SELECT 1 FROM pg_locks JOIN pg_database ON pg_database.oid = database"
            " WHERE locktype = 'advisory' AND datname = current_database()"
            " AND classid = %s AND objid = %s",
            [one, other],
        )
        return seen.fetchone() is not None
