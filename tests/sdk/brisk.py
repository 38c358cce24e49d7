"""The protocol's durations on a smaller scale; `python -m tests.sdk.brisk` is `pullwake` on it."""

from __future__ import annotations

import sys
from dataclasses import replace
from unittest.mock import patch

from pullwake import Timing
from pullwake import __main__ as command

BRISK = Timing(
    heartbeat_interval=0.4,
    heartbeat_gap=0.1,
    heartbeat_timeout=1.0,
    request_timeout=1.0,
    connect_timeout=3.0,
    long_poll_deadline=4.0,
    sse_idle_deadline=4.0,
    backoff_min=0.1,
    backoff_max=1.0,
    retry_after_max=5.0,
)


def timing(**durations: float) -> Timing:
    return replace(BRISK, **durations)


if __name__ == "__main__":
    with patch.object(command, "Timing", timing):
        sys.exit(command.main())
