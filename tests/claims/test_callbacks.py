"""POST /_electric/wake-callbacks/:consumerId: who is heard, and which error comes first."""

from urllib.parse import quote

import pytest

from claims.models import ConsumerClaim
from dispatch.models import DispatchState
from tests.support import Api

UNKNOWN = "w_000000000000000000000000"
# The four bodies, each without its epoch.
BODIES = {
    "claim": lambda claim: {"wakeId": claim.body["wakeId"]},
    "heartbeat": lambda claim: {},
    "done": lambda claim: {"done": True},
    "failed": lambda claim: {"failed": True},
}


def call(claim, body, consumer_id=None, **headers):
    """Call back with no credential but these headers."""
    path = f"/_electric/wake-callbacks/{consumer_id or claim.body['consumerId']}"
    return Api().post(path, body, **headers)


def rows():
    return [list(model.objects.order_by("pk").values()) for model in (ConsumerClaim, DispatchState)]


@pytest.fixture(params=BODIES)
def body(request, claim):
    """Each of the four bodies."""
    return {"epoch": claim.epoch, **BODIES[request.param](claim)}


@pytest.mark.parametrize(
    "headers",
    [
        {"Electric_Claim_Token": "{}"},
        {"Authorization": "Bearer {}"},
        {"Authorization": "bearer {}"},
        {"Electric_Claim_Token": "{}", "Authorization": "Bearer something-else"},
    ],
)
def test_it_finds_the_token_in_either_place_and_the_header_first(claim, body, headers):
    token = claim.body["claimToken"]
    answer = call(claim, body, **{name: text.format(token) for name, text in headers.items()})
    assert answer.status == 200, answer
    assert answer.body["ok"] is True


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Electric_Claim_Token": "pwc_wrong"},
        {"Authorization": "Bearer pwc_wrong"},
        {"Authorization": "Basic xyz"},
        {"Electric_Principal": "user:alice"},
    ],
)
def test_it_hears_nobody_without_the_claims_token(claim, body, headers):
    before = rows()
    answer = call(claim, body, **headers)
    assert (answer.status, answer.error) == (401, "UNAUTHORIZED")
    assert rows() == before


def test_it_does_not_hear_another_claims_token(claim, body):
    claim.api.make_entity("/agent/e2", initialMessage="hi")
    other = claim.api.claim()
    answer = call(claim, body, Electric_Claim_Token=other.body["claimToken"])
    assert (answer.status, answer.error) == (401, "UNAUTHORIZED")


def test_the_write_token_is_not_the_claim_token(claim, body):
    answer = call(claim, body, Electric_Claim_Token=claim.mint())
    assert answer.status == 401


@pytest.mark.parametrize("consumer_id", [UNKNOWN, "nonsense", "%00", "x" * 200])
def test_it_does_not_know_the_consumer(claim, body, consumer_id):
    answer = call(claim, body, consumer_id, Electric_Claim_Token=claim.body["claimToken"])
    assert (answer.status, answer.error) == (404, "NOT_FOUND")


def test_a_missing_token_comes_before_an_unknown_consumer(claim):
    assert call(claim, {"epoch": 1}, UNKNOWN).status == 401


