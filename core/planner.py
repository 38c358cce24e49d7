"""What PostgreSQL must know of tables that are new, were restored or have grown, to plan well.

Servers keep the plan that they made first (``plan_cache_mode`` in the settings) until the table's
statistics change. Autovacuum makes them after a minute or so; without any, or with those of before
a fleet came, an index that fits in part may seem as good as the one that fits, and then a statement
reads the whole table, or does so for each row of another.
"""

from django.db import connection, transaction

from core.database import take_as_long_as_needed

MANY = 1_000
"""Rows from which on a table is analyzed. A smaller one PostgreSQL would plan to read whole."""

GROWN = 1.5
"""A table is analyzed again when it has this many times the rows that it had then."""

_UNKNOWN = """
SELECT stats.relid::regclass::text
FROM pg_stat_user_tables AS stats JOIN pg_class AS relation ON relation.oid = stats.relid
WHERE (last_analyze IS NULL AND last_autoanalyze IS NULL OR n_live_tup >= %s * reltuples)
    AND n_live_tup >= %s AND schemaname = current_schema() AND pg_has_role(relowner, 'USAGE')
"""


def analyze_grown_tables() -> list[str]:
    """Analyze what has `MANY` rows and never was, or has `GROWN` since: these tables' names."""
    if connection.vendor != "postgresql":
        return []
    with connection.cursor() as cursor:
        cursor.execute(_UNKNOWN, [GROWN, MANY])
        names: list[str] = [name for (name,) in cursor.fetchall()]
    for name in names:
        with transaction.atomic(), connection.cursor() as cursor:
            take_as_long_as_needed()
            cursor.execute(f"ANALYZE (SKIP_LOCKED) {name}")  # quoted by regclass
    return names
