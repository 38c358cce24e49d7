"""A run of an agent: the events that watchers and user interfaces follow."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from types import TracebackType
from typing import Any, Protocol


class Append(Protocol):
    """Appends events to the entity's stream."""

    def __call__(self, *events: Mapping[str, Any]) -> Awaitable[None]: ...


class Run:
    """One run; `async with wake.run() as run`, and in it `await run.write("some text")`."""

    def __init__(self, append: Append, run_id: str) -> None:
        self._append = append
        self._deltas = 0
        self.id = run_id

    async def __aenter__(self) -> Run:
        await self._append(_event("run", self.id, "insert", {"status": "started"}))
        return self

    async def write(self, text: str) -> None:
        """Append some more of what the run answers."""
        self._deltas += 1
        value = {"run_id": self.id, "delta": text}
        await self._append(_event("text_delta", f"{self.id}:{self._deltas}", "insert", value))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self._end("completed")
        elif isinstance(error, Exception):
            told = {"run_id": self.id, "message": f"{type(error).__name__}: {error}"}
            failure = _event("error", f"{self.id}:error", "insert", told)
            await self._end("failed", failure)

    async def _end(self, status: str, *before: Mapping[str, Any]) -> None:
        await self._append(*before, _event("run", self.id, "update", {"status": status}))


def _event(kind: str, key: str, operation: str, value: Mapping[str, Any]) -> dict[str, Any]:
    headers = {"operation": operation}
    return {"type": kind, "key": key, "value": dict(value), "headers": headers}
