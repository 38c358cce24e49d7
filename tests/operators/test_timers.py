"""Timers, as operators see them: in their list, on their page, and on that of their entity."""

import re

import pytest

from dispatch.cron import Cron
from dispatch.models import Entity, Registration, Timer
from tests.factories import EntityFactory, RegistrationFactory, TimerFactory, ago, ahead

STATES = ("pending", "due", "late", "failed")


@pytest.fixture
def entity(db):
    """/agent/e1 with a timer in each state, one of a schedule, and one that it sends another."""
    entity = EntityFactory.create(url="/agent/e1")
    TimerFactory.create(target=entity, key="pending")
    for state in STATES[1:]:
        TimerFactory.create(target=entity, key=state, **{state: True})
    TimerFactory.create(target=entity, scheduled=True, schedule="daily", key="scheduled")
    other = EntityFactory.create(url="/agent/e2")
    TimerFactory.create(target=other, owner=entity, scheduled=True, schedule="to-e2", key="other")
    return entity


def text(page):
    words = re.sub(r"<[^>]+>", " ", page.content.decode()).replace("content_copy", " ")
    return re.sub(r"\s+", " ", words)


def keys(page):
    found = re.findall(r">message (\w+)<", page.content.decode())
    return set(found)


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("", {*STATES, "scheduled", "other"}),
        ("state=pending", {"pending", "due", "late", "scheduled", "other"}),
        ("state=late", {"late"}),
        ("state=failed", {"failed"}),
        ("entity=/agent/e1", {*STATES, "scheduled"}),
        ("owner=/agent/e1", {"scheduled", "other"}),
        ("q=due", {"due"}),
    ],
)
def test_the_list(entity, people, query, shown):
    assert keys(people["viewer"].get(f"/admin/dispatch/timer/?{query}")) == shown


def test_the_page_of_one_says_why_it_failed_and_what_it_was_to_send(entity, people):
    timer = Timer.objects.failed().get()
    said = text(people["viewer"].get(f"/admin/dispatch/timer/{timer.pk}/change/"))
    assert "It was stopped." in said
    assert "&quot;payload&quot;: &quot;hi&quot;" in said


def test_its_entitys_page_has_what_is_for_it_and_what_it_sends(entity, people):
    said = text(people["viewer"].get(f"/admin/dispatch/entity/{entity.pk}/change/"))
    for state in STATES:
        assert re.search(rf"delayed send . {state}", said), state
    assert "It was stopped." in said
    assert "schedule daily" in said
    assert re.search(r"schedule to-e2 . pending /agent/e2", said)


@pytest.mark.parametrize(("when", "state"), [(ahead(minutes=1), "pending"), (ago(hours=1), "late")])
def test_its_entitys_page_has_its_ticks(entity, people, when, state):
    RegistrationFactory.create(
        subscriber=entity,
        condition=Registration.Condition.CHANGE,
        source_url=Cron.parse("0 9 * * *", "Europe/Berlin").path,
        tick_at=when,
        due_at=when,
    )
    said = text(people["viewer"].get(f"/admin/dispatch/entity/{entity.pk}/change/"))
    assert re.search(rf"0 9 \* \* \* Europe/Berlin . {state}", said)


def test_an_entity_without_any_says_so(people):
    entity = EntityFactory.create()
    said = text(people["viewer"].get(f"/admin/dispatch/entity/{entity.pk}/change/"))
    assert re.search(r"To come All timers for it What State For When Nothing\.", said)
    assert Entity.objects.count() == 1
