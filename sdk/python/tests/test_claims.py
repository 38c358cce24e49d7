"""Lanes, leases and how work ends, in virtual time and without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any, cast

import pytest

from pullwake.api import Api, Grant, NoWork, Registration
from pullwake.claims import Claims, OutOfTouch
from pullwake.diagnostics import Diagnostics
from pullwake.errors import ClaimLost, RunnerError, ServerRefused, ServerUnreachable
from pullwake.handlers import Handler
from pullwake.timing import Timing
from pullwake.transport import Answer
from pullwake.wake import Wake
from virtual import VirtualClock, virtual

FENCED = ServerRefused(409, "FENCED", "not yours")
UNAUTHORIZED = ServerRefused(401, "UNAUTHORIZED", "who are you")
GONE = ServerUnreachable("gone")


class FakeApi:
    """Grants every claim. What a call raises, and how long it takes, can be set."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.registration = Registration("r", "r")
        self.transport = self
        self.calls: list[tuple[float, str, str]] = []
        self.failing: dict[str, Callable[[], RunnerError | None]] = {}
        self.takes: dict[str, float] = {}
        self.grants: dict[str, Grant | NoWork] = {}
        self.epochs: dict[str, int] = {}
        self.nonces: list[str] = []
        self.began = clock.monotonic()

    def url(self, path: str) -> str:
        return path

    def now(self) -> float:
        return round(self.clock.monotonic() - self.began, 6)

    def fail(self, name: str, error: RunnerError | None, times: int = 10**9) -> None:
        left = [times]

        def next_error() -> RunnerError | None:
            left[0] -= 1
            return error if left[0] >= 0 else None

        self.failing[name] = next_error

    def times(self, name: str) -> list[float]:
        return [at for at, call, _ in self.calls if call == name]

    def details(self, name: str) -> list[str]:
        return [detail for _, call, detail in self.calls if call == name]

    async def _call(self, name: str, detail: str = "") -> None:
        self.calls.append((self.now(), name, detail))
        await asyncio.sleep(self.takes.get(name, 0.0))
        error = self.failing.get(name, lambda: None)()
        if error is not None:
            raise error

    async def claim(self, event: dict[str, Any], nonce: str) -> Grant | NoWork:
        self.nonces.append(nonce)
        sent_at = self.clock.lease()
        path = event["stream"].removesuffix("/main")
        await self._call("claim", f"{path}#{event['generation']}")
        if path in self.grants:
            return self.grants[path]
        return Grant(
            consumer_id=f"w_{path}",
            epoch=event["generation"],
            wake_id=f"w_{path}",
            stream_path=f"/{path}/main",
            tail="0000000000000005_0000000000000000",
            cursor="-1",
            callback="http://server/callback",
            claim_token="ct",
            trigger_event=None,
            entity={"url": f"/{path}"},
            principal={},
            attempt=1,
            sent_at=sent_at,
        )

    async def mint(self, grant: Grant, nonce: str) -> str:
        await self._call("mint", grant.entity_url)
        return "wt"

    async def renew(self, grant: Grant, deadline: float) -> float:
        sent_at = self.clock.lease()
        try:
            async with asyncio.timeout(deadline):
                await self._call("renew", grant.entity_url)
        except TimeoutError:
            raise GONE from None
        return sent_at

    async def append(self, path: str, *_: object, **__: object) -> None:
        await self._call("append", path)

    async def read(self, path: str, offset: str, token: str, *, live: bool = False) -> Answer:
        await self._call("live read" if live else "read", path)
        if live:
            await asyncio.sleep(30.0)
        end = {"stream-next-offset": "0000000000000005_0000000000000000"}
        return Answer(204 if live else 200, end, b"[]", self.clock.lease())

    async def done(self, grant: Grant, acked: str | None) -> dict[str, Any]:
        await self._call("done", f"{grant.entity_url} {acked}")
        return {"ok": True}

    async def failed(
        self, grant: Grant, error: str, retry_after: float | None = None
    ) -> dict[str, Any]:
        await self._call("failed", error)
        return {"ok": True}


