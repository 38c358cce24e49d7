"""A verb for all that fit a filter: counted beforehand, done in batches, and gone on with."""

import html
import re

import pytest
from django.contrib.admin.models import LogEntry

from claims.models import DeadLetter
from dispatch.models import DispatchState, StreamEvent
from operators.kit import bulk
from runners.models import Runner
from tests.factories import DeadLetterFactory, EntityFactory, RunnerFactory
from tests.operators.test_verbs import ENTITIES, following, text

ALL = f"{ENTITIES}all/move/?runner=r1"
ORDER = {"target": "heir", "reason": "r1 is dead"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Batches of three."""
    monkeypatch.setattr(bulk, "BATCH", 3)


@pytest.fixture
def many(world):
    """Seven entities of r1, with the world's four, and a runner that can take over."""
    RunnerFactory.create(id="heir", online=True)
    r1 = Runner.objects.get(pk="r1")
    EntityFactory.create_batch(7, runner=r1)
    return DispatchState.objects.filter(runner="r1")


def test_a_filtered_list_offers_its_verbs_for_all_that_fit(many, operator, people):
    after = many.order_by("-pk")[3].pk
    listed = operator.get(f"{ENTITIES}?runner=r1&after={after}").content.decode()
    assert 'href="/admin/dispatch/entity/all/move/?runner=r1"' in listed
    assert "/all/move/" not in operator.get(ENTITIES).content.decode()
    assert "/all/" not in people["viewer"].get(f"{ENTITIES}?runner=r1").content.decode()


def test_it_says_beforehand_how_many_fit_and_what_happens_to_the_first(many, operator):
    asked = text(operator.get(ALL))
    assert "11 entities fit the filters" in asked
    assert "Move 11" in asked
    assert asked.count("Dispatched to the runner named below") == 5
    assert many.count() == 11


def test_it_counts_no_more_than_so_many(many, operator, monkeypatch):
    monkeypatch.setattr(bulk, "MOST_COUNTED", 10)
    assert "Move 10 and more" in text(operator.get(ALL))


def test_it_does_all_in_batches_and_says_how_far_it_is(many, operator):
    page = operator.post(ALL, ORDER)
    assert "Move: 3 of 3" in text(page)
    assert many.count() == 8
    for left in (5, 2):
        page = operator.post(following(page), ORDER)
        assert many.count() == left
    assert "Move: 9 of" in text(page)
    end = operator.post(following(page), ORDER, follow=True)
    assert "Move: 11 done (moved to heir, the last)." in text(end)
    assert many.count() == 0
    moved = LogEntry.objects.filter(change_message="Move: moved to heir. Reason: r1 is dead")
    assert moved.count() == 11


def test_the_progress_is_of_what_was_counted(many, operator):
    (action,) = re.findall(r'action="([^"]+all/move[^"]+)"', operator.get(ALL).content.decode())
    page = operator.post(html.unescape(action), ORDER)
    assert '<progress class="pw-progress" max="11" value="3"' in page.content.decode()


def test_it_is_gone_on_with_where_it_stopped(many, operator):
    stopped_at = following(operator.post(ALL, ORDER))
    asked = text(operator.get(stopped_at))
    assert "8 entities fit the filters after those 3 that were looked at" in asked
    page = operator.post(stopped_at, ORDER)
    assert "Move: 6 of" in text(page)


def test_what_an_interruption_repeats_is_sent_once(many, operator):
    """A server that dies in the midst of a batch has sent to some of it."""
    asked = operator.get(f"{ENTITIES}all/send/?runner=r1").content.decode()
    (action,) = re.findall(r'action="([^"]+all/send[^"]+)"', asked)
    for payload in ("hello", "hello", "goodbye"):
        operator.post(html.unescape(action), {"payload": payload})
    first = many.order_by("pk")[0].entity
    sent = StreamEvent.objects.filter(entity=first, data__contains="system%3Aoperator")
    assert [each.data.count("hello") for each in sent.order_by("offset")] == [1, 0]


def test_a_request_ends_in_time(many, operator, monkeypatch):
    """Its rows may be runners with a thousand entities each."""
    monkeypatch.setattr(bulk, "LONGEST_S", 0)
    page = operator.post(ALL, ORDER)
    assert "Move: 1 of 3" in text(page)
    operator.post(following(page), ORDER)
    assert many.count() == 9


def test_what_is_refused_is_counted_and_not_tried_for_ever(many, operator):
    """These fit the filter still: the place passes them."""
    path = f"{ENTITIES}all/wake/?runner=r1"
    page = operator.post(path, {})
    pages = 1
    while "data-next" in page.content.decode():
        page = operator.post(following(page), {}, follow=True)
        pages += 1
        assert pages < 9
    assert pages == 4
    assert "Wake now: 2 done" in text(page)
    assert "Wake now: 9 refused." in text(page)


def test_dead_letters_are_redriven_in_bulk(many, operator):
    for _ in range(4):
        DeadLetterFactory.create(reason="no such tool")
    page = operator.post("/admin/claims/deadletter/all/redrive/?redriven=no", {})
    while "data-next" in page.content.decode():
        page = operator.post(following(page), {}, follow=True)
    assert "Redrive: 5 done" in text(page)
    assert not DeadLetter.objects.filter(redriven_at=None).exists()


def test_dead_letters_that_are_chosen_are_redriven_oldest_first(world, operator):
    chosen = [str(DeadLetterFactory.create().pk) for _ in range(3)]
    operator.post("/admin/claims/deadletter/do/redrive/", {"pk": chosen[::-1]})
    assert list(LogEntry.objects.order_by("pk").values_list("object_id", flat=True)) == chosen


def test_it_asks_for_what_the_form_needs(many, operator):
    assert "This field is required." in text(operator.post(ALL, {"target": ""}))
    assert many.count() == 11


@pytest.mark.parametrize("place", ["done=x", "total=-1", "from=x", "refused=99999999999", "run=x"])
def test_it_takes_any_place(many, operator, place):
    assert operator.get(f"{ALL}&{place}").status_code == 404


def test_nobody_does_it_who_may_not(many, people):
    for who, expected in (("viewer", 403), ("nobody", 403), ("stranger", 302)):
        assert people[who].post(ALL, ORDER).status_code == expected
    assert many.count() == 11
