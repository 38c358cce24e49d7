"""/_electric/entity-types: registered, updated, granted, and what a type asks of its entities."""

import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dispatch.models import Entity, EntityType

TYPES = "/_electric/entity-types"
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def policy(runner_id="r1"):
    return {"targets": [{"type": "runner", "runnerId": runner_id}]}


def grant(value, permission="spawn", kind="principal"):
    return {"subject_kind": kind, "subject_value": value, "permission": permission}


def register(api, **facts):
    answer = api.post(TYPES, {"name": "agent", "description": "An agent", **facts})
    assert answer.status == 201, answer
    return answer.body


def make(api, **facts):
    return api("PUT", "/_electric/entities/agent/e1", facts)


# --- Registering ------------------------------------------------------------------------------


def test_it_registers_a_type_of_nothing_more(alice):
    body = register(alice)
    assert body == {
        "name": "agent",
        "description": "An agent",
        "permission_grants": [],
        "registered_by": "/principal/user%3Aalice",
        "revision": 1,
        "created_at": body["created_at"],
        "updated_at": body["updated_at"],
    }


def test_it_registers_all_that_may_be_given(alice):
    alice.register()
    facts = {
        "creation_schema": NUMBER,
        "inbox_schemas": {"chat": {"type": "string"}},
        "state_schemas": {"todo": NUMBER},
        "default_dispatch_policy": policy(),
        "permission_grants": [grant("user:bob"), grant("service", "manage", "principal_kind")],
        "slash_commands": [
            {"name": "go", "description": "Goes", "arguments": [{"name": "n", "type": "number"}]}
        ],
        "serve_endpoint": "https://agents.example/serve",
        "externally_writable_collections": {
            "notes": {"type": "note", "contract": "notes/1", "operations": ["insert", "update"]}
        },
        "retention": {"events": 1000, "days": 30},
    }
    body = register(alice, unknown={"field": 1}, **facts)
    canonical = [
        grant("/principal/user%3Abob"),
        grant("service", "manage", "principal_kind"),
    ]
    expected = {**facts, "permission_grants": canonical}
    assert {name: body[name] for name in expected} == expected


def test_registering_again_keeps_what_is_left_out_and_raises_the_revision(alice):
    alice.register()
    first = register(
        alice,
        creation_schema=NUMBER,
        inbox_schemas={"chat": {"type": "string"}},
        default_dispatch_policy=policy(),
        permission_grants=[grant("user:bob")],
    )
    second = register(alice, description="Another")
    changed = {"description", "revision", "updated_at"}
    assert (second["description"], second["revision"]) == ("Another", 2)
    assert {k: v for k, v in second.items() if k not in changed} == {
        k: v for k, v in first.items() if k not in changed
    }


def test_a_default_policy_may_be_taken_back(alice):
    alice.register()
    register(alice, default_dispatch_policy=policy())
    assert "default_dispatch_policy" not in register(alice, default_dispatch_policy=None)


def test_a_retention_may_be_changed_and_taken_back(alice):
    register(alice, retention={"events": 1000, "days": 30})
    assert register(alice)["retention"] == {"events": 1000, "days": 30}
    assert register(alice, retention={"days": 7})["retention"] == {"days": 7}
    assert "retention" not in register(alice, retention=None)


