"""What senders and runners saw: lines in a file, which outlives them."""

import json
import os
import time
from pathlib import Path
from typing import Any


class Evidence:
    """A file to which any number of processes add facts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def add(self, fact: str, **facts: Any) -> None:
        """Add a fact, whole or not at all; it survives a SIGKILL a moment later.

        Its time, ``at``, is in seconds of the clock that all processes of this machine have.
        """
        line = json.dumps({"fact": fact, "at": time.monotonic(), **facts}).encode() + b"\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, line)
        finally:
            os.close(file)

    def read(self) -> list[dict[str, Any]]:
        """All facts, in the order in which they were added."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]
