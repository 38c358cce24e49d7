"""Which indexes serve the calls of a claim."""

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

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
