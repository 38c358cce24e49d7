"""``manage.py generate_load_data``: made-up data that holds every constraint."""

import pytest
from django.conf import settings

from claims.models import ConsumerClaim
from tests.support import Database

SMALL = ("--runners=150", "--entities=1100", "--claims=2200", "--events=5500")


@pytest.fixture
def generate(database: Database):
    """Run it on a database of the test's own."""

    def run(*args: str, **env: str):
        return database.manage("generate_load_data", *args, **env)

    return run


@pytest.mark.postgres
def test_it_fills_an_empty_database(generate, database):
    done = generate(*SMALL)
    assert done.returncode == 0, done.stderr
    counted = database.execute(
        "SELECT (SELECT count(*) FROM runners_runner), (SELECT count(*) FROM dispatch_entity),"
        " (SELECT count(*) FROM dispatch_dispatchstate),"
        " (SELECT count(*) FROM claims_consumerclaim),"
        " (SELECT count(*) FROM dispatch_streamevent)"
    )
    assert counted == [(150, 1100, 1100, 2200, 5500)]
    statuses = {row[0] for row in database.execute("SELECT status FROM claims_consumerclaim")}
    assert statuses == set(ConsumerClaim.Status.values)
    woken = database.execute(
        "SELECT count(*) FROM dispatch_wake w JOIN dispatch_dispatchstate s"
        " ON s.outstanding_wake_id = w.id WHERE w.status = 'outstanding'"
    )
    assert woken[0][0] > 0
    lasting = database.execute(
        "SELECT bool_and(lease_expires_at > now() + interval '1 hour') FROM claims_consumerclaim"
        " WHERE status = 'active'"
    )
    assert lasting == [(True,)]
    said = database.execute(
        "SELECT count(*) FROM dispatch_streamevent WHERE position('\"from\"' IN data) > 0"
    )
    assert said[0][0] > 0
    assert database.execute("SELECT sum(acquired) > 0 FROM claims_claimtally") == [(True,)]


@pytest.mark.postgres
def test_it_leaves_a_database_that_is_in_use_alone(generate):
    assert generate(*SMALL).returncode == 0
    again = generate(*SMALL)
    assert again.returncode == 1
    assert "not empty" in again.stderr


def test_it_is_for_development_alone(generate):
    refused = generate(PULLWAKE_MODE="production")
    assert refused.returncode == 1
    assert "development mode" in refused.stderr


@pytest.mark.skipif(not settings.SQLITE, reason="is about SQLite")
def test_it_needs_postgresql(generate):
    assert "needs PostgreSQL" in generate().stderr
