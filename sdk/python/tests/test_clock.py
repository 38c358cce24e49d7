"""Noticing time that no timer has counted, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from pullwake.clock import watch
from pullwake.timing import Timing
from virtual import VirtualClock, virtual


class Watch:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.jumps: list[float] = []
        self.held_up: list[float] = []
        self.stop = watch(self.clock, Timing(), self.jumps.append, self.held_up.append)


@virtual
@pytest.mark.parametrize("jump", [5.0, 3600.0, -5.0, -3600.0])
async def test_a_clock_that_moves_against_the_other_has_jumped_once(jump: float) -> None:
    watch = Watch()
    await asyncio.sleep(10)
    watch.clock.set_by += jump
    await asyncio.sleep(10)
    assert watch.jumps == [pytest.approx(jump)]
    assert watch.held_up == []
    watch.stop()


@virtual
async def test_a_sleep_is_a_jump() -> None:
    watch = Watch()
    await asyncio.sleep(10)
    watch.clock.asleep += 3600
    await asyncio.sleep(10)
    assert watch.jumps == [pytest.approx(3600)]
    watch.stop()


@virtual
async def test_a_clock_that_only_drifts_has_not_jumped() -> None:
    watch = Watch()
    for _ in range(200):
        watch.clock.set_by += 4.9
        await asyncio.sleep(1)
    assert watch.jumps == watch.held_up == []
    watch.stop()


@virtual
async def test_a_process_that_was_stopped_is_told_apart() -> None:
    """Both clocks went on then: its connections may be alive, its leases may not."""
    watch = Watch()
    await asyncio.sleep(10)
    watch.clock.stopped += 60
    await asyncio.sleep(10)
    assert watch.jumps == []
    assert watch.held_up == [pytest.approx(60)]
    watch.stop()


@virtual
async def test_all_in_a_loop_share_one_timer_and_each_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A thousand idle runners must not wake up a thousand times a second."""
    clock, jumps = VirtualClock(), list[float]()
    loop, timers = asyncio.get_running_loop(), list[object]()
    call_later = loop.call_later

    def counted(*given: Any) -> asyncio.TimerHandle:
        timers.append(given)
        return call_later(*given)

    monkeypatch.setattr(loop, "call_later", counted)

    def fails(seconds: float) -> None:
        raise LookupError

    ends = [watch(clock, Timing(), told, jumps.append) for told in [fails, *[jumps.append] * 9]]
    assert len(timers) == 1
    ends.pop()()
    clock.set_by += 3600
    with caplog.at_level(logging.CRITICAL):
        await asyncio.sleep(1.5)
    assert jumps == [pytest.approx(3600)] * 8
    for end in ends:
        end()
    timers.clear()
    await asyncio.sleep(10)
    assert len(timers) == 1  # this test's own
