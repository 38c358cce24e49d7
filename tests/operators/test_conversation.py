"""An entity's stream as a person reads it."""

import json
from typing import Any

import pytest
from django.db.models.functions import Now
from django.test import Client

from dispatch.models import Entity, StreamEvent
from operators import conversation
from tests.factories import ConsumerClaimFactory, EntityFactory, StreamEventFactory
from tests.support import Api


@pytest.fixture
def entity(alice: Api) -> Entity:
    alice.register()
    alice.make_entity()
    found: Entity = Entity.objects.select_related("dispatch_state").get()
    return found


def test_the_page_of_an_entity_shows_what_was_said(operator: Client, entity: Entity, alice: Api):
    alice.send(payload="Good morning")
    answer = operator.get(f"/admin/dispatch/entity/{entity.pk}/change/")
    assert answer.status_code == 200
    assert "Good morning" in answer.content.decode()


def event(kind: str, key: str = "k", operation: str = "insert", **value: Any) -> dict[str, Any]:
    return {"type": kind, "key": key, "value": value, "headers": {"operation": operation}}


@pytest.fixture
def tells(db: None) -> Any:
    """What the conversation makes of an event: kind, who, what and text."""

    def tell(told: Any) -> tuple[str, str, str, str]:
        made = EntityFactory.create(created=None, dispatch_state__tail=1)
        data = told if isinstance(told, str) else json.dumps(told)
        StreamEvent.objects.create(entity=made, offset=1, data=data)
        (item,) = [each for each in conversation.newest(made).items if each.kind != "cursor"]
        return (item.kind, item.who, item.what, item.text)

    return tell


ALICE = "/principal/user%3Aalice"


@pytest.mark.parametrize(
    ("told", "item"),
    [
        (
            {"type": "inbox", "value": {"from": ALICE, "payload": {"text": "hi"}}},
            ("message", "user:alice", "", "hi"),
        ),
        (
            event("inbox", **{"from": ALICE}, payload=[1], mode="queued", status="pending"),
            ("message", "user:alice", "queued, pending", "[1]"),
        ),
        (
            event("inbox", **{"from": ALICE}, from_agent="/agent/b", payload="x"),
            ("message", "/agent/b", "", "x"),
        ),
        (
            event("inbox", "m1", "update", status="processed"),
            ("state", "", "message m1 changed", "status processed"),
        ),
        (
            {**event("inbox", "m1", "delete"), "value": None},
            ("state", "", "message m1 deleted", ""),
        ),
        (event("text_delta", run_id="r", delta="a"), ("text", "", "", "a")),
        (event("text_delta", delta=7), ("state", "", "text_delta k insert", '{"delta": 7}')),
        (
            event("run", status="completed", finish_reason="stop"),
            ("state", "", "run completed", "stop"),
        ),
        (
            event("tool_call", tool_name="add", args={"a": 1}, result=2, status="done"),
            ("tool", "", "add done", '{"a": 1}\n→ 2'),
        ),
        (event("error", message="no", error_code="E1"), ("error", "", "E1", "no")),
        (
            event(
                "signal",
                signal="SIGSTOP",
                status="handled",
                sender=ALICE,
                reason="lunch",
                previous_state="idle",
                new_state="paused",
            ),
            ("signal", "user:alice", "SIGSTOP handled, idle → paused", "lunch"),
        ),
        (
            event(
                "wake",
                source="/a/b",
                finished_child={"url": "/a/b", "run_status": "completed", "response": "42"},
            ),
            ("message", "/a/b", "finished: completed", "42"),
        ),
        (
            event("wake", source="/a/b", changes=[{"collection": "run", "kind": "insert"}]),
            ("state", "", "woken by /a/b", "run insert"),
        ),
        (event("tags", "color", value="red"), ("state", "", "tag color", "red")),
        (
            event("state:mood", "m", value="calm"),
            ("state", "", "state:mood m insert", '{"value": "calm"}'),
        ),
        ({"n": 1}, ("state", "", "event", '{"n": 1}')),
        ([1, 2], ("state", "", "event", "[1, 2]")),
        ("not JSON", ("state", "", "event", "not JSON")),
        (
            {"type": {"a": 1}, "key": [2], "value": 3, "headers": 4},
            ("state", "", "{'a': 1} [2]", "3"),
        ),
        (
            {"type": "inbox", "value": {"from": 1, "payload": "a\u202eb\x07"}},
            ("message", "1", "", "a�b�"),
        ),
        (event("wake", changes=7, source=None), ("state", "", "woken by None", "")),
    ],
)
def test_each_event_is_told(tells: Any, told: Any, item: Any):
    assert tells(told) == item


def test_what_is_too_large_is_not_read(tells: Any):
    kind, _, what, text = tells({"type": "blob", "value": "x" * conversation.LARGEST})
    assert (kind, what) == ("state", "large event")
    assert text.startswith("65565 bytes: ")
    assert len(text) < 300


def test_a_text_is_cut(tells: Any, entity: Entity, alice: Api):
    alice.send(payload="w" * 5_000)
    item = conversation.newest(entity).items[-1]
    assert (len(item.text), item.more) == (conversation.LONGEST, 1_000)


