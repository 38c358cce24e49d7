"""Who may read an entity and who may act on it."""

from typing import Any

import pytest

from core.principals import Principal
from dispatch import entities
from runners import tokens
from tests.support import Api

E1 = "/_electric/entities/agent/e1"

READS = {
    "get": ("GET", E1, None),
    "stream": ("GET", "/agent/e1/main", None),
    "tail": ("HEAD", "/agent/e1/main", None),
}
ACTS = {
    "patch": ("PATCH", E1, {"tags": {}}),
    "send": ("POST", f"{E1}/send", {"payload": 1}),
    "edit": ("PATCH", f"{E1}/inbox/m1", {"payload": 2}),
    "unsend": ("DELETE", f"{E1}/inbox/m1", None),
    "signal": ("POST", f"{E1}/signal", {"signal": "SIGUSR"}),
    "tag": ("POST", f"{E1}/tags/a", {"value": "x"}),
    "untag": ("DELETE", f"{E1}/tags/a", None),
    "delete": ("DELETE", E1, None),
}
CALLS = READS | ACTS
STREAM = ("stream", "tail")
TOKEN = ("send", "edit", "unsend", "tag", "untag")


@pytest.fixture
def parties(db):
    """Who has to do with /agent/e1: by what they are to it."""
    registrar, creator, owner = Api("service:registrar"), Api("user:creator"), Api("user:owner")
    owner.register()
    grants = [
        {"subject_kind": kind, "subject_value": value, "permission": permission}
        for kind, value, permission in (
            ("principal", "user:creator", "spawn"),
            ("principal", "user:spawner", "spawn"),
            ("principal", "user:manager", "manage"),
            ("principal_kind", "system", "manage"),
        )
    ]
    body = {"name": "agent", "description": "", "permission_grants": grants}
    assert registrar.post("/_electric/entity-types", body).status == 201
    for name in ("e1", "e2"):
        creator.make_entity(f"/agent/{name}", None)
        creator.send(f"/agent/{name}", key="m1")
        entities.move(entities.find("agent", name), "r1")
    claims = [owner.claim(), owner.claim()]
    assert claims[0].body["entity"]["url"] == "/agent/e1"
    secrets = [(claim.body["claimToken"], claim.mint()) for claim in claims]
    return {
        "creator": creator,
        "registrar": registrar,
        "manager": Api("user:manager"),
        "manager by kind": Api("system:anyone"),
        "owner of its runner": owner,
        "spawner": Api("user:spawner"),
        "stranger": Api("user:stranger"),
        "claim token": Api(Electric_Claim_Token=secrets[0][0]),
        "write token": Api(Electric_Claim_Token=secrets[0][1]),
        "claim token as bearer": Api(Authorization=f"Bearer {secrets[0][0]}"),
        "write token as bearer": Api(Authorization=f"Bearer {secrets[0][1]}"),
        "another entity's claim token": Api(Electric_Claim_Token=secrets[1][0]),
        "another entity's write token": Api(Electric_Claim_Token=secrets[1][1]),
        "dead token": Api(Electric_Claim_Token="pww_dead"),
        "access token that is none": Api(Authorization="Bearer pwa_unknown"),
    }


# What each may call; the answer to the rest is the last column.
MAY: dict[str, tuple[Any, int]] = {
    "creator": (CALLS, 403),
    "registrar": (CALLS, 403),
    "manager": (CALLS, 403),
    "manager by kind": (CALLS, 403),
    "owner of its runner": (READS, 403),
    "spawner": ((), 403),
    "stranger": ((), 403),
    "claim token as bearer": (STREAM, 401),
    "write token as bearer": ((*STREAM, *TOKEN), 401),
    "access token that is none": ((), 401),
}
# The header is of the stream, send and tags alone; elsewhere the caller is who it says it is, here
# (in development mode) system:dev-local, whom the grant to system lets in.
MAY_BY_HEADER = {
    "claim token": STREAM,
    "write token": (*STREAM, *TOKEN),
    "another entity's claim token": (),
    "another entity's write token": (),
    "dead token": (),
}


def statuses(api, calls):
    """What each of these calls is answered, the entity's deletion last."""
    return {call: api(*CALLS[call]).status for call in calls}


@pytest.mark.parametrize("who", MAY)
def test_it_lets_in_those_who_may(parties, who):
    allowed, refused = MAY[who]
    expected = {call: 200 if call in allowed else refused for call in CALLS}
    if "delete" in allowed:
        expected["delete"] = 204
    assert statuses(parties[who], CALLS) == expected


@pytest.mark.parametrize("who", MAY_BY_HEADER)
def test_it_lets_in_handlers_by_their_token(parties, who):
    calls = (*STREAM, *TOKEN)
    expected = {call: 200 if call in MAY_BY_HEADER[who] else 401 for call in calls}
    if who == "another entity's write token":  # it is live, and does not reach this one
        expected |= dict.fromkeys(TOKEN, 403)
    assert statuses(parties[who], calls) == expected


@pytest.mark.parametrize("mode", ["development", "production"])
def test_a_handler_names_its_creator_beside_its_runners_access_token(parties, settings, mode):
    """So the existing runtime does, when its entity's creator does not own its runner."""
    settings.DEVELOPMENT = mode == "development"
    secret = tokens.issue(Principal.parse("user:owner"))[1]
    handler = Api(
        "user:creator",
        Authorization=f"Bearer {secret}",
        Electric_Claim_Token=parties["write token"].headers["Electric-Claim-Token"],
    )
    calls = (*STREAM, *TOKEN)
    assert statuses(handler, calls) == dict.fromkeys(calls, 200)
    assert handler.post("/agent/e1/main", {"n": 1}).status == 204
    assert handler.get(E1).status == 403


@pytest.mark.parametrize("who", [who for who in MAY if not set(ACTS) <= set(MAY[who][0])])
def test_a_refused_call_changes_nothing(parties, who):
    refused = [call for call in ACTS if call not in MAY[who][0]]
    creator = parties["creator"]
    before = (creator.get(E1).body, creator.events())
    statuses(parties[who], refused)
    assert (creator.get(E1).body, creator.events()) == before


def test_the_handlers_tokens_die_with_its_claim(parties):
    parties["creator"].signal("/agent/e1", "SIGKILL")
    for who in ("claim token", "write token"):
        assert parties[who]("GET", "/agent/e1/main").status == 401


def test_the_former_runners_owner_no_longer_reads_it(parties, db):
    manager = parties["manager"]
    manager.register("r2")
    target = {"targets": [{"type": "runner", "runnerId": "r2"}]}
    assert manager("PATCH", E1, {"dispatch_policy": target}).status == 200
    assert parties["owner of its runner"].get(E1).status == 403


def test_a_grant_that_was_taken_back_lets_nobody_in(parties):
    body = {"name": "agent", "description": "", "permission_grants": []}
    parties["registrar"].post("/_electric/entity-types", body)
    assert parties["manager"].get(E1).status == 403
    assert parties["creator"].get(E1).status == 200
