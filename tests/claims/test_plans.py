"""Which indexes serve the calls of a claim."""

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from dispatch.models import DispatchState
from tests.support import Claim


def test_a_claim_reads_one_event_for_the_trace_of_a_queued_message(db):
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute("SET LOCAL enable_bitmapscan = off")
    plan = DispatchState.objects.with_first_work().explain()
    # PostgreSQL: (entity_id = …) AND ("offset" = …); SQLite: entity_id=? AND offset=?
    assert re.search(r'entity_id ?= ?[\w.?]+\)? AND \(?"?offset"? ?=', plan)


@pytest.mark.postgres
def test_a_claim_is_found_by_its_identity_where_few_are_active(claim: Claim):
    """An index of active claims is small when nothing runs, and read whole when a fleet does."""
    with CaptureQueriesContext(connection) as asked:
        claim.mint()
        claim.heartbeat()
        claim.done()
    updates = [
        each["sql"]
        for each in asked.captured_queries
        if each["sql"].startswith('UPDATE "claims_consumerclaim"')
    ]
    assert len(updates) == 3
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")  # the table is as small here
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        for update in updates:
            cursor.execute(f"EXPLAIN (GENERIC_PLAN) {update}")
            assert "claim_identity" in str(cursor.fetchall()), update
