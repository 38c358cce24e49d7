"""A session that streams its answers, and stops in the middle of one when it is interrupted.

    python session.py
    pullwake spawn session/1 --runner session --message "Tell me everything"
    pullwake observe session/1
    pullwake signal session/1 SIGINT

Messages that come during an answer are answered in the same wake.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from pullwake import Message, PullWakeRunner, Wake, logs

URL = os.environ.get("PULLWAKE_URL", "http://127.0.0.1:8000")
IDLE = float(os.environ.get("SESSION_IDLE", "20"))
"""Seconds without a message after which the session sleeps until the next one."""
runner = PullWakeRunner(URL, "session", token=os.environ.get("PULLWAKE_TOKEN"))


async def model(prompt: str) -> AsyncIterator[str]:
    """What a language model would do: a word at a time, for half a minute."""
    for word in [*f'You asked "{prompt}". This is all:'.split(), *map(str, range(1, 101))]:
        await asyncio.sleep(0.25)
        yield word + " "


async def answer(wake: Wake, message: Message[Any]) -> None:
    async with wake.run() as run:
        async for word in model(str(message.payload)):
            if wake.interrupted:
                await run.write("(interrupted)")
                return
            await run.write(word)


@runner.on("session")
async def session(wake: Wake) -> None:
    for message in await wake.messages():
        await answer(wake, message)
    async for item in wake.live(idle=IDLE):
        if isinstance(item, Message):
            await answer(wake, item)


if __name__ == "__main__":
    logs.configure()
    asyncio.run(runner.run())
