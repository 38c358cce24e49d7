"""Who acts for another: how far a write token reaches, and whom a runner's owner acts for.

Each address and method is one of `ACTING`, so a new one fails until it is decided.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.test import override_settings
from pytest_django import DjangoDbBlocker

from dispatch import due, entities
from dispatch.models import Entity
from tests.api.endpoints import (
    CRON,
    ENDPOINTS,
    ENTITY,
    INBOX,
    SCHEDULE,
    SHARED,
    WAKE,
    Endpoint,
    bearer,
    everything,
)
from tests.api.test_query_counts import cost
from tests.standing import standing, undone
from tests.support import Api, Claim

PLACES = {
    "the claimed": "/agent/x",
    "its child": "/agent/child",
    "its grandchild": "/agent/grandchild",
    "its parent": "/agent/root",
    "its parent's parent": "/agent/top",
    "its sibling": "/agent/sibling",
    "another of the creator's": "/agent/other",
    "one that another runner holds": "/agent/y",
    "another's child of it": "/agent/managers",
    "another's": "/agent/eves",
}
BELOW = ("the claimed", "its child", "its grandchild")

ACTING: dict[str, tuple[str, ...]] = {
    **{str(each): () for each in ENDPOINTS},
    f"PUT /{ENTITY}": ("the claimed",),  # as the parent
    f"PUT /{SHARED}": ("the claimed",),  # as the owner
    f"POST /{WAKE}": ("the claimed",),  # as the subscriber
    f"POST /{WAKE}/unregister": ("the claimed",),
    f"POST /{ENTITY}/signal": BELOW,
    f"POST /{ENTITY}/tags/<text:key>": BELOW,
    f"DELETE /{ENTITY}/tags/<text:key>": BELOW,
    f"PATCH /{INBOX}": BELOW,
    f"DELETE /{INBOX}": BELOW,
    f"PUT /{SCHEDULE}": BELOW,
    f"DELETE /{SCHEDULE}": BELOW,
    f"POST /{CRON}": tuple(PLACES),  # it is about none of them
}
"""What the call may be about, where the runner's owner makes it in the creator's name."""


@dataclass
class Stage:
    """Alice's runner holds /agent/x, and bob's /agent/y; dora made both and what is about them."""

    alice: Api
    bob: Api
    dora: Api
    claim: Claim
    bobs_claim: Claim

    def by(self, api: Api, principal: str) -> Api:
        """Calls in a principal's name."""
        return Api(principal, Authorization=api.headers["Authorization"])


