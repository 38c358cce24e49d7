"""PATCH and DELETE of /_electric/entities/:type/:id/inbox/:key: a message after it was sent."""

import re

import pytest

from tests.support import Api, end_delay

INBOX = "/_electric/entities/agent/e1/inbox"


@pytest.fixture
def woken(alice):
    """Alice's runner r1 and entity /agent/e1, without work."""
    alice.register()
    alice.make_entity()
    return alice


def edit(api, key="k", **change):
    answer = api("PATCH", f"{INBOX}/{key}", change)
    assert answer.status == 200, answer
    assert set(answer.body) == {"txid"}
    return answer.body["txid"]


def unsend(api, key="k"):
    answer = api("DELETE", f"{INBOX}/{key}")
    assert answer.status == 200, answer
    return answer.body["txid"]


def newest(api):
    event = api.events()[-1]
    del event["headers"]["offset"]
    return event


def test_an_edit_is_an_update_that_bears_its_txid(woken):
    woken.send(key="k", mode="queued")
    txid = edit(woken, payload="else", position="0000000000000007:a0")
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f-]{27}", txid)
    assert newest(woken) == {
        "type": "inbox",
        "key": "k",
        "value": {"payload": "else", "position": "0000000000000007:a0"},
        "headers": {"operation": "update", "txid": txid},
    }


def test_a_handler_may_decide_of_a_key_of_any_length(woken):
    woken.send()
    claim = woken.claim()
    change = {"type": "inbox", "key": "k" * 60_000, "value": {"status": "cancelled"}}
    change["headers"] = {"operation": "update"}
    assert claim.append(change, token=claim.mint()).status == 204


def test_a_deletion_is_a_delete_that_bears_its_txid(woken):
    woken.send(key="k", mode="queued")
    txid = unsend(woken)
    assert newest(woken) == {
        "type": "inbox",
        "key": "k",
        "headers": {"operation": "delete", "txid": txid},
    }


@pytest.mark.parametrize("status", ["processed", "cancelled"])
def test_a_status_bears_its_time(woken, status):
    at = f"{status}_at"
    woken.send(key="k", mode="queued")
    edit(woken, status=status)
    assert set(newest(woken)["value"]) == {"status", at}
    assert newest(woken)["value"][at].endswith("Z")


def test_a_message_is_found_by_the_key_that_it_was_given(woken):
    woken.send(mode="queued")
    key = newest(woken)["key"]
    edit(woken, key, payload="else")
    unsend(woken, key)


@pytest.mark.parametrize("key", ["a/b", "ä", "%", "_", 'a"b\\c', "K"])
def test_a_key_is_any_text(woken, key):
    encoded = "".join(f"%{byte:02X}" for byte in key.encode())
    other = "k" if key == "K" else "x"
    woken.send(key=other, mode="queued")
    woken.send(key=key, mode="queued")
    unsend(woken, encoded)
    assert newest(woken)["key"] == key
    edit(woken, other, payload=1)


# --- What is still to be done -----------------------------------------------------------------


@pytest.mark.parametrize("mode", ["immediate", "queued", "steer"])
@pytest.mark.parametrize("how", ["cancelled", "deleted"])
def test_what_is_taken_back_is_no_work(woken, mode, how):
    woken.send(key="k", mode=mode)
    if how == "cancelled":
        edit(woken, status="cancelled")
    else:
        unsend(woken)
    assert woken.wakes() == []


def test_the_others_stay_work(woken):
    woken.send(key="k")
    woken.send(key="l")
    unsend(woken)
    assert len(woken.wakes()) == 1


def test_a_queued_message_that_was_processed_is_no_work(woken):
    woken.send(key="k", mode="queued")
    edit(woken, status="processed")
    woken.claim().done()
    assert woken.wakes() == []


def test_one_that_is_held_back_waits_until_it_is_queued(woken):
    woken.send(key="k", mode="queued")
    edit(woken, mode="paused")
    assert woken.wakes() == []
    edit(woken, mode="queued")
    assert len(woken.wakes()) == 1
    assert newest(woken)["value"] == {"mode": "queued", "status": "pending", "payload": "hi"}


def test_one_that_is_given_at_once_already_is_not_given_again_for_nothing(woken):
    woken.send(key="k")
    woken.claim().done()
    edit(woken, mode="immediate")
    assert woken.wakes() == []


@pytest.mark.parametrize("mode", ["immediate", "steer"])
@pytest.mark.parametrize("before", ["paused", "queued"])
def test_one_that_leaves_the_queue_is_given_at_once_and_once(woken, before, mode):
    """Its update is what a handler is called for, and is so only with a payload or mode steer."""
    woken.send(key="k", mode=before, payload={"a": 1})
    edit(woken, mode=mode)
    value = newest(woken)["value"]
    assert value == {
        "mode": mode,
        "status": "processed",
        "processed_at": value["processed_at"],
        "payload": {"a": 1},
    }
    claim = woken.claim()
    assert claim.offset < woken.events()[-1]["headers"]["offset"]
    assert claim.done().body["next_wake"] is False


