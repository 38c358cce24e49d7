"""Handlers that are plain functions: each runs in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, TypeVar, overload

from .inbox import Item, Message, Signal, WakeEvent
from .run import Run
from .wake import Condition, Mode, Wake

T = TypeVar("T")
P = TypeVar("P")


class SyncWake:
    """A `Wake` for a thread: its calls return when they are done. They may come from any thread.

    A thread cannot be cancelled: look at `cancelled`, or let the next call raise ClaimLost.
    """

    def __init__(self, wake: Wake, loop: asyncio.AbstractEventLoop) -> None:
        self._wake = wake
        self._loop = loop
        self.runner_id = wake.runner_id
        self.write_token = wake.write_token
        self.entity = wake.entity
        self.entity_url = wake.entity_url
        self.entity_type = wake.entity_type
        self.epoch = wake.epoch
        self.attempt = wake.attempt
        self.consumer_id = wake.consumer_id
        self.stream_path = wake.stream_path
        self.stream_url = wake.stream_url
        self.trigger_event = wake.trigger_event
        self.principal = wake.principal
        self.traceparent = wake.traceparent

    def __repr__(self) -> str:
        return repr(self._wake)

    @property
    def cancelled(self) -> bool:
        """Whether the work is to end: the claim was lost, or the runner is stopping."""
        return self._wake.cancelled

    @property
    def interrupted(self) -> bool:
        """Whether somebody asked this work to end."""
        return self._wake.interrupted

    @property
    def removed_to(self) -> str | None:
        """As `Wake.removed_to`."""
        return self._wake.removed_to

    def _do(self, call: Awaitable[T]) -> T:
        async def run() -> T:
            return await call

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    @overload
    def messages(self) -> list[Message[Any]]: ...
    @overload
    def messages(self, model: type[P]) -> list[Message[P]]: ...
    def messages(self, model: type[Any] | None = None) -> list[Message[Any]]:
        """As `Wake.messages`."""
        wake = self._wake
        return self._do(wake.messages() if model is None else wake.messages(model))

    def signals(self) -> list[Signal]:
        """As `Wake.signals`."""
        return self._do(self._wake.signals())

    def events(self) -> list[WakeEvent]:
        """As `Wake.events`."""
        return self._do(self._wake.events())

    def live(self, *, idle: float | None = None) -> Iterator[Message[Any] | WakeEvent]:
        """As `Wake.live`."""
        arriving = self._wake.live(idle=idle)
        while (item := self._do(anext(arriving, None))) is not None:
            yield item

    def history(self, after: str = "-1") -> Iterator[dict[str, Any]]:
        """As `Wake.history`."""
        events = self._wake.history(after)
        while (event := self._do(anext(events, None))) is not None:
            yield event

    def ack(self, item: Item) -> None:
        """As `Wake.ack`."""
        self._do(self._wake.ack(item))

    def append(self, *events: Mapping[str, Any]) -> None:
        """As `Wake.append`."""
        self._do(self._wake.append(*events))

    def run(self, run_id: str | None = None) -> SyncRun:
        """As `Wake.run`, for `with`."""
        return SyncRun(self._wake.run(run_id), self._do)

    def send(
        self,
        to: str,
        payload: Any,
        *,
        type: str | None = None,  # noqa: A002  as it is on the wire
        key: str | None = None,
        mode: Mode | None = None,
        after: float | timedelta | None = None,
    ) -> None:
        """As `Wake.send`."""
        self._do(self._wake.send(to, payload, type=type, key=key, mode=mode, after=after))

    def sleep_until(
        self, when: datetime | timedelta, payload: Any = None, *, key: str | None = None
    ) -> None:
        """As `Wake.sleep_until`."""
        self._do(self._wake.sleep_until(when, payload, key=key))

    def spawn(
        self,
        type: str,  # noqa: A002  as it is on the wire
        id: str,  # noqa: A002  as it is on the wire
        args: Mapping[str, Any] | None = None,
        *,
        message: Any = None,
        message_type: str | None = None,
        tags: Mapping[str, str] | None = None,
        wake: Condition | None = None,
        runner: str | None = None,
        sandbox: Mapping[str, Any] | None = None,
    ) -> str:
        """As `Wake.spawn`."""
        return self._do(
            self._wake.spawn(
                type,
                id,
                args,
                message=message,
                message_type=message_type,
                tags=tags,
                wake=wake,
                runner=runner,
                sandbox=sandbox,
            )
        )

    def set_tag(self, key: str, value: str | None, *, of: str | None = None) -> None:
        """As `Wake.set_tag`."""
        self._do(self._wake.set_tag(key, value, of=of))


class SyncRun:
    """A `Run` for a thread."""

    def __init__(self, run: Run, do: Callable[[Awaitable[None]], None]) -> None:
        self._run = run
        self._do = do
        self.id = run.id

    def __enter__(self) -> SyncRun:
        self._do(_nothing(self._run.__aenter__()))
        return self

    def write(self, text: str) -> None:
        """As `Run.write`."""
        self._do(self._run.write(text))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._do(self._run.__aexit__(kind, error, traceback))


async def _nothing(call: Coroutine[Any, Any, object]) -> None:
    await call


async def in_thread(function: Callable[[SyncWake], object], wake: Wake) -> None:
    """Run `function` in a thread of its own, and wait until it has ended, cancelled or not."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    context = contextvars.copy_context()
    sync_wake = SyncWake(wake, loop)

    def finish(error: BaseException | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            result = context.run(function, sync_wake)
            if inspect.isawaitable(result):
                error = TypeError("a handler that is no `async def` returned an awaitable")
                if inspect.iscoroutine(result):
                    result.close()
        except StopIteration as raised:  # which no future takes
            error = RuntimeError(f"the handler raised {raised!r}")
        except BaseException as raised:  # noqa: BLE001  raised again where it is waited for
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            loop.call_soon_threadsafe(finish, error)

    # Not a pool's: a claim that was granted must not wait for a thread. A daemon, since one that
    # heeds nothing must not keep the process from ending.
    threading.Thread(target=run, name=f"work of {wake.entity_url}", daemon=True).start()
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        wake.cancel()
        await asyncio.wait({ended})
        if not ended.cancelled():
            ended.exception()  # seen, though nothing comes of it
        raise
