"""Which indexes serve the calls of a claim."""

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from claims import reports
from dispatch.models import DispatchState
from tests.support import Api


def test_a_claim_reads_one_event_for_the_trace_of_a_queued_message(db):
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute("SET LOCAL enable_bitmapscan = off")
    plan = DispatchState.objects.with_first_work().explain()
    # PostgreSQL: (entity_id = …) AND ("offset" = …); SQLite: entity_id=? AND offset=?
    assert re.search(r'entity_id ?= ?[\w.?]+\)? AND \(?"?offset"? ?=', plan)


@pytest.mark.postgres
def test_no_index_of_the_active_stands_in_for_a_rows_own(alice: Api):
    """They are small when nothing runs, and would be read whole when a fleet does.

    Plans are kept, so what PostgreSQL believes when all is new matters for long.
    """
    alice.register()
    alice.make_entity()
    alice.send()
    with CaptureQueriesContext(connection) as asked:
        claim = alice.claim()
        token = claim.mint()
        claim.append({"type": "note", "key": "n1"}, token=token)
        claim.heartbeat()
        claim.done()
    statements = {
        'UPDATE "dispatch_wake"': 1,
        'UPDATE "claims_consumerclaim"': 3,
        'SELECT "claims_consumerclaim".*"write_token_hash" = ': 2,
    }
    of_active = {
        "wake_stream",
        "wake_oldest",
        "wake_stale",
        "wake_one_outstanding",
        "claim_held",
        "claim_one_active",
    }
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")  # the tables are as small here
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        for statement, count in statements.items():
            found = [e["sql"] for e in asked.captured_queries if re.match(statement, e["sql"])]
            assert len(found) == count, statement
            for sql in found:
                cursor.execute(f"EXPLAIN (GENERIC_PLAN) {sql}")
                plan = "\n".join(line for (line,) in cursor.fetchall())
                assert not of_active.intersection(re.findall(r"using (\w+)", plan)), sql


@pytest.mark.postgres
def test_what_health_changed_is_looked_for_by_how_many_runners_there_are_now(alice: Api):
    """Kept, the plan for one runner would read every row of a table for each row of another."""
    tables = ("runners_runner", "runners_runnerliveness", "runners_change")
    alice.register()
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {', '.join(tables)}")
        reports.tell_health(limit=99)  # no other test asks for so many
        cursor.execute(
            "INSERT INTO runners_runner (id, owner_principal, label, kind, admin_status,"
            " sandbox_profiles, claim_lease_ms) SELECT 'new' || n, owner_principal, label, kind,"
            " admin_status, '[]', 30000 FROM runners_runner, generate_series(1, 500) AS n"
        )
        cursor.execute(
            "INSERT INTO runners_runnerliveness (runner_id) SELECT id FROM runners_runner"
            " WHERE id LIKE 'new%'"
        )
        cursor.execute(
            "INSERT INTO runners_change (kind, key, transaction, owner, told, other_owner, type,"
            " registration, retagged, gone, departed) SELECT 'runner', id, 0, owner_principal,"
            " 'offline degraded', '', '', '', 0, FALSE, FALSE FROM runners_runner"
            " WHERE id LIKE 'new%'"
        )
        read = (
            "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables"
            " WHERE relname = ANY (%s)"
        )
        cursor.execute(read, [list(tables)])
        (before,) = cursor.fetchone()
        assert reports.tell_health(limit=99) == 0
        cursor.execute(read, [list(tables)])
        assert cursor.fetchone()[0] - before < 10 * 500
