"""A manager that gives each part of its work to a worker, and reports when all are done.

    pip install msgspec
    python manager.py
    pullwake spawn manager/1 --runner manager --message '{"texts": ["one two", "three"]}'
    pullwake observe manager/1

What a manager remembers is in its stream: any process, after any crash, goes on from there.
"""

import asyncio
import os

import msgspec

from pullwake import PullWakeRunner, SyncWake, Wake, logs

URL = os.environ.get("PULLWAKE_URL", "http://127.0.0.1:8000")
runner = PullWakeRunner(URL, "manager", token=os.environ.get("PULLWAKE_TOKEN"))


class Job(msgspec.Struct):
    texts: list[str]


@runner.on("manager")
async def manager(wake: Wake) -> None:
    for message in await wake.messages(Job):
        texts = message.payload.texts
        await wake.append({"type": "plan", "key": "plan", "value": {"workers": len(texts)}})
        for number, text in enumerate(texts):
            # The same ids at each attempt: a manager that is tried again spawns none twice.
            name = f"{wake.entity_url.rpartition('/')[2]}-{number}"
            await wake.spawn("worker", name, message=text, wake="runFinished")
    for event in await wake.events():
        if event.child is not None:
            told = {"response": event.child.response, "error": event.child.error}
            await wake.append({"type": "part", "key": event.child.url, "value": told})
    await report(wake)


async def report(wake: Wake) -> None:
    planned, parts, reported = None, dict[str, str](), False
    async for event in wake.history():
        if event["type"] == "plan":
            planned = event["value"]["workers"]
        elif event["type"] == "part":
            parts[event["key"]] = event["value"]["response"] or "failed"
        elif event["type"] == "output":
            reported = True
    if planned is not None and len(parts) == planned and not reported:
        lines = [f"{url}: {result}" for url, result in sorted(parts.items())]
        value = {"text": "\n".join(["All are done.", *lines])}
        await wake.append({"type": "output", "key": "report", "value": value})


@runner.on("worker")
def worker(wake: SyncWake) -> None:
    """A plain function, in a thread of its own: it may block."""
    for message in wake.messages():
        with wake.run() as run:
            run.write(f"{len(str(message.payload).split())} words")


if __name__ == "__main__":
    logs.configure()
    asyncio.run(runner.run())
