"""An entity's schedules: set and cancelled by a call, or by its handler in its manifest."""

import pytest

from dispatch import firing
from dispatch.models import Timer
from tests.support import come_due, wait_until

SCHEDULE = "/_electric/entities/agent/e1/schedules/s1"
ALICE = "/principal/user%3Aalice"
FUTURE = "2100-01-02T03:04:05.678Z"


@pytest.fixture
def woken(alice):
    """Alice's runner r1 and entity /agent/e1, without work."""
    alice.register()
    alice.make_entity()
    return alice


@pytest.fixture
def handler(woken):
    """Appends to the stream of /agent/e1, which it has claimed."""
    woken.send(payload="first")
    claim = woken.claim()
    token = claim.mint()

    def append(*events):
        answer = claim.append(*events, token=token)
        assert answer.status == 204, answer

    return append


def of_type(api, kind, url="/agent/e1"):
    return [event for event in api.events(url) if event["type"] == kind]


def manifest(api, url="/agent/e1"):
    return of_type(api, "manifest", url)


def inbox(api, url="/agent/e1"):
    return [event for event in of_type(api, "inbox", url) if event["value"]["payload"] != "first"]


def future_send(api, path=SCHEDULE, **facts):
    body = {"scheduleType": "future_send", "payload": "later", "fireAt": FUTURE, **facts}
    return api("PUT", path, body)


def entry(name="s1", operation="upsert", **facts):
    value = {
        "key": f"schedule:{name}",
        "kind": "schedule",
        "id": name,
        "scheduleType": "future_send",
        "fireAt": FUTURE,
        "targetUrl": "/agent/e1",
        "senderUrl": "/agent/e1",
        "payload": "later",
        "producerId": "p1",
        "status": "pending",
        **facts,
    }
    return {
        "type": "manifest",
        "key": f"schedule:{name}",
        "value": value,
        "headers": {"operation": operation},
    }


# --- By a call --------------------------------------------------------------------------------


def test_it_is_an_entry_of_the_manifest_with_the_txid(woken):
    answer = future_send(woken, fireAt="2100-01-02T04:04:05.678+01:00", messageType="chat")
    assert answer.status == 200
    (event,) = manifest(woken)
    assert event["headers"]["txid"] == answer.body["txid"]
    assert (event["key"], event["headers"]["operation"]) == ("schedule:s1", "upsert")
    assert event["value"] == {
        "key": "schedule:s1",
        "kind": "schedule",
        "id": "s1",
        "scheduleType": "future_send",
        "fireAt": FUTURE,
        "targetUrl": "/agent/e1",
        "senderUrl": ALICE,
        "payload": "later",
        "producerId": event["value"]["producerId"],
        "messageType": "chat",
        "status": "pending",
    }
    assert firing.fire_due() == 0


def test_it_is_sent_at_its_time_and_the_manifest_says_so(woken):
    future_send(woken)
    come_due()
    assert firing.fire_due() == 1
    entry, sent = manifest(woken)
    (message,) = inbox(woken)
    assert message["key"] == f"scheduled-{entry['value']['producerId']}"
    assert message["value"]["from"] == ALICE
    assert message["value"]["payload"] == "later"
    assert sent["headers"]["operation"] == "update"
    assert sent["value"] == {
        **entry["value"],
        "status": "sent",
        "sentAt": sent["value"]["sentAt"],
    }
    assert len(woken.wakes()) == 1
    assert not Timer.objects.exists()


def test_a_time_that_is_past_is_now(woken):
    future_send(woken, fireAt="1999-01-01")
    (timer,) = Timer.objects.all()
    assert timer.due_at >= timer.created_at
    assert wait_until(firing.fire_due) == 1
    assert len(inbox(woken)) == 1


def test_it_reaches_another_entity_of_the_callers(woken):
    woken.make_entity("/agent/e2")
    future_send(woken, targetUrl="/agent/e2", **{"from": "/agent/e1"})
    come_due()
    firing.fire_due()
    (message,) = inbox(woken, "/agent/e2")
    assert message["value"]["from"] == "/agent/e1"
    assert manifest(woken)[-1]["value"]["status"] == "sent"
    assert inbox(woken) == manifest(woken, "/agent/e2") == []


