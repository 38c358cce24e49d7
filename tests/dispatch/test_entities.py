"""/_electric/entities: made, read, listed, changed, deleted; and tags."""

import re
import time

import pytest

from dispatch.models import DispatchState, Entity, StreamEvent, Wake
from tests.support import Api

E1 = "/_electric/entities/agent/e1"


def policy(runner_id="r1"):
    return {"targets": [{"type": "runner", "runnerId": runner_id}]}


@pytest.fixture
def owner(alice):
    """Alice, who has runner r1."""
    alice.register()
    return alice


# --- PUT --------------------------------------------------------------------------------------


def test_it_makes_an_entity_of_nothing(alice):
    before = int(time.time() * 1000) - 1000
    answer = alice("PUT", E1)
    assert answer.status == 201
    body = answer.body
    assert body == {
        "url": "/agent/e1",
        "type": "agent",
        "status": "idle",
        "streams": {"main": "/agent/e1/main"},
        "tags": {},
        "spawn_args": {},
        "created_by": "/principal/user%3Aalice",
        "created_at": body["created_at"],
        "updated_at": body["updated_at"],
        "txid": body["txid"],
    }
    assert type(body["txid"]) is int
    assert before <= body["created_at"] == body["updated_at"] <= before + 60_000


def test_it_makes_an_entity_of_all_that_may_be_given(owner):
    owner.register(sandbox_profiles=[{"name": "docker", "label": "Docker"}])
    owner.make_entity("/agent/boss")
    given = {
        "args": {"model": "m", "nested": {"list": [1, None, 2.5]}},
        "tags": {"team": "a"},
        "dispatch_policy": policy(),
        "parent": "/agent/boss",
        "sandbox": {"profile": "docker"},
    }
    body = owner("PUT", E1, given).body
    assert {name: body[name] for name in ("tags", "dispatch_policy", "parent", "sandbox")} == {
        name: given[name] for name in ("tags", "dispatch_policy", "parent", "sandbox")
    }
    assert body["spawn_args"] == given["args"]
    assert {**owner.get(E1).body, "txid": body["txid"]} == body


@pytest.mark.parametrize("name", ["a", "A.b_c~d:e@f+g-h", "x" * 128, "..."])
def test_it_takes_every_id_of_the_form(alice, name):
    assert alice("PUT", f"/_electric/entities/agent/{name}", {}).body["url"] == f"/agent/{name}"
    assert alice.get(f"/_electric/entities/agent/{name}").status == 200


@pytest.mark.parametrize(
    "path", ["agent/a%20b", "agent/x" + "x" * 128, "agent/..", "agent/a%0A", "a%C3%A4/b", "./e1"]
)
def test_it_refuses_an_id_of_another_form(alice, path):
    answer = alice("PUT", f"/_electric/entities/{path}", {})
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert alice.get(f"/_electric/entities/{path}").status == 404


def test_no_type_is_named_as_the_api_is(alice):
    assert alice("PUT", "/_electric/entities/_electric/runners", {}).status == 400


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("args", []),
        ("tags", {"n": 1}),
        ("tags", {"": "x"}),
        ("dispatch_policy", {"targets": []}),
        ("dispatch_policy", {"targets": [{"type": "webhook", "runnerId": "r1"}]}),
        ("dispatch_policy", {"targets": [{"type": "runner"}]}),
        ("parent", "boss"),
        ("parent", "/agent/boss/main"),
        ("sandbox", "docker"),
    ],
)
def test_it_refuses_a_bad_field_and_names_it(owner, field, value):
    answer = owner("PUT", E1, {field: value})
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert answer.body["error"]["details"][0]["path"].startswith(f"/{field}")
    assert not Entity.objects.exists()


def test_the_same_url_twice_is_a_duplicate(alice):
    alice("PUT", E1, {"tags": {"n": "1"}})
    first = alice.get(E1).body
    answer = alice("PUT", E1, {"tags": {"n": "2"}, "initialMessage": "hi"})
    assert (answer.status, answer.error) == (409, "DUPLICATE_URL")
    assert answer.body["error"]["details"] == {"entity": first}
    assert alice.get(E1).body == first
    assert len(alice.events()) == 1


def test_a_duplicate_tells_a_stranger_nothing_of_the_entity(alice, bob):
    alice("PUT", E1, {"args": {"secret": 1}})
    answer = bob("PUT", E1, {})
    assert answer.error == "DUPLICATE_URL"
    assert "details" not in answer.body["error"]


def test_its_runner_must_be_the_callers(owner, bob):
    assert bob("PUT", E1, {"dispatch_policy": policy()}).status == 403
    assert bob("PUT", E1, {"dispatch_policy": policy("unknown")}).status == 404
    assert not Entity.objects.exists()