@pytest.mark.parametrize("name", ["unknown", "a%20b", "%00"])
def test_it_does_not_know_the_type(alice, name):
    answer = alice.get(f"{TYPES}/{name}")
    assert (answer.status, answer.error) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("path", "facts"),
    [
        ("/name", {"name": "a b"}),
        ("/name", {"name": "x" * 129}),
        ("/name", {"name": ".."}),
        ("/name", {"name": "_electric"}),
        ("/description", {"description": None}),
        ("/creation_schema", {"creation_schema": {"type": "nonsense"}}),
        ("/creation_schema", {"creation_schema": []}),
        ("/inbox_schemas/chat", {"inbox_schemas": {"chat": {"minLength": "x"}}}),
        ("/state_schemas/todo", {"state_schemas": {"todo": {"required": 1}}}),
        ("/default_dispatch_policy/targets", {"default_dispatch_policy": {"targets": []}}),
        (
            "/default_dispatch_policy/targets/0/runnerId",
            {"default_dispatch_policy": policy("no id")},
        ),
        ("/retention", {"retention": {}}),
        ("/retention/events", {"retention": {"events": 0}}),
        ("/retention/days", {"retention": {"days": "7"}}),
        ("/slash_commands/0/name", {"slash_commands": [{"description": "x"}]}),
        (
            "/slash_commands/0/arguments/0/type",
            {"slash_commands": [{"name": "go", "arguments": [{"name": "n", "type": "date"}]}]},
        ),
        ("/serve_endpoint", {"serve_endpoint": 1}),
        (
            "/externally_writable_collections/notes/operations/0",
            {"externally_writable_collections": {"notes": {"type": "x", "operations": ["read"]}}},
        ),
        ("/permission_grants/0/permission", {"permission_grants": [grant("user:bob", "own")]}),
        ("/permission_grants/0/subject_kind", {"permission_grants": [grant("x", kind="team")]}),
        ("/permission_grants/0/subject_value", {"permission_grants": [grant("bob")]}),
        (
            "/permission_grants/0/subject_value",
            {"permission_grants": [grant("team", kind="principal_kind")]},
        ),
        (
            "/permission_grants/0/expires_at",
            {"permission_grants": [grant("user:bob") | {"expires_at": "2030-01-01T00:00:00Z"}]},
        ),
        (
            "/permission_grants/0/propagation",
            {"permission_grants": [grant("user:bob") | {"propagation": "descendants"}]},
        ),
        (
            "/permission_grants/0/copy_to_children",
            {"permission_grants": [grant("user:bob") | {"copy_to_children": True}]},
        ),
    ],
    ids=str,
)
def test_it_refuses_a_bad_field_and_names_it(alice, path, facts):
    answer = alice.post(TYPES, {"name": "agent", "description": "", **facts})
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert [each["path"] for each in answer.body["error"]["details"]] == [path]
    assert not EntityType.objects.exists()


WEBHOOK = {"targets": [{"type": "webhook", "url": "https://example.com"}]}


@pytest.mark.parametrize(
    ("method", "path", "field", "value", "at", "why"),
    [
        ("POST", TYPES, "default_dispatch_policy", WEBHOOK, "/targets/0/type", "webhook targets"),
        (
            "PUT",
            "/_electric/entities/agent/e1",
            "dispatch_policy",
            WEBHOOK,
            "/targets/0/type",
            "webhook targets",
        ),
        (
            "POST",
            TYPES,
            "permission_grants",
            [grant("user:bob") | {"expires_at": "2030-01-01T00:00:00Z"}],
            "/0/expires_at",
            "until it is taken back",
        ),
    ],
)
def test_what_is_not_done_here_is_refused_and_says_so(alice, method, path, field, value, at, why):
    answer = alice(method, path, {"name": "agent", "description": "", field: value})
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    told = {each["path"]: each["message"] for each in answer.body["error"]["details"]}
    assert why in told[f"/{field}{at}"]


def test_a_grant_that_says_nothing_more_is_taken(alice):
    nothing = {"propagation": "self", "copy_to_children": False, "expires_at": None}
    body = {
        "name": "agent",
        "description": "",
        "permission_grants": [grant("user:bob") | nothing],
    }
    registered = alice.post(TYPES, body).body
    assert set(registered["permission_grants"][0]) == {
        "subject_kind",
        "subject_value",
        "permission",
    }


def test_a_default_runner_must_be_the_callers(alice, bob):
    bob.register("r2")
    body = {"name": "agent", "description": "", "default_dispatch_policy": policy("r2")}
    assert alice.post(TYPES, body).status == 403
    assert not EntityType.objects.exists()


