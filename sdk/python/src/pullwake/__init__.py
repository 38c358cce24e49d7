"""A pull-wake runner, as a library; `pullwake run` is the command.

docs/writing-a-runner.md begins with one in ten lines. The modules, from the outside in: `runner`
(what happens, and who owns it), `machine` and `lifecycle` (when), `heartbeats`, `claims` and
`stream` (the three things that go on), `wake` (what a handler sees), `api` and `transport`.
"""

from importlib.metadata import version

from .claims import Drained, Handler
from .errors import (
    BadAnswer,
    ClaimLost,
    HandlerFailed,
    HandlerStuck,
    HeadersFailed,
    RegistrationRefused,
    RunnerError,
    ServerRefused,
    ServerUnreachable,
)
from .machine import State
from .runner import PullWakeRunner
from .timing import Timing
from .wake import Message, Wake, WakeEvent

__version__ = version("pullwake")

__all__ = [
    "BadAnswer",
    "ClaimLost",
    "Drained",
    "Handler",
    "HandlerFailed",
    "HandlerStuck",
    "HeadersFailed",
    "Message",
    "PullWakeRunner",
    "RegistrationRefused",
    "RunnerError",
    "ServerRefused",
    "ServerUnreachable",
    "State",
    "Timing",
    "Wake",
    "WakeEvent",
    "__version__",
]