def test_its_stream_begins_with_its_creation_which_is_not_work(owner):
    owner.make_entity()
    (event,) = owner.events()
    assert (event["type"], event["key"]) == ("entity_created", "entity-created")
    assert event["value"] == {
        "entity_type": "agent",
        "timestamp": event["headers"]["timestamp"],
        "args": {},
    }
    state = DispatchState.objects.get()
    assert (state.cursor, state.tail, state.pending) == (1, 1, False)
    assert owner.wakes() == []


def test_its_types_slash_commands_come_with_its_creation_and_are_not_work(owner):
    commands = [{"name": "review", "description": "Look it over"}, {"name": "stop"}]
    owner.make_entity("/session/boss", None)
    owner.post(
        "/_electric/entity-types",
        {"name": "agent", "description": "", "slash_commands": commands},
    )
    made = owner.make_entity(parent="/session/boss", args={"n": 1})
    created, review, stop = owner.events()
    at = created["headers"]["timestamp"]
    assert created["value"] == {
        "entity_type": "agent",
        "timestamp": at,
        "args": {"n": 1},
        "parent_url": "/session/boss",
    }
    assert (review["type"], review["key"]) == ("slash_command", "review")
    assert review["value"] == {**commands[0], "source": "static", "updated_at": at}
    assert stop["value"] == {**commands[1], "source": "static", "updated_at": at}
    assert {event["headers"]["txid"] for event in owner.events()} == {made["txid"]}
    state = DispatchState.objects.get(entity__url=made["url"])
    assert (state.cursor, state.tail, state.pending) == (3, 3, False)


def test_a_first_message_wakes_it_at_once(owner):
    owner.make_entity(initialMessage={"text": "hi"}, initialMessageType="chat")
    (wake,) = owner.wakes()
    assert wake["generation"] == 1
    event = owner.events()[1]
    assert event["type"] == "inbox"
    assert event["value"] == {
        "from": "/principal/user%3Aalice",
        "payload": {"text": "hi"},
        "timestamp": event["value"]["timestamp"],
        "mode": "immediate",
        "status": "processed",
        "processed_at": event["value"]["timestamp"],
        "from_principal": "/principal/user%3Aalice",
        "message_type": "chat",
    }


def test_a_first_message_may_be_null(owner):
    owner.make_entity(initialMessage=None)
    assert owner.events()[1]["value"]["payload"] is None
    assert len(owner.wakes()) == 1


# --- GET --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH"])
def test_it_does_not_know_the_entity(alice, method):
    answer = alice(method, E1, {})
    assert (answer.status, answer.error) == (404, "NOT_FOUND")


def test_it_lists_the_callers_entities_newest_first(alice, bob):
    assert alice.get("/_electric/entities").body == []
    for name in ("e1", "e2"):
        alice.make_entity(f"/agent/{name}", None)
    bob.make_entity("/agent/e3", None)
    listed = alice.get("/_electric/entities").body
    assert [each["url"] for each in listed] == ["/agent/e2", "/agent/e1"]
    assert listed[0] == alice.get("/_electric/entities/agent/e2").body


def test_a_list_tells_who_is_running(owner):
    owner.make_entity(initialMessage="hi")
    owner.make_entity("/agent/e2")
    owner.claim()
    statuses = {each["url"]: each["status"] for each in owner.get("/_electric/entities").body}
    assert statuses == {"/agent/e1": "running", "/agent/e2": "idle"}


def test_a_list_goes_on_before_an_entity(alice):
    for name in ("e1", "e2", "e3"):
        alice.make_entity(f"/agent/{name}", None)
    page = alice.get("/_electric/entities?before=/agent/e3").body
    assert [each["url"] for each in page] == ["/agent/e2", "/agent/e1"]
    assert alice.get("/_electric/entities?before=/agent/unknown").status == 400


def listed(api, query):
    answer = api.get(f"/_electric/entities?{query}")
    assert answer.status == 200, answer
    return [each["url"] for each in answer.body]


def test_a_list_is_of_the_type_parent_and_creator_that_are_asked_for(alice, bob):
    alice.make_entity("/agent/e1", None)
    alice.make_entity("/agent/e2", None, parent="/agent/e1")
    alice.make_entity("/job/e2", None, parent="/agent/e1")
    bob.make_entity("/agent/e3", None)
    everyone = ["/job/e2", "/agent/e2", "/agent/e1"]
    assert listed(alice, "type=agent") == ["/agent/e2", "/agent/e1"]
    assert listed(alice, "type=nothing") == []
    assert listed(alice, "parent=/agent/e1") == ["/job/e2", "/agent/e2"]
    assert listed(alice, "type=job&parent=%2Fagent%2Fe1") == ["/job/e2"]
    for same in ("user:alice", "/principal/user%3Aalice", "%2Fprincipal%2Fuser%253Aalice"):
        assert listed(alice, f"created_by={same}") == everyone
    assert alice.get("/_electric/entities?created_by=user:bob").error == "UNAUTHORIZED"


