"""``python -m chaos.runner URL ID EVIDENCE``: a runner that notes what it was given and told."""

import asyncio
import secrets
import sys
from pathlib import Path

from chaos.evidence import Evidence
from pullwake import PullWakeRunner, Timing, Wake

LEASE_S = 2.0
CHILDREN = 3
"""Of each parent."""


def runner(url: str, runner_id: str, evidence: Evidence) -> PullWakeRunner:
    """Handles each message by an event that says who handled it, by which claim; see to parents and
    children below.
    """

    async def handle(wake: Wake) -> None:
        # One handler's: a claim that two have is a claim too many.
        holder = f"{runner_id}-{secrets.token_hex(4)}"
        claim = {"entity": wake.entity_url, "epoch": wake.epoch, "holder": holder}
        evidence.add("held", **claim)
        for message in await wake.messages():
            value = {**claim, "message": message.key, "id": secrets.token_hex(8)}
            await wake.append({"type": "handled", "key": value["id"], "value": value})
            evidence.add("appended", **value)

    async def parent(wake: Wake) -> None:
        """Spawns its children for its message, and notes of whom it hears."""
        for event in await wake.events():
            if event.child is not None:
                evidence.add("heard", entity=wake.entity_url, child=event.child.url)
        if await wake.messages():
            for number in range(CHILDREN):
                name = f"{wake.entity['url'].rpartition('/')[2]}-{number}"
                await wake.spawn("child", name, message="go", wake="runFinished")

    timing = Timing(heartbeat_interval=1.0, request_timeout=3.0, backoff_max=1.0)
    made = PullWakeRunner(
        url, runner_id, handle, claim_lease=LEASE_S, max_concurrent_claims=4, timing=timing
    )
    made.on("parent")(parent)
    made.on("child")(child)
    return made


async def child(wake: Wake) -> None:
    """Finishes a run, which answers with its own URL: an append for each step of it.

    Not by ``wake.run()``: that says of a run which an outage ended that it failed, and the parent
    is then told of that one, too.
    """
    run = f"run-{wake.epoch}"
    delta = {"run_id": run, "delta": wake.entity_url}
    for kind, operation, value in (
        ("run", "insert", {"status": "started"}),
        ("text_delta", "insert", delta),
        ("run", "update", {"status": "completed"}),
    ):
        headers = {"operation": operation}
        await wake.append({"type": kind, "key": run, "value": value, "headers": headers})


if __name__ == "__main__":
    asyncio.run(runner(sys.argv[1], sys.argv[2], Evidence(Path(sys.argv[3]))).run())
