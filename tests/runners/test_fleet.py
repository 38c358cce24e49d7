"""What a runner's health costs where it has many entities."""

from typing import Any

import pytest
from django.db import connection
from django.db.models import OuterRef

from claims.reports import count_of
from dispatch.models import DispatchState, Wake
from runners.models import Runner


@pytest.mark.parametrize(
    ("rows", "index"),
    [
        (DispatchState.objects.claimed(), "state_claimed"),
        (DispatchState.objects.unwoken(), "state_unwoken"),
        (Wake.objects.outstanding(), "wake_"),
    ],
)
def test_an_index_alone_counts_what_a_runner_has(db, rows: Any, index: str):
    by_an_index_alone = "COVERING INDEX"
    if connection.vendor == "postgresql":
        by_an_index_alone = "Index Only Scan"
        table = connection.ops.quote_name(rows.model._meta.db_table)
        with connection.cursor() as cursor:
            cursor.execute(f"REINDEX TABLE {table}")  # rows of other tests swell it
            cursor.execute(f"ANALYZE {table}")
            # Small as the tables are here, it would read them.
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute("SET LOCAL enable_bitmapscan = off")
    plan = Runner.objects.filter(pk="r1").values_list(count_of(rows, OuterRef("pk"))).explain()
    assert f"{by_an_index_alone} " in plan
    assert index in plan
