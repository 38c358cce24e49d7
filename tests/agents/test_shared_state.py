"""A shared state as the existing runtime uses it: its entity's creator does not own its runner."""

from typing import Any

import pytest

from claims import lifecycle
from claims.models import ConsumerClaim
from dispatch import due, entities
from tests.api.endpoints import bearer
from tests.support import Api, lapse

BOARD = "/_electric/shared-state/debate-/moderator/x"


@pytest.fixture
def parties(db: None, settings: Any) -> tuple[Api, Api]:
    """Dora's /agent/x and /agent/y; Alice, on whose runner both are."""
    settings.DEVELOPMENT = False
    alice, dora = bearer("user:alice"), bearer("user:dora")
    alice.register()
    for name in ("x", "y"):
        dora.make_entity(f"/agent/{name}", None)
        entities.move(entities.find("agent", name), "r1")
    return alice, dora


class Handler:
    """One wake of the runtime: it makes or finds the board at once, and reads it."""

    def __init__(self, alice: Api, dora: Api, url: str) -> None:
        self.alice, self.url = alice, url
        dora.send(url)
        self.claim = alice.claim()
        assert self.claim.body["entity"]["url"] == url
        in_the_name = Api("user:dora", Authorization=alice.headers["Authorization"])
        self.put = in_the_name("PUT", BOARD, Electric_Owner_Entity=url)
        self.seq = 0

    def read(self) -> Any:
        """With the runner owner's token alone."""
        answer = self.alice.get(BOARD)
        assert answer.status == 200, answer
        return answer.body

    def write(self, key: str) -> int:
        """With a producer of the claim's epoch."""
        said = {
            "type": "state:argument",
            "key": key,
            "value": {"by": self.url},
            "headers": {"operation": "insert", "txid": key, "from": self.url},
        }
        answer = self.alice.post(
            BOARD,
            said,
            Producer_Id=f"shared-state-{self.url}-debate-/moderator/x",
            Producer_Epoch=str(self.claim.epoch),
            Producer_Seq=str(self.seq),
        )
        self.seq += 1
        status: int = answer.status
        return status


def test_two_entities_write_and_read_one_board(parties):
    alice, dora = parties
    x, y = Handler(alice, dora, "/agent/x"), Handler(alice, dora, "/agent/y")
    assert (x.put.status, y.put.status) == (201, 200)
    assert [x.write("1"), y.write("2"), x.write("3")] == [200] * 3
    assert [each["value"]["by"] for each in x.read()] == ["/agent/x", "/agent/y", "/agent/x"]
    assert dora.get(BOARD).body == y.read()


def test_it_is_found_again_at_each_wake(parties):
    alice, dora = parties
    first = Handler(alice, dora, "/agent/x")
    first.write("1")
    first.claim.done()
    again = Handler(alice, dora, "/agent/x")
    assert again.put.status == 200
    assert again.put.headers["Stream-Next-Offset"].endswith("1")
    assert [each["key"] for each in again.read()] == ["1"]


def test_a_handler_that_lost_its_claim_writes_no_more_once_the_next_has_written(parties):
    alice, dora = parties
    zombie = Handler(alice, dora, "/agent/x")
    assert zombie.write("1") == 200
    lapse(zombie.claim)
    lifecycle.expire(ConsumerClaim.objects.lapsed().get())
    newer = Handler(alice, dora, "/agent/x")
    assert newer.write("2") == 200
    assert zombie.write("late") == 403
    assert [each["key"] for each in newer.read()] == ["1", "2"]


def test_an_entity_that_watches_the_board_is_told_of_each_argument(parties):
    alice, dora = parties
    x = Handler(alice, dora, "/agent/x")
    body = {
        "subscriberUrl": "/agent/y",
        "sourceUrl": BOARD,
        "condition": {"on": "change", "collections": ["argument"]},
    }
    assert dora.post("/_electric/wake", body).status == 204
    x.write("1")
    while due.run():
        pass
    claim = alice.claim()
    assert claim.body["entity"]["url"] == "/agent/y"
    (wake,) = [each for each in dora.events("/agent/y") if each["type"] == "wake"]
    assert claim.offset < wake["headers"]["offset"]
    assert [each["key"] for each in wake["value"]["changes"]] == ["1"]


def test_without_the_claim_nobody_makes_one_in_anothers_name(parties):
    alice, dora = parties
    handler = Handler(alice, dora, "/agent/x")
    handler.claim.done()
    named = Api("user:dora", Authorization=alice.headers["Authorization"])
    for path in (BOARD, "/_electric/shared-state/other"):
        assert named("PUT", path, Electric_Owner_Entity="/agent/x").status == 403
