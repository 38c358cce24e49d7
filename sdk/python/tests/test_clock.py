"""Noticing time that no timer has counted, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from pullwake.clock import watch
from pullwake.timing import Timing
from virtual import VirtualClock, virtual


class Watch:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.jumps: list[float] = []
        self.held_up: list[float] = []
        self.task = asyncio.create_task(
            watch(self.clock, Timing(), self.jumps.append, self.held_up.append)
        )

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@virtual
@pytest.mark.parametrize("jump", [5.0, 3600.0, -5.0, -3600.0])
async def test_a_clock_that_moves_against_the_other_has_jumped_once(jump: float) -> None:
    watch = Watch()
    await asyncio.sleep(10)
    watch.clock.set_by += jump
    await asyncio.sleep(10)
    assert watch.jumps == [pytest.approx(jump)]
    assert watch.held_up == []
    await watch.stop()


@virtual
async def test_a_sleep_is_a_jump() -> None:
    watch = Watch()
    await asyncio.sleep(10)
    watch.clock.asleep += 3600
    await asyncio.sleep(10)
    assert watch.jumps == [pytest.approx(3600)]
    await watch.stop()


@virtual
async def test_a_clock_that_only_drifts_has_not_jumped() -> None:
    watch = Watch()
    for _ in range(200):
        watch.clock.set_by += 4.9
        await asyncio.sleep(1)
    assert watch.jumps == watch.held_up == []
    await watch.stop()


@virtual
async def test_a_process_that_was_stopped_is_told_apart() -> None:
    """Both clocks went on then: its connections may be alive, its leases may not."""
    watch = Watch()
    await asyncio.sleep(10)
    watch.clock.stopped += 60
    await asyncio.sleep(10)
    assert watch.jumps == []
    assert watch.held_up == [pytest.approx(60)]
    await watch.stop()
