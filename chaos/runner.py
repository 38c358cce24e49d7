"""``python -m chaos.runner URL ID EVIDENCE``: a runner that notes what it was given and told."""

import asyncio
import secrets
import sys
from pathlib import Path

from chaos.evidence import Evidence
from pullwake import PullWakeRunner, Timing, Wake

LEASE_S = 2.0


def runner(url: str, runner_id: str, evidence: Evidence) -> PullWakeRunner:
    """Handles each message by an event that says who handled it, by which claim."""

    async def handle(wake: Wake) -> None:
        # One handler's: a claim that two have is a claim too many.
        holder = f"{runner_id}-{secrets.token_hex(4)}"
        claim = {"entity": wake.entity_url, "epoch": wake.epoch, "holder": holder}
        evidence.add("held", **claim)
        for message in await wake.messages():
            value = {**claim, "message": message.key, "id": secrets.token_hex(8)}
            await wake.append({"type": "handled", "key": value["id"], "value": value})
            evidence.add("appended", **value)

    timing = Timing(heartbeat_interval=1.0, request_timeout=3.0, backoff_max=1.0)
    return PullWakeRunner(
        url, runner_id, handle, claim_lease=LEASE_S, max_concurrent_claims=4, timing=timing
    )


if __name__ == "__main__":
    asyncio.run(runner(sys.argv[1], sys.argv[2], Evidence(Path(sys.argv[3]))).run())
