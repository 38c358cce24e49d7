"""A pull-wake runner, as a library; `pullwake run` is the command.

docs/writing-a-runner.md begins with one in ten lines. The modules, from the outside in: `runner`
(what happens, and who owns it), `machine` and `lifecycle` (when), `heartbeats`, `claims` and
`stream` (the three things that go on), `wake` (what a handler sees), `api` and `transport`.
"""

from importlib.metadata import version

from . import logs
from .claims import Drained
from .errors import (
    BadAnswer,
    BadPayload,
    ClaimLost,
    GiveUp,
    HandlerFailed,
    HandlerStuck,
    HeadersFailed,
    RegistrationRefused,
    RetryAfter,
    RunnerError,
    ServerRefused,
    ServerUnreachable,
)
from .handlers import Handler, NoHandler
from .inbox import Child, Message, Signal, WakeEvent
from .machine import State
from .run import Run
from .runner import PullWakeRunner
from .threads import SyncWake
from .timing import Timing
from .wake import Wake

__version__ = version("pullwake")

__all__ = [
    "BadAnswer",
    "BadPayload",
    "Child",
    "ClaimLost",
    "Drained",
    "GiveUp",
    "Handler",
    "HandlerFailed",
    "HandlerStuck",
    "HeadersFailed",
    "Message",
    "NoHandler",
    "PullWakeRunner",
    "RegistrationRefused",
    "RetryAfter",
    "Run",
    "RunnerError",
    "ServerRefused",
    "ServerUnreachable",
    "Signal",
    "State",
    "SyncWake",
    "Timing",
    "Wake",
    "WakeEvent",
    "__version__",
    "logs",
]
