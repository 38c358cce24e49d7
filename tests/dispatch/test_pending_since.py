"""Since when work is pending: the oldest message or unhandled signal past the cursor."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from dispatch.models import DispatchState, Entity, StreamEvent
from dispatch.wakes import oldest_work


@pytest.fixture
def entity(alice):
    """Alice's entity, with nothing to do."""
    alice.register()
    alice.make_entity()
    return alice


def age() -> None:
    """Let each event be as many minutes old as there are from it to the newest."""
    newest = StreamEvent.objects.count()
    for event in StreamEvent.objects.all():
        at = Now() - timedelta(minutes=1 + newest - event.offset)
        StreamEvent.objects.filter(pk=event.pk).update(created_at=at)


def pending_offset() -> int | None:
    """The offset of the event since which work is pending; states and entities agree."""
    age()
    rows: list[Any] = [
        DispatchState.objects.with_pending_since().get(),
        Entity.objects.with_pending_since().get(),
    ]
    (since,) = {row.pending_since for row in rows}
    return StreamEvent.objects.filter(created_at=since).values_list("offset", flat=True).first()


def test_it_is_none_while_nothing_is(entity):
    assert pending_offset() is None
    entity.signal("/agent/e1", "SIGSTOP")  # handled: an event, but no work
    assert pending_offset() is None


def test_it_is_the_oldest_message(entity):
    entity.send()
    entity.send()
    assert pending_offset() == 2


def test_it_is_a_signal_that_the_handler_must_see(entity):
    entity.signal("/agent/e1", "SIGSTOP")
    entity.signal("/agent/e1", "SIGUSR")
    assert pending_offset() == 3


def test_it_is_no_event_that_a_handler_wrote_whatever_it_says(entity):
    entity.send()
    claim = entity.claim()
    said = {"type": "inbox", "key": "k", "value": {"payload": "from a handler"}}
    assert claim.append(said, token=claim.mint()).status == 204
    entity.send()
    assert claim.done().status == 200
    assert pending_offset() == 4


def test_it_is_over_once_it_is_acknowledged(entity):
    entity.send()
    entity.claim().done()
    assert pending_offset() is None
    assert DispatchState.objects.filter(cursor=F("tail")).exists()


@pytest.mark.sqlite
def test_its_index_serves_sqlite_under_either_django(entity):
    """One database may be made under 5.2 and used under 6.1: both write the condition alike."""
    entity.send()
    state = DispatchState.objects.get()
    with CaptureQueriesContext(connection) as asked:
        DispatchState.objects.with_pending_since().get()
        assert oldest_work(state, state.cursor) is not None
    with connection.cursor() as cursor:
        cursor.execute("SELECT sql FROM sqlite_master WHERE name = 'event_work'")
        assert cursor.fetchone()[0].endswith('WHERE "work"')
        for each in asked.captured_queries:
            cursor.execute(f"EXPLAIN QUERY PLAN {each['sql']}")
            assert "USING INDEX event_work" in str(cursor.fetchall()), each["sql"]