@pytest.mark.parametrize(
    ("grants", "status"),
    [
        ([], 403),
        ([grant("user:bob", "spawn")], 403),
        ([grant("user:bob", "manage")], 201),
        ([grant("/principal/user%3Abob", "manage")], 201),
        ([grant("user", "manage", "principal_kind")], 201),
        ([grant("agent", "manage", "principal_kind")], 403),
        ([grant("user:bobby", "manage")], 403),
    ],
)
def test_only_the_registrar_and_those_who_manage_it_change_it(alice, bob, grants, status):
    register(alice, permission_grants=grants)
    answer = bob.post(TYPES, {"name": "agent", "description": "bob's"})
    assert answer.status == status
    changed = alice.get(f"{TYPES}/agent").body
    assert changed["registered_by"] == "/principal/user%3Aalice"
    assert (changed["description"] == "bob's") == (status == 201)


def test_who_manages_it_names_a_default_runner_of_their_own(alice, bob):
    alice.register("r1")
    bob.register("r2")
    register(alice, permission_grants=[grant("user:bob", "manage")])
    body = {"name": "agent", "description": "", "default_dispatch_policy": policy("r1")}
    assert bob.post(TYPES, body).status == 403
    body["default_dispatch_policy"] = policy("r2")
    assert bob.post(TYPES, body).status == 201


# --- Who makes entities of it -----------------------------------------------------------------


def test_a_type_that_nobody_registered_is_open(bob):
    assert make(bob).status == 201


def test_its_registrar_makes_them(alice):
    register(alice)
    assert make(alice).status == 201


@pytest.mark.parametrize(
    ("grants", "status"),
    [
        ([], 403),
        ([grant("user:bob", "spawn")], 201),
        ([grant("user:bob", "manage")], 201),
        ([grant("user", "spawn", "principal_kind")], 201),
        ([grant("service", "spawn", "principal_kind")], 403),
        ([grant("user:carol", "spawn")], 403),
    ],
)
def test_those_who_were_granted_it_make_them(alice, bob, grants, status):
    register(alice, permission_grants=grants)
    assert make(bob).status == status
    assert Entity.objects.exists() == (status == 201)


def test_who_was_granted_to_make_them_does_not_manage_the_others(alice, bob):
    register(alice, permission_grants=[grant("user:bob", "spawn")])
    make(alice)
    assert bob.get("/_electric/entities/agent/e1").status == 403


# --- Where they are dispatched ----------------------------------------------------------------


def test_the_default_policy_holds_for_an_entity_without_one(alice, bob):
    alice.register()
    register(
        alice, default_dispatch_policy=policy(), permission_grants=[grant("user:bob", "spawn")]
    )
    # Bob may not name alice's runner himself; its owner consented for this type.
    assert make(bob, dispatch_policy=policy()).status == 403
    assert make(bob, initialMessage="hi").body["dispatch_policy"] == policy()
    assert len(alice.wakes()) == 1


def test_a_policy_of_its_own_comes_before_the_default(alice):
    alice.register("r1")
    alice.register("r2")
    register(alice, default_dispatch_policy=policy("r1"))
    assert make(alice, dispatch_policy=policy("r2")).body["dispatch_policy"] == policy("r2")


# --- Schemas ----------------------------------------------------------------------------------


def test_the_args_must_be_what_the_type_asks_for(alice):
    register(alice, creation_schema=NUMBER)
    answer = make(alice, args={"n": "one"})
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert [each["path"] for each in answer.body["error"]["details"]] == ["/args/n"]
    assert make(alice).status == 400
    assert make(alice, args={"n": 1}).status == 201


def test_every_bad_place_of_the_args_is_named(alice):
    register(alice, creation_schema={"additionalProperties": {"type": "integer"}})
    details = make(alice, args={"a": "x", "b": 1, "c": "y"}).body["error"]["details"]
    assert [each["path"] for each in details] == ["/args/a", "/args/c"]


INBOX = {"chat": {"type": "string"}, "number": NUMBER}


