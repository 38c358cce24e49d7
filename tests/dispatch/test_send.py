"""POST /_electric/entities/:type/:id/send: a message, from whom it is, and that it is one."""

import re

import pytest

from tests.support import Api

SEND = "/_electric/entities/agent/e1/send"


@pytest.fixture
def woken(alice):
    """Alice's runner r1 and entity /agent/e1, without work."""
    alice.register()
    alice.make_entity()
    return alice


def messages(api, url="/agent/e1"):
    return [event for event in api.events(url) if event["type"] == "inbox"]


def test_it_appends_the_message_and_wakes(woken):
    answer = woken.post(SEND, {"payload": {"text": "hi"}, "type": "chat", "mode": "queued"})
    assert answer.status == 200
    assert set(answer.body) == {"txid"}
    (event,) = messages(woken)
    assert event == {
        "type": "inbox",
        "key": event["key"],
        "value": {
            "from": "/principal/user%3Aalice",
            "payload": {"text": "hi"},
            "timestamp": event["value"]["timestamp"],
            "mode": "queued",
            "status": "pending",
            "from_principal": "/principal/user%3Aalice",
            "message_type": "chat",
            "position": event["value"]["position"],
        },
        "headers": {
            "operation": "insert",
            "txid": answer.body["txid"],
            "offset": "0000000000000000_0000000000000002",
        },
    }
    assert event["key"]
    assert re.fullmatch(r"[0-9]{16}:a0", event["value"]["position"])
    assert len(woken.wakes()) == 1


@pytest.mark.parametrize("payload", ["hi", "", 0, None, [], {"a": [None]}, "\N{SNOWMAN}"])
def test_it_takes_any_payload(woken, payload):
    woken.send(payload=payload)
    assert messages(woken)[0]["value"]["payload"] == payload


def test_it_leaves_out_what_is_not_given(woken):
    woken.send()
    given = {"from", "from_principal", "payload", "timestamp", "mode", "status", "processed_at"}
    assert set(messages(woken)[0]["value"]) == given


@pytest.mark.parametrize(
    ("mode", "status"),
    [
        ("immediate", "processed"),
        ("steer", "processed"),
        ("queued", "pending"),
        ("paused", "pending"),
    ],
)
def test_its_mode_says_whether_it_waits_in_the_queue(woken, mode, status):
    woken.send(mode=mode)
    value = messages(woken)[0]["value"]
    assert (value["mode"], value["status"]) == (mode, status)
    assert ("processed_at" in value) == (status == "processed")
    assert ("position" in value) == (status == "pending")
    assert len(woken.wakes()) == (mode != "paused")


def test_it_keeps_the_position(woken):
    woken.send(position="0000000000000007:a0")
    assert messages(woken)[0]["value"]["position"] == "0000000000000007:a0"


def test_it_gives_each_message_a_key_of_its_own(woken):
    woken.send()
    woken.send()
    assert len({event["key"] for event in messages(woken)}) == 2


@pytest.mark.parametrize("named", ["from", "from_principal"])
def test_it_is_from_the_caller_whatever_the_body_says(woken, named):
    woken.send(**{named: "/principal/user%3Amallory"})
    assert messages(woken)[0]["value"]["from"] == "/principal/user%3Aalice"
    assert "mallory" not in str(messages(woken))


def test_an_agent_is_believed_only_with_its_write_token_or_of_an_agent(woken):
    woken.send()
    handler = Api(Electric_Claim_Token=woken.claim().mint())
    handler.send(from_agent="/agent/e1")
    own = "/principal/user%3Aalice"  # it is the caller's, and no agent's
    for api, named in ((woken, "/agent/e1"), (handler, "/agent/e2"), (woken, own)):
        answer = api.post(SEND, {"payload": 1, "from_agent": named})
        assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    agent = Api("agent:smith")
    agent.make_entity("/agent/own", None)
    agent.send("/agent/own", from_agent="/agent/e7")
    told = [event["value"].get("from_agent") for event in messages(woken)]
    assert told == [None, "/agent/e1"]
    (said,) = messages(agent, "/agent/own")
    assert said["value"]["from_agent"] == "/agent/e7"
    assert said["value"]["from_principal"] == "/principal/agent%3Asmith"


# --- The same key -----------------------------------------------------------------------------


def test_the_same_key_twice_is_one_message(woken):
    first = woken.send(payload="one", key="k")
    assert woken.send(payload="two", key="k") == first
    (event,) = messages(woken)
    assert (event["key"], event["value"]["payload"]) == ("k", "one")


def test_the_same_key_does_not_wake_again(woken):
    woken.send(key="k")
    woken.claim().done()
    woken.send(key="k")
    assert woken.wakes() == []


