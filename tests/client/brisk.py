"""`python -m runners.client` on the scale of `harness.BRISK`."""

from __future__ import annotations

import sys
from dataclasses import replace
from unittest.mock import patch

from runners.client import Timing
from runners.client import __main__ as command

from .harness import BRISK


def timing(**durations: float) -> Timing:
    return replace(BRISK, **durations)


if __name__ == "__main__":
    with patch.object(command, "Timing", timing):
        sys.exit(command.main())