@pytest.mark.parametrize(
    ("message", "path"),
    [
        ({"payload": "hi", "type": "chat"}, None),
        ({"payload": {"n": 1}, "type": "number"}, None),
        ({"payload": 7}, None),  # of no type
        ({"payload": 7, "type": "chat"}, "/payload"),
        ({"payload": {"n": "x"}, "type": "number"}, "/payload/n"),
        ({"payload": 7, "type": "other"}, "/type"),
    ],
)
def test_a_message_must_be_what_the_type_asks_for(alice, message, path):
    register(alice, inbox_schemas=INBOX)
    make(alice)
    answer = alice.post("/_electric/entities/agent/e1/send", message)
    if path is None:
        assert answer.status == 200
    else:
        assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
        assert [each["path"] for each in answer.body["error"]["details"]] == [path]
    assert len(alice.events()) == (2 if path is None else 1)


@pytest.mark.parametrize(
    ("kind", "path"), [("chat", "/initialMessage"), ("other", "/initialMessageType")]
)
def test_a_first_message_must_be_what_the_type_asks_for(alice, kind, path):
    register(alice, inbox_schemas=INBOX)
    answer = make(alice, initialMessage=7, initialMessageType=kind)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert [each["path"] for each in answer.body["error"]["details"]] == [path]
    assert not Entity.objects.exists()
    assert make(alice, initialMessage="hi", initialMessageType="chat").status == 201


def test_new_schemas_hold_from_then_on(alice):
    register(alice)
    make(alice)
    register(alice, inbox_schemas=INBOX)
    send = "/_electric/entities/agent/e1/send"
    assert alice.post(send, {"payload": 7, "type": "chat"}).status == 400


@pytest.fixture
def elsewhere(tmp_path):
    """A server that gives a schema which allows all, and the paths that it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

    (tmp_path / "schema.json").write_text("{}")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield (
            {
                "http": f"http://127.0.0.1:{listening.server_address[1]}/schema.json",
                "file": (tmp_path / "schema.json").as_uri(),
                "nowhere": "#/$defs/nowhere",
            },
            asked,
        )
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize("where", ["http", "file", "nowhere"])
def test_a_reference_to_elsewhere_is_never_followed(alice, elsewhere, where):
    addresses, asked = elsewhere
    schema = {"$ref": addresses[where]}
    body = {"name": "agent", "description": "", "creation_schema": schema}
    assert alice.post(TYPES, body).error == "INVALID_REQUEST"
    # One that was taken before such were refused.
    EntityType.objects.create(
        name="agent", registered_by="/principal/user%3Aalice", creation_schema=schema
    )
    answer = make(alice, args={"n": 1})
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert [each["path"] for each in answer.body["error"]["details"]] == ["/args"]
    assert asked == []
    assert not Entity.objects.exists()


def test_a_reference_within_the_schema_is_followed(alice):
    register(alice, creation_schema={"$ref": "#/$defs/number", "$defs": {"number": NUMBER}})
    assert make(alice, args={"n": "x"}).status == 400
    assert make(alice, args={"n": 1}).status == 201


def test_the_types_of_others_are_not_read_for_a_list(alice, bob):
    schema = {"description": "x" * 60_000}
    for number in range(20):
        large = {f"k{key}": schema for key in range(15)}
        body = {"name": f"large{number}", "description": "", "inbox_schemas": large}
        assert alice.post(TYPES, body).status == 201
    grant = {"subject_kind": "principal", "subject_value": "user:bob", "permission": "spawn"}
    kind = {"subject_kind": "principal_kind", "subject_value": "user", "permission": "manage"}
    for name, grants in (("to-bob", [grant]), ("to-users", [kind]), ("to-nobody", [])):
        facts = {"name": name, "description": "", "permission_grants": grants}
        assert alice.post(TYPES, facts).status == 201
    tracemalloc.start()
    listed = bob.get(TYPES).body
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [each["name"] for each in listed] == ["to-bob", "to-users"]
    assert peak < 4_000_000


def test_its_schemas_are_not_larger_than_an_answer_may_be(alice):
    schema = {"description": "x" * 60_000}
    assert alice.post(TYPES, {"name": "doc", "description": ""}).status == 201
    path = f"{TYPES}/doc/schemas"
    for start, status in ((0, 200), (10, 400)):
        added = {f"k{key}": schema for key in range(start, start + 10)}
        assert alice("PATCH", path, {"inbox_schemas": added}).status == status
        assert alice("PATCH", path, {"state_schemas": added}).status == status
