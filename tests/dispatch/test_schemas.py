"""Schemas and values that are meant to stall the server, or to make it fail."""

import json
import time

import pytest
from django.db import connection

from dispatch import schemas
from dispatch.models import EntityType
from dispatch.schema_checker import MOST_ERRORS

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

    def noted(*args):
        depth.append(len(connection.savepoint_ids))
        check(*args)

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
