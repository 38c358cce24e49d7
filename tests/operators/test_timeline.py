"""What became of an entity's wakes over time, what is to come, and its family."""

import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.test import Client

from claims.models import ConsumerClaim
from core.clock import with_now
from dispatch.models import DispatchState, Entity
from operators import timeline
from operators.family import Node, family_of
from tests.factories import (
    ConsumerClaimFactory,
    EntityFactory,
    RegistrationFactory,
    RunnerFactory,
    TimerFactory,
    WakeFactory,
    ago,
    ahead,
)
from tests.support import Api


def state_of(entity: Entity) -> Any:
    return with_now(DispatchState.objects.filter(pk=entity.pk)).get()


@pytest.fixture
def entity(db: None) -> Entity:
    made: Entity = EntityFactory.create(url="/agent/e1", pending=True)
    return made


def lived(entity: Entity) -> None:
    """Four claims that ended, each in its way, then one that is orphaned."""
    for number, how in enumerate(("released", "failed", "expired", "fenced")):
        began = ago(hours=5 - number)
        ended = ago(hours=5 - number, minutes=-10)
        claim = ConsumerClaimFactory.create(
            entity=entity, wake__created_at=ago(hours=5 - number, minutes=2), **{how: True}
        )
        renewed = ago(hours=5 - number, minutes=-4)
        rows = ConsumerClaim.objects.filter(pk=claim.pk)
        rows.update(claimed_at=began, last_heartbeat_at=renewed, ended_at=ended)
    gone = RunnerFactory.create(id="dead", silent=True)
    DispatchState.objects.filter(pk=entity.pk).update(runner=gone)
    ConsumerClaimFactory.create(entity=entity, wake__created_at=ago(minutes=70), lapsed=True)


def test_each_wake_has_its_waits_its_claim_and_its_end(entity: Entity):
    lived(entity)
    page = timeline.newest(state_of(entity))
    told = [
        (spell.reason or spell.claim.status, [part.kind for part in spell.stretches])
        for spell in page.spells
    ]
    assert told == [
        ("its runner's heartbeat lease expired", ["waiting", "active", "silent"]),
        ("fenced", ["waiting", "fenced"]),
        ("expired", ["waiting", "expired", "silent"]),
        ("failed", ["waiting", "failed", "delay"]),
        ("released", ["waiting", "released"]),
    ]
    expired = page.spells[2]
    assert (expired.waited, expired.renewed) == ("2 min", "4 min")
    assert [part.says for part in expired.stretches] == [
        "waiting, 2 min",
        "held, 4 min",
        "not renewed any more, 6 min",
    ]
    assert page.runners[0] == "dead: 1 claim, 1 orphaned"
    assert page.older is None


def test_the_axis_is_in_the_order_of_time_and_short_times_show(entity: Entity):
    lived(entity)
    page = timeline.newest(state_of(entity))
    parts = [part for spell in reversed(page.spells) for part in spell.stretches]
    assert all(each.left >= 0 and each.left + each.width <= 100.001 for each in parts)
    assert [each.left for each in parts] == sorted(each.left for each in parts)
    assert min(each.width for each in parts if each.end > each.begin) > 2
    assert page.cut  # nothing was to be done for most of the five hours
    gaps = [later.left - each.left - each.width for each, later in pairwise(parts)]
    assert 2 < max(gaps) <= 4.001


MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 0)],
        [(0, 0), (0, 0)],
        [(0, 0.001), (86_400 * 365, 86_400 * 365)],
        [(0, 10), (10, 10), (10, 20)],
        [(0, 1), (100_000, 100_001), (300_000, 300_000.5)],
    ],
)
def test_any_times_have_their_places(spans: list[tuple[float, float]]):
    parts = [
        timeline.Stretch("held", MIDNIGHT + timedelta(seconds=a), MIDNIGHT + timedelta(seconds=b))
        for a, b in spans
    ]
    knots, _ = timeline._axis(parts)
    places = [timeline._placed(part, knots) for part in parts]
    assert all(0 <= each.left <= each.left + each.width <= 100.001 for each in places)