BAD = [
    b"{",
    {},
    {"epoch": "1"},
    {"epoch": -1},
    {"epoch": 1.5},
    {"epoch": 1, "done": "yes"},
    {"epoch": 1, "done": True, "failed": True},
    {"epoch": 1, "acks": {}},
    {"epoch": 1, "acks": [{"offset": "-1"}]},
    {"epoch": 1, "acks": [{"path": "/agent/e1/main"}]},
    {"epoch": 1, "acks": [{"path": "/agent/e1/main", "offset": "7"}]},
    {"epoch": 1, "done": True, "acks": [{"path": "/agent/e1/main", "offset": "now"}]},
    {"epoch": 1, "wakeId": 7},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_bad_body_comes_after_the_token_and_the_consumer(claim, bad):
    before = rows()
    token = claim.body["claimToken"]
    statuses = [
        call(claim, bad).status,
        call(claim, bad, Electric_Claim_Token="pwc_wrong").status,
        call(claim, bad, UNKNOWN, Electric_Claim_Token=token).status,
    ]
    assert statuses == [401, 401, 404]
    answer = call(claim, bad, Electric_Claim_Token=token)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert rows() == before


@pytest.mark.parametrize("end", ["done", "fail"])
def test_a_bad_body_comes_before_the_fence(claim, end):
    getattr(claim, end)()
    assert claim.call({"acks": [{"path": "/agent/e1/main", "offset": "7"}]}).status == 400


@pytest.mark.parametrize("epoch", [0, 2, 2**31, 2**63, 2**64, 10**30])
def test_another_epoch_is_fenced(claim, body, epoch):
    before = rows()
    answer = claim.call({**body, "epoch": epoch})
    assert (answer.status, answer.error) == (409, "FENCED")
    assert rows() == before


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("end", ["fail", "kill", "expire", "delete"])
def test_an_ended_claim_is_fenced(claim, name, end):
    ends = {
        "fail": claim.fail,
        "kill": lambda: claim.api.signal("/agent/e1", "SIGKILL"),
        "expire": lambda: claim.api("DELETE", "/_electric/runners/r1"),
        "delete": lambda: claim.api("DELETE", "/_electric/entities/agent/e1"),
    }
    ends[end]()
    before = rows()
    answer = claim.call(BODIES[name](claim))
    assert (answer.status, answer.error) == (409, "FENCED")
    assert rows() == before


@pytest.mark.parametrize("name", ["claim", "heartbeat", "failed"])
def test_a_released_claim_is_fenced_but_for_the_same_done(claim, name):
    claim.done()
    before = rows()
    assert claim.call(BODIES[name](claim)).error == "FENCED"
    assert rows() == before


def test_it_takes_the_other_names_of_the_fields(claim):
    consumer_id, epoch = claim.body["consumerId"], claim.epoch
    token = {"Electric_Claim_Token": claim.body["claimToken"]}
    minted = call(claim, {"generation": epoch, "wake_id": consumer_id}, **token)
    assert minted.body["writeToken"]
    assert call(claim, {"generation": epoch}, **token).body["next_wake"] is False
    acks = [{"stream": "agent/e1/main", "offset": claim.tail}]
    done = call(claim, {"generation": epoch, "acks": acks, "done": True}, **token)
    assert done.body == {"ok": True, "next_wake": False, "entity_cleared": True}


def test_another_generation_is_fenced_as_another_epoch_is(claim):
    token = {"Electric_Claim_Token": claim.body["claimToken"]}
    assert call(claim, {"generation": 2, "done": True}, **token).error == "FENCED"


@pytest.mark.parametrize("name", BODIES)
def test_another_wake_is_fenced(claim, name):
    before = rows()
    answer = claim.call({**BODIES[name](claim), "wakeId": UNKNOWN})
    assert (answer.status, answer.error) == (409, "FENCED")
    assert rows() == before


# --- mint -------------------------------------------------------------------------------------


def test_it_mints_a_write_token(claim):
    answer = claim.call({"wakeId": claim.body["wakeId"]})
    assert set(answer.body) == {"ok", "writeToken"}
    assert claim.append({"n": 1}, token=answer.body["writeToken"]).status == 204


def test_minting_again_replaces_the_former_token(claim):
    former, newer = claim.mint(), claim.mint()
    assert former != newer
    assert claim.append({"n": 1}, token=former).status == 401
    assert claim.append({"n": 1}, token=newer).status == 204


@pytest.mark.parametrize("token", ["", "pwc_wrong"])
def test_a_wrong_token_neither_mints_nor_voids_the_holders(claim, token):
    held = claim.mint()
    answer = call(
        claim,
        {"epoch": claim.epoch, "wakeId": claim.body["wakeId"]},
        Electric_Claim_Token=token,
    )
    assert answer.status == 401
    assert claim.append({"n": 1}, token=held).status == 204


def test_a_stale_token_does_not_void_the_newer_holders(claim):
    claim.fail()
    claim.api.send()
    newer = claim.api.claim()
    held = newer.mint()
    assert claim.call({"wakeId": claim.body["wakeId"]}).error == "FENCED"
    assert newer.append({"n": 1}, token=held).status == 204


@pytest.mark.parametrize("end", ["done", "fail"])
def test_the_write_token_dies_with_its_claim(claim, end):
    token = claim.mint()
    getattr(claim, end)()
    assert claim.append({"n": 1}, token=token).status == 401
    assert (
        claim.api.post(
            "/_electric/entities/agent/e1/send", {"payload": 1}, Electric_Claim_Token=token
        ).status
        == 401
    )


# --- acks -------------------------------------------------------------------------------------


def offset(number):
    return f"0000000000000000_{number:016d}"


BAD_ACKS = {
    "beyond the tail": [{"path": "/agent/e1/main", "offset": offset(3)}],
    "far beyond it": [{"path": "/agent/e1/main", "offset": "0000000000000001_" + "0" * 16}],
    "below the cursor": [{"path": "/agent/e1/main", "offset": offset(0)}],
    "the start": [{"path": "/agent/e1/main", "offset": "-1"}],
    "of another entity": [{"path": "/agent/e2/main", "offset": offset(2)}],
    "of no stream": [{"path": "/agent/e1", "offset": offset(2)}],
    "one of two": [
        {"path": "/agent/e1/main", "offset": offset(2)},
        {"path": "/agent/e1/main", "offset": offset(3)},
    ],
}


@pytest.mark.parametrize("acks", BAD_ACKS.values(), ids=BAD_ACKS)
@pytest.mark.parametrize("done", [{}, {"done": True}])
def test_it_applies_nothing_of_a_bad_ack(claim, acks, done):
    claim.api.make_entity("/agent/e2", initialMessage="hi")
    before = rows()
    answer = claim.call({"acks": acks, **done})
    assert (answer.status, answer.error) == (409, "INVALID_OFFSET")
    assert rows() == before
    assert claim.heartbeat().status == 200


def cursor():
    return DispatchState.objects.get(entity__url="/agent/e1").cursor


def test_a_heartbeats_acks_move_the_cursor(claim):
    acks = [{"path": "/agent/e1/main", "offset": claim.tail}]
    answer = claim.heartbeat(acks=acks)
    assert set(answer.body) == {"ok", "next_wake", "lease_expires_at"}
    assert cursor() == 2


def test_an_ack_just_past_an_offset_means_that_offset(claim):
    assert claim.offset == f"{offset(1)}_1"
    acks = [{"path": "/agent/e1/main", "offset": f"{offset(2)}_1"}]
    assert claim.heartbeat(acks=acks).status == 200
    assert cursor() == 2


@pytest.mark.parametrize("bad", ["_2", "_0", "_", "_1_1", "_01", "_1 ", "_1\n"])
def test_no_other_place_past_an_offset_is_one(claim, bad):
    acks = [{"path": "/agent/e1/main", "offset": f"{offset(2)}{bad}"}]
    assert claim.heartbeat(acks=acks).error == "INVALID_REQUEST"
    answer = claim.api("GET", f"/agent/e1/main?offset={quote(offset(2) + bad)}")
    assert answer.error == "INVALID_REQUEST"


def test_the_same_ack_may_come_again(claim):
    acks = [{"path": "/agent/e1/main", "offset": claim.tail}]
    assert claim.heartbeat(acks=acks).status == 200
    assert claim.done(claim.tail).body["entity_cleared"] is True
    assert cursor() == 2


def test_of_many_acks_the_furthest_counts(claim):
    claim.api.send()
    claim.done(offset(3), offset(2))
    assert cursor() == 3


def test_a_done_keeps_what_it_acked(claim):
    claim.done(offset(2))
    acked = ConsumerClaim.objects.get().acked_streams
    assert acked == [{"path": "/agent/e1/main", "offset": 2}]