@pytest.fixture(scope="module")
def standing_stage(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[Stage]:
    """The stage of all these tests, in production mode."""
    with (
        override_settings(DEVELOPMENT=False),
        standing(django_db_blocker, set_stage) as stage,
    ):
        yield stage


@pytest.fixture
def stage(standing_stage: Stage, db: None) -> Stage:
    """What the test does to it is undone."""
    return standing_stage


def set_stage() -> Stage:
    alice, bob, dora, eve = (bearer(f"user:{name}") for name in ("alice", "bob", "dora", "eve"))
    manager = bearer("service:manager")
    grants = [
        {"subject_kind": "principal_kind", "subject_value": "user", "permission": "spawn"},
    ]
    manager.post(
        "/_electric/entity-types",
        {"name": "agent", "description": "", "permission_grants": grants},
    )
    for api, runner_id in ((alice, "r1"), (bob, "r2")):
        # Not over before the last test.
        api.register(runner_id, claim_lease_ms=600_000)
    manager.register("r3")
    for url, parent in (
        ("/agent/top", None),
        ("/agent/root", "/agent/top"),
        ("/agent/x", "/agent/root"),
        ("/agent/child", "/agent/x"),
        ("/agent/grandchild", "/agent/child"),
        ("/agent/sibling", "/agent/root"),
        ("/agent/other", None),
        ("/agent/y", None),
    ):
        dora.make_entity(
            url, None, tags={"color": "blue"}, **({"parent": parent} if parent else {})
        )
        dora.send(url, key="m1")
    eve.make_entity("/agent/eves", None)
    manager.make_entity("/agent/managers", "r3", parent="/agent/x")
    claims = []
    for api, url, runner_id in ((alice, "/agent/x", "r1"), (bob, "/agent/y", "r2")):
        entities.move(entities.find("agent", url.rpartition("/")[2]), runner_id)
        claims.append(api.claim(runner_id))
    return Stage(alice, bob, dora, *claims)


def call(api: Api, endpoint: Endpoint, place: str, stage: Stage) -> int:
    """What a call about this place is answered."""
    url = PLACES[place]
    body: Any = endpoint.body
    names = {
        "runner_id": "r1",
        "type_name": "agent",
        "name": url.rpartition("/")[2],
        "key": "color",
        "shared_id": "s/1",
        "sid": "daily",
        "consumer_id": stage.claim.body["consumerId"],
    }
    if endpoint.headers:  # the owner
        answer = api(endpoint.method, endpoint.path(names), Electric_Owner_Entity=url)
        return int(answer.status)
    if endpoint.route == ENTITY and endpoint.method == "PUT":
        # Of the endpoint's own name, with this as its parent.
        body = {**body, "parent": url}
    elif "subscriberUrl" in (body or {}):
        body = {**body, "subscriberUrl": url}
    status: int = api(endpoint.method, endpoint.path(names), body).status
    return status


OWN = {"anyone": None, "handler": 401, "holder": 401}
"""Where no principal calls, another that is named changes nothing."""


def test_each_endpoint_is_decided():
    assert set(ACTING) == {str(each) for each in ENDPOINTS}


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
def test_a_runners_owner_acts_for_the_creator_of_what_it_holds(stage, endpoint):
    acting = stage.by(stage.alice, "user:dora")
    before = everything()
    answered, expected = {}, {}
    for place in PLACES:
        allowed = place in ACTING[str(endpoint)] or endpoint.who == "anyone"
        expected[place] = endpoint.status if allowed else OWN.get(endpoint.who, 403)
        with undone():
            answered[place] = call(acting, endpoint, place, stage)
            assert allowed or everything() == before
    assert answered == expected


ACTS = [each for each in ENDPOINTS if ACTING[str(each)]]


@pytest.mark.parametrize("endpoint", ACTS, ids=str)
def test_nobody_else_acts_for_the_creator(stage, endpoint):
    for api, principal in (
        (stage.alice, "user:eve"),
        (stage.alice, "user:bob"),
        (stage.bob, "user:dora"),
        (bearer("user:carol"), "user:dora"),
    ):
        # What is about no entity takes any that the creator made, and bob's runner holds one.
        holds = endpoint.route == CRON and (api, principal) == (stage.bob, "user:dora")
        status = call(stage.by(api, principal), endpoint, "the claimed", stage)
        assert status == (endpoint.status if holds else 403)
    bobs = stage.by(stage.bob, "user:dora")
    with undone():
        place = "one that another runner holds"
        assert call(bobs, endpoint, place, stage) == endpoint.status
    assert call(Api("user:dora"), endpoint, "the claimed", stage) == 401


@pytest.mark.parametrize("endpoint", ACTS, ids=str)
@pytest.mark.parametrize("end", ["done", "failed", "killed", "the runner is deleted"])
def test_it_ends_with_the_claim(stage, endpoint, end):
    match end:
        case "done":
            stage.claim.done()
        case "failed":
            stage.claim.fail()
        case "killed":
            stage.dora.signal("/agent/x", "SIGKILL")
        case _:
            stage.alice("DELETE", "/_electric/runners/r1")
    acting = stage.by(stage.alice, "user:dora")
    assert call(acting, endpoint, "the claimed", stage) == 403


def test_it_acts_as_the_creator(stage):
    acting = stage.by(stage.alice, "user:dora")
    child = acting.make_entity("/agent/new", None, parent="/agent/x", initialMessage="hi")
    assert child["created_by"] == "/principal/user%3Adora"
    assert child["dispatch_policy"]["targets"][0]["runnerId"] == "r1"
    assert stage.dora.events("/agent/new")[1]["value"]["from"] == "/principal/user%3Adora"
    acting.signal("/agent/new", "SIGUSR")
    assert stage.dora.events("/agent/new")[-1]["value"]["sender"] == "/principal/user%3Adora"


def test_a_child_is_made_on_the_creators_runners_not_on_the_callers(stage):
    acting = stage.by(stage.alice, "user:dora")
    body = {
        "parent": "/agent/x",
        "dispatch_policy": {"targets": [{"type": "runner", "runnerId": "r1"}]},
    }
    assert acting("PUT", "/_electric/entities/agent/new", body).status == 403


def test_a_duplicate_is_shown_to_who_acts_for_its_creator(stage):
    acting = stage.by(stage.alice, "user:dora")
    answer = acting("PUT", "/_electric/entities/agent/child", {"parent": "/agent/x"})
    assert answer.error == "DUPLICATE_URL"
    assert answer.body["error"]["details"]["entity"]["url"] == "/agent/child"


def test_of_a_duplicate_that_is_no_part_of_the_task_only_the_address_is_shown(stage):
    body = {"parent": "/agent/x"}
    address = {"url": "/agent/other", "streams": {"main": "/agent/other/main"}}
    acting = stage.by(stage.alice, "user:dora")
    answer = acting("PUT", "/_electric/entities/agent/other", body)
    assert answer.error == "DUPLICATE_URL"
    assert answer.body["error"]["details"]["entity"] == address
    # The creator itself, and whoever has no right in it, are answered as ever.
    answer = stage.dora("PUT", "/_electric/entities/agent/other", body)
    assert answer.body["error"]["details"]["entity"]["tags"] == {"color": "blue"}
    answer = stage.bob("PUT", "/_electric/entities/agent/other", {})
    assert (answer.error, "details" in answer.body["error"]) == ("DUPLICATE_URL", False)


def test_a_token_for_one_runner_shows_no_duplicate_that_is_no_part_of_the_task(stage):
    dora = bearer("user:dora", runner_id="r4")
    dora.register("r4")
    stage.dora("DELETE", "/_electric/entities/agent/y")
    stage.dora.make_entity("/agent/y", "r4", initialMessage="hi")
    dora.claim("r4")
    for url, parts in (("/agent/other", {"url", "streams"}), ("/agent/y", None)):
        answer = dora("PUT", f"/_electric/entities{url}", {"parent": "/agent/y"})
        shown = answer.body["error"]["details"]["entity"]
        assert set(shown) == parts if parts else "tags" in shown


def test_without_a_parent_nobody_acts_for_another(stage):
    acting = stage.by(stage.alice, "user:dora")
    assert acting("PUT", "/_electric/entities/agent/new", {}).status == 403


def test_who_is_to_watch_a_child_is_to_be_the_claimed_too(stage):
    acting = stage.by(stage.alice, "user:dora")
    for parent, subscriber, status in (
        ("/agent/x", "/agent/other", 403),
        ("/agent/other", "/agent/x", 403),
        (None, "/agent/other", 403),
        ("/agent/x", "/agent/x", 201),
        (None, "/agent/x", 201),
    ):
        watch = {"subscriberUrl": subscriber, "condition": "runFinished"}
        body = {"wake": watch, **({"parent": parent} if parent else {})}
        with undone():
            assert acting("PUT", "/_electric/entities/agent/new", body).status == status


def test_it_costs_one_statement_and_none_where_the_two_are_one(stage):
    acting, itself = stage.by(stage.alice, "user:dora"), stage.by(stage.dora, "user:dora")
    tag = "/_electric/entities/agent/grandchild/tags/color"
    for api in (acting, itself):
        api.post(tag, {"value": "red"})  # its token is remembered from here on
    costs = [cost(lambda api=api: api.post(tag, {"value": "red"})) for api in (acting, itself)]
    assert costs[0] == costs[1] + 1


# --- What the runner's owner reads meanwhile --------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_runners_owner_reads_the_streams_of_what_it_holds_and_below(stage, method):
    for place, url in PLACES.items():
        status = 200 if place in BELOW else 403
        assert stage.alice(method, f"{url}/main").status == status, place
    stage.claim.done()
    for place, url in PLACES.items():
        status = 200 if place == "the claimed" else 403  # which is dispatched to its runner still
        assert stage.alice(method, f"{url}/main").status == status, place


def test_a_runners_owner_gets_and_reads_what_is_dispatched_to_its_runner(stage):
    stage.claim.done()
    assert stage.alice.get("/_electric/entities/agent/x").status == 200
    assert stage.alice.get("/agent/x/main").status == 200
    assert stage.bob.get("/_electric/entities/agent/x").status == 403


# --- How far a write token reaches ------------------------------------------------------------

REACHES = (*BELOW, "its parent")
TOKEN_CALLS = [each for each in ENDPOINTS if each.who == "actor"]


@pytest.mark.parametrize("endpoint", TOKEN_CALLS, ids=str)
@pytest.mark.parametrize("header", ["Electric_Claim_Token", "Authorization"])
def test_a_write_token_reaches_what_its_work_needs(stage, endpoint, header):
    token = stage.claim.mint()
    handler = Api(**{header: f"Bearer {token}" if header == "Authorization" else token})
    expected = {place: endpoint.status if place in REACHES else 403 for place in PLACES}
    answered = {}
    for place in PLACES:
        with undone():
            answered[place] = call(handler, endpoint, place, stage)
    assert answered == expected


@pytest.mark.parametrize("endpoint", TOKEN_CALLS, ids=str)
def test_on_the_creators_own_runner_it_reaches_all_that_the_creator_may(stage, endpoint):
    stage.dora.register("own")
    stage.dora.make_entity("/agent/z", "own", initialMessage="hi")
    handler = Api(Electric_Claim_Token=stage.dora.claim("own").mint())
    for place in PLACES:
        theirs = place in ("another's", "another's child of it")
        with undone():
            status = call(handler, endpoint, place, stage)
        assert status == (403 if theirs else endpoint.status), place


def test_a_token_does_not_reach_what_took_its_parents_place(stage):
    handler = Api(Electric_Claim_Token=stage.claim.mint())
    send = "/_electric/entities/agent/root/send"
    assert handler.post(send, {"payload": 1}).status == 200
    stage.dora("DELETE", "/_electric/entities/agent/root")
    stage.dora.make_entity("/agent/root", None)
    assert handler.post(send, {"payload": 1}).status == 403


def test_what_took_a_parents_place_does_not_reach_the_children_of_the_first(stage):
    stage.dora("DELETE", "/_electric/entities/agent/x")
    stage.dora.make_entity("/agent/x", None, initialMessage="hi")
    entities.move(entities.find("agent", "x"), "r1")
    handler = Api(Electric_Claim_Token=stage.alice.claim().mint())
    acting = stage.by(stage.alice, "user:dora")
    tag = "/_electric/entities/agent/child/tags/color"
    assert handler.post(tag, {"value": "red"}).status == 403
    assert acting.post(tag, {"value": "red"}).status == 403
    assert Entity.objects.get(url="/agent/child").tags == {"color": "blue"}


def _heard(stage: Stage) -> set[str]:
    """Of which sources the claimed entity's stream has told by now."""
    while due.run():
        pass
    return {
        each["value"]["source"] for each in stage.dora.events("/agent/x") if each["type"] == "wake"
    }


@pytest.mark.parametrize("asked", ["by a call", "by its manifest"])
def test_a_handler_on_anothers_runner_does_not_hear_of_all_that_its_creator_has(stage, asked):
    """Nor with the entity's end; what is near it, or its runner's owner's to read, it hears of."""
    sources = ("/agent/other", "/agent/sibling", "/agent/child", "/agent/root", "/agent/seen")
    stage.dora.make_entity("/agent/seen", None)
    entities.move(entities.find("agent", "seen"), "r1")
    for number, url in enumerate(sources):
        if asked == "by a call":
            body = {"subscriberUrl": "/agent/x", "sourceUrl": url, "condition": {"on": "change"}}
            assert stage.by(stage.alice, "user:dora").post("/_electric/wake", body).status == 204
        else:
            value: Any = {"kind": "source", "sourceType": "entity", "sourceRef": url}
            value["wake"] = {"on": "change"}
            event: Any = {"type": "manifest", "key": f"source:{number}", "value": value}
            event["headers"] = {"operation": "upsert"}
            assert stage.claim.append(event, token=stage.claim.mint()).status == 204
    for url in sources:
        stage.dora.send(url)
    assert _heard(stage) == set(sources[2:])
    stage.dora.send("/agent/other")
    assert stage.dora("DELETE", "/_electric/entities/agent/other").status == 204
    assert _heard(stage) == set(sources[2:])


def test_its_creator_may_have_it_hear_of_whatever_is_theirs(stage):
    body = {"subscriberUrl": "/agent/x", "sourceUrl": "/agent/other", "condition": {"on": "change"}}
    assert stage.dora.post("/_electric/wake", body).status == 204
    stage.dora.send("/agent/other")
    assert _heard(stage) == {"/agent/other"}