def test_a_list_is_of_the_status_that_is_asked_for(owner):
    """One of each, so that every condition is told from every other."""
    for name in ("running", "stopping", "paused", "stopped", "killed", "idle"):
        owner.make_entity(f"/agent/{name}")
    for name, events in (
        ("stopping", ("claim", "SIGTERM")),
        ("running", ("claim", "SIGSTOP")),
        ("paused", ("SIGSTOP",)),
        ("stopped", ("SIGTERM",)),
        ("killed", ("claim", "SIGKILL")),
    ):
        for event in events:
            if event == "claim":
                owner.send(f"/agent/{name}")
                owner.claim()
            else:
                owner.signal(f"/agent/{name}", event)
    statuses = [each["status"] for each in owner.get("/_electric/entities").body]
    assert sorted(statuses) == ["idle", "killed", "paused", "running", "stopped", "stopping"]
    for status in statuses:
        assert listed(owner, f"status={status}") == [f"/agent/{status}"]


def test_a_list_that_is_narrowed_goes_on_before_an_entity_that_is_no_longer_of_it(alice):
    for name in ("e1", "e2", "e3"):
        alice.make_entity(f"/agent/{name}", None)
    answer = alice.get("/_electric/entities?status=idle&limit=2")
    assert [each["url"] for each in answer.body] == ["/agent/e3", "/agent/e2"]
    alice.signal("/agent/e2", "SIGSTOP")
    (link,) = re.findall("<(.*)>", answer.headers["Link"])
    assert listed(alice, link.partition("?")[2]) == ["/agent/e1"]


# --- PATCH ------------------------------------------------------------------------------------


def test_it_replaces_what_is_given(owner):
    made = owner.make_entity(tags={"a": "1", "b": "2"})
    owner.register("r2")
    changed = owner("PATCH", E1, {"tags": {"c": "3"}}).body
    assert (changed["tags"], changed["dispatch_policy"]) == ({"c": "3"}, policy())
    changed = owner("PATCH", E1, {"dispatch_policy": policy("r2")}).body
    assert (changed["tags"], changed["dispatch_policy"]) == ({"c": "3"}, policy("r2"))
    assert changed["updated_at"] >= made["updated_at"]
    assert owner.get(E1).body == changed


def test_it_changes_nothing_without_anything_given(owner):
    owner.make_entity(tags={"a": "1"})
    made = owner.get(E1).body
    changed = owner("PATCH", E1, {}).body
    assert {**changed, "updated_at": 0} == {**made, "updated_at": 0}


@pytest.mark.parametrize("body", [{"tags": None}, {"dispatch_policy": {}}, [], b""])
def test_it_refuses_a_bad_change(owner, body):
    owner.make_entity()
    assert owner("PATCH", E1, body).error == "INVALID_REQUEST"


def test_its_new_runner_must_be_the_callers(owner, bob):
    owner.make_entity()
    bob.register("r2")
    assert owner("PATCH", E1, {"tags": {"x": "y"}, "dispatch_policy": policy("r2")}).status == 403
    assert owner("PATCH", E1, {"dispatch_policy": policy("unknown")}).status == 404
    assert owner.get(E1).body["tags"] == {}


# --- DELETE -----------------------------------------------------------------------------------


def test_it_deletes_an_entity_and_all_that_is_of_it(owner):
    owner.make_entity(initialMessage="hi")
    answer = owner("DELETE", E1)
    assert (answer.status, answer.content) == (204, b"")
    assert owner.get(E1).status == owner.get("/agent/e1/main").status == 404
    assert owner.wakes() == []
    for model in (Entity, DispatchState, StreamEvent, Wake):
        assert not model.objects.exists()


def test_deleting_fences_an_active_claim(owner):
    owner.make_entity(initialMessage="hi")
    claim = owner.claim()
    token = claim.mint()
    assert owner("DELETE", E1).status == 204
    assert claim.heartbeat().error == claim.done().error == "FENCED"
    assert claim.append({"n": 1}, token=token).status in (401, 404)


def test_one_of_the_same_url_begins_anew(owner):
    owner.make_entity(initialMessage="hi")
    claim = owner.claim()
    owner("DELETE", E1)
    owner.make_entity(initialMessage="again")
    newer = owner.claim()
    assert newer.body["consumerId"] != claim.body["consumerId"]
    assert claim.done().error == "FENCED"
    assert owner.status() == "running"


# --- Tags -------------------------------------------------------------------------------------


