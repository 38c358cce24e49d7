"""What is due by the clock: nobody's waits until all that another piled up is done."""

import pytest

from dispatch import deliveries, firing
from dispatch.models import Registration, Timer
from tests.factories import EntityFactory, RegistrationFactory, TimerFactory, ago

ROUND = 10
HEAP = 3 * ROUND
BOB = "/principal/user%3Abob"

pytestmark = pytest.mark.django_db


@pytest.fixture
def entities():
    """One that has much to do, one of bob's, and one of another tenant's."""
    carol = "/principal/user%3Acarol"
    return (
        EntityFactory.create(),
        EntityFactory.create(created_by=BOB),
        EntityFactory.create(created_by=carol),
    )


def fire():
    return firing.fire_due(limit=ROUND)


def deliver():
    return deliveries.deliver_due(limit=ROUND)


def timers(entity, *times):
    return [TimerFactory.create(target=entity, due_at=at) for at in times]


def registrations(entity, *times):
    own = {"created_by": entity.created_by}
    return [
        RegistrationFactory.create(
            subscriber=EntityFactory.create(**own), timeout_ms=1000, timeout_at=at, due_at=at
        )
        for at in times
    ]


KINDS = pytest.mark.parametrize(
    ("run", "pile", "left"),
    [
        (fire, timers, Timer.objects.pending()),
        (deliver, registrations, Registration.objects.exclude(due_at=None)),
    ],
    ids=["timers", "registrations"],
)


@KINDS
def test_one_of_anothers_is_done_in_the_first_round(entities, run, pile, left):
    much, bobs, carols = entities
    heap = pile(much, *(ago(hours=2, seconds=-number) for number in range(HEAP)))
    (one,) = pile(bobs, ago(seconds=1))
    (other,) = pile(carols, ago(hours=1))
    (later,) = pile(carols, ago(hours=-1))
    assert run() == ROUND
    # What the others left of the round went to what was due for longest.
    assert [row.pk for row in left.order_by("pk")] == [
        *(row.pk for row in heap[ROUND - 2 :]),
        later.pk,
    ]
    while run():
        pass
    assert left.get() == later
    assert not left.filter(pk__in=[one.pk, other.pk]).exists()


@KINDS
def test_what_an_earlier_version_left_counts_as_ones(entities, run, pile, left):
    heap = pile(entities[0], *[ago(hours=1)] * HEAP)
    left.update(creator="")
    (one,) = pile(entities[1], ago(seconds=1))
    run()
    assert not left.filter(pk=one.pk).exists()
    assert left.count() == len(heap) + 1 - ROUND


@KINDS
def test_many_creators_come_in_turn_by_what_is_due_for_longest(entities, run, pile, left):
    pile(entities[0], *[ago(hours=2)] * HEAP)
    rows = [
        each
        for number in range(2 * ROUND)
        for each in pile(
            EntityFactory.create(created_by=f"/principal/user%3A{number:02}"),
            ago(hours=1, seconds=-number),
        )
    ]
    keys = [row.pk for row in rows]
    run()
    assert [row.pk for row in left.filter(pk__in=keys).order_by("pk")] == keys[ROUND - 1 :]
    run()
    assert [row.pk for row in left.filter(pk__in=keys).order_by("pk")] == keys[2 * (ROUND - 1) :]


@KINDS
def test_where_all_that_is_due_is_done_it_is_looked_for_once(
    entities, run, pile, left, django_assert_num_queries
):
    with django_assert_num_queries(1):
        assert run() == 0
