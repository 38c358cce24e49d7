"""A runner, or an entity, that is deleted with more behind it than one statement can let go of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection

from claims import endings, retention
from claims.models import ConsumerClaim
from core.errors import NotFound
from dispatch.models import Entity, Wake
from runners.models import Runner
from tests.support import Api

BATCH, KEPT, PAST = 3, 4, 12
RUNNER, ENTITY = "/_electric/runners/r1", "/_electric/entities/agent/e1"


@pytest.fixture(autouse=True)
def _past(alice: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims of e1 by r1 that ended, each with its wake."""
    monkeypatch.setattr(endings, "KEPT", KEPT)
    monkeypatch.setattr(retention, "BATCH", BATCH)
    alice.register()
    alice.make_entity()
    for _ in range(PAST):
        alice.send()
        assert alice.claim().done().status == 200


@contextmanager
def written() -> Iterator[list[int]]:
    """Collects how many rows each statement of the block changes."""
    counts: list[int] = []

    def watch(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        answer = execute(sql, params, many, context)
        about = any(name in sql for name in ("claims_consumerclaim", "dispatch_wake"))
        if about and sql.startswith(("UPDATE", "DELETE")):
            counts.append(context["cursor"].rowcount)
        return answer

    with connection.execute_wrapper(watch):
        yield counts


@pytest.mark.parametrize("path", [RUNNER, ENTITY])
def test_no_statement_writes_more_than_a_batch_or_what_is_kept_to_the_end(alice: Api, path: str):
    with written() as counts:
        assert alice("DELETE", path).status == 204
    assert max(counts) == max(BATCH, KEPT)
    claims = ConsumerClaim.objects.filter(runner_name="r1", entity_url="/agent/e1")
    assert claims.filter(status="released").count() == PAST


def test_nor_where_an_operator_deletes_it(admin_client: Any):
    ask = "/admin/runners/runner/do/delete/"
    with written() as counts:
        answer = admin_client.post(ask, {"pk": "r1", "reason": "It is old."})
    assert answer.status_code == 302
    assert not Runner.objects.exists()
    assert max(counts) == max(BATCH, KEPT)


def test_a_runner_that_another_registers_meanwhile_keeps_its_past(alice: Api, bob: Api):
    former = Runner.objects.get()
    assert alice("DELETE", RUNNER).status == 204
    bob.register()
    bob.make_entity("/agent/bobs")
    for _ in range(PAST):
        bob.send("/agent/bobs")
        assert bob.claim().done().status == 200
    with pytest.raises(NotFound):
        endings.forget_past_of_runner(former)
    assert Runner.objects.get().claims.count() == PAST


def test_a_runner_that_is_not_deleted_after_all_keeps_what_its_health_is_told_from(alice: Api):
    endings.forget_past_of_runner(Runner.objects.get())
    runner = Runner.objects.get()
    for rows in (ConsumerClaim.objects, Wake.objects):
        newest = rows.order_by("-pk").values_list("pk", flat=True)[:KEPT]
        assert set(rows.filter(runner=runner).values_list("pk", flat=True)) == set(newest)
    assert ConsumerClaim.objects.filter(runner_name="r1").count() == PAST


def test_an_entity_that_is_not_deleted_after_all_keeps_its_stream_and_wakes_on(alice: Api):
    events = alice.events()
    endings.forget_past_of_entity(Entity.objects.get())
    assert alice.events() == events
    alice.send()
    assert alice.claim().epoch == PAST + 1