def test_the_same_key_is_answered_to_a_stopped_entity_too(woken):
    first = woken.send(key="k")
    woken.signal("/agent/e1", "SIGTERM")
    assert woken.send(key="k") == first


def test_the_same_key_at_another_entity_is_another_message(woken):
    woken.make_entity("/agent/e2")
    assert woken.send(key="k") != woken.send("/agent/e2", key="k")


# --- What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"payload": 1, "key": ""},
        {"payload": 1, "key": 7},
        {"payload": 1, "key": "k" * 257},
        {"payload": 1, "type": 7},
        {"payload": 1, "mode": 7},
        {"payload": 1, "mode": "later"},
        {"payload": 1, "position": 7},
        {"payload": 1, "from_agent": 7},
        {"payload": 1, "from_agent": "/principal/user%3Amallory"},
        {"payload": 1, "afterMs": 1e300},
        {"payload": 1, "afterMs": "0"},
        {"payload": 1, "afterMs": True},
        {"payload": "nul \0"},
    ],
    ids=str,
)
def test_it_refuses_a_bad_body(woken, body):
    answer = woken.post(SEND, body)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert messages(woken) == []


@pytest.mark.parametrize("after", [0, 0.0, -5, -0.5])
def test_after_no_time_at_all_is_now(woken, after):
    """So is a time that has passed: a sender who reckons it from a clock may come late."""
    woken.send(afterMs=after)
    assert len(woken.wakes()) == 1


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGKILL"])
def test_an_ended_entity_takes_no_message(woken, signal):
    woken.signal("/agent/e1", signal)
    answer = woken.post(SEND, {"payload": 1})
    assert (answer.status, answer.error) == (409, "NOT_RUNNING")
    assert messages(woken) == []


def test_a_stopping_entity_takes_no_message(woken):
    woken.send()
    woken.claim()
    woken.signal("/agent/e1", "SIGTERM")
    assert woken.post(SEND, {"payload": 1}).error == "NOT_RUNNING"


def test_a_paused_entity_takes_it_and_it_waits(woken):
    woken.signal("/agent/e1", "SIGSTOP")
    woken.send()
    assert (len(messages(woken)), woken.wakes()) == (1, [])
    woken.signal("/agent/e1", "SIGCONT")
    assert len(woken.wakes()) == 1


def test_it_does_not_know_the_entity(alice):
    assert alice.post(SEND, {"payload": 1}).status == 404


# --- A handler that sends ---------------------------------------------------------------------


@pytest.fixture
def token(woken):
    """The live write token of /agent/e1's handler."""
    woken.send()
    return woken.claim().mint()


@pytest.mark.parametrize("header", ["Electric_Claim_Token", "Authorization"])
@pytest.mark.parametrize("url", ["/agent/e1", "/agent/e2"])
def test_a_handler_sends_as_its_entity(woken, token, header, url):
    woken.make_entity("/agent/e2")
    handler = Api(**{header: f"Bearer {token}" if header == "Authorization" else token})
    handler.send(url, payload="from the handler")
    assert messages(woken, url)[-1]["value"]["from"] == "/agent/e1"


def test_a_handler_sends_nothing_to_what_its_creator_may_not(woken, token, bob):
    bob.make_entity("/agent/e3", None)
    answer = Api(Electric_Claim_Token=token).post(
        "/_electric/entities/agent/e3/send", {"payload": 1}
    )
    assert (answer.status, answer.error) == (403, "UNAUTHORIZED")


def test_a_handler_that_sends_to_its_own_entity_wakes_it_after_its_claim(woken, token):
    Api(Electric_Claim_Token=token).send()
    assert woken.wakes() == []


def test_the_claim_token_does_not_send(woken):
    woken.send()
    claim = woken.claim()
    answer = Api(Electric_Claim_Token=claim.body["claimToken"]).post(SEND, {"payload": 1})
    assert (answer.status, answer.error) == (401, "UNAUTHORIZED")


@pytest.mark.parametrize("header", ["Electric_Claim_Token", "Authorization"])
@pytest.mark.parametrize("secret", ["pww_unknown", "pwc_unknown", "whatever"])
def test_an_unknown_token_does_not_send(woken, header, secret):
    value = f"Bearer {secret}" if header == "Authorization" else secret
    assert woken.post(SEND, {"payload": 1}, **{header: value}).status == 401
    assert messages(woken) == []


def test_two_different_tokens_do_not_send(woken, token):
    handler = Api(Electric_Claim_Token=token, Authorization="Bearer pww_other")
    assert handler.post(SEND, {"payload": 1}).status == 401
