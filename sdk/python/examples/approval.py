"""An agent that asks a person before it acts, however long the person takes.

    python approval.py
    pullwake spawn deploy/1 --runner approval --message '{"what": "version 2"}'
    pullwake observe deploy/1
    pullwake send deploy/1 '{"approved": true}'

Between the question and the answer no handler runs and nothing is held.
"""

import asyncio
import os
from typing import Any

from pullwake import GiveUp, PullWakeRunner, Wake, logs

URL = os.environ.get("PULLWAKE_URL", "http://127.0.0.1:8000")
runner = PullWakeRunner(URL, "approval", token=os.environ.get("PULLWAKE_TOKEN"))


@runner.on("deploy")
async def deploy(wake: Wake) -> None:
    for message in await wake.messages():
        match message.payload:
            case {"what": str(what)}:
                await wake.append({"type": "question", "key": "question", "value": {"what": what}})
                await wake.set_tag("waits-for", "approval")
            case {"approved": bool(approved)}:
                await settle(wake, approved, by=message.sender)
            case other:
                raise GiveUp(f"neither a question nor an answer: {other!r}")


async def settle(wake: Wake, approved: bool, by: str | None) -> None:
    question: dict[str, Any] | None = None
    async for event in wake.history():
        if event["type"] == "question":
            question = event["value"]
        elif event["type"] == "output":
            question = None  # it was answered
    if question is None:
        return
    did = "deployed" if approved else "left alone"
    value = {"text": f"{question['what']}: {did}, as {by} said"}
    await wake.append({"type": "output", "key": f"settled-{wake.epoch}", "value": value})
    await wake.set_tag("waits-for", None)


if __name__ == "__main__":
    logs.configure()
    asyncio.run(runner.run())
