"""/_electric/shared-state/:id: streams that several entities write to, and whose they are."""

import pytest
from django.db import transaction

from dispatch import due, entities, wakes
from dispatch.models import (
    DispatchState,
    Registration,
    SharedState,
    SharedStateEvent,
    SharedStateLink,
    SharedStateProducer,
)
from dispatch.streams import log
from tests.api.test_query_counts import cost
from tests.support import Api, prune

S1 = "/_electric/shared-state/s1"


def offset(number):
    return f"0000000000000000_{number:016d}"


def event(key="k", operation="insert", **value):
    headers = {"operation": operation, "txid": "t", "from": "/agent/e1"}
    return {"type": "state:board", "key": key, "value": value, "headers": headers}


@pytest.fixture
def shared(alice):
    """Alice's runner r1 and entity /agent/e1, which has the shared state s1."""
    alice.register()
    alice.make_entity()
    alice.share()
    return alice


# --- Made -------------------------------------------------------------------------------------


def test_it_is_made_once(alice):
    alice.make_entity(runner_id=None)
    owner = {"Electric_Owner_Entity": "/agent/e1"}
    for status, tail in ((201, 0), (200, 0), (200, 1)):
        answer = alice("PUT", S1, **owner)
        assert (answer.status, answer.content) == (status, b"")
        assert answer.headers["Stream-Next-Offset"] == offset(tail)
        if not tail:
            SharedState.objects.update(tail=0)
        if status == 200:
            alice.post(S1, event())
    assert SharedState.objects.get().tail == 2


@pytest.mark.parametrize(
    "shared_id", ["debate-/moderator/x", "a%2Fb", "%C3%A4", "x" * 512, "main", "%25", "a b"]
)
def test_its_id_is_any_text(alice, shared_id):
    alice.make_entity(runner_id=None)
    path = alice.share(shared_id)
    assert alice.post(path, event()).status == 204
    assert len(alice.get(path).body) == 1
    assert SharedState.objects.count() == 1


def test_an_encoded_slash_is_a_slash(alice):
    alice.make_entity(runner_id=None)
    alice.share("debate-/moderator/x")
    assert alice.get("/_electric/shared-state/debate-%2Fmoderator%2Fx").body == []


def test_an_owner_must_be_there(alice):
    owner = {"Electric_Owner_Entity": "/agent/e1"}
    assert alice("PUT", S1, **owner).error == "NOT_FOUND"
    assert not SharedState.objects.exists()


# --- Read and written -------------------------------------------------------------------------


def test_what_is_appended_is_read_with_its_place(shared):
    answer = shared.post(S1, event(a=1))
    assert (answer.status, answer.content) == (204, b"")
    assert answer.headers["Stream-Next-Offset"] == offset(1)
    assert shared.post(S1, [event("l"), {"any": "thing"}, 7]).headers[
        "Stream-Next-Offset"
    ] == offset(4)
    answer = shared.get(S1)
    first = event(a=1)
    first["headers"]["offset"] = offset(1)
    assert answer.body[0] == first
    assert answer.body[2:] == [{"any": "thing"}, 7]
    assert answer.headers["Stream-Next-Offset"] == offset(4)
    assert answer.headers["Stream-Up-To-Date"] == "true"
    assert "Stream-Closed" not in answer.headers


def test_it_is_read_from_an_offset_on(shared):
    shared.post(S1, [event("a"), event("b"), event("c")])
    keys = [each["key"] for each in shared.get(f"{S1}?offset={offset(1)}").body]
    assert keys == ["b", "c"]
    assert shared.get(f"{S1}?offset=now").body == []
    healed = shared.get(f"{S1}?offset={offset(9)}")
    assert (healed.body, healed.headers["Stream-Next-Offset"]) == ([], offset(3))


def test_a_head_tells_the_tail(shared):
    shared.post(S1, event())
    answer = shared("HEAD", S1)
    assert (answer.status, answer.content) == (200, b"")
    assert answer.headers["Stream-Next-Offset"] == offset(1)


