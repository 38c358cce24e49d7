"""Schemas and values that are meant to stall the server, or to make it fail."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from django.db import connection

from core.errors import InvalidRequest, ServiceUnavailable
from dispatch import firing, schemas
from dispatch.models import EntityType
from dispatch.schema_checker import MOST_ERRORS
from tests.support import come_due, wait_until

TYPES = "/_electric/entity-types"

MALFORMED = [
    {"$schema": 5},
    {"$schema": "http://nowhere.example/schema"},
    {"$id": 5},
    {"$id": "::::"},
    {"$anchor": 5},
    {"$ref": 5},
    {"$ref": "#/$defs/nowhere"},
    {"$ref": "#/%zz"},
    {"$ref": "http://127.0.0.1:1/x"},
    {"$ref": "file:///etc/hostname"},
    {"$dynamicRef": "#nowhere"},
    {"$vocabulary": 5},
    {"$defs": 5},
    {"pattern": "a{99999999999999999999}"},
    {"pattern": "(a{1000}){1000}"},
    {"pattern": "("},
    {"pattern": "\\p{Nonsense}"},
    {"patternProperties": {"(": {}}},
    {"properties": {"a": 5}},
    {"dependentSchemas": 5},
    {"items": [{}]},
    {"multipleOf": 0},
    {"minLength": -1},
    {"minLength": 1.5},
    {"type": []},
    {"type": "nonsense"},
    {"enum": 5},
    {"format": 5},
    {"required": "x"},
    # What is not linear in the text: looking around, and back.
    {"pattern": "^(?=a)b"},
    {"pattern": "(a)\\1"},
    {"description": "x" * schemas.MAX_SCHEMA_BYTES},
]


@pytest.mark.parametrize("schema", MALFORMED, ids=lambda schema: json.dumps(schema)[:60])
def test_a_malformed_schema_is_refused_when_it_is_registered(alice, schema):
    body = {"name": "agent", "description": "", "inbox_schemas": {"chat": schema}}
    answer = alice.post(TYPES, body)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert [each["path"] for each in answer.body["error"]["details"]] == ["/inbox_schemas/chat"]
    assert not EntityType.objects.exists()


NOT_LINEAR = {
    "an e-mail address, as zod writes it": (
        r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9-]*\.)+[A-Za-z]{2,}$"
    ),
    "looking behind": "(?<=a)b",
    "back": r"(a)\1",
}


@pytest.mark.parametrize("pattern", NOT_LINEAR.values(), ids=NOT_LINEAR)
def test_a_state_schema_is_only_kept_and_so_may_have_any_pattern(alice, pattern):
    by_type = {"state:user": {"type": "string", "pattern": pattern}}
    body = {"name": "agent", "description": ""}
    assert alice.post(TYPES, {**body, "inbox_schemas": by_type}).status == 400
    answer = alice.post(TYPES, {**body, "state_schemas": by_type})
    assert (answer.status, answer.body["state_schemas"]) == (201, by_type)
    added = {"state_schemas": {"state:else": {"pattern": pattern}}}
    assert alice("PATCH", f"{TYPES}/agent/schemas", added).status == 200


def test_a_state_schema_is_a_schema_all_the_same(alice):
    for schema in ({"pattern": "("}, {"type": "nonsense"}, {"$ref": "http://127.0.0.1:1/x"}):
        body = {"name": "agent", "description": "", "state_schemas": {"todo": schema}}
        assert alice.post(TYPES, body).status == 400, schema


def _doubling(levels):
    """References that double at each level: ``2 ** levels`` checks of one value."""
    step = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(levels)}
    return {"$ref": "#/$defs/a0", "$defs": {**step, f"a{levels}": {"type": "integer"}}}


STALLING = {
    "backtracking": ({"pattern": "^(a+)+$"}, "a" * 36 + "!"),
    "unique objects": ({"uniqueItems": True}, [{"a": n, "b": [n]} for n in range(6_000)]),
    "wrong items": ({"items": {"type": "string"}}, [1] * 450_000),
    "references": (_doubling(40), 1),
    "a pattern as large as may be": ({"pattern": "[01]*1[01]{400}$"}, "01" * 400_000),
    "a number of 400 digits": ({"multipleOf": 0.1}, 10**400),
    "itself for ever": ({"$ref": "#"}, 1),
}


@pytest.mark.parametrize("name", STALLING)
def test_what_would_stall_the_server_is_cut_short(alice, name):
    """Each is answered, with 400 or as right, within its budget (here with room for others)."""
    schema, payload = STALLING[name]
    body = {"name": "agent", "description": "", "inbox_schemas": {"chat": schema}}
    began = time.monotonic()
    registered = alice.post(TYPES, body)
    if registered.status == 201:
        alice.make_entity(runner_id=None)
        sent = alice.post("/_electric/entities/agent/e1/send", {"payload": payload, "type": "chat"})
        assert sent.status in (200, 400), sent
        assert len(sent.body.get("error", {}).get("details", ())) <= MOST_ERRORS
    else:
        assert registered.error == "INVALID_REQUEST"
    assert time.monotonic() - began < 8


def test_what_exceeded_its_budget_says_so_and_the_next_is_checked(alice):
    body = {"name": "agent", "description": ""}
    schemas_of = {"slow": _doubling(40), "fast": {"type": "integer"}}
    assert alice.post(TYPES, {**body, "inbox_schemas": schemas_of}).status == 201
    alice.make_entity(runner_id=None)
    send = "/_electric/entities/agent/e1/send"
    slow = alice.post(send, {"payload": 1, "type": "slow"})
    assert slow.status == 400
    assert "more time or memory" in slow.body["error"]["message"]
    assert alice.post(send, {"payload": 1, "type": "fast"}).status == 200
    assert alice.post(send, {"payload": "x", "type": "fast"}).status == 400


def test_at_most_a_hundred_errors_are_named(alice):
    body = {"name": "agent", "description": "", "creation_schema": {"additionalProperties": False}}
    assert alice.post(TYPES, body).status == 201
    body["creation_schema"] = {"additionalProperties": {"type": "integer"}}
    assert alice.post(TYPES, body).status == 201
    args = {f"n{n:04}": "x" for n in range(300)}
    details = alice("PUT", "/_electric/entities/agent/e1", {"args": args}).body["error"]["details"]
    assert len(details) == MOST_ERRORS
    assert details[0]["path"] == "/args/n0000"


def test_a_message_is_checked_before_its_entity_is_locked(alice, monkeypatch):
    body = {"name": "agent", "description": "", "inbox_schemas": {"chat": {"type": "string"}}}
    assert alice.post(TYPES, body).status == 201
    alice.make_entity(runner_id=None)
    depth = []
    check = schemas.check

    def noted(*args, **whose):
        depth.append(len(connection.savepoint_ids))
        check(*args, **whose)

    monkeypatch.setattr(schemas, "check", noted)
    outside = len(connection.savepoint_ids)
    alice.send(payload="hi", type="chat")
    assert depth == [outside]


def test_a_message_that_was_sent_is_the_same_message_whatever_its_type_asks_for_now(alice):
    alice.make_entity(runner_id=None)
    txid = alice.send(payload="hi", type="chat", key="k")
    schema = {"chat": {"type": "integer"}}
    assert (
        alice.post(TYPES, {"name": "agent", "description": "", "inbox_schemas": schema}).status
        == 201
    )
    assert alice.send(payload="hi", type="chat", key="k") == txid


def test_whoever_has_many_checks_waiting_keeps_no_other_author_waiting():
    done = []

    def check(whose, schema):
        with suppress(InvalidRequest, ServiceUnavailable):
            schemas.check(1, schema, "/payload", whose=whose)
        done.append(whose)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(7):
            pool.submit(check, "mallory", _doubling(40))
        wait_until(schemas._checker._turn._lock.locked)
        pool.submit(check, "alice", {"type": "integer"})
    assert done.index("alice") <= 3


def test_a_handlers_schedule_is_checked_before_its_entity_is_locked_and_not_as_it_fires(
    alice, monkeypatch
):
    body = {"name": "agent", "description": "", "inbox_schemas": {"chat": {"type": "string"}}}
    assert alice.post(TYPES, body).status == 201
    alice.register()
    alice.make_entity(initialMessage="hi")
    claim = alice.claim()

    def entry(key, operation="insert", **facts):
        value = {"scheduleType": "future_send", "fireAt": "2020-01-01T00:00:00Z", **facts}
        value = facts if operation == "update" else value
        headers = {"operation": operation}
        return {"type": "manifest", "key": f"schedule:{key}", "value": value, "headers": headers}

    depth = []
    check = schemas.check

    def noted(*args, **whose):
        depth.append(len(connection.savepoint_ids))
        check(*args, **whose)

    monkeypatch.setattr(schemas, "check", noted)
    outside = len(connection.savepoint_ids)
    token = claim.mint()
    assert claim.append(entry("good", payload="x", messageType="chat"), token=token).status == 204
    wrong = entry("bad", payload=5, messageType="chat")
    late = entry("late", payload="x", messageType="chat", fireAt="2100-01-01T00:00:00Z")
    assert claim.append(wrong, late, token=token).status == 204
    worse = entry("late", "update", payload=5)
    assert claim.append(worse, entry("odd", payload=1, messageType=5), token=token).status == 204
    assert depth == [outside] * 4
    come_due()
    assert wait_until(firing.fire_due) == 4
    assert depth == [outside] * 4
    manifest = {}
    for event in alice.events():
        if event["type"] == "manifest":
            manifest[event["key"]] = event["value"]
    statuses = {key.removeprefix("schedule:"): each["status"] for key, each in manifest.items()}
    assert statuses == {"good": "sent", "bad": "failed", "late": "failed", "odd": "failed"}
    assert "/payload" in manifest["schedule:bad"]["lastError"]