def test_it_replaces_the_one_of_its_name(woken):
    future_send(woken, payload=1)
    future_send(woken, payload=2)
    come_due()
    assert firing.fire_due() == 1
    assert [each["value"]["payload"] for each in inbox(woken)] == [2]


def test_it_is_cancelled(woken):
    future_send(woken)
    for _ in range(2):  # also when there is none
        answer = woken("DELETE", SCHEDULE)
        assert answer.status == 200
        event = manifest(woken)[-1]
        assert (event["key"], event["headers"]["operation"]) == ("schedule:s1", "delete")
        assert "value" not in event
        assert event["headers"]["txid"] == answer.body["txid"]
    assert not Timer.objects.exists()


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_its_owners_end_cancels_it(woken, signal):
    woken.make_entity("/agent/e2")
    future_send(woken, targetUrl="/agent/e2")
    woken.signal("/agent/e1", signal)
    assert not Timer.objects.exists()
    for answer in (future_send(woken), woken("DELETE", SCHEDULE)):
        assert (answer.status, answer.error) == (409, "NOT_RUNNING")


def test_one_whose_owner_came_to_its_end_meanwhile_is_dropped(woken):
    """Who fires it had it locked when its owner ended, and so it was left."""
    woken.make_entity("/agent/e2")
    future_send(woken, targetUrl="/agent/e2")
    timer = Timer.objects.get()
    woken.signal("/agent/e1", "SIGKILL")
    before = woken.events()
    timer.save(force_insert=True)
    come_due()
    assert firing.fire_due() == 1
    assert not Timer.objects.exists()
    assert inbox(woken, "/agent/e2") == []
    assert woken.events() == before


def test_its_owners_deletion_cancels_it(woken):
    woken.make_entity("/agent/e2")
    future_send(woken, targetUrl="/agent/e2")
    woken("DELETE", "/_electric/entities/agent/e1")
    assert not Timer.objects.exists()


def test_it_fails_when_its_target_is_at_its_end(woken):
    woken.make_entity("/agent/e2")
    future_send(woken, targetUrl="/agent/e2")
    woken.signal("/agent/e2", "SIGKILL")
    come_due()
    assert firing.fire_due() == 1
    failed = manifest(woken)[-1]["value"]
    assert failed["status"] == "failed"
    assert failed["lastError"] == "The entity is stopping, stopped or killed."
    assert failed["failedAt"]
    assert Timer.objects.failed().count() == 1
    # Set anew, it is the failed one no more.
    future_send(woken)
    assert Timer.objects.pending().count() == Timer.objects.count() == 1


def test_it_fails_when_its_target_was_deleted(woken):
    woken.make_entity("/agent/e2")
    future_send(woken, targetUrl="/agent/e2")
    woken("DELETE", "/_electric/entities/agent/e2")
    woken.make_entity("/agent/e2")
    come_due()
    firing.fire_due()
    assert manifest(woken)[-1]["value"]["lastError"] == "The entity /agent/e2 was deleted."
    assert inbox(woken, "/agent/e2") == []


@pytest.mark.parametrize(
    ("facts", "path"),
    [
        ({"fireAt": "soon"}, "/fireAt"),
        ({"fireAt": ""}, "/fireAt"),
        ({"fireAt": "0001-01-01T00:00:00+23:59"}, "/fireAt"),
        ({"fireAt": 5}, "/fireAt"),
        ({"scheduleType": "never"}, "/scheduleType"),
        ({"targetUrl": "e2"}, "/targetUrl"),
        ({"from": "user:bob"}, "/from"),
        ({"from": "nobody"}, "/from"),
        ({"messageType": ""}, "/messageType"),
    ],
)
def test_bad_ones_are_refused(woken, facts, path):
    answer = future_send(woken, **facts)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert [each["path"] for each in answer.body["error"]["details"]] == [path]
    assert manifest(woken) == []


def test_what_it_needs_is_named(woken):
    for kind, path in (("future_send", "/fireAt"), ("cron", "/expression")):
        answer = woken("PUT", SCHEDULE, {"scheduleType": kind, "payload": 1})
        assert answer.body["error"]["details"][0]["path"] == path
    assert woken("PUT", SCHEDULE, {"scheduleType": "cron"}).status == 400


