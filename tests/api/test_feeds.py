"""The feeds of runners and entities: what a reader has after any page is the rows as they are."""

import json
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from api.feeds import show_entity, show_runner
from claims import feeds, reaper, reports
from core.principals import Principal
from dispatch import entities, firing, types
from dispatch.streams import waiters
from runners import changes
from runners.models import Change, RunnerLiveness
from tests.support import PAST, Api, come_due, prune, wait_until

# What a transaction wrote is in the feed once it is over.
pytestmark = pytest.mark.django_db(transaction=True)

RUNNERS = "/_electric/feeds/runners"
ENTITIES = "/_electric/feeds/entities"


class Follower:
    """A client that keeps the rows that a feed tells it of."""

    def __init__(self, api: Api, path: str = ENTITIES, query: str = "") -> None:
        self.api = api
        self.path = path
        self.query = query
        self.offset = "-1"
        self.rows: dict[str, Any] = {}
        self.resets = 0

    def look(self, *, now: bool = False) -> list[tuple[str, str]]:
        """Read on to the end: the operations, with their keys.

        That is once nobody writes, unless ``now``: autovacuum does, too, now and then, and what
        follows its transaction is told after it.
        """
        if now:
            return self._read()
        wait_until(lambda: (known := changes.now_settled("runner")).below == known.ahead)
        return self._read()

    def _read(self) -> list[tuple[str, str]]:
        told = []
        up_to_date = False
        while not up_to_date:
            answer = self.api.get(f"{self.path}?offset={self.offset}{self.query}")
            assert answer.status == 200, answer
            for event in answer.body:
                told += self._take(event)
            moved_on = answer.headers["Stream-Next-Offset"] >= self.offset
            assert moved_on or self.resets or self.offset == "now"
            self.offset = answer.headers["Stream-Next-Offset"]
            up_to_date = answer.headers.get("Stream-Up-To-Date") == "true"
        return told

    def _take(self, event: Any) -> list[tuple[str, str]]:
        if "type" not in event:
            assert event == {"headers": {"control": "reset"}}
            self.rows.clear()
            self.resets += 1
            return []
        operation = event["headers"]["operation"]
        if operation == "upsert":
            assert event["type"] == ("runner" if self.path == RUNNERS else "entity")
            self.rows[event["key"]] = event["value"]
        else:
            assert operation == "delete"
            assert "value" not in event
            self.rows.pop(event["key"], None)
        return [(operation, event["key"])]


@pytest.fixture
def feed(alice: Api) -> Follower:
    alice.register()
    return Follower(alice)


def test_it_begins_with_the_rows_that_there_are(feed: Follower, alice: Api):
    made = alice.make_entity(tags={"team": "red"})
    assert feed.look() == [("upsert", "/agent/e1")]
    row = feed.rows["/agent/e1"]
    assert row == {
        **{name: made[name] for name in made if name not in ("txid", "spawn_args")},
        "claim": None,
        "failures": 0,
        "pending": False,
        "updated_at": row["updated_at"],
    }
    assert feed.look() == []


def test_each_change_is_an_upsert_and_several_are_one(feed: Follower, alice: Api):
    alice.make_entity()
    feed.look()
    alice.send()
    assert feed.look() == [("upsert", "/agent/e1")]
    assert feed.rows["/agent/e1"]["pending"] is True
    claim = alice.claim()
    assert feed.look() == [("upsert", "/agent/e1")]
    row = feed.rows["/agent/e1"]
    assert row["status"] == "running"
    assert row["claim"]["consumer_id"] == claim.body["consumerId"]
    assert (row["claim"]["epoch"], row["claim"]["runner_id"]) == (1, "r1")
    claim.done()
    alice.signal("/agent/e1", "SIGSTOP")
    assert feed.look() == [("upsert", "/agent/e1")]
    row = feed.rows["/agent/e1"]
    assert (row["status"], row["claim"], row["pending"]) == ("paused", None, False)


def test_what_it_does_not_show_is_no_event(feed: Follower, alice: Api):
    alice.make_entity()
    alice.send()
    claim = alice.claim()
    token = claim.mint()
    feed.look()
    assert claim.heartbeat().status == 200
    assert claim.append({"type": "text"}, token=token).status == 204
    alice.send()
    assert feed.look() == []


