"""What a server tells PostgreSQL of tables that nobody has analyzed yet."""

from contextlib import contextmanager

import pytest

from core.planner import MANY
from tests.support import wait_until

pytestmark = pytest.mark.postgres


def test_a_table_is_analyzed_once_as_soon_as_it_has_many_rows(database, start_server):
    @contextmanager
    def table(name: str, rows: int):
        numbers = f"SELECT n FROM generate_series(1, {rows}) n"  # noqa: S608
        database.execute(f"CREATE TABLE {name} WITH (autovacuum_enabled = false) AS {numbers}")
        yield
        database.execute(f"DROP TABLE {name}")

    def analyzed() -> dict[str, int]:
        counts = "SELECT relname, analyze_count FROM pg_stat_user_tables"
        return dict(database.execute(f"{counts} WHERE starts_with(relname, 'new')"))

    start_server(PULLWAKE_REAPER_INTERVAL_MS=50)
    with table("new_small", MANY - 1), table('"new, first"', MANY):
        wait_until(lambda: analyzed()["new, first"])
        with table("new_second", MANY):
            wait_until(lambda: analyzed()["new_second"])
            assert analyzed() == {"new_small": 0, "new, first": 1, "new_second": 1}
        database.execute("INSERT INTO new_small VALUES (0)")
        wait_until(lambda: analyzed()["new_small"])
