from __future__ import annotations

import asyncio

import pytest

from pullwake.backoff import Backoff, insist
from pullwake.errors import RunnerError, ServerRefused, ServerUnreachable
from pullwake.timing import Timing
from virtual import VirtualClock, virtual


def delays(draw: float, count: int) -> list[float]:
    backoff = Backoff(Timing(), draw=lambda: draw)
    return [backoff.next() for _ in range(count)]


def test_it_doubles_from_1_s_to_30_s() -> None:
    assert delays(1.0, 7) == [1, 2, 4, 8, 16, 30, 30]


def test_jitter_takes_off_up_to_half() -> None:
    assert delays(0.0, 7) == [0.5, 1, 2, 4, 8, 15, 15]
    drawn = [Backoff(Timing()).next() for _ in range(100)]
    assert len(set(drawn)) > 50
    assert all(0.5 <= delay <= 1.0 for delay in drawn)


def test_it_stays_bounded_for_ever() -> None:
    backoff = Backoff(Timing(), draw=lambda: 1.0)
    assert max(backoff.next() for _ in range(5000)) == 30


def test_a_success_starts_it_afresh() -> None:
    backoff = Backoff(Timing(), draw=lambda: 1.0)
    for _ in range(5):
        backoff.next()
    backoff.reset()
    assert backoff.next() == 1


def test_retry_after_is_a_floor_and_has_a_ceiling() -> None:
    backoff = Backoff(Timing(), draw=lambda: 0.5)
    assert backoff.next(retry_after=7.0) == 7.5
    assert backoff.next(retry_after=0.0) == 1.5
    assert backoff.next(retry_after=86_400.0) == 60.5
    assert backoff.next(retry_after=-5.0) == 6.0


def refused(status: int) -> ServerRefused:
    return ServerRefused(status, "X", "no")


async def attempt(errors: list[RunnerError], during: float = 100.0) -> tuple[str, list[str]]:
    heard: list[str] = []

    async def call() -> str:
        if errors:
            raise errors.pop(0)
        return "answer"

    answer = await insist(
        call,
        timing=Timing(),
        clock=VirtualClock(),
        during=during,
        failed=lambda error: heard.append(str(error)),
    )
    return answer, heard


@virtual
async def test_what_may_pass_is_tried_again() -> None:
    errors = [ServerUnreachable("gone"), *map(refused, (500, 503, 429, 408, 401))]
    answer, heard = await attempt(errors)
    assert answer == "answer"
    assert len(heard) == 6


@virtual
@pytest.mark.parametrize("status", [400, 403, 404, 409, 413])
async def test_a_verdict_is_not_argued_with(status: int) -> None:
    with pytest.raises(ServerRefused) as caught:
        await attempt([refused(status), refused(500)])
    assert caught.value.status == status


@virtual
async def test_not_for_ever() -> None:
    began = asyncio.get_running_loop().time()
    with pytest.raises(ServerUnreachable):
        await attempt([ServerUnreachable("gone") for _ in range(50)], during=20.0)
    assert asyncio.get_running_loop().time() - began <= 20.0
