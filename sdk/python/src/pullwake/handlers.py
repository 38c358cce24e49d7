"""Which handler handles which entity, and how each kind of function is called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

from .errors import RunnerError
from .threads import SyncWake, in_thread
from .wake import Wake

Handler = Callable[[Wake], Awaitable[object]]
AnyHandler = Handler | Callable[[SyncWake], object]
H = TypeVar("H", bound=AnyHandler)


class NoHandler(RunnerError):
    """The runner was woken for an entity of a type that it has no handler for."""


class Handlers:
    """A handler for each type of entity, and one for the others."""

    def __init__(self, default: AnyHandler | None) -> None:
        self._default = None if default is None else _as_async(default)
        self._by_type: dict[str, Handler] = {}

    def __bool__(self) -> bool:
        return bool(self._default or self._by_type)

    def add(self, entity_type: str, handler: AnyHandler) -> None:
        """Raises ValueError for a type that has one."""
        if entity_type in self._by_type:
            raise ValueError(f"there is a handler for {entity_type!r} already")
        self._by_type[entity_type] = _as_async(handler)

    async def __call__(self, wake: Wake) -> None:
        """Raises NoHandler, and whatever the handler does."""
        handler = self._by_type.get(wake.entity_type, self._default)
        if handler is None:
            raise NoHandler(f"this runner has no handler for entities of type {wake.entity_type}")
        await handler(wake)


def _as_async(handler: AnyHandler) -> Handler:
    if _is_async(handler):
        return handler  # type: ignore[return-value]
    return functools.partial(in_thread, handler)  # type: ignore[arg-type]


def _is_async(handler: object) -> bool:
    while isinstance(handler, functools.partial):
        handler = handler.func
    call = getattr(handler, "__call__", None)  # noqa: B004  an object's, where it is no function
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)