def test_it_sets_replaces_and_removes_a_tag(alice):
    alice.make_entity(runner_id=None, tags={"a": "1"})
    answer = alice.post(f"{E1}/tags/b", {"value": "2"})
    assert (answer.status, answer.body["tags"]) == (200, {"a": "1", "b": "2"})
    assert alice.post(f"{E1}/tags/b", {"value": ""}).body["tags"] == {"a": "1", "b": ""}
    answer = alice("DELETE", f"{E1}/tags/a")
    assert (answer.status, answer.body["tags"]) == (200, {"b": ""})
    again = alice("DELETE", f"{E1}/tags/a").body
    assert again == {**alice.get(E1).body, "txid": again["txid"]}


def tag_events(api):
    return [event for event in api.events() if event["type"] == "tags"]


def told(event):
    return event["headers"]["operation"], event["key"], event.get("value")


def test_a_tag_is_told_to_its_stream_with_the_calls_txid(alice):
    alice.make_entity(runner_id=None, tags={"a": "1"})
    assert tag_events(alice) == []
    txids = [
        alice.post(f"{E1}/tags/b", {"value": "2"}).body["txid"],
        alice.post(f"{E1}/tags/a", {"value": "2"}).body["txid"],
        alice("DELETE", f"{E1}/tags/a").body["txid"],
    ]
    assert [told(event) for event in tag_events(alice)] == [
        ("insert", "b", {"key": "b", "value": "2"}),
        ("update", "a", {"key": "a", "value": "2"}),
        ("delete", "a", None),
    ]
    assert [event["headers"]["txid"] for event in tag_events(alice)] == txids
    assert {type(txid) for txid in txids} == {int}
    alice("DELETE", f"{E1}/tags/a")
    assert len(tag_events(alice)) == 3


def test_replaced_tags_are_told_to_its_stream(owner):
    owner.make_entity(tags={"a": "1", "b": "2", "c": "3"})
    owner("PATCH", E1, {"tags": {"b": "2", "c": "4", "d": "5"}})
    assert [told(event) for event in tag_events(owner)] == [
        ("delete", "a", None),
        ("update", "c", {"key": "c", "value": "4"}),
        ("insert", "d", {"key": "d", "value": "5"}),
    ]
    assert owner.wakes() == []


def test_a_killed_entity_is_tagged_and_its_stream_stays_closed(owner):
    owner.make_entity()
    owner.signal("/agent/e1", "SIGKILL")
    assert owner.post(f"{E1}/tags/a", {"value": "x"}).body["tags"] == {"a": "x"}
    assert tag_events(owner) == []


@pytest.mark.parametrize(
    ("encoded", "key"),
    [
        ("a%2Fb", "a/b"),
        ("%2f", "/"),
        ("a%20b", "a b"),
        ("100%25", "100%"),
        ("%25FF", "%FF"),
        ("k%3av", "k:v"),
        ("a+b", "a+b"),
        ("%C3%A4%F0%9F%98%80", "ä😀"),
        ("..", ".."),
    ],
)
def test_a_key_of_a_tag_is_any_text(alice, encoded, key):
    """Runners write encodeURIComponent(key)."""
    alice.make_entity(runner_id=None)
    assert alice.post(f"{E1}/tags/{encoded}", {"value": "x"}).body["tags"] == {key: "x"}
    assert alice("DELETE", f"{E1}/tags/{encoded}").body["tags"] == {}


@pytest.mark.parametrize("body", [{}, {"value": 1}, {"value": None}, [], b"", {"value": "x\0"}])
def test_it_refuses_a_tag_that_is_no_string(alice, body):
    alice.make_entity(runner_id=None)
    assert alice.post(f"{E1}/tags/a", body).error == "INVALID_REQUEST"


@pytest.mark.parametrize("key", ["x" * 257, "a%0Ab"])
def test_it_refuses_a_bad_key_of_a_tag(alice, key):
    alice.make_entity(runner_id=None)
    assert alice.post(f"{E1}/tags/{key}", {"value": "x"}).error == "INVALID_REQUEST"


def test_a_tag_is_not_work(owner):
    owner.make_entity()
    owner.post(f"{E1}/tags/a", {"value": "x"})
    assert owner.wakes() == []
    assert len(owner.events()) == 2


def test_a_handler_sets_the_tags_of_what_its_creator_owns(owner, bob):
    owner.make_entity(initialMessage="hi")
    owner.make_entity("/agent/e2")
    bob.make_entity("/agent/e3", None)
    token = owner.claim().mint()
    handler = Api(Electric_Claim_Token=token)
    assert handler.post(f"{E1}/tags/a", {"value": "x"}).body["tags"] == {"a": "x"}
    assert handler("DELETE", f"{E1}/tags/a").body["tags"] == {}
    assert handler.post("/_electric/entities/agent/e2/tags/a", {"value": "x"}).status == 200
    assert handler.post("/_electric/entities/agent/e3/tags/a", {"value": "x"}).status == 403