class Scene:
    def __init__(
        self,
        handler: Handler,
        *,
        limit: int | None = None,
        work_timeout: float | None = None,
        lease: float = 30.0,
        out_of_touch: OutOfTouch = "cancel",
    ) -> None:
        self.clock = VirtualClock()
        self.api = FakeApi(self.clock)
        self.errors: list[RunnerError] = []
        self.diagnostics = Diagnostics(self.clock)
        self.claims = Claims(
            cast(Api, self.api),
            handler,
            self.diagnostics,
            self.errors.append,
            limit=limit,
            work_timeout=work_timeout,
            out_of_touch=out_of_touch,
            timing=Timing(),
            clock=self.clock,
        )
        self.claims.lease_length = lease
        self.hurry = asyncio.Event()
        self.deadline = 0.0

    def wake(self, path: str, generation: int = 1) -> None:
        self.claims.submit(
            {
                "type": "wake",
                "subscription_id": f"runner:r:{path}",
                "stream": f"{path}/main",
                "generation": generation,
            }
        )

    async def at(self, seconds: float) -> None:
        await asyncio.sleep(seconds - self.api.now())
        await steps()

    async def drain(self, grace: float = 0.0) -> Any:
        self.deadline = self.clock.monotonic() + grace
        return await self.claims.drain(lambda: self.deadline, self.hurry)


async def steps() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


class Work:
    """A handler that works for `takes` seconds, and says what became of it."""

    def __init__(self, takes: float = 0.0) -> None:
        self.takes = takes
        self.began: list[str] = []
        self.ended: list[str] = []
        self.cancelled: list[tuple[str, float]] = []
        self.wakes: list[Wake] = []
        self.at_once = 0
        self.most = 0

    async def __call__(self, wake: Wake) -> None:
        self.began.append(f"{wake.entity_url}#{wake.epoch}")
        self.wakes.append(wake)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(self.takes)
            self.ended.append(f"{wake.entity_url}#{wake.epoch}")
        except asyncio.CancelledError:
            self.cancelled.append((wake.entity_url, asyncio.get_running_loop().time()))
            assert wake.cancelled
            raise
        finally:
            self.at_once -= 1


# Lanes


@virtual
async def test_wakes_of_one_entity_are_tried_in_order_and_only_when_it_is_free() -> None:
    work = Work(5.0)
    scene = Scene(work)
    for generation in (1, 2, 3):
        scene.wake("chat/1", generation)
    await scene.at(4)
    assert scene.api.details("claim") == ["chat/1#1"]
    await scene.at(20)
    assert scene.api.details("claim") == ["chat/1#1", "chat/1#2", "chat/1#3"]
    assert scene.api.times("claim") == [0, 5, 10]
    assert work.ended == ["/chat/1#1", "/chat/1#2", "/chat/1#3"]
    assert work.most == 1


@virtual
async def test_entities_do_not_wait_for_each_other() -> None:
    work = Work(5.0)
    scene = Scene(work)
    for number in range(20):
        scene.wake(f"chat/{number}")
    await scene.at(1)
    assert len(work.began) == 20


@virtual
async def test_a_wake_emitted_again_while_it_waits_is_one_wake() -> None:
    scene = Scene(Work(5.0))
    for generation in (1, 2, 2, 2):
        scene.wake("chat/1", generation)
    await scene.at(30)
    assert scene.api.details("claim") == ["chat/1#1", "chat/1#2"]


@virtual
async def test_nor_does_it_wait_twice_for_a_slot() -> None:
    scene = Scene(Work(5.0), limit=1)
    scene.wake("chat/1")
    for _ in range(3):
        scene.wake("chat/2")
        await steps()
    await scene.at(30)
    assert scene.api.details("claim") == ["chat/1#1", "chat/2#1"]


@virtual
async def test_no_more_at_once_than_the_limit_and_none_lost() -> None:
    work = Work(5.0)
    scene = Scene(work, limit=3)
    for number in range(10):
        scene.wake(f"chat/{number}")
    await scene.at(4)
    assert len(scene.api.details("claim")) == 3
    await scene.at(30)
    assert work.most == 3
    assert len(work.ended) == 10