def test_a_deleted_entity_is_a_delete_to_whom_it_was_told(feed: Follower, alice: Api):
    alice.make_entity()
    feed.look()
    alice.make_entity("/agent/e2")
    for name in ("e1", "e2"):
        assert alice("DELETE", f"/_electric/entities/agent/{name}").status == 204
    assert feed.look() == [("delete", "/agent/e1"), ("delete", "/agent/e2")]
    assert Follower(alice).look() == []
    alice.make_entity()
    assert feed.look() == [("upsert", "/agent/e1")]


def test_each_sees_what_it_may_read(feed: Follower, alice: Api, bob: Api):
    bob.register("r2")
    alice.make_entity("/agent/hers")
    bob.make_entity("/agent/his", "r2")
    his = Follower(bob)
    assert his.look() == [("upsert", "/agent/his")]
    assert feed.look() == [("upsert", "/agent/hers")]
    # The owner of its runner may read it, for as long as it is its runner.
    hers = entities.find("agent", "hers")
    entities.move(hers, "r2")
    assert his.look() == [("upsert", "/agent/hers")]
    assert feed.look() == [("upsert", "/agent/hers")]
    entities.move(entities.find("agent", "hers"), "r1")
    assert his.look() == [("delete", "/agent/hers")]
    assert feed.look() == [("upsert", "/agent/hers")]
    entities.move(entities.find("agent", "hers"), "r2")
    his.look()
    assert bob("DELETE", "/_electric/runners/r2").status == 204
    assert sorted(his.look()) == [("delete", "/agent/hers"), ("upsert", "/agent/his")]
    assert feed.rows["/agent/hers"]["dispatch_policy"]
    feed.look()
    assert "dispatch_policy" not in feed.rows["/agent/hers"]


@pytest.mark.parametrize(
    ("kind", "value"), [("principal", Principal("user", "bob").url), ("principal_kind", "user")]
)
def test_who_is_granted_a_type_reads_its_entities_anew(
    feed: Follower, alice: Api, bob: Api, kind: str, value: str
):
    grant = {"subject_kind": kind, "subject_value": value, "permission": "manage"}
    body = {"name": "agent", "description": ""}
    alice.post("/_electric/entity-types", body)
    alice.make_entity()
    his = Follower(bob)
    assert his.look() == []
    alice.post("/_electric/entity-types", {**body, "permission_grants": [grant]})
    assert his.look() == [("upsert", "/agent/e1")]
    alice.send()
    assert his.look() == [("upsert", "/agent/e1")]
    assert his.resets == 1
    alice.post("/_electric/entity-types", {**body, "permission_grants": []})
    assert his.look() == []
    assert (his.rows, his.resets) == ({}, 2)
    feed.look()
    assert list(feed.rows) == ["/agent/e1"]


def test_a_deleted_type_grants_nothing_any_more(feed: Follower, alice: Api, bob: Api):
    bob.post("/_electric/entity-types", {"name": "agent", "description": ""})
    his = Follower(bob)
    grant = {"subject_kind": "principal_kind", "subject_value": "user", "permission": "spawn"}
    bob.post(
        "/_electric/entity-types",
        {"name": "agent", "description": "", "permission_grants": [grant]},
    )
    alice.make_entity()
    his.look()
    assert list(his.rows) == ["/agent/e1"]
    types.delete("agent")
    his.look()
    assert his.rows == {}


def test_it_tells_of_a_type_and_of_tags_alone(feed: Follower, alice: Api):
    reds = Follower(alice, query="&type=agent&tag=team=red&tag=live")
    alice.make_entity("/job/j1", tags={"team": "red", "live": ""})
    alice.make_entity("/agent/e1", tags={"team": "red", "live": "yes"})
    alice.make_entity("/agent/e2", tags={"team": "blue", "live": "yes"})
    assert reds.look() == [("upsert", "/agent/e1")]
    alice.send("/agent/e2")
    assert reds.look() == []
    tags = "/_electric/entities/agent/e2/tags"
    alice.post(f"{tags}/team", {"value": "red"})
    assert reds.look() == [("upsert", "/agent/e2")]
    alice("DELETE", f"{tags}/live")
    alice.send("/agent/e1")
    assert reds.look() == [("delete", "/agent/e2"), ("upsert", "/agent/e1")]