def test_what_was_read_already_is_not_sent_again(shared):
    etag = shared.get(S1).headers["ETag"]
    assert shared.get(S1, If_None_Match=etag).status == 304
    shared.post(S1, event())
    assert shared.get(S1, If_None_Match=etag).status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_it_does_not_know_the_stream(shared, method):
    answer = shared(method, "/_electric/shared-state/s2", event())
    assert answer.status == 404
    assert method == "HEAD" or answer.error == "NOT_FOUND"


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense"])
def test_it_refuses_what_is_no_event(shared, body):
    assert shared.post(S1, body).error == "INVALID_REQUEST"
    assert not SharedStateEvent.objects.exists()


def test_states_do_not_know_each_other(shared):
    shared.share("s2")
    shared.post(S1, event("a"))
    shared.post("/_electric/shared-state/s2", [event("b"), event("c")])
    assert [each["key"] for each in shared.get(S1).body] == ["a"]
    assert [each["key"] for each in shared.get("/_electric/shared-state/s2").body] == ["b", "c"]


def test_an_append_is_no_work_of_the_entity_that_has_it(shared):
    shared.post(S1, {"type": "wake", "key": "k", "headers": {"operation": "insert"}})
    assert shared.wakes() == []


# --- Idempotent producers ---------------------------------------------------------------------


def produce(api, seq, epoch=0, producer="shared-state-/agent/e1-s1"):
    return api.post(
        S1,
        event(str(seq)),
        Producer_Id=producer,
        Producer_Epoch=str(epoch),
        Producer_Seq=str(seq),
    )


def test_a_retry_is_appended_once(shared):
    assert [produce(shared, seq).status for seq in (0, 0, 1, 1)] == [200, 204, 200, 204]
    assert [each["key"] for each in shared.get(S1).body] == ["0", "1"]
    answer = produce(shared, 2)
    assert (answer.headers["Producer-Epoch"], answer.headers["Producer-Seq"]) == ("0", "2")
    assert answer.headers["Stream-Next-Offset"] == offset(3)


def test_a_later_epoch_fences(shared):
    produce(shared, 0, epoch=1)
    answer = produce(shared, 1, epoch=0)
    assert (answer.status, answer.error) == (403, "PRODUCER_FENCED")
    answer = produce(shared, 2, epoch=1)
    assert (answer.status, answer.error) == (409, "PRODUCER_GAP")
    assert produce(shared, 1, epoch=2).error == "INVALID_REQUEST"
    assert len(shared.get(S1).body) == 1


def test_the_longest_id_makes_no_producer_too_long(alice):
    """Its id is made of the entity's URL and the shared state's id."""
    url, shared_id = f"/{'t' * 128}/{'e' * 128}", "x" * 512
    alice.make_entity(url, None)
    path = alice.share(shared_id, url)
    headers = {"Producer_Epoch": "1", "Producer_Seq": "0"}
    name = f"shared-state-{url}-{shared_id}"
    assert alice.post(path, event(), Producer_Id=name, **headers).status == 200
    assert alice.post(path, event(), Producer_Id="\xe4" * 1024, **headers).status == 200
    assert alice.post(path, event(), Producer_Id="x" * 1025, **headers).status == 400
    assert SharedStateProducer.objects.count() == 2


def test_a_producer_of_the_entitys_stream_is_another(shared):
    shared.send()
    claim = shared.claim()
    headers = {"Producer_Id": "p", "Producer_Epoch": "1", "Producer_Seq": "0"}
    assert claim.append(event(), token=claim.mint(), **headers).status == 200
    assert shared.post(S1, event(), **headers).status == 200


@pytest.mark.parametrize("epoch", [1, 3])
@pytest.mark.parametrize("has_it", [True, False])
def test_what_is_made_anew_at_a_url_writes_from_its_first_epoch_on(shared, epoch, has_it):
    """It is neither fenced by what was at its URL before, nor taken for that one's retry."""
    shared.make_entity("/agent/e2")
    shared.make_entity("/agent/e1-s1")
    shared.share("s1", "/agent/e1-s1")
    for url in ("/agent/e2", "/agent/e1-s1"):
        assert produce(shared, 0, epoch, f"shared-state-{url}-s1").status == 200
    if has_it:
        shared.share("s1", "/agent/e2")
    else:
        observe("/agent/e2", "s1")
    shared("DELETE", "/_electric/entities/agent/e2")
    shared.make_entity("/agent/e2")
    assert produce(shared, 0, 1, "shared-state-/agent/e2-s1").status == 200
    assert produce(shared, 0, epoch, "shared-state-/agent/e1-s1-s1").status == 204
    assert len(shared.get(S1).body) == 3


