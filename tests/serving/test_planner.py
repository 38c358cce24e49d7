"""What a server tells PostgreSQL of tables that nobody has analyzed yet, or not as they are."""

from contextlib import contextmanager

import pytest

from core.planner import MANY
from tests.support import wait_until

pytestmark = pytest.mark.postgres


@contextmanager
def table(database, name: str, rows: int):
    numbers = f"SELECT n FROM generate_series(1, {rows}) n"  # noqa: S608
    database.execute(f"CREATE TABLE {name} WITH (autovacuum_enabled = false) AS {numbers}")
    yield
    database.execute(f"DROP TABLE {name}")


def analyzed(database) -> dict[str, int]:
    counts = "SELECT relname, analyze_count FROM pg_stat_user_tables"
    return dict(database.execute(f"{counts} WHERE starts_with(relname, 'new')"))


def test_a_table_is_analyzed_once_as_soon_as_it_has_many_rows(database, start_server):
    start_server(PULLWAKE_REAPER_INTERVAL_MS=50)
    with table(database, "new_small", MANY - 1), table(database, '"new, first"', MANY):
        wait_until(lambda: analyzed(database)["new, first"])
        with table(database, "new_second", MANY):
            wait_until(lambda: analyzed(database)["new_second"])
            assert analyzed(database) == {"new_small": 0, "new, first": 1, "new_second": 1}
        database.execute("INSERT INTO new_small VALUES (0)")
        wait_until(lambda: analyzed(database)["new_small"])


def test_a_table_is_analyzed_again_when_it_has_half_as_many_rows_again(database, start_server):
    start_server(PULLWAKE_REAPER_INTERVAL_MS=50)
    with table(database, "new_grown", 2 * MANY), table(database, "new_hardly", 2 * MANY):
        wait_until(lambda: set(analyzed(database).values()) == {1})
        for name, more in (("new_hardly", MANY - 1), ("new_grown", MANY)):
            database.execute(f"INSERT INTO {name} SELECT generate_series(1, {more})")
        wait_until(lambda: analyzed(database)["new_grown"] == 2)
        assert analyzed(database)["new_hardly"] == 1