@virtual
async def test_a_raised_limit_admits_who_waits() -> None:
    work = Work(5.0)
    scene = Scene(work, limit=1)
    for number in range(4):
        scene.wake(f"chat/{number}")
    await scene.at(1)
    assert len(work.began) == 1
    scene.claims.resize(None)
    await scene.at(2)
    assert len(work.began) == 4


@virtual
async def test_no_work_is_not_an_error() -> None:
    scene = Scene(Work())
    scene.api.grants["chat/1"] = NoWork("NO_PENDING_WORK")
    scene.wake("chat/1")
    await scene.at(60)
    assert scene.api.times("claim") == [0]
    assert scene.errors == []
    fields = scene.diagnostics.as_dict()
    assert (fields["last_claim_result"], fields["claims_skipped"]) == ("no_work", 1)


@virtual
async def test_a_claim_without_a_verdict_is_tried_again_with_growing_delays() -> None:
    work = Work()
    scene = Scene(work)
    scene.api.fail("claim", ServerRefused(500, "X", "oh"), times=4)
    scene.wake("chat/1")
    await scene.at(60)
    assert work.ended == ["/chat/1#1"]
    gaps = [later - earlier for earlier, later in pairwise(scene.api.times("claim"))]
    assert all(gap >= shortest for gap, shortest in zip(gaps, (0.5, 1, 2, 4), strict=True))
    assert all(gap <= longest for gap, longest in zip(gaps, (1, 2, 4, 8), strict=True))
    fields = scene.diagnostics.as_dict()
    assert (fields["claims_failed"], fields["claims_succeeded"]) == (4, 1)


@virtual
async def test_the_tries_of_a_claim_have_one_nonce_and_another_claim_has_another() -> None:
    scene = Scene(Work())
    scene.api.fail("claim", GONE, times=2)
    scene.wake("chat/1")
    await scene.at(60)
    scene.wake("chat/2")
    await scene.at(120)
    first, *tries, other = scene.api.nonces
    assert tries == [first, first]
    assert other != first


@virtual
async def test_one_that_is_tried_again_holds_up_nobody() -> None:
    work = Work()
    scene = Scene(work, limit=1)
    scene.api.fail("claim", GONE, times=3)
    for number in range(5):
        scene.wake(f"chat/{number}")
    await scene.at(60)
    assert len(work.ended) == 5


@virtual
@pytest.mark.parametrize(("status", "code"), [(400, "INVALID_REQUEST"), (409, "NOT_RUNNING")])
async def test_a_refused_claim_is_an_error_and_not_repeated(status: int, code: str) -> None:
    scene = Scene(Work())
    scene.api.fail("claim", ServerRefused(status, code, "no"))
    scene.wake("chat/1")
    await scene.at(60)
    assert scene.api.times("claim") == [0]
    assert len(scene.errors) == 1
    assert scene.diagnostics.as_dict()["last_claim_result"] == "error"


@virtual
async def test_nothing_is_kept_of_entities_that_are_through() -> None:
    scene = Scene(Work())
    for number in range(100):
        scene.wake(f"chat/{number}")
    await scene.at(1)
    assert scene.claims._lanes == {}
    assert scene.claims._held == set()


# Leases


@virtual
async def test_the_lease_is_renewed_at_each_third() -> None:
    scene = Scene(Work(65.0))
    scene.wake("chat/1")
    await scene.at(70)
    assert scene.api.times("renew") == [10, 20, 30, 40, 50, 60]
    assert scene.api.times("done") == [65]
    assert scene.api.details("done") == ["/chat/1 0000000000000005_0000000000000000"]


