"""A user's program, as a strict type checker reads it: not run."""

from __future__ import annotations

from typing import Any

from pullwake import PullWakeRunner, Wake


async def handle(wake: Wake) -> None:
    for message in await wake.messages():
        payload: Any = message.payload
        await wake.append({"type": "reply", "key": f"re-{message.key}", "value": payload})


runner = PullWakeRunner("http://127.0.0.1:8000", "my-runner", handle)
