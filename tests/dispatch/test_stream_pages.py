"""Where an answer of a long stream is cut, and that no more is fetched than it gives."""

import tracemalloc

import pytest
from django.db import connection

from dispatch.models import SharedStateEvent, StreamEvent
from dispatch.streams.reads import EventsOf, SharedEventsOf
from dispatch.streams.scan import PAGE_BYTES, PAGE_EVENTS
from tests.factories import EntityFactory, SharedStateFactory

pytestmark = pytest.mark.django_db


def of_entity(texts, begin=1):
    entity = EntityFactory.create(created=None, dispatch_state__tail=len(texts) + begin - 1)
    StreamEvent.objects.bulk_create(
        StreamEvent(entity=entity, offset=offset, data=text)
        for offset, text in enumerate(texts, start=begin)
    )
    return EventsOf(entity.pk, bool)


def of_shared_state(texts, begin=1):
    state = SharedStateFactory.create(event=None, tail=len(texts) + begin - 1)
    SharedStateEvent.objects.bulk_create(
        SharedStateEvent(state=state, offset=offset, data=text)
        for offset, text in enumerate(texts, start=begin)
    )
    return SharedEventsOf(state.pk, bool)


stream = pytest.mark.parametrize("stream", [of_entity, of_shared_state])


def pages(source):
    """What each answer of a reader that reads to the end gives."""
    after, found = 0, []
    while True:
        page = source.read(after)
        found.append(page.events)
        assert (page.next_offset == source.end().tail) is page.up_to_date
        if page.up_to_date:
            return found
        assert page.next_offset > after
        after = page.next_offset


@stream
def test_a_page_has_so_many_events(stream):
    texts = [f"{n}" for n in range(PAGE_EVENTS + 3)]
    first, second = pages(stream(texts))
    assert (len(first), first + second) == (PAGE_EVENTS, texts)


@stream
def test_a_page_that_is_just_full_is_the_last(stream):
    texts = [f"{n}" for n in range(PAGE_EVENTS)]
    assert pages(stream(texts)) == [texts]


@stream
def test_a_page_ends_with_the_event_that_fills_it(stream):
    texts = ["a" * (PAGE_BYTES - 1), "b", "c", "d"]
    # A page is full once it has more than that.
    assert [len(page) for page in pages(stream(texts))] == [3, 1]


@stream
def test_an_event_larger_than_a_page_is_given_whole(stream):
    texts = ["a" * (2 * PAGE_BYTES), "b" * (3 * PAGE_BYTES), "c"]
    assert pages(stream(texts)) == [[text] for text in texts]


@stream
def test_a_stream_whose_beginning_is_gone_is_read_from_what_is_left(stream):
    texts = [f"{n}" for n in range(5)]
    assert pages(stream(texts, begin=5 * PAGE_EVENTS)) == [texts]


@stream
def test_what_lies_past_the_page_is_not_fetched(stream):
    """A thousand messages of 1 MiB each cost a gigabyte a read."""
    source = stream(["x" * (PAGE_BYTES // 4)] * 60)
    source.read(0)  # compiled, and connected
    tracemalloc.start()
    page = source.read(0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(page.events) == 5
    assert peak < 4 * PAGE_BYTES


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL tells no steps")
@stream
def test_what_lies_past_the_page_is_not_looked_at(stream):
    """SQLite reads a text to tell its length: of each of 30 events of 900 KB it took 40 ms."""

    def steps(source):
        """How many steps SQLite takes for the first page."""
        source.read(0)  # compiled, and connected
        made = 0

        def step():
            nonlocal made
            made += 1

        connection.connection.set_progress_handler(step, 1)
        try:
            assert len(source.read(0).events) == 2
        finally:
            connection.connection.set_progress_handler(None, 1)
        return made

    texts = ["x" * (PAGE_BYTES - 1)] * 30
    assert steps(stream(texts)) == steps(stream(texts[:6]))
