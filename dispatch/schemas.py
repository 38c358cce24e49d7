"""JSON Schemas that a type's registrar supplies, and values checked against them.

The author of a schema or a value may want to stall the server. So the engine, whose regexes are
linear in the text, runs in a separate process (`dispatch.schema_checker`), which is ended when a
check exceeds its budget of CPU time or memory. Call neither function while holding a lock.
"""

import atexit
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from core.database import hand_back
from core.errors import InvalidRequest, ServiceUnavailable, pointer
from dispatch import schema_checker

MAX_SCHEMA_BYTES = 64 * 1024
ONLY_KEPT = "state_schemas"
"""The schemas of a type that nothing is checked by: for apps to read."""
BUDGET_S = 0.5
"""CPU time of one check, or of compiling one schema."""

_QUEUE_S = 5.0
"""How long a check waits for those before it."""
_SILENCE_S = 10.0
"""After which a checker that neither answers nor ends is given up: a busy machine is slow."""


def check_schema(schema: Any, path: str, *, whose: str = "", kept: bool = False) -> None:
    """Raise InvalidRequest for what is not a JSON Schema; ``path`` names the field.

    ``whose`` is the URL of the schema's author, as for `check`; "" when no principal calls.
    ``kept``: nothing will be checked by it, so its patterns need not be of linear time.
    """
    encoded = msgspec.json.encode(schema)
    if len(encoded) > MAX_SCHEMA_BYTES:
        raise InvalidRequest.field(path, f"larger than {MAX_SCHEMA_BYTES} bytes")
    verdict = _checker.check(whose, encoded, schema_checker.KEPT if kept else b"")
    if verdict is not None:
        raise InvalidRequest.field(path, f"not a JSON Schema that is taken: {verdict}")


def check(value: Any, schema: Any, path: str, *, whose: str) -> None:
    """Raise InvalidRequest with up to 100 places in ``value`` that the schema does not allow.

    ``whose`` is the schema's author, who has one place in the queue however many checks of theirs
    wait. Raises ServiceUnavailable when too many checks wait.
    """
    verdict = _checker.check(whose, msgspec.json.encode(schema), msgspec.json.encode(value))
    if isinstance(verdict, str):
        raise InvalidRequest.field(path, f"it cannot be checked by its schema: {verdict}")
    if verdict is not None:
        raise InvalidRequest(
            f"{path} is not what its type asks for.",
            details=[
                {"path": path + pointer(*steps), "message": message}
                for steps, message in sorted(verdict, key=lambda error: list(map(str, error[0])))
            ],
        )


class _Turn:
    """A turn that one caller at a time may have."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, deadline: float) -> Iterator[None]:
        """Hold the turn while the block runs. Raises ServiceUnavailable at the deadline."""
        if not self._lock.acquire(timeout=max(0, deadline - time.monotonic())):
            raise ServiceUnavailable("Too many checks by schemas are waiting; try again.")
        try:
            yield
        finally:
            self._lock.release()


class _Checker:
    """The checking process, started at the first check and again whenever a check ended it."""

    def __init__(self) -> None:
        self._turn = _Turn()
        self._turns: WeakValueDictionary[str, _Turn] = WeakValueDictionary()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Any = None

    def check(self, whose: str, schema: bytes, value: bytes = b"") -> Any:
        """None, the sentence why it cannot be checked, or the errors.

        Raises ServiceUnavailable when too many checks wait.
        """
        hand_back()  # it may wait for other checks
        deadline = time.monotonic() + _QUEUE_S
        own = self._turns.setdefault(whose, _Turn())
        with own.taken(deadline), self._turn.taken(deadline):
            return self._check(schema, value)

    def _check(self, schema: bytes, value: bytes) -> Any:
        self._begin()
        try:
            self._channel.write(schema + b"\n" + value + b"\n")
            self._channel.flush()
            verdict = self._read()
        except (OSError, EOFError):
            self.end()
            return "that takes more time or memory than is given to it"
        if isinstance(verdict, list):
            try:
                verdict = self._read()
            except (OSError, EOFError):
                self.end()  # finding the other errors took too long
        return verdict

    def _read(self) -> Any:
        line = self._channel.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return msgspec.json.decode(line)

    def _begin(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.end()
        ours, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(  # noqa: S603  this interpreter, a file of ours
                [sys.executable, "-I", str(Path(schema_checker.__file__)), str(BUDGET_S)],
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                # What the engine prints as it is ended would be written by the caller.
                stderr=subprocess.DEVNULL,
            )
        with ours:  # the file object keeps it open
            ours.settimeout(_SILENCE_S)
            self._channel = ours.makefile("rwb")

    def end(self) -> None:
        """End the process, if there is one."""
        if self._channel is not None:
            with suppress(OSError):
                self._channel.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._channel = None


_checker = _Checker()
atexit.register(_checker.end)