@virtual
@pytest.mark.parametrize("verdict", [FENCED, UNAUTHORIZED])
async def test_a_fenced_claim_is_cancelled_at_once_and_reports_nothing(
    verdict: ServerRefused,
) -> None:
    work = Work(100.0)
    scene = Scene(work)
    scene.wake("chat/1")
    await scene.at(15)
    scene.api.fail("renew", verdict)
    await scene.at(200)
    assert [at - 1000 for _, at in work.cancelled] == [20]
    assert scene.api.times("done") == []
    assert scene.api.times("failed") == []
    (error,) = scene.errors
    assert isinstance(error, ClaimLost)
    assert "cancelled, since the server fenced it" in str(error)


@virtual
async def test_an_outage_shorter_than_the_lease_cancels_nothing() -> None:
    work = Work(100.0)
    scene = Scene(work)
    scene.wake("chat/1")
    await scene.at(15)
    scene.api.fail("renew", GONE)
    await scene.at(39)
    assert work.cancelled == []
    scene.api.fail("renew", None)
    await scene.at(120)
    assert work.ended == ["/chat/1#1"]
    assert len(scene.api.times("done")) == 1


@virtual
async def test_work_is_cancelled_when_the_lease_runs_out_counted_from_when_the_renewal_left() -> (
    None
):
    work = Work(100.0)
    scene = Scene(work)
    scene.wake("chat/1")
    scene.api.takes["renew"] = 4.0  # leaves at 10, is answered at 14
    await scene.at(15)
    scene.api.fail("renew", GONE)
    await scene.at(39.9)
    assert work.cancelled == []
    await scene.at(41)
    assert [at - 1000 for _, at in work.cancelled] == [40]
    assert scene.api.times("done") == []
    assert scene.api.times("failed") == []


@virtual
async def test_the_first_lease_counts_from_when_the_claim_left() -> None:
    work = Work(100.0)
    scene = Scene(work)
    scene.api.takes["claim"] = 6.0
    scene.api.fail("renew", GONE)
    scene.wake("chat/1")
    await scene.at(35)
    assert [at - 1000 for _, at in work.cancelled] == [30]


@virtual
async def test_a_renewal_that_hangs_leaves_time_for_others() -> None:
    work = Work(35.0)
    scene = Scene(work)
    scene.wake("chat/1")
    await scene.at(5)
    scene.api.takes["renew"] = 1000.0
    await scene.at(21)
    scene.api.takes["renew"] = 0.0
    await scene.at(40)
    assert work.ended == ["/chat/1#1"]


@virtual
async def test_after_a_sleep_past_the_lease_it_asks_before_it_gives_up() -> None:
    """Lapsed is not lost: what nobody took is still ours, and one renewal tells."""
    work = Work(100.0)
    scene = Scene(work)
    scene.wake("chat/1")
    await scene.at(1)
    scene.clock.asleep = 3600.0
    scene.claims.poke()
    await scene.at(2)
    assert scene.api.times("renew") == [1]
    await scene.at(120)
    assert work.ended == ["/chat/1#1"]


@virtual
@pytest.mark.parametrize("at", [15, 21])
async def test_a_renewal_that_failed_before_a_sleep_or_in_it_does_not_count(at: float) -> None:
    """The machine, or the process, stops while one is under way, or between that and the next."""
    work = Work(100.0)
    scene = Scene(work)
    scene.wake("chat/1")
    scene.api.takes["renew"] = 1000.0  # leaves at 10, is given up at 20, comes again at 22
    await scene.at(at)
    scene.api.takes["renew"] = 0.0
    scene.clock.asleep = 3600.0
    await scene.at(120)
    assert work.cancelled == []
    assert work.ended == ["/chat/1#1"]


@virtual
async def test_after_a_sleep_past_the_lease_with_no_server_it_gives_up() -> None:
    work = Work(100.0)
    scene = Scene(work)
    scene.wake("chat/1")
    await scene.at(1)
    scene.clock.asleep = 3600.0
    scene.api.takes["renew"] = 1000.0
    scene.claims.poke()
    await scene.at(20)
    assert [round(at - 1000, 3) for _, at in work.cancelled] == [3]


