"""PUT of an entity: its runner, its parent, its sandbox, and the order of what is checked."""

import pytest

from dispatch.models import Entity
from tests.support import Api

TYPES = "/_electric/entity-types"
E1 = "/_electric/entities/agent/e1"
DOCKER = [{"name": "docker", "label": "Docker"}]


def policy(runner_id="r1"):
    return {"targets": [{"type": "runner", "runnerId": runner_id, "subscription_id": "x"}], "x": 1}


def to(runner_id):
    return {"targets": [{"type": "runner", "runnerId": runner_id}]}


def grant(value, permission="spawn"):
    return {"subject_kind": "principal", "subject_value": value, "permission": permission}


def register_type(api, **facts):
    answer = api.post(TYPES, {"name": "agent", "description": "", **facts})
    assert answer.status == 201, answer
    return answer.body


def spawn(api, **facts):
    return api("PUT", E1, facts)


# --- Types before runners ---------------------------------------------------------------------


def test_a_type_names_a_runner_that_is_yet_to_come(alice):
    body = register_type(alice, default_dispatch_policy=policy())
    assert body["default_dispatch_policy"] == to("r1")
    assert (spawn(alice).status, spawn(alice).error) == (404, "NOT_FOUND")
    alice.register()
    assert spawn(alice).body["dispatch_policy"] == to("r1")


def test_whoever_else_registers_that_id_gets_nothing(alice, bob):
    register_type(alice, default_dispatch_policy=policy(), permission_grants=[grant("user:carol")])
    bob.register()
    for caller in (alice, Api("user:carol")):
        answer = spawn(caller)
        assert (answer.status, answer.error) == (403, "UNAUTHORIZED")
    assert not Entity.objects.exists()
    assert bob.wakes() == []


def test_a_default_runner_may_be_the_callers_own(alice, bob):
    register_type(alice, default_dispatch_policy=policy(), permission_grants=[grant("user:bob")])
    bob.register()
    assert spawn(bob).body["dispatch_policy"] == to("r1")


def test_a_managers_runner_is_no_default_for_others(alice, bob):
    bob.register()
    grants = [grant("user:bob", "manage"), grant("user:carol")]
    register_type(alice, permission_grants=grants)
    register_type(bob, default_dispatch_policy=policy())
    assert spawn(Api("user:carol")).status == 403
    assert spawn(bob).status == 201


def test_a_default_runner_that_was_deleted_is_missed_until_its_owner_registers_it(alice, bob):
    alice.register()
    register_type(alice, default_dispatch_policy=policy(), permission_grants=[grant("user:bob")])
    alice("DELETE", "/_electric/runners/r1")
    assert spawn(bob).status == 404
    alice.register()
    assert spawn(bob).status == 201


# --- The parent's runner ----------------------------------------------------------------------


def test_the_runner_is_the_callers_then_the_parents_then_the_types_then_none(alice):
    for runner_id in ("own", "parents", "types"):
        alice.register(runner_id)
    alice.make_entity("/boss/with", "parents")
    alice.make_entity("/boss/without", None)
    register_type(alice, default_dispatch_policy=policy("types"))

    def runner_of(name, **facts):
        made = alice("PUT", f"/_electric/entities/agent/{name}", facts)
        assert made.status == 201, made
        return made.body["dispatch_policy"]["targets"][0]["runnerId"]

    own = {"dispatch_policy": policy("own")}
    assert runner_of("e1", parent="/boss/with", **own) == "own"
    assert runner_of("e2", parent="/boss/with") == "parents"
    assert runner_of("e3", parent="/boss/without") == "types"
    assert runner_of("e4") == "types"
    assert "dispatch_policy" not in alice("PUT", "/_electric/entities/open/e5", {}).body