def test_a_payload_that_the_targets_type_refuses_is_refused_now(woken):
    schemas = {"chat": {"type": "string"}}
    woken.post(
        "/_electric/entity-types", {"name": "doc", "description": "", "inbox_schemas": schemas}
    )
    woken.make_entity("/doc/d1")
    for kind, path in (("chat", "/payload"), ("other", "/messageType")):
        answer = future_send(woken, targetUrl="/doc/d1", messageType=kind, payload=1)
        assert answer.body["error"]["details"][0]["path"] == path
    assert future_send(woken, targetUrl="/doc/d1", messageType="chat", payload="x").status == 200


def test_whose_rights_it_needs(woken, bob):
    bob.make_entity("/agent/bobs", None)
    assert future_send(bob).status == 403
    assert bob("DELETE", SCHEDULE).status == 403
    assert future_send(woken, targetUrl="/agent/bobs").status == 403
    assert future_send(woken, targetUrl="/agent/nobodys").status == 404
    assert future_send(woken, path=SCHEDULE.replace("e1", "e9")).status == 404


def test_the_callers_right_must_hold_when_it_is_sent(woken, bob):
    grant = {"subject_kind": "principal", "subject_value": "user:alice", "permission": "manage"}
    doc = {"name": "doc", "description": "", "permission_grants": [grant]}
    assert bob.post("/_electric/entity-types", doc).status == 201
    bob.make_entity("/doc/d1", None)
    assert future_send(woken, targetUrl="/doc/d1").status == 200
    bob.post("/_electric/entity-types", {**doc, "permission_grants": []})
    come_due()
    firing.fire_due()
    assert inbox(bob, "/doc/d1") == []
    assert manifest(woken)[-1]["value"]["status"] == "failed"


# --- By its handler ---------------------------------------------------------------------------


def test_an_entry_that_a_handler_appends_does_the_same(woken, handler):
    handler(entry())
    come_due()
    assert firing.fire_due() == 1
    (message,) = inbox(woken)
    assert message["key"] == "scheduled-p1"
    assert message["value"]["from"] == message["value"]["from_agent"] == "/agent/e1"
    assert manifest(woken)[-1]["value"]["status"] == "sent"


def test_an_update_of_it_is_merged(woken, handler):
    handler(entry())
    change = entry(operation="update")
    change["value"] = {"payload": "changed"}
    handler(change)
    come_due()
    assert firing.fire_due() == 1
    assert [each["value"]["payload"] for each in inbox(woken)] == ["changed"]


def test_several_entries_of_one_append_are_taken_in_their_order(woken, handler):
    woken.make_entity("/agent/e2")
    handler(entry("s1"), entry("s2", targetUrl="/agent/e2"))
    handler(entry("s1", "delete"), entry("s2", "delete"))
    assert not Timer.objects.exists()
    handler(entry("s1", "delete"), entry("s1", targetUrl="/agent/e2"), entry("s3"))
    scheduled = Timer.objects.order_by("schedule").values_list("schedule", "target__url")
    assert list(scheduled) == [("s1", "/agent/e2"), ("s3", "/agent/e1")]


def test_the_same_entry_again_is_the_same_schedule(woken, handler):
    handler(entry())
    (timer,) = Timer.objects.all()
    handler(entry())
    assert Timer.objects.get() == timer


def test_the_same_entry_after_it_was_sent_sends_nothing_again(woken, handler):
    for producer in ({}, {"producerId": None}):
        handler(entry(**producer))
        come_due()
        firing.fire_due()
        handler(entry(**producer))
        come_due()
        firing.fire_due()
    assert len(inbox(woken)) == 2


def test_its_deletion_cancels_it(woken, handler):
    handler(entry())
    deletion = entry(operation="delete")
    del deletion["value"]
    handler(deletion)
    assert not Timer.objects.exists()


@pytest.mark.parametrize("facts", [{"status": "sent"}, {"scheduleType": "other"}])
def test_one_that_is_not_pending_sets_nothing_and_cancels(woken, handler, facts):
    handler(entry())
    handler(entry(**facts))
    assert not Timer.objects.exists()