@virtual
async def test_work_that_ends_after_the_lease_did_asks_before_it_reports() -> None:
    """Stopped past its lease and continued, it must not say done of another's claim."""
    work = Work(5.0)
    scene = Scene(work)
    scene.api.fail("renew", FENCED)
    scene.wake("chat/1")
    await scene.at(1)
    scene.clock.asleep = 3600.0
    await scene.at(60)
    assert work.ended == ["/chat/1#1"]
    assert scene.api.times("renew") == [5]
    assert scene.api.times("done") == []


@virtual
async def test_work_that_ends_after_the_lease_did_is_done_if_nobody_took_it() -> None:
    scene = Scene(Work(5.0))
    scene.wake("chat/1")
    await scene.at(1)
    scene.clock.asleep = 3600.0
    await scene.at(60)
    assert scene.api.times("renew") == [5]
    assert scene.api.times("done") == [5]


# How work ends


@virtual
async def test_an_exception_is_reported_failed_with_its_message() -> None:
    async def handler(wake: Wake) -> None:
        raise ValueError("no such \0 file")

    scene = Scene(handler)
    scene.wake("chat/1")
    await scene.at(1)
    assert scene.api.details("failed") == ["ValueError: no such � file"]
    assert scene.api.times("done") == []
    assert "no such" in str(scene.errors[0])
    assert isinstance(scene.errors[0].__cause__, ValueError)


class Odd(BaseException):
    """No Exception, and no reason to stop."""


class Mute(Exception):
    """Has no text to show."""

    def __str__(self) -> str:
        raise ValueError


@virtual
@pytest.mark.parametrize(
    ("raised", "failure"),
    [
        (SystemExit(3), "SystemExit: 3"),
        (Mute(), "Mute: <its text cannot be made>"),
        (Odd("why not"), "Odd: why not"),
        (asyncio.CancelledError(), "the handler was cancelled from within"),
    ],
)
async def test_whatever_a_handler_raises_it_fails_alone(
    raised: BaseException, failure: str
) -> None:
    async def handler(wake: Wake) -> None:
        raise raised

    scene = Scene(handler)
    scene.wake("chat/1")
    await scene.at(1)
    assert scene.api.details("failed") == [failure]
    assert failure in str(scene.errors[0])


@virtual
async def test_a_handler_has_so_much_time_and_no_more() -> None:
    work = Work(100.0)

    async def handler(wake: Wake) -> None:
        try:
            await work(wake)
        except AssertionError:  # this cancelling is the timeout's: the claim is not lost
            raise asyncio.CancelledError from None

    scene = Scene(handler, work_timeout=20.0)
    scene.wake("chat/1")
    await scene.at(30)
    assert scene.api.details("failed") == ["not finished within 20 s"]
    assert scene.api.times("failed") == [20]