def test_an_inherited_runner_needs_no_ownership(alice, bob):
    register_type(alice, permission_grants=[grant("user:bob")])
    alice.register()
    alice.post(TYPES, {"name": "agent", "description": "", "default_dispatch_policy": policy()})
    bob.make_entity("/agent/boss", None)
    alice.post(TYPES, {"name": "agent", "description": "", "default_dispatch_policy": None})
    child = spawn(bob, parent="/agent/boss", initialMessage="hi")
    assert child.body["dispatch_policy"] == to("r1")
    assert len(alice.wakes()) == 1
    # He may still not name it himself.
    named = {"parent": "/agent/boss", "dispatch_policy": policy()}
    assert bob("PUT", "/_electric/entities/agent/e2", named).status == 403


@pytest.mark.parametrize("targets", [0, 2])
def test_a_policy_has_exactly_one_target(alice, targets):
    alice.register()
    several = {"targets": policy()["targets"] * targets}
    answer = spawn(alice, dispatch_policy=several)
    assert answer.body["error"]["details"][0]["path"] == "/dispatch_policy/targets"


# --- The order of checks ----------------------------------------------------------------------


def test_its_parent_must_exist_and_be_the_callers_to_act_on(alice, bob):
    alice.make_entity("/boss/alices", None)
    assert spawn(bob, parent="/boss/nobody").status == 404
    assert spawn(bob, parent="/boss/alices").status == 403
    assert not Entity.objects.filter(type="agent").exists()


def test_it_is_checked_in_the_order_of_the_contract(alice, bob):
    """Each request has all the faults that come after the one that it is refused for."""
    alice.register("alices")
    bob.register("bobs", sandbox_profiles=DOCKER)
    alice.make_entity("/boss/alices", None)
    bob.make_entity("/boss/bobs", None)
    type_facts = {
        "creation_schema": {"type": "object", "required": ["n"]},
        "inbox_schemas": {"chat": {"type": "string"}},
    }
    register_type(alice, **type_facts)
    bad_body = {"args": [], "parent": "/boss/nobody"}
    late = {
        "args": {},
        "initialMessage": 7,
        "initialMessageType": "chat",
        "sandbox": {"profile": "none"},
    }
    alice("PUT", E1, {"args": {"n": 1}})

    def answered(body, path=E1):
        answer = bob("PUT", path, body)
        return answer.status, answer.error

    no_parent = {**late, "parent": "/boss/nobody", "dispatch_policy": policy("alices")}
    assert answered(bad_body, "/_electric/entities/agent/a%20b") == (400, "INVALID_REQUEST")
    assert answered(bad_body) == (400, "INVALID_REQUEST")
    assert answered(no_parent) == (403, "UNAUTHORIZED")  # not his to make
    register_type(alice, permission_grants=[grant("user:bob")])
    assert answered(no_parent) == (404, "NOT_FOUND")
    assert answered({**no_parent, "parent": "/boss/alices", "dispatch_policy": policy("none")}) == (
        403,
        "UNAUTHORIZED",
    )
    mine = {**late, "parent": "/boss/bobs"}
    assert answered({**mine, "dispatch_policy": policy("none")}) == (404, "NOT_FOUND")
    assert answered({**mine, "dispatch_policy": policy("alices")}) == (403, "UNAUTHORIZED")
    mine["dispatch_policy"] = policy("bobs")
    for mended in (
        {"args": {"n": 1}},
        {"initialMessage": "seven"},
        {"sandbox": {"profile": "docker"}},
    ):
        assert answered(mine) == (400, "INVALID_REQUEST")
        mine |= mended
    assert answered(mine) == (409, "DUPLICATE_URL")
    assert Entity.objects.filter(type="agent").count() == 1


def test_all_that_is_wrong_with_it_is_named(alice):
    alice.register()
    register_type(
        alice,
        creation_schema={"type": "object", "required": ["n"]},
        inbox_schemas={"chat": {"type": "string"}},
    )
    answer = spawn(
        alice,
        initialMessage=7,
        initialMessageType="chat",
        tags={str(n): "x" * 4096 for n in range(17)},
        sandbox={"profile": "none"},
        dispatch_policy=policy(),
    )
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert [each["path"] for each in answer.body["error"]["details"]] == [
        "/args",
        "/initialMessage",
        "/tags",
        "/sandbox/profile",
    ]


