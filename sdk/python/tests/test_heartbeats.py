"""When heartbeats are sent: at each interval, soon after a change, never two at once."""

from __future__ import annotations

import asyncio

from pullwake.clock import Clock
from pullwake.diagnostics import Diagnostics
from pullwake.errors import RunnerError, ServerRefused, ServerUnreachable
from pullwake.heartbeats import Heartbeats
from pullwake.machine import State
from pullwake.timing import Timing
from virtual import VirtualClock, virtual


class Sender:
    """Heartbeats with the protocol's timing, sent to nobody."""

    def __init__(self) -> None:
        self.began = asyncio.get_running_loop().time()
        self.sent: list[float] = []
        self.failures: list[RunnerError] = []
        self.resets: list[float] = []
        self.answers: list[RunnerError | None] = []
        self.takes = 0.0
        self.at_once = 0
        self.heartbeats = Heartbeats(
            self.send, self.failures.append, self.reset, Timing(), VirtualClock()
        )
        self.task = asyncio.create_task(self.heartbeats.run())

    def now(self) -> float:
        return asyncio.get_running_loop().time() - self.began

    async def send(self) -> None:
        self.sent.append(self.now())
        self.at_once += 1
        assert self.at_once == 1
        try:
            await asyncio.sleep(self.takes)
            answer = self.answers.pop(0) if self.answers else None
            if answer is not None:
                raise answer
        finally:
            self.at_once -= 1

    def reset(self, last: RunnerError) -> None:
        assert last is self.failures[-1]
        self.resets.append(self.now())

    async def at(self, seconds: float) -> None:
        await asyncio.sleep(seconds - self.now())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@virtual
async def test_one_every_interval() -> None:
    sender = Sender()
    await sender.at(95)
    assert sender.sent == [30, 60, 90]
    await sender.stop()


@virtual
async def test_the_first_is_sent_as_soon_as_the_server_knows_the_runner() -> None:
    sender = Sender()
    sender.heartbeats.changed()  # before that, changes alone are no reason for one
    await sender.at(5)
    assert sender.sent == []
    sender.heartbeats.arm()
    await sender.at(40)
    assert sender.sent == [5, 35]
    await sender.stop()


@virtual
async def test_a_change_is_reported_a_gap_later_together_with_what_else_changed() -> None:
    sender = Sender()
    sender.heartbeats.arm()
    await sender.at(10)
    for tenth in range(15):
        await sender.at(10 + tenth / 10)
        sender.heartbeats.changed()
    await sender.at(41)
    assert sender.sent == [0, 12]
    await sender.stop()


@virtual
async def test_at_most_one_a_gap_however_much_changes() -> None:
    sender = Sender()
    sender.heartbeats.arm()
    for quarter in range(40):
        await sender.at(quarter / 4)
        sender.heartbeats.changed()
    assert sender.sent == [0, 2.25, 4.25, 6.25, 8.25]
    await sender.stop()


@virtual
async def test_changes_while_one_is_in_flight_make_one_more() -> None:
    sender = Sender()
    sender.heartbeats.arm()
    await sender.at(1)
    sender.takes = 5.0
    sender.heartbeats.now()
    for second in (3, 4, 5, 6):
        await sender.at(second)
        sender.heartbeats.changed()
    sender.takes = 0.0
    await sender.at(31)
    assert sender.sent == [0, 2, 7]
    await sender.stop()


@virtual
async def test_two_failures_in_a_row_reset_once_and_count_afresh() -> None:
    sender = Sender()
    gone = ServerUnreachable("gone")
    sender.answers = [gone, None, gone, gone, gone, gone, gone]
    await sender.at(30 * 7 + 1)
    assert sender.resets == [120, 180]
    assert len(sender.failures) == 6
    await sender.stop()


@virtual
async def test_a_server_that_asks_for_a_pause_gets_it() -> None:
    sender = Sender()
    sender.heartbeats.arm()
    sender.answers = [ServerRefused(429, "RATE_LIMITED", "slow down", 20.0)]
    await sender.at(1)
    sender.heartbeats.changed()
    await sender.at(25)
    assert sender.sent == [0, 20]
    await sender.stop()


class Ticking(Clock):
    """Never the same time twice."""

    def __init__(self) -> None:
        self.ticks = 1_700_000_000.0

    def wall(self) -> float:
        self.ticks += 1.0
        return self.ticks


def diagnostics(changes: list[str]) -> Diagnostics:
    return Diagnostics(Ticking(), lambda: changes.append("changed"))


def test_what_a_heartbeat_itself_sets_is_no_reason_for_another() -> None:
    changes: list[str] = []
    fields = diagnostics(changes)
    fields.heartbeat(ok=True)
    assert len(changes) == 1  # it was not known before
    fields.heartbeat(ok=True)
    assert len(changes) == 1
    fields.heartbeat(ok=False)
    fields.error("no answer")
    assert len(changes) == 3
    fields.heartbeat(ok=False)
    fields.error("no answer")
    assert len(changes) == 3


def test_an_error_is_kept_printable_and_short() -> None:
    fields = diagnostics([])
    fields.error("nul\0 and \udcff" + "x" * 5000)
    error = fields.as_dict()["last_error"]
    assert error.startswith("nul� and ?")
    assert len(error) == 1000


def test_the_fields_of_a_connection() -> None:
    fields = diagnostics([])
    fields.state(State.STOPPED, State.CONNECTING)
    assert fields.as_dict()["started_at"].endswith("Z")
    fields.state(State.CONNECTING, State.STREAMING)
    connected = fields.as_dict()
    assert connected["stream_connected"] is True
    assert connected["stream_connected_since"] is not None
    fields.state(State.STREAMING, State.RECONNECTING)
    lost = fields.as_dict()
    assert (lost["status"], lost["stream_connected"]) == ("reconnecting", False)
    assert lost["stream_connected_since"] is None
    assert lost["started_at"] == connected["started_at"]