def stubborn(until: float) -> Callable[[Wake], Awaitable[None]]:
    """A handler that will not be cancelled."""

    async def handler(wake: Wake) -> None:
        end = asyncio.get_running_loop().time() + until
        while (left := end - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                continue

    return handler


@virtual
async def test_a_handler_that_ignores_its_time_is_abandoned_and_its_entity_freed() -> None:
    scene = Scene(stubborn(100.0), work_timeout=20.0)
    scene.wake("chat/1", 1)
    scene.wake("chat/1", 2)
    await scene.at(50)
    assert scene.api.times("claim") == [0, 40]
    assert any("goes on after it was cancelled" in str(error) for error in scene.errors)
    await scene.at(400)
    assert scene.api.times("done") == []


@virtual
async def test_a_fenced_handler_that_goes_on_reports_nothing() -> None:
    scene = Scene(stubborn(15.0))
    scene.api.fail("renew", FENCED)
    scene.wake("chat/1")
    await scene.at(60)
    assert scene.api.times("renew") == [10]
    assert scene.api.times("done") == []
    assert scene.api.times("failed") == []


@virtual
@pytest.mark.parametrize("out_of_touch", ["cancel", "work"])
async def test_out_of_touch_past_the_lease_it_goes_by_its_policy(out_of_touch: OutOfTouch) -> None:
    work = Work(200.0)
    scene = Scene(work, out_of_touch=out_of_touch)
    scene.api.fail("renew", GONE)
    scene.wake("chat/1")
    await scene.at(150)
    if out_of_touch == "cancel":
        assert [at - scene.api.began for _, at in work.cancelled] == [30]
        return
    assert work.cancelled == []
    renewals = [at for at in scene.api.times("renew") if at > 30]
    assert max(later - at for at, later in pairwise(renewals)) <= 10  # it goes on asking,
    assert len(renewals) <= 60  # and not all the time
    scene.api.fail("renew", None)
    await scene.at(210)
    assert work.ended == ["/chat/1#1"]
    assert len(scene.api.times("done")) == 1


@virtual
async def test_working_on_it_stops_as_soon_as_the_server_says_that_it_is_lost() -> None:
    work = Work(200.0)
    scene = Scene(work, out_of_touch="work")
    scene.api.fail("renew", GONE)
    scene.wake("chat/1")
    await scene.at(100)
    scene.api.fail("renew", FENCED)
    await scene.at(110)
    assert len(work.cancelled) == 1
    assert scene.api.times("done") == scene.api.times("failed") == []


@virtual
async def test_working_on_it_writes_when_the_server_is_back() -> None:
    async def handler(wake: Wake) -> None:
        await wake.append({"type": "x"})

    scene = Scene(handler, out_of_touch="work")
    for name in ("renew", "append"):
        scene.api.fail(name, GONE)
    scene.wake("chat/1")
    await scene.at(300)
    for name in ("renew", "append"):
        scene.api.fail(name, None)
    await scene.at(310)
    assert len(scene.api.times("done")) == 1


@virtual
@pytest.mark.parametrize("how", ["fenced", "finished"])
async def test_a_wake_is_of_no_use_after_its_claim(how: str) -> None:
    work = Work(20.0 if how == "fenced" else 1.0)
    scene = Scene(work)
    scene.api.fail("renew", FENCED)
    scene.wake("chat/1")
    await scene.at(15)
    before = list(scene.api.calls)
    with pytest.raises(ClaimLost):
        await work.wakes[0].append({"type": "late"})
    with pytest.raises(ClaimLost):
        async for _ in work.wakes[0].history():
            pass
    assert scene.api.calls == before
    assert scene.claims._lanes == {}


@virtual
async def test_done_is_told_until_it_is_heard() -> None:
    scene = Scene(Work(1.0))
    scene.api.fail("done", GONE, times=10)
    scene.wake("chat/1")
    await scene.at(100)
    assert len(scene.api.times("done")) == 11


@virtual
async def test_done_is_told_past_the_lease_as_long_as_nobody_says_it_is_lost() -> None:
    """A finished message that the server only hears of late is still finished once."""
    scene = Scene(Work(1.0))
    for name in ("done", "renew"):
        scene.api.fail(name, GONE)
    scene.wake("chat/1")
    await scene.at(90)
    for name in ("done", "renew"):
        scene.api.fail(name, None)
    await scene.at(100)
    assert scene.api.times("done")[-1] > 90
    assert scene.claims._lanes == {}


@virtual
async def test_a_fenced_done_ends_it() -> None:
    scene = Scene(Work(1.0))
    scene.api.fail("done", FENCED)
    scene.wake("chat/1")
    await scene.at(60)
    assert scene.api.times("done") == [1]
    assert scene.api.times("failed") == []
    (error,) = scene.errors
    assert isinstance(error, ClaimLost)
    assert "not reported, since the server fenced it" in str(error)


@virtual
async def test_a_renewal_that_crosses_done_on_the_wire_does_not_cancel_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server may answer FENCED to a renewal it gets after done: done's own answer counts."""
    caplog.set_level("INFO")
    scene = Scene(Work(9.0))
    scene.api.takes = {"done": 5.0}
    scene.api.fail("renew", FENCED)
    scene.wake("chat/1")
    await scene.at(60)
    assert scene.api.times("done") == [9]
    assert "epoch 1: done in 14.0 s" in caplog.text
    assert "cancelled" not in caplog.text


@virtual
async def test_a_done_that_the_server_cannot_take_is_reported_failed() -> None:
    scene = Scene(Work(1.0))
    scene.api.fail("done", ServerRefused(409, "INVALID_OFFSET", "beyond the tail"))
    scene.wake("chat/1")
    await scene.at(10)
    assert scene.api.details("failed") == ["done was refused: 409 INVALID_OFFSET: beyond the tail"]


@virtual
async def test_no_write_token_no_work() -> None:
    work = Work()
    scene = Scene(work)
    scene.api.fail("mint", FENCED)
    scene.wake("chat/1")
    await scene.at(60)
    assert work.began == []
    assert scene.api.times("mint") == [0]
    assert scene.api.times("failed") == []


# Draining


@virtual
async def test_draining_lets_work_finish_and_claims_no_more() -> None:
    work = Work(5.0)
    scene = Scene(work)
    scene.wake("chat/1", 1)
    scene.wake("chat/1", 2)
    await scene.at(1)
    drained = await scene.drain(grace=30.0)
    assert scene.api.now() == 5
    scene.wake("chat/2")
    await scene.at(60)
    assert work.ended == ["/chat/1#1"]
    assert scene.api.details("claim") == ["chat/1#1"]
    assert (drained.cancelled, drained.abandoned) == (0, 0)


@virtual
async def test_draining_cancels_what_outlasts_the_grace_and_reports_nothing_of_it() -> None:
    work = Work(100.0)
    scene = Scene(work)
    scene.wake("chat/1")
    await scene.at(1)
    drained = await scene.drain(grace=7.0)
    assert scene.api.now() == 8
    assert [at - 1000 for _, at in work.cancelled] == [8]
    assert drained.cancelled == 1
    assert scene.api.times("failed") == scene.api.times("done") == []
    assert scene.errors == []


@virtual
async def test_draining_can_be_hurried() -> None:
    work = Work(100.0)
    scene = Scene(work)
    scene.wake("chat/1")
    await scene.at(1)
    draining = asyncio.create_task(scene.drain(grace=30.0))
    await scene.at(3)
    scene.deadline = scene.clock.monotonic()
    scene.hurry.set()
    await draining
    assert scene.api.now() == 3


@virtual
async def test_a_claim_that_hangs_holds_up_draining_only_shortly() -> None:
    scene = Scene(Work())
    scene.api.takes["claim"] = 1000.0
    scene.wake("chat/1")
    await scene.at(1)
    await scene.drain(grace=30.0)
    assert scene.api.now() == 3
    assert scene.claims._lanes == {}


@virtual
async def test_wakes_that_wait_do_not_hold_up_draining() -> None:
    scene = Scene(Work(100.0), limit=1)
    scene.api.fail("claim", GONE)
    for number in range(5):
        scene.wake(f"chat/{number}")
    await scene.at(1)
    await scene.drain(grace=30.0)
    assert scene.api.now() == 1


@virtual
async def test_a_lane_cancelled_before_its_first_step_is_gone_too() -> None:
    scene = Scene(Work())
    scene.wake("chat/1")
    await scene.drain(grace=30.0)
    assert scene.api.now() == 0
    assert scene.claims._lanes == {}


@virtual
async def test_a_claim_granted_while_draining_is_handed_back() -> None:
    work = Work()
    scene = Scene(work)
    scene.api.takes["claim"] = 2.0
    scene.wake("chat/1")
    await scene.at(1)
    await scene.drain(grace=30.0)
    assert work.began == []
    assert scene.api.details("failed") == ["the runner is stopping"]


@virtual
async def test_a_stubborn_handler_holds_up_draining_only_for_its_grace() -> None:
    scene = Scene(stubborn(1000.0))
    scene.wake("chat/1")
    await scene.at(1)
    drained = await scene.drain(grace=5.0)
    assert scene.api.now() == 16
    assert (drained.cancelled, drained.abandoned) == (1, 1)
    await scene.at(2000)  # it ends by itself at last
    assert scene.api.times("done") == []
