"""Claiming wakes, and holding claims: one at a time for each entity, each under its own lease.

Every entity with a wake has a lane, a task that takes its wakes in order: claim, hold, next. The
stream's reader only ever puts a wake into a lane, so reading waits for neither claims nor work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Literal, TypeVar

from . import tracing
from .api import DEFAULT_LEASE, Api, Grant, NoWork
from .backoff import Backoff, insist
from .clock import Clock
from .diagnostics import Diagnostics, printable
from .errors import (
    ClaimLost,
    GiveUp,
    HandlerFailed,
    HandlerStuck,
    RetryAfter,
    RunnerError,
    ServerRefused,
)
from .handlers import Handler
from .logs import context
from .tasks import ends_task
from .timing import Timing
from .wake import Wake

log = logging.getLogger("pullwake.runner")

T = TypeVar("T")

OutOfTouch = Literal["cancel", "work"]
"""What becomes of work whose lease runs out while the server cannot be reached: it is cancelled, so
that no two handlers work at once; or it goes on until the server says that the claim is lost."""

_RETRY_LONGEST = 5.0
"""Seconds between tries of a call that a lease is running for."""

_MAX_FAILURE = 2_000
"""Characters of a handler's exception that the server is told."""

_STOPPING = "the runner is stopping"


class Lease:
    """How long a claim is ours, as far as can be known from here.

    It runs from when the last accepted request *left*: the server's clock started no earlier.
    """

    def __init__(self, clock: Clock, length: float, sent_at: float) -> None:
        self._clock = clock
        self.length = length
        self.renewed_at = sent_at

    def renew(self, length: float, sent_at: float) -> None:
        self.length = length
        self.renewed_at = sent_at

    def remaining(self) -> float:
        """Seconds; negative once it has lapsed."""
        return self.renewed_at + self.length - self._clock.lease()

    @property
    def lapsed(self) -> bool:
        return self.remaining() <= 0


class Slots:
    """At most `limit` holders at once, first come first served. None is no limit."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._held = 0
        self._waiting: dict[asyncio.Future[None], None] = {}

    def resize(self, limit: int | None) -> None:
        self._limit = limit
        self._admit()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._held -= 1
            else:
                self._waiting.pop(turn, None)
            self._admit()

    def _admit(self) -> None:
        while self._waiting and (self._limit is None or self._held < self._limit):
            turn = next(iter(self._waiting))
            del self._waiting[turn]
            if not turn.done():  # one that was cancelled gives way to the next
                self._held += 1
                turn.set_result(None)


class _Held:
    """A claim that is held: what its worker and its keeper share."""

    def __init__(self, grant: Grant, lease: Lease) -> None:
        self.grant = grant
        self.lease = lease
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.wake: Wake | None = None
        self.watcher: asyncio.Task[None] | None = None
        self.reporting = False
        """The handler has ended: from here on only the server can say that the claim is lost."""
        self.told = False
        """The server may have heard how it ended: from here on only that call's answer counts."""
        self.poked = asyncio.Event()
        self.renewed = asyncio.Event()

    def lose(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)
        if self.wake is not None:
            self.wake.cancel()

    async def confirm(self) -> None:
        """Have the lease renewed now, and wait until it is. If it is not, the worker is cancelled
        meanwhile."""
        self.renewed.clear()
        self.poked.set()
        await self.renewed.wait()


class _Phase(Enum):
    WAITING = "waiting"
    CLAIMING = "claiming"
    HOLDING = "holding"


class _Lane:
    """The wakes of one entity, in order."""

    def __init__(self) -> None:
        self.queue: deque[dict[str, Any]] = deque()
        self.phase = _Phase.WAITING
        self.next: dict[str, Any] | None = None
        """The wake that waits for a slot, or to be tried again."""
        self.task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class Drained:
    """How `stop()` went for the work that was running."""

    cancelled: int = 0
    """Claims whose handler was cancelled by it, before it had finished."""
    abandoned: int = 0
    """Of those, the ones whose handler ignored it."""
    errors: tuple[RunnerError, ...] = ()
    """What went wrong in handlers while they were being cancelled; each was reported, too."""


