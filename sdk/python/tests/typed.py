"""A user's program, as a strict type checker reads it: not run."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from pullwake import GiveUp, PullWakeRunner, RetryAfter, SyncWake, Wake
from pullwake.testing import Outcome, handle


class Question(msgspec.Struct):
    text: str


runner = PullWakeRunner("http://127.0.0.1:8000", "my-runner")


@runner.on("chat")
async def chat(wake: Wake) -> None:
    for message in await wake.messages(Question):
        question: str = message.payload.text
        async with wake.run() as run:
            await run.write(question)
    for event in await wake.events():
        if event.child is not None:
            await wake.send(event.child.url, event.child.response, after=timedelta(minutes=1))
    async for item in wake.live(idle=1.0):
        await wake.ack(item)
    if wake.attempt > 3:
        raise GiveUp("no such tool")


@runner.on("report")
def report(wake: SyncWake) -> None:
    for message in wake.messages(Question):
        wake.append({"type": "reply", "key": message.key, "value": {"text": message.payload.text}})
    if wake.interrupted:
        raise RetryAfter(60)


@runner.on("mistaken")  # type: ignore[type-var]
def not_async(wake: Wake) -> None:
    """A plain function is given a `SyncWake`: this one, written for the other, is an error."""


async def test() -> Outcome:
    return await handle(chat, {"text": "why"})
