"""The judge of `make chaos` sees each promise that is broken, and none where all are kept."""

from typing import Any

import pytest

from chaos.judge import judge, judge_families

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


PARENT = "/parent/e1"


def told(child: str = "/child/e1-0", **facts: Any) -> dict[str, Any]:
    finished = {"url": child, "run_status": "completed", "response": child, **facts}
    return {"type": "wake", "key": "k", "value": {"finished_child": finished}}


HEARD: list[dict[str, Any]] = [
    {"fact": "heard", "entity": PARENT, "child": f"/child/e1-{number}"} for number in (0, 1, 1)
]
TOLD = [inbox("go"), told(), told("/child/e1-1")]


def test_it_is_content_with_a_parent_that_was_told_of_each_child_once():
    """A handler may be given what it was told more than once."""
    assert judge_families(HEARD, {PARENT: TOLD}, {PARENT: "idle"}, 2) == []


@pytest.mark.parametrize(
    ("facts", "stream", "status", "said"),
    [
        (HEARD, TOLD[:2], "idle", "told of /child/e1-1 0 times"),
        (HEARD, [*TOLD, told()], "idle", "told of /child/e1-0 2 times"),
        (HEARD, [*TOLD, told("/child/e2-0")], "idle", "told of /child/e2-0 1 times"),
        (HEARD[:1], TOLD, "idle", "told of /child/e1-1, and no handler"),
        (HEARD, [TOLD[2], told(run_status="failed")], "idle", "told wrongly"),
        (HEARD, [TOLD[2], told(response="/child/e1-1")], "idle", "told wrongly"),
        (HEARD, TOLD, "running", "is running, with nothing to do"),
    ],
)
def test_it_sees_what_a_parent_was_not_told(facts: Any, stream: Any, status: str, said: str):
    broken = judge_families(facts, {PARENT: stream}, {PARENT: status}, 2)
    assert any(said in sentence for sentence in broken)