def test_other_entries_and_events_set_nothing(woken, handler):
    handler(
        {**entry(), "key": "child:s1"},
        {**entry(), "type": "inbox"},
        {"type": "manifest", "key": "schedule:s1"},
        {"type": "manifest", "key": 5, "value": entry()["value"]},
        {"type": "manifest", "key": "schedule:s1", "value": [], "headers": []},
    )
    assert not Timer.objects.exists()


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"fireAt": "soon"}, "soon"),
        ({"fireAt": None}, "fireAt"),
        ({"targetUrl": "/agent/nobody"}, "there is no entity /agent/nobody"),
        ({"targetUrl": "x" * 5000}, "there is no entity xxx"),
        ({"senderUrl": "/principal/user%3Abob"}, "senderUrl"),
        ({"producerId": "x" * 1000}, "producerId"),
        ({"messageType": 5}, "messageType"),
        ({"scheduleType": "cron"}, "expression"),
        ({"scheduleType": "cron", "expression": "often"}, "cron expression"),
        ({"scheduleType": "cron", "expression": "* * * * *", "timezone": "Moon"}, "time zone"),
        ({"name": "x" * 300}, "at most 256"),
    ],
)
def test_what_cannot_be_done_fails_and_its_handler_reads_why(woken, handler, facts, says):
    handler(entry(**facts) if "name" not in facts else entry(facts["name"]))
    assert wait_until(firing.fire_due) == 1
    failed = manifest(woken)[-1]
    assert failed["key"] == manifest(woken)[0]["key"]
    assert failed["value"]["status"] == "failed"
    assert says in failed["value"]["lastError"]
    assert inbox(woken) == []


def test_an_entry_without_a_payload_fails(woken, handler):
    incomplete = entry()
    del incomplete["value"]["payload"]
    handler(incomplete)
    wait_until(firing.fire_due)
    assert "payload" in manifest(woken)[-1]["value"]["lastError"]


def test_a_handler_reaches_what_its_entitys_creator_may_act_on(woken, handler, bob):
    woken.make_entity("/agent/e2")
    bob.make_entity("/agent/bobs", None)
    handler(entry(targetUrl="/agent/e2"), entry("s2", targetUrl="/agent/bobs"))
    come_due()
    assert firing.fire_due() == 2
    assert len(inbox(woken, "/agent/e2")) == 1
    assert inbox(bob, "/agent/bobs") == []
    assert "not its sender's" in manifest(woken)[-1]["value"]["lastError"]


def test_a_handler_on_anothers_runner_reaches_what_is_near_its_entity(alice, bob):
    """Who is given one task is not given the vault."""
    bob.register("r2")
    policy = {"targets": [{"type": "runner", "runnerId": "r2"}]}
    bob.post(
        "/_electric/entity-types",
        {
            "name": "task",
            "description": "",
            "default_dispatch_policy": policy,
            "permission_grants": [
                {"subject_kind": "principal", "subject_value": "user:alice", "permission": "spawn"}
            ],
        },
    )
    alice.make_entity("/agent/above", None)
    alice.make_entity("/task/e1", None, parent="/agent/above")
    alice.make_entity("/agent/below", None, parent="/task/e1")
    alice.make_entity("/agent/vault", None)
    alice.send("/task/e1", payload="first")
    claim = bob.claim("r2")
    reached = ["/agent/above", "/agent/below", "/agent/vault"]
    for number, url in enumerate(reached):
        said = entry(f"s{number}", targetUrl=url, senderUrl="/task/e1")
        assert claim.append(said, token=claim.mint()).status == 204
    come_due()
    assert firing.fire_due() == 3
    assert [len(inbox(alice, url)) for url in reached] == [1, 1, 0]


def test_a_handlers_schedule_without_an_id_is_refused(alice):
    alice.register()
    alice.make_entity(initialMessage="hi")
    claim = alice.claim()
    entry = {"kind": "schedule", "scheduleType": "future_send", "fireAt": "2026-01-01"}
    event = {"type": "manifest", "key": "schedule:", "value": {**entry, "payload": 1}}
    answer = claim.append(event, token=claim.mint())
    assert answer.error == "INVALID_REQUEST"
    assert [each["path"] for each in answer.body["error"]["details"]] == ["/key"]