def test_it_is_read_backwards_each_wake_once_and_costs_the_same(
    entity: Entity, django_assert_num_queries: Any
):
    for _ in range(3):
        ConsumerClaimFactory.create(entity=entity, released=True)
    few = state_of(entity)
    with django_assert_num_queries(2):
        assert len(timeline.newest(few).spells) == 3
    for _ in range(60):
        ConsumerClaimFactory.create(entity=entity, released=True)
    WakeFactory.create(entity=entity)
    state, seen = state_of(entity), []
    below: int | None = state.generation + 1
    while below is not None:
        with django_assert_num_queries(2):
            page = timeline.before(state, below)
        seen += [spell.generation for spell in page.spells]
        below = page.older
    assert seen == list(range(64, 0, -1))


def test_an_active_claim_outlives_its_wake(entity: Entity):
    claim = ConsumerClaimFactory.create(entity=entity)
    entity.wakes.all().delete()
    (spell,) = timeline.newest(state_of(entity)).spells
    assert (spell.claim.pk, spell.wake, spell.waited) == (claim.pk, None, "")
    row = ConsumerClaim.objects.with_orphan_reason().get()
    (spell,) = timeline.around(state_of(entity), row).spells
    assert spell.claim.pk == claim.pk


def text(page: Any) -> str:
    words = re.sub(r"<[^>]+>", " ", page.content.decode()).replace("content_copy", " ")
    return re.sub(r"\s+", " ", words)


def test_the_pages_have_it(operator: Client, entity: Entity):
    lived(entity)
    base = f"/admin/dispatch/entity/{entity.pk}"
    (failed,) = ConsumerClaim.objects.filter(status="failed")
    ConsumerClaim.objects.filter(pk=failed.pk).update(error="<script>no()</script>")
    for path in (
        f"{base}/change/",
        f"{base}/timeline/",
        f"{base}/timeline/?before=99",
        f"/admin/claims/consumerclaim/{failed.pk}/change/",
    ):
        page = operator.get(path)
        assert page.status_code == 200, path
        assert "last renewed after 4 min" in text(page), path
        assert "<script>no()" not in page.content.decode(), path
    assert "dead: 1 claim, 1 orphaned" in text(operator.get(f"{base}/timeline/"))
    (here,) = re.findall(r'<tr class="pw-here".*?</tr>', page.content.decode(), re.DOTALL)
    assert f"consumerclaim/{failed.pk}/" in here
    assert operator.get(f"{base}/timeline/?before=x").status_code == 404


def test_what_is_to_come_is_in_the_order_of_time(entity: Entity, django_assert_num_queries: Any):
    TimerFactory.create(target=entity, due_at=ahead(hours=2))
    TimerFactory.create(target=entity, failed=True)
    RegistrationFactory.create(
        subscriber=entity,
        source_url="/agent/slow",
        timeout_at=ahead(hours=1),
        due_at=ahead(hours=1),
    )
    ConsumerClaimFactory.create(entity=entity, failed=True)  # is tried again in 10 s
    claim = ConsumerClaimFactory.create(entity=entity)  # for 30 s
    state = state_of(entity)
    with django_assert_num_queries(2):
        found = timeline.ahead(state, claim)
    told = [re.sub(r"<.*?>", " ", str(each.what)) for each in found]
    for said, part in zip(
        told,
        (
            "delayed send",
            "next try, after 1 failure",
            "end of its claim's lease",
            "/agent/slow",
            "delayed send",
        ),
        strict=True,
    ):
        assert part in said
    assert found[0].error == "It was stopped."


# --- The family -------------------------------------------------------------------------------


def shape(node: Node) -> Any:
    return (node.entity.url, [shape(each) for each in node.children])