def test_one_that_is_queued_again_is_work_wherever_the_cursor_is(woken):
    woken.send(key="k", mode="queued")
    edit(woken, status="processed")
    woken.send(key="l", mode="queued")
    edit(woken, status="pending")
    value = newest(woken)["value"]
    assert (value["mode"], value["status"]) == ("queued", "pending")
    edit(woken, "l", status="processed")
    claim = woken.claim()
    assert claim.done(claim.tail).body["next_wake"] is True


def test_the_position_is_that_of_the_queue(woken):
    woken.send(key="held", mode="paused", position="b")
    woken.send(key="k", mode="queued", position="c")
    woken.claim().done()
    assert woken.wakes() == []
    edit(woken, position="a")
    assert len(woken.wakes()) == 1


def test_an_edit_is_worth_a_try_at_once(woken):
    woken.send(key="k")
    woken.claim().fail()
    assert woken.wakes() == []
    edit(woken, payload="better")
    assert len(woken.wakes()) == 1


def test_taking_back_is_not(woken):
    woken.send(key="k")
    woken.send(key="l")
    woken.claim().fail()
    unsend(woken)
    assert woken.wakes() == []
    end_delay()


def test_an_edit_during_a_claim_is_work_after_it(woken):
    woken.send(key="k", mode="queued")
    claim = woken.claim()
    token = claim.mint()
    taken = {"status": "processed"}
    claim.append(
        {"type": "inbox", "key": "k", "value": taken, "headers": {"operation": "update"}},
        token=token,
    )
    edit(woken, payload="else")
    assert claim.done().body["next_wake"] is True


# --- What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"unknown": 1},
        {"mode": "later"},
        {"mode": None},
        {"status": "done"},
        {"status": ""},
        {"position": ""},
        {"position": "x" * 257},
        {"position": 7},
    ],
    ids=str,
)
def test_it_refuses_a_bad_change(woken, change):
    woken.send(key="k", mode="queued")
    before = woken.events()
    answer = woken("PATCH", f"{INBOX}/k", change)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert woken.events() == before


def test_only_what_is_in_the_queue_waits(woken):
    woken.send(key="k")
    answer = woken("PATCH", f"{INBOX}/k", {"status": "pending"})
    assert [each["path"] for each in answer.body["error"]["details"]] == ["/status"]


def test_a_payload_must_be_what_the_type_asks_for(alice):
    def take(**schemas: object) -> None:
        body = {"name": "agent", "description": "", "inbox_schemas": schemas}
        assert alice.post("/_electric/entity-types", body).status == 201

    def refused(payload: object) -> list[str]:
        answer = alice("PATCH", f"{INBOX}/k", {"payload": payload})
        return [each["path"] for each in answer.body["error"]["details"]]

    take(chat={"type": "string"})
    alice.make_entity(runner_id=None)
    alice.send(key="k", payload="hi", type="chat")
    assert refused(7) == ["/payload"]
    edit(alice, payload="ho")
    take(number={"type": "number"})  # and no more of the message's type
    assert refused("hi") == ["/payload"]


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
@pytest.mark.parametrize("key", ["unknown", "deleted", "color", "entity-created", "K", "%25"])
def test_it_does_not_know_the_message(woken, method, key):
    woken.send(key="k", mode="queued")
    woken.send(key="deleted", mode="queued")
    woken.post("/_electric/entities/agent/e1/tags/color", {"value": "k"})
    unsend(woken, "deleted")
    before = woken.events()
    answer = woken(method, f"{INBOX}/{key}", {"payload": 1})
    assert (answer.status, answer.error) == (404, "NOT_FOUND")
    assert woken.events() == before


def test_a_cancelled_message_is_deleted_and_not_edited(woken):
    woken.send(key="k", mode="queued")
    edit(woken, status="cancelled")
    assert woken("PATCH", f"{INBOX}/k", {"payload": 1}).status == 404
    unsend(woken)


def test_a_deleted_message_is_not_sent_again_by_a_retry(woken):
    first = woken.send(key="k")
    unsend(woken)
    assert woken.send(key="k") == first
    assert woken.wakes() == []


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_a_killed_entitys_stream_is_closed(woken, method):
    woken.send(key="k")
    woken.signal("/agent/e1", "SIGKILL")
    answer = woken(method, f"{INBOX}/k", {"payload": 1})
    assert (answer.status, answer.error) == (409, "NOT_RUNNING")


def test_a_stopped_entitys_messages_are_taken_back(woken):
    woken.send(key="k", mode="queued")
    woken.signal("/agent/e1", "SIGTERM")
    unsend(woken)
    assert woken.status() == "stopped"


def test_a_handler_edits_what_it_may_send_to(woken):
    woken.send(key="k", mode="queued")
    handler = Api(Electric_Claim_Token=woken.claim().mint())
    edit(handler, payload="else")
    unsend(handler)


@pytest.mark.parametrize("key", ["unknown", "a%00b", "%00", "%FF", "%ED%A0%80", "a/b", "%20"])
def test_a_key_that_no_message_has_is_not_found(woken, key):
    woken.send(key="k")
    assert woken("PATCH", f"{INBOX}/{key}", {"payload": "else"}).error == "NOT_FOUND"
    assert woken("DELETE", f"{INBOX}/{key}").error == "NOT_FOUND"
