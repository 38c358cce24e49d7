"""The runner: what happens when the machine says so, and who owns it.

`PullWakeRunner` is what one keeps; every start makes a new `_Run`, which owns all that lives from
there to the stop: connections, heartbeats, claims, counters. Nothing of one run reaches the next.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, get_args

from . import health
from .api import START, Api, Registration, RunnerRecord
from .backoff import Backoff
from .claims import Claims, Drained, OutOfTouch
from .clock import CLOCK, Clock, watch
from .diagnostics import Diagnostics
from .errors import (
    HandlerFailed,
    RegistrationRefused,
    RunnerError,
    ServerRefused,
    ServerUnreachable,
)
from .handlers import AnyHandler, H, Handlers
from .heartbeats import Heartbeats
from .interrupts import on_signals
from .lifecycle import Lifecycle, Scope
from .machine import Event, State
from .stream import Batch, Live, WakeStream
from .tasks import ends_task
from .timing import Timing
from .transport import Headers, HeaderSource, Transport, check_url

log = logging.getLogger("pullwake.runner")

REFUSALS = frozenset({400, 401, 403})
"""Answers to a registration that say it will not do as it is."""

DEFAULT_CLAIMS = 10
"""How many wakes a runner works on at once, where neither it nor the server says otherwise."""

OnError = Callable[[RunnerError], object]


@dataclass(slots=True)
class _Settings:
    """What a runner was made with; the same for each of its runs."""

    base_url: str
    registration: Registration
    handler: Handlers
    headers: HeaderSource | None
    live: Live
    on_error: OnError | None
    work_timeout: float | None
    local_limit: int | None
    out_of_touch: OutOfTouch
    retry_refused: bool
    health: tuple[str | None, int] | None
    timing: Timing
    clock: Clock


class _Run:
    """One run, from a start to its stop: the effects of the machine."""

    def __init__(self, settings: _Settings) -> None:
        timing, clock = settings.timing, settings.clock
        self._settings = settings
        self._timing = timing
        self._clock = clock
        self._transport = Transport(settings.base_url, settings.headers, clock)
        self._api = Api(self._transport, settings.registration, timing)
        self._heartbeats = Heartbeats(
            self._heartbeat, self._heartbeat_failed, self._heartbeats_failing, timing, clock
        )
        self.diagnostics = Diagnostics(clock, self._heartbeats.changed)
        self._claims = Claims(
            self._api,
            settings.handler,
            self.diagnostics,
            self._failed,
            limit=self._limit(None),
            work_timeout=settings.work_timeout,
            out_of_touch=settings.out_of_touch,
            timing=timing,
            clock=clock,
        )
        self._backoff = Backoff(timing)
        self._stream: WakeStream | None = None
        self._committed: str | None = None
        self._admin_status = "enabled"
        self._record: RunnerRecord | None = None
        self._other_heard_at: float | None = None
        """When another process of this id was last heard of."""
        self._refused: RegistrationRefused | None = None
        self._health: asyncio.Server | None = None
        self.loop = asyncio.get_running_loop()
        self.connections = 0
        self._streaming_since = 0.0
        self._streaming_from = START
        self._stop_at: float | None = None
        self._hurry: asyncio.Event | None = None
        self.connected = asyncio.Event()
        self.stopped: asyncio.Future[Drained | Exception] = self.loop.create_future()
        self._background: list[asyncio.Task[None]] = []
        self._unwatch: Callable[[], None] = lambda: None
        self._reports: set[asyncio.Task[None]] = set()
        self.lifecycle = Lifecycle(self)

    # What the runner asks of it

    async def open(self) -> None:
        """Open what is to be there before anything starts. Raises OSError."""
        if self._settings.health is not None:
            self._health = await health.serve(self._look, *self._settings.health)

    def _look(self) -> dict[str, Any]:
        return {**self.diagnostics.as_dict(), "claims_active": self._claims.active}

    def start(self) -> None:
        self._background = [self._supervise("heartbeats", self._heartbeats.run)]
        self._unwatch = watch(self._clock, self._timing, self._jumped, self._held_up)
        self.lifecycle.post(Event.START)

    def stop(self, grace: float) -> None:
        """Begin to stop, or stop sooner than was said before."""
        at = self._clock.monotonic() + max(0.0, grace)
        self._stop_at = at if self._stop_at is None else min(self._stop_at, at)
        if self._hurry is not None:
            self._hurry.set()
        self.lifecycle.post(Event.STOP)

    # Effects

    def entered(self, before: State, state: State, payload: object) -> None:
        self.diagnostics.state(before, state)
        if before is State.STREAMING:
            self.connected.clear()
            assert self._stream is not None  # noqa: S101  nothing streams without one
            lasted = self._clock.monotonic() - self._streaming_since
            brought_news = self._stream.offset != self._streaming_from
            if brought_news or lasted >= self._timing.stable_after:
                self._backoff.reset()
        match state:
            case State.STREAMING:
                assert self._stream is not None  # noqa: S101  nothing streams without one
                self._streaming_since = self._clock.monotonic()
                self._streaming_from = self._stream.offset
                self.connections += 1
                if self.connections > 1:
                    self.diagnostics.reconnected()
                self.connected.set()
                self._say_connected()
            case State.RECONNECTING:
                error = _as_runner_error(payload)
                self._failed(error)
                # At first it is a mistake to be told of; later, the server may be about to change
                # its mind.
                if isinstance(error, RegistrationRefused) and not self.connections:
                    self._give_up(error)
            case State.STOPPING:
                log.info("stopping: no more claims, and running work may finish")
            case State.STOPPED:
                if not isinstance(payload, Drained | Exception):
                    payload = _as_runner_error(payload)
                if isinstance(payload, Exception):
                    log.error("stopping went wrong: %s", payload, exc_info=payload)
                self.stopped.set_result(self._refused or payload)
                log.info("stopped")
            case State.CONNECTING:
                log.debug("connecting to %s", self._transport.base_url)

    def _say_connected(self) -> None:
        runner_id = self._settings.registration.runner_id
        owner = self._record.owner if self._record is not None else None
        whose = f" of {owner}" if owner else ""
        log.info("connected to %s as runner %s%s", self._transport.base_url, runner_id, whose)

    def _give_up(self, error: RegistrationRefused) -> None:
        if not self._settings.retry_refused:
            self._refused = error
            self.stop(0.0)

    def work(self, scope: Scope, payload: object) -> Coroutine[Any, Any, object]:
        match scope.state:
            case State.CONNECTING:
                return self._connect()
            case State.STREAMING:
                assert isinstance(payload, Batch)  # noqa: S101  what _connect returned
                return self._read(scope, payload)
            case State.RECONNECTING:
                return self._wait(payload)
            case State.STOPPING:
                return self._drain()
            case State.STOPPED:
                raise AssertionError("stopped has no work")

    def claim(self, payload: object) -> None:
        assert isinstance(payload, dict)  # noqa: S101  what _read posts
        self.diagnostics.received()
        self._claims.submit(payload)

    def commit(self, payload: object) -> None:
        assert isinstance(payload, str)  # noqa: S101  what _read posts
        if payload != self._committed:
            self._committed = payload
            self._heartbeats.changed()

    def warn(self, state: State, event: Event) -> None:
        log.warning("%s has no effect: the runner is %s", event.value, state.value)

    # The states' work

    async def _connect(self) -> Batch:
        try:
            async with asyncio.timeout(self._timing.connect_timeout):
                # After trouble, not over connections that may be dead without having said so.
                self._transport.recycle()
                try:
                    record = await self._api.register(self._record)
                except ServerRefused as error:
                    if error.status not in REFUSALS:
                        raise
                    raise RegistrationRefused.of(error) from None  # which it says all of
                self._adopt(record)
                if self._stream is None:
                    if record.wake_stream_offset is None:
                        # Some servers tell the committed offset only when asked for the runner.
                        record = await self._api.get()
                    self._committed = record.wake_stream_offset
                    self._stream = WakeStream(
                        self._transport,
                        self._settings.live,
                        record.wake_stream_offset or START,
                        self._timing,
                        self._clock,
                    )
                self._stream.path = record.wake_stream
                self._heartbeats.arm()
                return await self._stream.catch_up()
        except TimeoutError as error:
            limit = self._timing.connect_timeout
            raise ServerUnreachable(f"not connected within {limit:g} s") from error

    async def _read(self, scope: Scope, first: Batch) -> None:
        assert self._stream is not None  # noqa: S101  _connect made it
        async for batch in self._stream.follow(first):
            for wake in batch.wakes:
                if wake.get("type") == "wake":
                    scope.post(Event.WAKE, wake)
            if batch.offset is not None:
                scope.post(Event.OFFSET, batch.offset)

    async def _wait(self, payload: object) -> None:
        retry_after = payload.retry_after if isinstance(payload, RunnerError) else None
        delay = self._backoff.next(retry_after)
        log.info("connecting again in %.1f s", delay)
        await asyncio.sleep(delay)

    async def _drain(self) -> Drained:
        try:
            self._hurry = asyncio.Event()  # and not before: an idle runner should weigh little
            return await self._claims.drain(lambda: self._stop_at or 0.0, self._hurry)
        finally:
            self._claims.cancel()  # if draining went wrong, there is still something to
            await self._finish()

    async def _finish(self) -> None:
        """End all that lives as long as the run, in bounded time."""
        self._unwatch()
        for task in self._background:
            task.cancel()
        if self._health is not None:
            self._health.close()
        await _ended({*self._background, *self.lifecycle.left}, self._timing.farewell_timeout)
        if self._stream is not None:
            await self._say_goodbye()
        for task in self._reports:
            task.cancel()
        closing = asyncio.create_task(self._transport.aclose(), name="runner close")
        await _ended({closing, *self._reports}, self._timing.farewell_timeout)

    async def _say_goodbye(self) -> None:
        """The last heartbeat: stopped, and gone in a second rather than in three intervals.

        Not where another process has taken over: it would look dead.
        """
        self.diagnostics.goodbye()
        started_at = self.diagnostics.as_dict()["started_at"]
        try:
            if self.is_shared():
                return  # the other's heartbeats tell that the runner lives
            known = await self._api.get(self._timing.farewell_timeout)
            if known.started_at not in (None, started_at):
                return
            await self._api.heartbeat(
                lease=1.0,
                offset=self._committed,
                diagnostics=self.diagnostics.as_dict(),
                deadline=self._timing.farewell_timeout,
            )
        except RunnerError as error:
            log.debug("the last heartbeat did not get through: %s", error)

    # Heartbeats

    def is_shared(self) -> bool:
        """Whether another process of this id has told that it lives, as in a rolling deploy.

        It counts for as long as its heartbeat does. We may send several between two of its own.
        """
        heard_at = self._other_heard_at
        return heard_at is not None and self._clock.monotonic() - heard_at < self._liveness_lease

    @property
    def _liveness_lease(self) -> float:
        return 3 * self._timing.heartbeat_interval

    async def _heartbeat(self) -> None:
        record = await self._api.heartbeat(
            lease=self._liveness_lease,
            offset=self._committed,
            diagnostics=self.diagnostics.as_dict(),
            deadline=self._timing.heartbeat_timeout,
        )
        self.diagnostics.heartbeat(ok=True)
        if record.other_process:
            self._other_heard_at = self._clock.monotonic()
        self._adopt(record)

    def _heartbeat_failed(self, error: RunnerError) -> None:
        self.diagnostics.heartbeat(ok=False)
        self._failed(error, "heartbeat failed")

    def _heartbeats_failing(self, last: RunnerError) -> None:
        reason = ServerUnreachable(f"two heartbeats in a row have failed, the last with: {last}")
        reason.retry_after = last.retry_after
        self.lifecycle.post(Event.STREAM_RESET, reason)

    def _adopt(self, record: RunnerRecord) -> None:
        """Go by what the server now says of this runner."""
        if record.admin_status != self._admin_status:
            if record.admin_status == "disabled":
                log.warning("the runner is disabled on the server: it is given no work")
            elif self._admin_status == "disabled":
                log.info("the runner is enabled again")
            self._admin_status = record.admin_status
        self._record = record
        self._claims.lease_length = record.claim_lease
        self._claims.resize(self._limit(record.max_concurrent_claims))

    def _limit(self, held_by_server: int | None) -> int | None:
        if held_by_server is not None:  # what was asked for, unless an operator changed it
            return held_by_server
        own = self._settings.registration.max_concurrent_claims
        return self._settings.local_limit if own is None else own

    # The clock

    def _jumped(self, seconds: float) -> None:
        log.warning("the clock has jumped by %.0f s: connecting anew", seconds)
        self._backoff.reset()  # what failed before it slept says nothing of now
        self.lifecycle.post(Event.CLOCK_JUMP)
        self._make_up()

    def _held_up(self, seconds: float) -> None:
        log.warning(
            "nothing ran for %.0f s: the process was stopped, or a handler blocks its event loop",
            seconds,
        )
        self._make_up()

    def _make_up(self) -> None:
        """Do at once what may have come due meanwhile."""
        self._claims.poke()
        self._heartbeats.now()

    # Reporting

    def _failed(self, error: RunnerError, what: str = "") -> None:
        message = f"{what}: {error}" if what else str(error)
        self.diagnostics.error(message)
        cause = error.__cause__ if isinstance(error, HandlerFailed) else None
        # A handler's own mistake needs its traceback; what it reported on purpose does not.
        level = logging.DEBUG if error.repeated else logging.WARNING
        log.log(level, "%s", message, exc_info=None if isinstance(cause, RunnerError) else cause)
        on_error = self._settings.on_error
        if on_error is None:
            return
        try:
            result = on_error(error)
            if inspect.isawaitable(result):
                task = asyncio.create_task(_await(result), name="runner on_error")
                self._reports.add(task)
                task.add_done_callback(self._reports.discard)
        except BaseException as raised:
            if ends_task(raised):
                raise
            log.exception("on_error raised")

    def _supervise(
        self, name: str, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> asyncio.Task[None]:
        """Run `work` until cancelled, again when it fails: it must not be missing unnoticed."""

        async def forever() -> None:
            while True:
                try:
                    await work()
                except BaseException as error:
                    if ends_task(error):
                        raise
                    log.exception("the %s failed and starts again", name)
                    self._failed(RunnerError(f"{name}: {type(error).__name__}: {error}"))
                await asyncio.sleep(self._timing.backoff_min)

        return asyncio.create_task(forever(), name=f"runner {name}")


class PullWakeRunner:
    """A runner: registers itself, waits for wakes, and has `handler` handle each.

    `handler` is an async function that gets a `Wake`, or a plain one that gets a `SyncWake` and
    runs in a thread; `on` gives those for single types of entities. When it returns, what the wake
    delivered is acknowledged; when it raises, the wake is reported failed, and comes again later;
    when the claim is lost, it is cancelled.

    - `token`: an access token. `headers`: a mapping, or a function (async or not) that returns
      one, called for each request; for tokens that rotate.
    - `max_concurrent_claims`, `claim_lease` (seconds): kept by the server once given. Where it
      holds no limit, `default_concurrent_claims` is one.
    - `live`: how the wake stream is waited on; `auto` finds out.
    - `on_error`: called with each RunnerError; what it raises is logged, and changes nothing.
    - `work_timeout`: seconds after which a handler is cancelled and its wake reported failed.
    - `out_of_touch`: what becomes of work whose lease runs out while the server cannot be reached.
      `cancel`: it is cancelled, so that no two handlers work at once. `work`: it goes on, since
      the claim is still its own if nobody took it over, until the server says otherwise.
    - `health_port`: serve /livez, /readyz and /metrics there, on `health_host` or all interfaces.
    - `retry_refused`: go on trying where the server refuses the runner from the start.

    Raises ValueError for what is not a URL, or no such mode. Safe to start and stop any number of
    times, in one event loop after another; in any thread, `request_stop` from any other too.
    """

    def __init__(
        self,
        base_url: str,
        runner_id: str,
        handler: AnyHandler | None = None,
        *,
        token: str | None = None,
        headers: HeaderSource | None = None,
        label: str | None = None,
        kind: str | None = None,
        owner_principal: str | None = None,
        sandbox_profiles: Sequence[Mapping[str, Any]] | None = None,
        max_concurrent_claims: int | None = None,
        default_concurrent_claims: int | None = DEFAULT_CLAIMS,
        claim_lease: float | None = None,
        live: Live = "auto",
        on_error: OnError | None = None,
        work_timeout: float | None = None,
        out_of_touch: OutOfTouch = "cancel",
        retry_refused: bool = False,
        health_port: int | None = None,
        health_host: str | None = None,
        timing: Timing | None = None,
        clock: Clock | None = None,
    ) -> None:
        if token is not None and headers is not None and callable(headers):
            raise ValueError("give a token, or a function that returns the headers, not both")
        check_url(base_url)
        for name, value, known in (
            ("live", live, get_args(Live)),
            ("out_of_touch", out_of_touch, get_args(OutOfTouch)),
        ):
            if value not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}: {value!r}")
        source: HeaderSource | None = headers
        if token is not None:
            given: Headers = headers if isinstance(headers, Mapping) else {}
            source = {**given, "Authorization": f"Bearer {token}"}
        self._settings = _Settings(
            base_url,
            Registration(
                runner_id=runner_id,
                label=label or runner_id,
                kind=kind,
                owner_principal=owner_principal,
                sandbox_profiles=sandbox_profiles,
                max_concurrent_claims=max_concurrent_claims,
                claim_lease=claim_lease,
            ),
            Handlers(handler),
            source,
            live,
            on_error,
            work_timeout,
            default_concurrent_claims,
            out_of_touch,
            retry_refused,
            None if health_port is None else (health_host, health_port),
            timing or Timing(),
            clock or CLOCK,
        )
        self._run: _Run | None = None
        self._idle = Diagnostics(self._settings.clock)

    def on(self, entity_type: str) -> Callable[[H], H]:
        """A decorator: the function handles entities of this type.

        Raises ValueError for a type that has a handler already, or that no entity can have; and
        TypeError for `@runner.on` without a type.
        """
        if not isinstance(entity_type, str):
            raise TypeError('a handler is for a type of entities: @runner.on("chat")')
        if not entity_type or "/" in entity_type:
            raise ValueError(f"no type of entities, such as chat: {entity_type!r}")

        def add(handler: H) -> H:
            self._settings.handler.add(entity_type, handler)
            return handler

        return add

    @property
    def state(self) -> State:
        if self._run is None or self._run.loop.is_closed():
            return State.STOPPED
        return self._run.lifecycle.state

    @property
    def connections(self) -> int:
        """How many times the stream has been connected since the last start."""
        return 0 if self._run is None else self._run.connections

    def get_health(self) -> dict[str, Any]:
        """The sixteen diagnostic fields, as they are now, under their names on the wire."""
        return (self._idle if self._run is None else self._run.diagnostics).as_dict()

    async def start(self) -> None:
        """Start. Returns at once; `connected()` waits for the server. Twice is once.

        While it is still stopping, waits until it has stopped. Raises OSError for a `health_port`
        that cannot be had.
        """
        if self._run is not None and self._run.loop.is_closed():
            if not self._run.stopped.done():
                log.warning("the event loop that the runner ran in ended without stopping it")
            self._run = None
        self._require_own_loop()
        while self._run is not None and self.state is State.STOPPING:
            await asyncio.wait({self._run.stopped})
        if not self._settings.handler:
            raise RunnerError("the runner has no handler: give it one, or some with `on`")
        if self._run is not None and self.state is not State.STOPPED:
            self._run.lifecycle.post(Event.START)  # the table has it warn
            return
        run = _Run(self._settings)
        await run.open()
        self._run = run
        run.start()

    def _require_own_loop(self) -> None:
        if self._run is None or self._run.loop is asyncio.get_running_loop():
            return
        if self.state is not State.STOPPED:
            raise RunnerError("the runner runs in another event loop; `request_stop` ends it there")

    async def connected(self) -> None:
        """Return once the stream is being read. Raises RunnerError if it is stopped before, and
        RegistrationRefused if that is why.
        """
        if self._run is None:
            raise RunnerError("the runner was not started")
        self._require_own_loop()
        connected = asyncio.create_task(self._run.connected.wait())
        ends: set[asyncio.Future[Any]] = {connected, self._run.stopped}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            connected.cancel()
        if self._run.stopped.done() and isinstance(
            refused := self._run.stopped.result(), RegistrationRefused
        ):
            raise refused
        if not self._run.connected.is_set():
            raise RunnerError("the runner was stopped before it was connected")

    def request_stop(self, grace: float | None = None) -> None:
        """Begin to stop, without waiting for it; a second, shorter `grace` hurries it.

        From any thread.
        """
        run, grace = self._run, self._settings.timing.stop_grace if grace is None else grace
        if run is None or run.loop.is_closed():
            return
        if _running_loop() is run.loop:
            run.stop(grace)
        else:
            run.loop.call_soon_threadsafe(run.stop, grace)

    async def stop(self, grace: float | None = None) -> Drained:
        """Claim no more, give running work `grace` seconds, cancel what is left, and end.

        Calls share one shutdown. What goes wrong in it is raised, once the runner is stopped.
        """
        self.request_stop(grace)
        return await self.stopped()

    async def stopped(self) -> Drained:
        """Return once the runner is stopped. Raises what went wrong in stopping it."""
        if self._run is None or self._run.loop.is_closed():
            return Drained()
        self._require_own_loop()
        outcome = await asyncio.shield(self._run.stopped)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def run(self, *, signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT)) -> Drained:
        """Start, and return once stopped. The first of `signals` drains, a second one cancels.

        Cancelling it cancels the work. Raises RegistrationRefused for a runner that the server
        does not take, and what goes wrong in stopping.
        """
        received = 0

        def on_signal() -> None:
            nonlocal received
            received += 1
            self.request_stop(None if received == 1 else 0.0)

        await self.start()
        with on_signals(signals, on_signal):
            try:
                return await self.stopped()
            except asyncio.CancelledError:
                await self.stop(grace=0.0)
                raise

    async def __aenter__(self) -> PullWakeRunner:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop(grace=None if error is None else 0.0)


def _as_runner_error(payload: object) -> RunnerError:
    if isinstance(payload, RunnerError):
        return payload
    if isinstance(payload, BaseException):
        error = RunnerError(f"{type(payload).__name__}: {payload}")
        error.__cause__ = payload
        return error
    return ServerUnreachable("the wake stream has ended")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _await(result: Awaitable[object]) -> None:
    try:
        await result
    except BaseException as raised:
        if ends_task(raised):
            raise
        log.exception("on_error raised")


async def _ended(tasks: set[asyncio.Task[None]], seconds: float) -> None:
    """Wait until `tasks` have ended, but not for ever; one that has not is named in the log."""
    if not tasks:
        return
    _, pending = await asyncio.wait(tasks, timeout=seconds)
    for task in pending:
        task.cancel()
        log.error("%s did not end within %g s of being cancelled", task.get_name(), seconds)