def test_claims_and_the_cursor_stand_where_they_were_made(entity: Entity, alice: Api):
    alice.send(payload="one")
    claim = alice.claim()
    alice.send(payload="two")
    told = [(each.kind, each.text) for each in conversation.newest(entity).items]
    assert told == [
        ("state", ""),
        ("cursor", ""),
        ("message", "one"),
        ("claim", ""),
        ("message", "two"),
    ]
    claim.done()
    told = [(each.kind, each.text) for each in conversation.newest(entity).items]
    assert [kind for kind, _ in told[1:]] == ["message", "cursor", "claim", "message"]


def test_it_is_read_backwards_and_each_page_once(db: None, django_assert_num_queries: Any):
    made = EntityFactory.create(created=None, dispatch_state__tail=250)
    for offset in range(1, 251):
        StreamEventFactory.create(entity=made, offset=offset, type="note")
    for at in (0, 99, 150, 250):
        ConsumerClaimFactory.create(
            entity=made, delivered_offset=at, status="released", ended_at=Now()
        )
    seen: list[float] = []
    with django_assert_num_queries(3):
        page = conversation.newest(made)
    while True:
        seen = [each.at for each in page.items if each.kind != "cursor"] + seen
        if not page.older:
            break
        with django_assert_num_queries(3):
            page = conversation.before(made, page.first)
    assert seen == sorted([*range(1, 251), 0.5, 99.5, 150.5, 250.5])


def test_what_came_since_is_told_once(operator: Client, entity: Entity, alice: Api):
    url = f"/admin/dispatch/entity/{entity.pk}/conversation/"
    newest = conversation.newest(entity)
    same: dict[str, Any] = {"after": newest.last}
    seen = conversation.after(entity, newest.last).seen
    headers = {"X-Requested-With": "fetch"}
    assert operator.get(url, {**same, "seen": seen}, headers=headers).status_code == 204
    alice.send(payload="news")
    answer = operator.get(url, {**same, "seen": seen}, headers=headers)
    assert "news" in answer.content.decode()
    assert "<html" not in answer.content.decode()
    # What is more than a page comes a page at a time.
    for number in range(conversation.PAGE + 5):
        alice.send(payload=f"n{number}")
    first = conversation.after(entity, newest.last)
    on: dict[str, Any] = {"after": first.last, "seen": first.seen}
    rest = operator.get(url, on, headers=headers)
    assert rest.content.decode().count("<article") == 6
    # An end of a claim is no event, and is told all the same.
    alice.claim()
    page = conversation.after(entity, newest.last + conversation.PAGE + 6)
    assert "claim" in [each.kind for each in page.items]
    assert page.seen != seen


def test_its_pages_are_read_without_a_script_and_by_viewers_alone(
    people: dict[str, Client], entity: Entity, alice: Api
):
    alice.send(payload="<script>alert(1)</script>")
    for path in ("conversation/", "conversation/?before=3", "events/?first=1&last=2"):
        url = f"/admin/dispatch/entity/{entity.pk}/{path}"
        assert people["viewer"].get(url).status_code == 200
        assert people["nobody"].get(url).status_code == 403
        assert people["stranger"].get(url).status_code == 302
        assert b"<script>alert" not in people["viewer"].get(url).content or "events" in path
    raw = people["viewer"].get(f"/admin/dispatch/entity/{entity.pk}/events/?first=2")
    assert raw.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert raw.headers["X-Content-Type-Options"] == "nosniff"
    assert json.loads(raw.content)["type"] == "inbox"


@pytest.mark.parametrize(
    "path",
    [
        "1/conversation/?before=x",
        "1/conversation/?after=99999999999999999",
        "1/events/",
        "1/events/?first=-1",
        "x/conversation/",
        "99999999999999999999999/events/?first=1",
        "7/conversation/",
    ],
)
def test_what_is_not_there_is_404(operator: Client, entity: Entity, path: str):
    path = path.replace("1/", f"{entity.pk}/", 1) if path.startswith("1/") else path
    assert operator.get(f"/admin/dispatch/entity/{path}").status_code == 404


def test_it_says_that_earlier_events_were_removed(operator: Client, entity: Entity, alice: Api):
    for number in range(3):
        alice.send(payload=f"message {number}")
    StreamEvent.objects.filter(offset__lte=2).delete()
    address = f"/admin/dispatch/entity/{entity.pk}"
    for page in ("change/", "conversation/?before=4"):
        shown = operator.get(f"{address}/{page}").content.decode()
        assert "Events 1 to 2 were removed" in shown
        assert "message 0" not in shown
        assert "message 1" in shown
    assert "were removed" not in operator.get(f"{address}/conversation/?after=3").content.decode()


def test_hostile_tags_are_shown_as_what_they_are(operator: Client, db: None):
    entity = EntityFactory.create(tags={"\u202eevil": "<b>\u0007"})
    page = operator.get(f"/admin/dispatch/entity/{entity.pk}/change/").content.decode()
    assert "�evil" in page
    assert "\u202e" not in page
    assert "&lt;b&gt;\\u0007" in page