def test_a_creation_schema_holds_for_absent_args(alice):
    register_type(alice, creation_schema={"type": "object", "required": ["n"]})
    assert (spawn(alice).status, spawn(alice).error) == (400, "INVALID_REQUEST")
    assert not Entity.objects.exists()


def test_a_bad_first_message_leaves_nothing_behind(alice):
    alice.register()
    register_type(alice, inbox_schemas={"chat": {"type": "string"}})
    bad = {"initialMessage": 7, "initialMessageType": "chat", "dispatch_policy": policy()}
    assert spawn(alice, **bad).status == 400
    assert not Entity.objects.exists()
    assert spawn(alice, **{**bad, "initialMessage": "x"}).status == 201


def test_a_duplicate_names_the_entity_that_is_there(alice):
    first = spawn(alice, tags={"n": "1"}).body
    answer = spawn(alice)
    assert (answer.status, answer.error) == (409, "DUPLICATE_URL")
    assert answer.body["error"]["details"]["entity"] == {
        name: value for name, value in first.items() if name != "txid"
    }
    assert first["streams"]["main"] == "/agent/e1/main"


# --- The sandbox ------------------------------------------------------------------------------


def test_a_sandbox_is_stored_and_given_to_the_claim(alice):
    alice.register(sandbox_profiles=DOCKER)
    given = {"profile": "docker", "key": "k", "scope": "wake", "persistent": True, "owner": True}
    asked = {**given, "inherit": False, "unknown": 1}
    assert alice.make_entity(sandbox=asked, initialMessage="hi")["sandbox"] == given
    assert alice.claim().body["entity"]["sandbox"] == given


@pytest.mark.parametrize("runner_id", ["r1", "plain", None])
def test_its_profile_must_be_one_that_its_runner_advertises(alice, runner_id):
    alice.register(sandbox_profiles=DOCKER)
    alice.register("plain")
    facts = {} if runner_id is None else {"dispatch_policy": policy(runner_id)}
    answer = spawn(alice, sandbox={"profile": "docker"}, **facts)
    assert answer.status == (201 if runner_id == "r1" else 400)
    if runner_id != "r1":
        assert answer.body["error"]["details"][0]["path"] == "/sandbox/profile"
    assert spawn(alice, sandbox={"profile": "other"}, **facts).status == 400


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("profile", 1),
        ("profile", ""),
        ("key", None),
        ("scope", "run"),
        ("persistent", "yes"),
        ("owner", 1),
        ("inherit", "no"),
    ],
)
def test_it_refuses_a_bad_field_of_a_sandbox(alice, field, value):
    answer = spawn(alice, sandbox={field: value})
    assert answer.body["error"]["details"][0]["path"] == f"/sandbox/{field}"


@pytest.mark.parametrize(
    ("parents", "childs"),
    [
        (
            {"profile": "docker", "key": "k", "scope": "wake", "persistent": True},
            {"profile": "docker", "key": "k", "owner": False},
        ),
        ({"profile": "docker"}, {"profile": "docker", "owner": False}),
        ({"persistent": True}, None),
        (None, None),
    ],
)
def test_an_inherited_sandbox_is_the_parents_and_not_the_childs_own(alice, parents, childs):
    alice.register(sandbox_profiles=DOCKER)
    alice.make_entity("/agent/boss", **({} if parents is None else {"sandbox": parents}))
    asked = {"inherit": True, "profile": "other", "owner": True, "persistent": True}
    made = spawn(alice, parent="/agent/boss", sandbox=asked)
    assert made.status == 201, made
    assert made.body.get("sandbox") == childs


def test_an_inherited_sandbox_of_no_parent_is_none(alice):
    assert "sandbox" not in spawn(alice, sandbox={"inherit": True}).body


def test_an_inherited_sandbox_must_be_one_that_the_childs_runner_advertises(alice):
    alice.register(sandbox_profiles=DOCKER)
    alice.register("plain")
    alice.make_entity("/agent/boss", sandbox={"profile": "docker"})
    inherit = {"parent": "/agent/boss", "sandbox": {"inherit": True}}
    assert spawn(alice, **inherit, dispatch_policy=policy("plain")).status == 400