def test_runners_and_what_becomes_of_them(alice: Api, bob: Api):
    feed = Follower(alice, RUNNERS)
    alice.register(kind="ci")
    bob.register("r2")
    assert feed.look() == [("upsert", "r1")]
    row = feed.rows["r1"]
    assert (row["kind"], row["liveness_status"], row["health_status"]) == (
        "ci",
        "offline",
        "degraded",
    )
    beat = {"diagnostics": {"status": "streaming", "stream_connected": True}}
    alice.post("/_electric/runners/r1/heartbeat", beat)
    assert feed.look() == [("upsert", "r1")]
    row = feed.rows["r1"]
    assert (row["liveness_status"], row["health_status"]) == ("online", "healthy")
    alice.post("/_electric/runners/r1/heartbeat", beat)
    reaper.reap()
    assert feed.look() == []
    alice.post("/_electric/runners/r1/disable")
    assert feed.look() == [("upsert", "r1")]
    assert feed.rows["r1"]["admin_status"] == "disabled"
    alice("DELETE", "/_electric/runners/r1")
    assert feed.look() == [("delete", "r1")]


def test_time_is_told_by_the_reaper(alice: Api):
    feed = Follower(alice, RUNNERS)
    alice.register()
    beat = {"diagnostics": {"status": "streaming", "stream_connected": True}}
    alice.post("/_electric/runners/r1/heartbeat", beat)
    feed.look()
    alice.post("/_electric/runners/r1/heartbeat", {"diagnostics": {"stream_connected": False}})
    assert feed.look() == []
    reaper.reap()
    assert feed.look() == [("upsert", "r1")]
    assert feed.rows["r1"]["health_status"] == "degraded"
    RunnerLiveness.objects.update(lease_expires_at=PAST)
    reaper.reap()
    feed.look()
    assert feed.rows["r1"]["liveness_status"] == "expired"
    # One heartbeat more, and its runner is there again at once.
    alice.post("/_electric/runners/r1/heartbeat", beat)
    assert feed.look() == [("upsert", "r1")]
    assert feed.rows["r1"]["liveness_status"] == "online"


def test_what_many_became_is_told_in_as_few_statements_as_what_one_did(
    alice: Api, django_assert_max_num_queries: Any
):
    """A fleet that expires at once, as in an outage, is told of by each server's reaper."""
    feed = Follower(alice, RUNNERS)
    runners = [alice.register(f"r{number}")["id"] for number in range(20)]
    feed.look()
    RunnerLiveness.objects.update(last_seen_at=PAST, lease_expires_at=PAST)
    with django_assert_max_num_queries(5):
        assert reports.tell_health(limit=100) == 20
    assert sorted(feed.look()) == sorted(("upsert", each) for each in runners)
    assert {row["liveness_status"] for row in feed.rows.values()} == {"expired"}
    assert reports.tell_health(limit=100) == 0


def test_a_runner_that_the_feed_does_not_have_is_told(alice: Api):
    feed = Follower(alice, RUNNERS)
    alice.register()
    Change.objects.all().delete()
    assert reports.tell_health(limit=100) == 1
    assert feed.look() == [("upsert", "r1")]


def test_an_id_that_another_takes_over_is_gone_for_its_former_owner(alice: Api, bob: Api):
    hers, his = Follower(alice, RUNNERS), Follower(bob, RUNNERS)
    alice.register()
    hers.look()
    alice("DELETE", "/_electric/runners/r1")
    bob.register("r1")
    assert hers.look() == [("delete", "r1")]
    assert his.look() == [("upsert", "r1")]


def test_what_another_made_anew_stays_with_who_manages_its_type(
    feed: Follower, alice: Api, bob: Api
):
    alice.make_entity()
    alice("DELETE", "/_electric/entities/agent/e1")
    grant = {"subject_kind": "principal", "subject_value": "user:bob", "permission": "spawn"}
    body = {"name": "agent", "description": "", "permission_grants": [grant]}
    assert alice.post("/_electric/entity-types", body).status == 201
    feed.look()
    bob.make_entity(runner_id=None)
    assert feed.look() == [("upsert", "/agent/e1")]