# --- Whose it is ------------------------------------------------------------------------------


@pytest.fixture
def parties(db):
    """Dora's /agent/x has s1, and runs on Alice's r1; /agent/z is Dora's, too, on Bob's r2."""
    registrar, dora = Api("service:registrar"), Api("user:dora")
    grants = [
        {"subject_kind": "principal", "subject_value": who, "permission": permission}
        for who, permission in (("user:dora", "spawn"), ("user:manager", "manage"))
    ]
    body = {"name": "agent", "description": "", "permission_grants": grants}
    assert registrar.post("/_electric/entity-types", body).status == 201
    found = {"creator": dora, "registrar": registrar, "manager": Api("user:manager")}
    for who, name, runner_id in (("runner's owner", "x", "r1"), ("another's owner", "z", "r2")):
        found[who] = Api(f"user:{who.replace(' ', '-')}")
        found[who].register(runner_id)
        dora.make_entity(f"/agent/{name}", None)
        entities.move(entities.find("agent", name), runner_id)
    dora.share("s1", "/agent/x")
    found["stranger"] = Api("user:stranger")
    found["stranger"].make_entity("/other/y", None)
    return found


def reach(parties):
    """Who reads and writes s1; the others are all 403."""
    can = set()
    for who, api in parties.items():
        statuses = api.get(S1).status, api("HEAD", S1).status, api.post(S1, event()).status
        assert statuses in ((200, 200, 204), (403, 403, 403)), who
        if statuses[0] == 200:
            can.add(who)
    return can


OWN = {"creator", "registrar", "manager", "runner's owner"}


def test_it_is_of_those_who_may_act_on_what_has_it_and_of_its_runners_owner(parties):
    assert reach(parties) == OWN


def test_one_more_entity_has_it_and_so_its_runners_owner(parties):
    answer = parties["creator"]("PUT", S1, Electric_Owner_Entity="/agent/z")
    assert answer.status == 200
    assert reach(parties) == {*OWN, "another's owner"}


def test_nobody_takes_what_is_anothers(parties):
    answer = parties["stranger"]("PUT", S1, Electric_Owner_Entity="/other/y")
    assert (answer.status, answer.error) == (403, "UNAUTHORIZED")
    assert reach(parties) == OWN
    assert SharedStateLink.objects.count() == 1


def test_who_may_use_it_lets_an_entity_of_its_own_have_it(parties):
    parties["runner's owner"].make_entity("/other/mine", None)
    parties["runner's owner"].share("s1", "/other/mine")
    assert reach(parties) == OWN


def test_nobody_makes_one_in_the_name_of_anothers_entity(parties):
    for who in ("stranger", "runner's owner"):
        answer = parties[who]("PUT", "/_electric/shared-state/s2", Electric_Owner_Entity="/agent/x")
        assert (answer.status, answer.error) == (403, "UNAUTHORIZED")
    assert SharedState.objects.count() == 1


def test_it_goes_where_the_entity_goes(parties):
    entities.move(entities.find("agent", "x"), "r2")
    assert reach(parties) == {*OWN, "another's owner"} - {"runner's owner"}


def test_a_grant_that_was_taken_back_lets_nobody_in(parties):
    body = {"name": "agent", "description": "", "permission_grants": []}
    parties["registrar"].post("/_electric/entity-types", body)
    assert reach(parties) == OWN - {"manager"}


def test_a_type_that_is_registered_anew_takes_over_nothing(parties):
    parties["registrar"]("DELETE", "/_electric/entity-types/agent")
    parties["stranger"].post("/_electric/entity-types", {"name": "agent", "description": ""})
    assert reach(parties) == {"creator", "runner's owner"}


def observe(url, name, key="source:db:s1"):
    """What its handler's manifest says, or does not say any more."""
    value = {"kind": "source", "sourceType": "db", "sourceRef": name}
    said = {"type": "manifest", "key": key, "value": value, "headers": {"operation": "upsert"}}
    if name is None:
        said = {"type": "manifest", "key": key, "headers": {"operation": "delete"}}
    with transaction.atomic():
        (state,) = wakes.lock(DispatchState.objects.filter(entity__url=url))
        log.append(state, [said], by_handler=True)
        wakes.settle(state)


