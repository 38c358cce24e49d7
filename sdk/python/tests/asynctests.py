"""Async tests run in an event loop of their own, and leave it clean.

A conftest.py that imports `pytest_pyfunc_call` has them do so.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

PATIENCE = 120.0
"""Seconds a whole test may take; only a bug takes it."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(_tidy(pyfuncitem.obj, {name: pyfuncitem.funcargs[name] for name in names}))
    return True


async def _tidy(test: Callable[..., Awaitable[Any]], arguments: dict[str, Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        await test(**arguments)
    # A step or two, for what ended just now; whatever is there after that was left behind.
    for _ in range(20):
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if not left:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"tasks left behind: {left}")
