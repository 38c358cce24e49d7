"""The judge of `make chaos` sees each promise that is broken, and none where all are kept."""

from typing import Any

import pytest

from chaos.judge import judge

URL = "/agent/e1"


def inbox(key: str) -> dict[str, Any]:
    return {"type": "inbox", "key": key, "value": {}}


def handled(message: str, epoch: int, holder: str, key: str) -> dict[str, Any]:
    value = {"message": message, "epoch": epoch, "holder": holder, "id": key}
    return {"type": "handled", "key": key, "value": value}


FACTS: list[dict[str, Any]] = [
    {"fact": "sent", "entity": URL, "message": "m0"},
    {"fact": "held", "entity": URL, "epoch": 1, "holder": "a"},
    {"fact": "appended", "entity": URL, "epoch": 1, "holder": "a", "message": "m0", "id": "x"},
    {"fact": "held", "entity": URL, "epoch": 2, "holder": "b"},
]
STREAM = [inbox("m0"), handled("m0", 1, "a", "x"), handled("m0", 2, "b", "y")]


def test_it_is_content_where_all_was_kept():
    """Work that is done again, by a later claim, breaks nothing."""
    assert judge(FACTS, {URL: STREAM}, {URL: "idle"}) == []


@pytest.mark.parametrize(
    ("facts", "stream", "status", "said"),
    [
        (FACTS, STREAM[1:], "idle", "has message m0 0 times"),
        (FACTS, [STREAM[0], *STREAM], "idle", "has message m0 2 times"),
        (FACTS[:1], STREAM[:1], "idle", "message m0, which nobody handled"),
        (FACTS, [STREAM[0], STREAM[2]], "idle", "a's event x 0 times"),
        (FACTS, [*STREAM, STREAM[1]], "idle", "a's event x 2 times"),
        (
            [*FACTS, {**FACTS[3], "epoch": 1}],
            STREAM,
            "idle",
            "Epoch 1 of /agent/e1 was held by a, b",
        ),
        (
            FACTS,
            [*STREAM, handled("m0", 1, "a", "z")],
            "idle",
            "took a's event of 1 after 2",
        ),
        (FACTS, STREAM, "running", "is running, with nothing to do"),
    ],
)
def test_it_sees_what_was_broken(facts: Any, stream: Any, status: str, said: str):
    assert any(said in sentence for sentence in judge(facts, {URL: stream}, {URL: status}))
