"""What ends a task, told from what only went wrong in it."""

from __future__ import annotations

import asyncio


def ends_task(error: BaseException) -> bool:
    """Whether the running task has to let `error` through: it was cancelled, or interrupted.

    Anything else is a failure, however odd: a SystemExit of a handler, or a CancelledError that
    nobody sent to this task but that came out of something it awaited. Taken for the end of the
    task, it would leave a runner that looks alive with a part of it missing.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return isinstance(error, KeyboardInterrupt | GeneratorExit)