def test_an_entity_has_its_family_with_what_stands_and_who_waits(alice: Api, operator: Client):
    alice.register("r1")
    disabled = alice.register("off", admin_status="disabled")["id"]
    alice.make_entity("/agent/top", "r1")
    alice.make_entity("/agent/here", "r1", parent="/agent/top")
    alice.make_entity("/agent/a", "r1", parent="/agent/here")
    waits = {"subscriberUrl": "/agent/here", "condition": "runFinished"}
    alice.make_entity("/agent/b", disabled, parent="/agent/here", initialMessage="go", wake=waits)
    alice.make_entity("/agent/c", "r1", parent="/agent/here")
    alice.make_entity("/agent/below", "r1", parent="/agent/a")
    condition = {"on": "change", "collections": ["todo"], "timeoutMs": 60_000}
    body = {"subscriberUrl": "/agent/here", "sourceUrl": "/agent/yet-to-come"}
    assert alice.post("/_electric/wake", {**body, "condition": condition}).status == 204
    here: Any = with_now(
        Entity.objects.filter(url="/agent/here").select_related("dispatch_state")
    ).get()
    found = family_of(here, here.now)
    below: Any = [("/agent/b", []), ("/agent/c", []), ("/agent/a", [("/agent/below", [])])]
    assert shape(found["tree"]) == ("/agent/top", [("/agent/here", below)])
    said = text(operator.get(f"/admin/dispatch/entity/{here.pk}/change/"))
    assert re.search(r"/agent/b .* Stands for \d s: off is disabled.", said)
    assert "/agent/here waits for its finished run" in said
    assert re.search(r"/agent/yet-to-come .*changes of todo .*waits until", said)
    source = Entity.objects.get(url="/agent/b")
    assert "/agent/here waits" in text(operator.get(f"/admin/dispatch/entity/{source.pk}/change/"))


def test_a_large_family_costs_as_much_as_a_small_one(db: None, django_assert_max_num_queries: Any):
    runner = RunnerFactory.create()
    parent = EntityFactory.create(url="/agent/parent", runner=runner)
    for number in range(40):
        child = EntityFactory.create(parent=parent.url, runner=runner)
        RegistrationFactory.create(subscriber=parent, source_url=child.url)
        for _ in range(7 if number > 33 else 0):
            EntityFactory.create(parent=child.url, runner=runner)
    now = datetime.now(UTC)
    with django_assert_max_num_queries(12):
        tree = family_of(Entity.objects.get(pk=parent.pk), now)["tree"]
    assert tree.more
    assert len(tree.children) == 30
    assert [len(each.children) for each in tree.children if each.children] == [5] * 5
    assert [bool(each.waited) for each in tree.children] == [True] * 30


def test_who_took_a_parents_url_later_is_nobodys_parent(db: None):
    child = EntityFactory.create(url="/agent/child", parent="/agent/parent")
    EntityFactory.create(url="/agent/parent")
    assert family_of(child, datetime.now(UTC))["tree"] is None


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("age=hour", {"/agent/new", "/agent/ill"}),
        ("age=older-day", {"/agent/old"}),
        ("error=no such TOOL", {"/agent/ill"}),
        ("work=waiting-hours", {"/agent/old"}),
        ("parent=/agent/old", {"/agent/new"}),
        ("age=hour&error=tool&type=agent", {"/agent/ill"}),
    ],
)
def test_entities_are_found_by_age_error_and_parent(
    operator: Client, db: None, query: str, found: set[str]
):
    old = EntityFactory.create(url="/agent/old", pending=True, created_at=ago(days=2))
    old.events.update(created_at=ago(hours=2))
    EntityFactory.create(url="/agent/new", parent="/agent/old")
    ill = EntityFactory.create(url="/agent/ill", pending=True, runner__online=True)
    ConsumerClaimFactory.create(entity=ill, failed=True)
    ConsumerClaimFactory.create(entity=old, failed=True)
    ConsumerClaimFactory.create(entity=old, released=True)
    DispatchState.objects.filter(pk=old.pk).update(cursor=1)
    shown = operator.get(f"/admin/dispatch/entity/?{query}").content.decode()
    rows = re.findall(r"<code>(/agent/\w+)</code>", shown)
    assert set(rows) == found