def test_the_runner_of_what_observes_it_uses_it(parties):
    observe("/agent/z", "s1")
    assert reach(parties) == {*OWN, "another's owner"}
    observe("/agent/z", None)
    assert reach(parties) == OWN


def test_observing_gives_nothing_to_whom_it_is_not(parties):
    """Whatever a handler writes into its manifest."""
    parties["stranger"].register("r3")
    entities.move(entities.find("other", "y"), "r3")
    observe("/other/y", "s1")
    assert reach(parties) == OWN


def test_observing_before_it_is_made_takes_nothing_over(alice, bob):
    bob.register("r2")
    bob.make_entity("/agent/e2", "r2")
    observe("/agent/e2", "s1")
    alice.make_entity(runner_id=None)
    alice.share()
    assert bob.get(S1).status == 403


def test_observing_before_it_is_made_holds_then(alice, bob):
    bob.register("r2")
    alice.make_entity("/agent/e2", None)
    entities.move(entities.find("agent", "e2"), "r2")
    observe("/agent/e2", "s1")
    alice.make_entity(runner_id=None)
    alice.share()
    assert bob.get(S1).status == 200


def test_a_key_of_the_manifest_names_one_at_a_time(parties):
    for name in ("s1", "s2", "s1"):
        observe("/agent/z", name)
    observe("/agent/z", "s2", "another key")
    names = SharedStateLink.objects.exclude(manifest="").order_by("pk").values_list("name")
    assert [name for (name,) in names] == ["s1", "s2"]


@pytest.mark.parametrize("name", ["", "x" * 513, "a\nb"])
def test_what_no_shared_state_is_named_is_not_observed(parties, name):
    observe("/agent/z", "s1")
    observe("/agent/z", name)
    assert not SharedStateLink.objects.exclude(manifest="").exists()


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "shared-state", "id": "s1"},
        {"kind": "source", "sourceType": "db", "sourceRef": S1},
        {"kind": "source", "sourceType": "db", "config": {"sourceRef": "s1"}},
    ],
    ids=str,
)
def test_a_manifest_names_it_in_one_of_these_ways(parties, value):
    dora = parties["creator"]
    dora.send("/agent/z")
    claim = parties["another's owner"].claim("r2")
    said = {"type": "manifest", "key": "k", "value": value, "headers": {"operation": "upsert"}}
    assert claim.append(said, token=claim.mint()).status == 204
    assert reach(parties) == {*OWN, "another's owner"}


def test_other_manifest_events_cost_nothing(shared):
    shared.send()
    claim = shared.claim()
    token = claim.mint()
    value = {"kind": "goal", "id": "s1"}
    said = {"type": "manifest", "key": "k", "value": value, "headers": {"operation": "upsert"}}
    plain = cost(lambda: claim.append(event(), token=token), status=204)
    assert cost(lambda: claim.append(said, token=token), status=204) == plain


# --- Waited for -------------------------------------------------------------------------------


def told(api, url="/agent/e2"):
    """Do what is due; the values of the wakes in an entity's stream."""
    while due.run():
        pass
    return [each["value"] for each in api.events(url) if each["type"] == "wake"]


def watch(api, source=S1, subscriber="/agent/e2", *, status=204, **condition):
    body = {
        "subscriberUrl": subscriber,
        "sourceUrl": source,
        "condition": {"on": "change", **condition},
    }
    assert api.post("/_electric/wake", body).status == status


def test_an_append_is_a_change_to_whoever_waits_for_it(shared):
    shared.make_entity("/agent/e2")
    watch(shared, collections=["board"], ops=["insert"])
    shared.post(S1, [event("a", n=1), event("b", "delete"), {**event("c"), "type": "state:other"}])
    (value,) = told(shared)
    assert (value["source"], value["timeout"]) == (S1, False)
    (change,) = value["changes"]
    assert (change["collection"], change["kind"], change["key"]) == ("state:board", "insert", "a")
    assert len(shared.wakes()) == 1


def test_its_own_writer_is_told_too(shared):
    watch(shared, subscriber="/agent/e1")
    shared.post(S1, event())
    assert len(told(shared, "/agent/e1")) == 1