def test_what_comes_of_age_while_it_is_pruned_is_left(alice: Api):
    """Nobody is told to read anew for it: that is decided as it begins."""
    for name in ("e1", "e2"):
        alice.make_entity(f"/agent/{name}", None)
        alice("DELETE", f"/_electric/entities/agent/{name}")
    gone = Change.objects.filter(kind="entity", gone=True)
    gone.filter(key="/agent/e1").update(changed_at="2020-01-01T00:00Z")
    pruned = changes.over(Now() - timedelta(days=1))
    gone.update(changed_at="2020-01-01T00:00Z")
    assert list(pruned.values_list("key", flat=True)) == ["/agent/e1"]


def test_who_missed_what_was_pruned_reads_all_anew(feed: Follower, alice: Api):
    for name in ("e1", "e2", "e3"):
        alice.make_entity(f"/agent/{name}")
    feed.look()
    late = Follower(alice)
    late.offset, late.rows = feed.offset, dict(feed.rows)
    alice("DELETE", "/_electric/entities/agent/e1")
    alice("DELETE", "/_electric/entities/agent/e2")
    feed.look()
    Change.objects.filter(gone=True).update(changed_at="2020-01-01T00:00Z")
    assert prune()["changes"] == 2
    assert prune()["changes"] == 0
    assert late.look() == [("upsert", "/agent/e3")]
    assert (list(late.rows), late.resets) == (["/agent/e3"], 1)
    alice.make_entity("/agent/e4")
    assert late.look() == [("upsert", "/agent/e4")]


def test_an_offset_of_another_database_reads_all_anew(feed: Follower, alice: Api):
    alice.make_entity()
    feed.look()
    feed.offset = "_".join(["9" * 16] * 3)
    assert feed.look() == [("upsert", "/agent/e1")]
    assert feed.resets == 1


def test_now_is_after_all_that_there_is(feed: Follower, alice: Api):
    alice.make_entity()
    feed.offset = "now"
    assert feed.look() == []
    alice.send()
    assert feed.look() == [("upsert", "/agent/e1")]
    head = alice("HEAD", ENTITIES)
    assert (head.status, head.headers["Cache-Control"]) == (200, "no-store")


def test_many_rows_come_in_pages(feed: Follower, alice: Api, monkeypatch):
    monkeypatch.setattr(feeds, "PAGE_EVENTS", 3)
    for number in range(7):
        alice.make_entity(f"/agent/e{number}")
    first = alice.get(f"{ENTITIES}?offset=-1")
    assert len(first.body) == 3
    assert "Stream-Up-To-Date" not in first.headers
    # What was read is deleted, and what was not moves to the end, while the reader goes on.
    feed._take(first.body[0])
    feed.offset = first.headers["Stream-Next-Offset"]
    alice("DELETE", "/_electric/entities/agent/e0")
    alice.send("/agent/e3")
    told = feed.look()
    assert ("delete", "/agent/e0") in told
    assert [key for operation, key in told if operation == "upsert"] == [
        "/agent/e4",
        "/agent/e5",
        "/agent/e6",
        "/agent/e3",
    ]
    assert [event["headers"]["offset"] for event in first.body] == sorted(
        event["headers"]["offset"] for event in first.body
    )


@pytest.mark.parametrize(
    "query",
    [
        "offset=0000000000000000_0000000000000001",
        "offset=1_2_3",
        "offset=x",
        "live=sse",
        "live=maybe&offset=-1",
        "type=a%20b",
        "type=a&type=b",
        "tag=%00",
        "&".join(["tag=a"] * 9),
    ],
)
def test_it_refuses_what_is_malformed(alice: Api, query: str):
    answer = alice.get(f"{ENTITIES}?{query}")
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")


def test_a_restored_database_is_read_anew(feed: Follower, alice: Api):
    alice.make_entity()
    feed.look()
    changes.start_over()
    alice.send()
    feed.look()
    assert feed.rows["/agent/e1"]["pending"] is True