class Claims:
    """The claims of one run of a runner."""

    def __init__(
        self,
        api: Api,
        handler: Handler,
        diagnostics: Diagnostics,
        failed: Callable[[RunnerError], None],
        *,
        limit: int | None,
        work_timeout: float | None,
        out_of_touch: OutOfTouch = "cancel",
        timing: Timing,
        clock: Clock,
    ) -> None:
        self._api = api
        self._handler = handler
        self._diagnostics = diagnostics
        self._failed = failed
        self._work_timeout = work_timeout
        self._keeps_working = out_of_touch == "work"
        self._timing = timing
        self._clock = clock
        self._slots = Slots(limit)
        self._lanes: dict[str, _Lane] = {}
        self._held: set[_Held] = set()
        self._abandoned: set[asyncio.Task[None]] = set()
        self._closed = False
        self._cancelled = 0
        self._gave_up = 0
        self._errors: list[RunnerError] = []
        self.lease_length = DEFAULT_LEASE
        """Seconds; of the leases the server grants this runner."""

    @property
    def active(self) -> int:
        """How many claims are held."""
        return len(self._held)

    def resize(self, limit: int | None) -> None:
        self._slots.resize(limit)

    def submit(self, event: dict[str, Any]) -> None:
        """Take a wake event in, to be claimed when its entity's earlier ones are through."""
        if self._is_closed():
            return
        stream = event.get("stream") or event.get("subscription_id")
        if not isinstance(stream, str):
            log.warning("a wake names no stream: %.200r", event)
            return
        key = stream.strip("/")
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
            lane.queue.append(event)
            lane.task = asyncio.create_task(self._run_lane(key, lane), name=f"wakes of {key}")
            # For one that was cancelled before it ran at all.
            lane.task.add_done_callback(lambda _: self._remove(key, lane))
        elif not any(_same(event, known) for known in (lane.next, *lane.queue) if known):
            # The same wake, emitted again while it waits here, is still one wake.
            lane.queue.append(event)

    def poke(self) -> None:
        """Renew every lease now: time may have passed that no timer has counted."""
        for held in self._held:
            held.poked.set()

    async def drain(self, deadline: Callable[[], float], hurry: asyncio.Event) -> Drained:
        """Claim no more, wait for running work until `deadline()`, then cancel it.

        The deadline is on the monotonic clock; `hurry` is set when it has come nearer. Takes at
        most until then, and `cancel_grace`.
        """
        self._closed = True
        settle = self._clock.monotonic() + self._timing.claim_settle
        for held in self._held:
            if held.wake is not None:
                held.wake.wind_down()
        self._cancel_lanes(_Phase.WAITING)
        while self._lanes:
            now, end = self._clock.monotonic(), deadline()
            if now >= settle:
                self._cancel_lanes(_Phase.CLAIMING)
            if now >= end:
                break
            hurry.clear()
            hurried = asyncio.create_task(hurry.wait())
            await asyncio.wait(
                {hurried, *self._tasks()},
                timeout=(min(end, settle) if now < settle else end) - now,
                return_when=asyncio.FIRST_COMPLETED,
            )
            hurried.cancel()
        self._cancel_lanes(_Phase.CLAIMING)
        for held in tuple(self._held):
            held.lose(_STOPPING)
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=self._timing.cancel_grace + 1.0)
        return Drained(self._cancelled, self._gave_up, tuple(self._errors))

    def cancel(self) -> None:
        """End what is left, without waiting for it: nothing, unless draining went wrong."""
        self._closed = True
        for held in tuple(self._held):
            held.lose(_STOPPING)
        for task in self._tasks():
            task.cancel()

    def _is_closed(self) -> bool:
        """Whether no more is to be claimed; it may change during any `await`."""
        return self._closed

    def _tasks(self) -> set[asyncio.Task[None]]:
        return {lane.task for lane in self._lanes.values() if lane.task is not None}

    def _cancel_lanes(self, phase: _Phase) -> None:
        for lane in self._lanes.values():
            if lane.phase is phase and lane.task is not None:
                lane.task.cancel()

    async def _run_lane(self, key: str, lane: _Lane) -> None:
        try:
            while lane.queue and not self._is_closed():
                event = lane.queue.popleft()
                try:
                    await self._see_to(lane, event)
                except BaseException as error:
                    if ends_task(error):
                        raise
                    # Whatever it was, the next wake gets its turn.
                    log.exception("a wake of %s could not be handled", key)
                    self._failed(RunnerError(f"{type(error).__name__}: {error}"))
        finally:
            # In the same step as the look at the queue, so that no wake falls between.
            self._remove(key, lane)

    def _remove(self, key: str, lane: _Lane) -> None:
        if self._lanes.get(key) is lane:
            del self._lanes[key]

    async def _see_to(self, lane: _Lane, event: dict[str, Any]) -> None:
        """Claim for `event`, trying again as long as the server gives no verdict."""
        backoff = Backoff(self._timing)
        # One for all tries: a claim whose answer was lost is answered again.
        nonce = secrets.token_urlsafe(16)
        lane.next = event
        while not self._is_closed():
            async with self._slots.slot():
                lane.phase = _Phase.CLAIMING
                try:
                    granted = await self._claim(event, nonce)
                    if isinstance(granted, Grant):
                        if self._is_closed():
                            # Nobody is going to work on it: better woken again than left to lapse.
                            await self._api.failed(granted, _STOPPING)
                        else:
                            lane.phase, lane.next = _Phase.HOLDING, None
                            await self._hold(granted)
                    return
                except RunnerError as error:
                    self._diagnostics.claim("error")
                    self._failed(error)
                    if not error.transient:
                        return
                    delay = backoff.next(error.retry_after)
                finally:
                    lane.phase = _Phase.WAITING
            await asyncio.sleep(delay)

    async def _claim(self, event: dict[str, Any], nonce: str) -> Grant | NoWork:
        granted = await self._api.claim(event, nonce)
        if isinstance(granted, NoWork):
            self._diagnostics.claim("no_work")
            log.info("wake of %s: no work (%s)", event.get("stream"), granted.reason)
        else:
            self._diagnostics.claim("claimed")
            log.info(
                "%s epoch %d: claimed",
                granted.entity_url,
                granted.epoch,
                extra={"entity": granted.entity_url, "epoch": granted.epoch},
            )
        return granted

    async def _hold(self, grant: Grant) -> None:
        """Work under the claim and keep its lease; returns once both have ended."""
        held = _Held(grant, Lease(self._clock, self.lease_length, grant.sent_at))
        name = f"{grant.entity_url} epoch {grant.epoch}"
        self._held.add(held)
        keeper = asyncio.create_task(self._keep(held), name=f"lease of {name}")
        worker = asyncio.create_task(self._work(held), name=f"work of {name}")
        try:
            ends: set[asyncio.Future[Any]] = {worker, held.lost, keeper}
            # A handler that ignores its timeout must not hold the entity for ever.
            limit = self._work_timeout
            patience = None if limit is None else limit + self._timing.cancel_grace
            await asyncio.wait(ends, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if held.reporting:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            working = not worker.done()
            if working:
                # For when nothing was lost yet: a keeper that has ended keeps no lease.
                held.lose(
                    "its lease is no longer kept"
                    if keeper.done()
                    else "its handler did not end when its time was up"
                )
            if held.lost.done():
                what = "cancelled" if working else "not reported"
                self._tell_lost(f"{name}: {what}", held.lost.result())
            if working:
                self._cancelled += self._is_closed()
                worker.cancel()
                await asyncio.wait({worker}, timeout=self._timing.cancel_grace)
            elif worker.cancelled() and not held.lost.done():
                await self._tell_self_cancelled(held, name)
        finally:
            keeper.cancel()
            self._held.discard(held)
            if not worker.done():
                worker.cancel()
                self._abandon(worker, name)
            held.lost.cancel()
            watchers = [] if held.watcher is None else [held.watcher]
            for watcher in watchers:
                watcher.cancel()
        await asyncio.gather(keeper, *watchers, return_exceptions=True)

    async def _tell_self_cancelled(self, held: _Held, name: str) -> None:
        """Report the failure of a handler that cancelled its own task, and its report with it."""
        failure = "the handler cancelled its own task"
        self._failed(HandlerFailed(f"{name}: {failure}"))
        try:
            await self._report(held, failure)
        except RunnerError as error:
            self._failed(error)

    def _tell_lost(self, what: str, reason: str) -> None:
        if reason == _STOPPING:
            log.warning("%s, since %s", what, reason)
        else:
            self._failed(ClaimLost(f"{what}, since {reason}"))

    def _abandon(self, worker: asyncio.Task[None], name: str) -> None:
        self._gave_up += self._is_closed()
        self._abandoned.add(worker)
        worker.add_done_callback(self._abandoned.discard)
        self._failed(HandlerStuck(f"{name}: the handler goes on after it was cancelled"))

    async def _keep(self, held: _Held) -> None:
        """Renew the lease, at each third of it, until the claim is lost or let go."""
        lease, timing = held.lease, self._timing
        context.set(self._told(held.grant))
        pause = lease.length / 3 - (self._clock.lease() - lease.renewed_at)
        tried, asked, missed = False, False, ""
        while True:
            held.poked.clear()
            try:
                async with asyncio.timeout(max(0.0, pause)):
                    await held.poked.wait()
            except TimeoutError:
                pass
            left = lease.remaining()
            lapsed = left <= 0 and not (held.reporting or self._keeps_working)
            deadline = min(timing.request_timeout, max(1.0, lease.length / 3))
            if lapsed:
                # Unless no timer fired, with the process stopped or asleep: then it may still be
                # ours, and a try from before that tells nothing.
                if asked or (tried and left > -timing.clock_tick):
                    held.lose("its lease ran out with the server out of reach")
                    return
                deadline = timing.claim_settle
            elif left > 0 and not held.reporting:
                deadline = min(deadline, left)
            try:
                sent_at = await self._api.renew(held.grant, deadline)
            except RunnerError as error:
                fenced = isinstance(error, ServerRefused) and error.ends_claim
                if fenced and not held.told:
                    held.lose(f"the server fenced it ({error})")
                    return
                error.repeated = str(error) == missed
                missed = str(error)
                pause = self._missed(held, error)
            else:
                if tried:
                    log.info(
                        "%s epoch %d: its lease is renewed again",
                        held.grant.entity_url,
                        held.grant.epoch,
                    )
                tried, asked, missed = False, False, ""
                lease.renew(self.lease_length, sent_at)
                held.renewed.set()
                pause = lease.length / 3 - (self._clock.lease() - sent_at)
                continue
            tried, asked = True, lapsed

    def _missed(self, held: _Held, error: RunnerError) -> float:
        """Report a renewal that did not get through. Returns seconds until the next try."""
        self._failed(error)
        lease = held.lease
        pause = min(_RETRY_LONGEST, lease.length / 15)
        if error.retry_after is not None:
            pause = max(pause, error.retry_after)
        left = lease.remaining()
        if not held.reporting and not (self._keeps_working and left <= 0):
            # More often as the end comes near, and then exactly at the end.
            pause = min(pause, max(left / 2, lease.length / 150), left)
        return max(0.0, pause)

    def _told(self, grant: Grant) -> dict[str, str | int]:
        """What each record of a claim's log has."""
        runner_id = self._api.registration.runner_id
        return {"entity": grant.entity_url, "epoch": grant.epoch, "runner": runner_id}

    async def _work(self, held: _Held) -> None:
        grant, told = held.grant, self._told(held.grant)
        context.set(told)
        attributes = {f"pullwake.{name}": value for name, value in told.items()}
        attributes["pullwake.attempt"] = grant.attempt
        with tracing.wake(f"wake {grant.entity_type}", grant.traceparent, attributes):
            try:
                await self._handle(held)
            except ClaimLost as error:
                held.lose(str(error))
            except RunnerError as error:
                tracing.failed(str(error))
                self._failed(error)
            finally:
                if held.lost.done() and not held.lost.cancelled():
                    tracing.failed(f"the claim was lost: {held.lost.result()}")

    async def _handle(self, held: _Held) -> None:
        grant = held.grant
        started = self._clock.monotonic()

        async def retry(call: Callable[[], Awaitable[T]]) -> T:
            during = math.inf if self._keeps_working else self._timing.retry_for
            return await self._insist(held, call, during)

        failure: str | None = None
        how: GiveUp | RetryAfter | None = None
        try:
            async with asyncio.timeout(self._work_timeout) as limit:
                # One for all tries: a request that arrives late voids no token.
                nonce = secrets.token_urlsafe(16)
                write_token = await retry(lambda: self._api.mint(grant, nonce))
                held.wake = wake = Wake(self._api, grant, write_token, retry)
                self._accompany(held, wake)
                try:
                    await self._handler(wake)
                except GiveUp as error:
                    how, failure = error, printable(str(error), _MAX_FAILURE)
                    given_up = GiveUp(f"{grant.entity_url} epoch {grant.epoch}: {failure}")
                    given_up.__cause__ = error
                    self._failed(given_up)
                self._stop_watching(held)
                await wake.settle()
        except RetryAfter as error:
            how, failure = error, printable(str(error), _MAX_FAILURE)
        except BaseException as error:
            if isinstance(error, ClaimLost) or ends_task(error):
                raise
            if limit.expired():
                failure = f"not finished within {self._work_timeout:g} s"
            elif isinstance(error, asyncio.CancelledError):
                failure = "the handler was cancelled from within"
            else:
                failure = printable(f"{type(error).__name__}: {_text(error)}", _MAX_FAILURE)
            failed = HandlerFailed(f"{grant.entity_url} epoch {grant.epoch}: {failure}")
            failed.__cause__ = error
            if not held.lost.done() or not isinstance(error, asyncio.CancelledError):
                self._failed(failed)
                if held.lost.done():
                    self._errors.append(failed)  # its cleaning up went wrong
        finally:
            self._stop_watching(held)
        if held.lost.done():
            return  # a cancelled handler reports nothing, however it took it
        await self._report(held, failure, how)
        log.info(
            "%s epoch %d: %s %.1f s",
            grant.entity_url,
            grant.epoch,
            _ended(failure, how),
            self._clock.monotonic() - started,
            extra={"entity": grant.entity_url, "epoch": grant.epoch},
        )

    def _accompany(self, held: _Held, wake: Wake) -> None:
        """Start what runs beside the handler."""
        self._diagnostics.dispatched()
        if self._is_closed():
            wake.wind_down()
        watching = self._watch(held, wake)
        held.watcher = asyncio.create_task(watching, name=f"watch of {wake.entity_url}")

    def _stop_watching(self, held: _Held) -> None:
        if held.watcher is not None:
            held.watcher.cancel()

    async def _watch(self, held: _Held, wake: Wake) -> None:
        """Notice what arrives during the work, until cancelled. It begins once the handler has run
        for a while, or waits for something to arrive.
        """
        timing = self._timing
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timing.watch_after):
                await wake.listening.wait()
        backoff = Backoff(timing, longest=_RETRY_LONGEST)
        while True:
            try:
                await wake.watch()
            except ClaimLost:
                return
            except ServerRefused as error:
                if error.ends_claim:
                    held.lose(f"the server fenced it ({error})")
                    return
                self._failed(error)
                if not error.transient:
                    return  # it has no such reads: what arrives is the next wake's
                await asyncio.sleep(backoff.next(error.retry_after))
            except RunnerError as error:
                self._failed(error)
                await asyncio.sleep(backoff.next(error.retry_after))

    async def _report(
        self, held: _Held, failure: str | None, how: GiveUp | RetryAfter | None = None
    ) -> None:
        """Tell the server how the work ended, until it has heard."""
        grant, api = held.grant, self._api
        acked = grant.tail if held.wake is None else held.wake.acked
        held.reporting = True
        if held.lease.lapsed:
            # Out of touch for that long, the claim may be another's: ask before saying anything.
            await held.confirm()
        held.told = True
        if failure is None:
            try:
                with tracing.step("done"):
                    await self._insist(
                        held, lambda: api.done(grant, acked), self._timing.report_for
                    )
                return
            except ServerRefused as error:
                if error.transient:
                    raise
                failure = printable(f"done was refused: {error}", _MAX_FAILURE)
                self._failed(error)
        tracing.failed(failure)
        message, later = failure, how.seconds if isinstance(how, RetryAfter) else None
        if isinstance(how, GiveUp):
            call = partial(api.give_up, grant, message, acked)
        else:
            call = partial(api.failed, grant, message, later)
        with tracing.step("failed"):
            await self._insist(held, call, self._timing.report_for)

    async def _insist(self, held: _Held, call: Callable[[], Awaitable[T]], during: float) -> T:
        """`call` until it is answered. Raises ClaimLost when the answer says so."""

        async def once() -> T:
            if held.lost.done():
                # For a handler that goes on after its time, or lent its wake to somebody who does.
                raise ClaimLost("the claim is not held any more")
            try:
                return await call()
            except ServerRefused as error:
                if error.ends_claim:
                    reason = f"the server fenced it ({error})"
                    if not held.told:
                        held.lose(reason)  # even if the handler takes no notice of the exception
                    raise ClaimLost(reason) from error
                raise

        return await insist(
            once,
            timing=self._timing,
            clock=self._clock,
            during=during,
            longest=_RETRY_LONGEST,
            failed=self._report_transient,
        )

    def _report_transient(self, error: RunnerError) -> None:
        if error.transient:
            self._failed(error)


def _text(error: BaseException) -> str:
    """What it says, if that can be made: a handler's exceptions are its own."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  whatever the handler's own code raises
        return "<its text cannot be made>"


def _ended(failure: str | None, how: GiveUp | RetryAfter | None) -> str:
    """How work ended, for the log."""
    if isinstance(how, RetryAfter):
        return f"to be tried again in {how.seconds:g} s ({failure}), after"
    if isinstance(how, GiveUp):
        return "given up after"
    return "done in" if failure is None else "failed after"


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    names = ("subscription_id", "generation")
    return all(one.get(name) == other.get(name) for name in names)