def test_a_retry_is_told_once(shared):
    shared.make_entity("/agent/e2")
    watch(shared)
    for seq in (0, 0, 1, 0):
        produce(shared, seq)
    (value,) = told(shared)
    assert [each["key"] for each in value["changes"]] == ["0", "1"]


@pytest.mark.parametrize(
    "source", ["debate /mod/é", "debate%20%2Fmod%2F%C3%A9", "debate%20/mod/%C3%A9"]
)
def test_it_is_waited_for_by_each_form_of_its_url_and_before_it_is_made(shared, source):
    shared.make_entity("/agent/e2")
    source = f"/_electric/shared-state/{source}"
    watch(shared, source)
    path = shared.share("debate%20/mod/%C3%A9")
    shared.post(path, event())
    assert [each["source"] for each in told(shared)] == [source]


def test_a_manifest_event_waits_for_it(shared):
    shared.send()
    claim = shared.claim()
    value = {"kind": "source", "sourceType": "db", "sourceRef": "s1", "wake": {"on": "change"}}
    said = {"type": "manifest", "key": "k", "value": value, "headers": {"operation": "upsert"}}
    assert claim.append(said, token=claim.mint()).status == 204
    claim.done()
    shared.post(S1, event())
    assert [each["source"] for each in told(shared, "/agent/e1")] == [S1]


def test_nobody_is_told_of_what_its_creator_may_not_use(shared, bob):
    bob.make_entity("/agent/e2", None)
    watch(bob)
    shared.post(S1, event())
    assert told(bob) == []


def test_nobody_waits_for_what_is_gone(shared, bob):
    bob.make_entity("/agent/e2", None)
    for source in (S1, "/_electric/shared-state/s2"):
        watch(bob, source)
    shared("DELETE", "/_electric/entities/agent/e1")
    assert [each.source_url[-2:] for each in Registration.objects.all()] == ["s2"]


@pytest.mark.parametrize("name", ["", "x" * 513, "a%00b", "a%0Ab"])
def test_what_no_shared_state_is_named_is_no_source(shared, name):
    watch(shared, f"/_electric/shared-state/{name}", "/agent/e1", status=400)


# --- Its end ----------------------------------------------------------------------------------


def test_it_goes_with_the_last_entity_that_has_it(shared):
    shared.make_entity("/agent/e2")
    shared.make_entity("/agent/e3")
    shared.share("s1", "/agent/e2")
    shared.share("s2", "/agent/e1")
    observe("/agent/e3", "s1")
    produce(shared, 0)
    shared("DELETE", "/_electric/entities/agent/e1")
    assert [each.name for each in SharedState.objects.all()] == ["s1"]
    assert len(shared.get(S1).body) == 1
    shared("DELETE", "/_electric/entities/agent/e2")
    assert shared.get(S1).status == 404
    assert not SharedStateEvent.objects.exists()
    assert not SharedStateProducer.objects.exists()


def test_one_of_the_same_id_begins_anew(shared, bob):
    shared.post(S1, event())
    shared("DELETE", "/_electric/entities/agent/e1")
    bob.make_entity("/agent/e9", None)
    assert bob("PUT", S1, Electric_Owner_Entity="/agent/e9").status == 201
    assert bob.get(S1).body == []
    assert shared.get(S1).status == 403


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGKILL"])
def test_it_outlives_the_end_of_its_entity(shared, signal):
    shared.post(S1, event())
    shared.signal("/agent/e1", signal)
    assert len(shared.get(S1).body) == 1


def test_events_are_pruned_when_all_that_have_it_are_at_their_end(shared):
    shared.make_entity("/agent/e2")
    shared.share("s1", "/agent/e2")
    shared.post(S1, event())
    SharedStateEvent.objects.update(created_at="2020-01-01T00:00:00Z")
    shared.post(S1, event())
    shared.make_entity("/agent/e3")
    observe("/agent/e3", "s1")
    for url in ("/agent/e1", "/agent/e2"):
        assert prune()["shared events"] == 0
        shared.signal(url, "SIGTERM")
    assert prune()["shared events"] == 1
    answer = shared.get(S1)
    assert [each["headers"]["offset"] for each in answer.body] == [offset(2)]
