"""Whose a type is: registering a name takes over nothing that was there before."""

from typing import Any

import pytest

from core.bodies import JsonObject
from core.principals import Principal
from dispatch import types
from dispatch.models import Entity, EntityType
from tests.support import Api

TYPES = "/_electric/entity-types"
E1 = "/_electric/entities/agent/e1"
CALLS: list[tuple[str, str, Any]] = [
    ("GET", E1, None),
    ("GET", "/agent/e1/main", None),
    ("PATCH", E1, {"tags": {}}),
    ("POST", f"{E1}/send", {"payload": 1}),
    ("POST", f"{E1}/signal", {"signal": "SIGUSR"}),
    ("POST", f"{E1}/tags/a", {"value": "x"}),
    ("DELETE", f"{E1}/tags/a", None),
    ("DELETE", E1, None),
]


def grant(value, permission="spawn", kind="principal"):
    return {"subject_kind": kind, "subject_value": value, "permission": permission}


def register(api, name="agent", **facts):
    return api.post(TYPES, {"name": name, "description": "", **facts})


@pytest.fixture
def mallory(db):
    return Api("user:mallory")


def refused(api):
    return {api(*call).status for call in CALLS} == {403}


# --- Registering takes over nothing -----------------------------------------------------------


def test_registering_a_name_takes_over_none_of_what_was_made_before(alice, mallory):
    alice.make_entity(runner_id=None)
    assert register(mallory, permission_grants=[grant("user", "manage", "principal_kind")])
    assert refused(mallory)
    assert refused(Api("user:trent"))
    assert alice.get(E1).status == 200
    assert alice.post(f"{E1}/send", {"payload": 1}).status == 200


def test_schemas_hold_for_nothing_that_was_made_before(alice, mallory):
    alice.make_entity(runner_id=None)
    register(mallory, inbox_schemas={"chat": {"not": {}}})
    assert alice.post(f"{E1}/send", {"payload": 1, "type": "chat"}).status == 200


def test_they_hold_for_what_is_made_since(alice, mallory):
    register(mallory, permission_grants=[grant("user:alice")])
    alice.make_entity(runner_id=None)
    assert [mallory(*call).status for call in CALLS] == [200] * 7 + [204]


def test_registering_a_deleted_type_anew_reaches_no_earlier_entity(alice, bob, mallory):
    register(bob, permission_grants=[grant("user:alice")])
    alice.make_entity(runner_id=None)
    assert bob.get(E1).status == 200
    assert bob("DELETE", f"{TYPES}/agent").status == 204
    assert refused(bob)
    assert register(mallory).status == 201
    assert refused(mallory)
    assert register(bob).status == 403
    assert alice.get(E1).status == 200


def test_registering_again_keeps_the_registration(alice, bob):
    register(bob, permission_grants=[grant("user:alice")])
    alice.make_entity(runner_id=None)
    register(bob)
    assert bob.get(E1).status == 200


def test_a_type_without_a_registration_gets_one_that_reaches_nothing_earlier(alice, bob):
    """So a server of the version before leaves it."""
    register(bob, permission_grants=[grant("user:alice")])
    EntityType.objects.update(registration="")
    alice.make_entity(runner_id=None)
    assert refused(bob)
    register(bob)
    assert EntityType.objects.get().registration
    assert refused(bob)


# --- DELETE -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grants", "status"),
    [([], 403), ([grant("user:bob")], 403), ([grant("user:bob", "manage")], 204)],
)
def test_who_manages_it_deletes_it_and_its_entities_live_on(alice, bob, grants, status):
    register(alice, permission_grants=grants)
    alice.make_entity(runner_id=None)
    assert bob("DELETE", f"{TYPES}/agent").status == status
    assert EntityType.objects.exists() == (status == 403)
    assert alice.get(E1).status == 200


def test_its_registrar_deletes_it_and_it_is_open_again(alice, bob):
    register(alice)
    answer = alice("DELETE", f"{TYPES}/agent")
    assert (answer.status, answer.content) == (204, b"")
    assert alice.get(f"{TYPES}/agent").status == 404
    assert bob.make_entity(runner_id=None)["url"] == "/agent/e1"


@pytest.mark.parametrize("name", ["unknown", "a%20b"])
def test_it_does_not_know_the_type(alice, name):
    for method, path in (("DELETE", f"{TYPES}/{name}"), ("PATCH", f"{TYPES}/{name}/schemas")):
        answer = alice(method, path, {})
        assert (answer.status, answer.error) == (404, "NOT_FOUND")


# --- PATCH /schemas ---------------------------------------------------------------------------

SCHEMAS = f"{TYPES}/agent/schemas"


def test_it_adds_schemas_and_raises_the_revision(alice):
    register(alice, inbox_schemas={"chat": {"type": "string"}})
    answer = alice(
        "PATCH",
        SCHEMAS,
        {"inbox_schemas": {"n": {"type": "number"}}, "state_schemas": {"todo": {}}},
    )
    assert answer.status == 200
    assert answer.body["inbox_schemas"] == {"chat": {"type": "string"}, "n": {"type": "number"}}
    assert (answer.body["state_schemas"], answer.body["revision"]) == ({"todo": {}}, 2)
    assert alice.get(f"{TYPES}/agent").body == answer.body