def test_a_row_of_a_server_of_the_last_version_joins_with_its_first_change(
    feed: Follower, alice: Api
):
    alice.make_entity()
    Change.objects.filter(kind=Change.Kind.ENTITY).delete()
    assert feed.look() == []
    alice.send()
    assert feed.look() == [("upsert", "/agent/e1")]


def test_entities_that_are_woken_together_join_or_move(feed: Follower, alice: Api):
    alice.register()
    for name in ("e1", "e2"):
        alice.make_entity(f"/agent/{name}")
        alice.send(f"/agent/{name}", afterMs=60_000)
    feed.look()
    Change.objects.filter(key="/agent/e1").delete()
    come_due()
    assert firing.fire_due() == 2
    assert sorted(feed.look()) == [("upsert", "/agent/e1"), ("upsert", "/agent/e2")]


def test_what_is_unchanged_is_as_new_as_its_last_change(feed: Follower, alice: Api):
    """Compaction: the feed has one row for each entity, however often it changed."""
    alice.make_entity()
    for _ in range(5):
        alice.send()
        alice.claim().done()
    assert Change.objects.filter(kind=Change.Kind.ENTITY).count() == 1
    assert Change.objects.filter(changed_at__lte=Now()).exists()
    assert feed.look() == [("upsert", "/agent/e1")]


def test_a_change_is_encoded_once_for_all_who_are_told(alice: Api):
    """Each reader's offsets end differently: with the transaction since which it reads."""
    alice.register()
    row = Change.objects.get(kind="runner")
    encoded = []

    def show(change: Change, row: Any) -> Any:
        encoded.append(change.key)
        return {"id": change.key}

    entries = feeds._load(changes.Kind.RUNNER, [row], show)
    sight = feeds.Sight(changes.Kind.RUNNER, Principal.parse("user:alice"))
    told = [sight.event(entries[0], since) for since in (1, 2)]
    place = f"{row.transaction:016d}_{row.pk:016d}"
    assert [json.loads(each)["headers"]["offset"] for each in told if each] == [
        f"{place}_{since:016d}" for since in (1, 2)
    ]
    assert encoded == ["r1"]


def test_what_a_caller_does_not_see_is_looked_at_once_for_all_its_feeds(
    alice: Api, bob: Api, monkeypatch: pytest.MonkeyPatch
):
    for name in ("e1", "e2"):
        bob.make_entity(f"/agent/{name}", None)
    rows = Change.objects.filter(kind="entity")
    entries = feeds._load(changes.Kind.ENTITY, list(rows), show_entity)
    sights = [
        feeds.Sight(changes.Kind.ENTITY, Principal.parse("user:alice"), tags=((str(tag), None),))
        for tag in range(100)
    ]
    looks: list[feeds.Entry] = []
    sees = feeds.Sight.sees

    def noted(sight: feeds.Sight, entry: feeds.Entry) -> bool:
        looks.append(entry)
        return sees(sight, entry)

    monkeypatch.setattr(feeds.Sight, "sees", noted)
    of_alice = [feeds.Feed(sight, show_entity) for sight in sights]
    of_bob = feeds.Feed(feeds.Sight(changes.Kind.ENTITY, Principal.parse("user:bob")), show_entity)
    assert list(feeds._concerned([*of_alice, of_bob], entries)) == [of_bob]
    assert len(looks) < 10


def test_the_more_it_tells_the_longer_a_follower_waits(alice: Api, monkeypatch: Any):
    """So a thousand readers leave the process its time."""
    alice.register()
    feed = feeds.Feed(feeds.Sight(changes.Kind.RUNNER, Principal.parse("user:alice")), show_runner)
    follower = feeds.Follower(changes.Kind.RUNNER, show_runner)
    follower._feeds[feed.key] = feed
    with ExitStack() as readers:
        monkeypatch.setattr(waiters.Hub, "_start", lambda hub: None)
        for _ in range(500):
            readers.enter_context(waiters.hub.waiter(feed.key))
        follower._advance()
        assert follower.pause(is_settled=True) == 0.5
    follower._advance()
    assert follower.pause(is_settled=True) == feeds.PACE_S