def test_a_key_that_is_there_is_a_conflict_and_nothing_is_added(alice):
    register(alice, state_schemas={"todo": {}})
    body = {"inbox_schemas": {"n": {}}, "state_schemas": {"todo": {"type": "object"}}}
    answer = alice("PATCH", SCHEMAS, body)
    assert (answer.status, answer.error) == (409, "SCHEMA_KEY_EXISTS")
    known = alice.get(f"{TYPES}/agent").body
    assert (known["state_schemas"], known["revision"]) == ({"todo": {}}, 1)
    assert "inbox_schemas" not in known


def test_it_adds_no_bad_schema(alice):
    register(alice)
    answer = alice("PATCH", SCHEMAS, {"inbox_schemas": {"n": {"type": "nonsense"}}})
    assert answer.error == "INVALID_REQUEST"
    assert answer.body["error"]["details"][0]["path"] == "/inbox_schemas/n"


@pytest.mark.parametrize(
    ("grants", "status"),
    [([], 403), ([grant("user:bob")], 403), ([grant("user:bob", "manage")], 200)],
)
def test_who_manages_it_adds_schemas(alice, bob, grants, status):
    register(alice, permission_grants=grants)
    assert bob("PATCH", SCHEMAS, {"inbox_schemas": {"n": {}}}).status == status


# --- GET --------------------------------------------------------------------------------------


def test_it_lists_those_that_one_has_to_do_with(alice, bob):
    alice.make_entity("/before/e1", None)
    register(alice, "own")
    register(bob, "before")
    register(bob, "for-alice", permission_grants=[grant("user:alice")])
    register(bob, "for-users", permission_grants=[grant("user", "manage", "principal_kind")])
    register(bob, "for-services", permission_grants=[grant("service", "spawn", "principal_kind")])
    register(bob, "bobs")
    seen = ["before", "for-alice", "for-users", "own"]
    assert [each["name"] for each in alice.get(TYPES).body] == seen
    for name in (*seen, "for-services", "bobs"):
        assert alice.get(f"{TYPES}/{name}").status == (200 if name in seen else 403), name


def test_it_is_read_as_it_is_listed(alice):
    body = register(alice).body
    assert alice.get(f"{TYPES}/agent").body == body
    assert alice.get(TYPES).body == [body]


# --- Who may register -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registrars", "status"),
    [
        ([], 201),
        (["user"], 201),
        (["/principal/user%3Aalice"], 201),
        (["service", "/principal/user%3Abob"], 403),
    ],
)
def test_a_setting_says_who_registers_types(alice, settings, registrars, status):
    settings.PULLWAKE_TYPE_REGISTRARS = frozenset(registrars)
    assert register(alice).status == status
    assert EntityType.objects.exists() == (status == 201)


def test_whoever_manages_a_type_changes_it_whatever_the_setting_says(alice, settings):
    register(alice)
    settings.PULLWAKE_TYPE_REGISTRARS = frozenset(["service"])
    assert register(alice).body["revision"] == 2


# --- Operators --------------------------------------------------------------------------------


def test_a_transferred_type_goes_with_its_entities(alice, bob, mallory):
    register(mallory, permission_grants=[grant("user:alice")])
    alice.make_entity(runner_id=None)
    assert types.transfer("agent", Principal("user", "bob")) is True
    assert types.transfer("agent", Principal("user", "bob")) is False
    assert mallory.get(E1).status == 403
    assert register(mallory).status == 403
    assert bob.get(E1).status == 200
    assert register(bob).body["registered_by"] == "/principal/user%3Abob"


# --- What a type gives its entities -----------------------------------------------------------


def test_its_slash_commands_are_events_of_each_entity_and_no_work(alice):
    alice.register()
    commands: list[dict[str, Any]] = [
        {"name": "go", "description": "Goes", "arguments": [{"name": "n", "type": "number"}]},
        {"name": "halt"},
    ]
    register(alice, slash_commands=commands)
    alice.make_entity()
    created, *events = alice.events()
    assert created["type"] == "entity_created"
    for event, command in zip(events, commands, strict=True):
        assert (event["type"], event["key"]) == ("slash_command", command["name"])
        updated_at = event["value"]["updated_at"]
        assert event["value"] == {**command, "source": "static", "updated_at": updated_at}
    assert alice.wakes() == []
    alice.send()
    assert alice.try_claim().status == 200


def test_an_entity_shows_the_collections_that_others_may_write(alice):
    notes = {"notes": {"type": "note", "operations": ["insert"]}}
    alice.make_entity("/agent/before", None)
    register(alice, externally_writable_collections=notes)
    alice.make_entity(runner_id=None)
    assert alice.get(E1).body["externally_writable_collections"] == notes
    before = alice.get("/_electric/entities/agent/before").body
    assert "externally_writable_collections" not in before
    assert Entity.objects.count() == 2


def test_it_has_a_hundred_schemas_of_a_kind_however_they_are_added(alice):
    many: JsonObject = {f"n{index}": {} for index in range(100)}
    alice.post(TYPES, {"name": "agent", "description": "", "inbox_schemas": many})
    answer = alice("PATCH", SCHEMAS, {"inbox_schemas": {"n": {}}, "state_schemas": many})
    assert [each["path"] for each in answer.body["error"]["details"]] == ["/inbox_schemas"]
    assert alice("PATCH", SCHEMAS, {"state_schemas": many}).status == 200
