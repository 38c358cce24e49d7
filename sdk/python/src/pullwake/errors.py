"""What can go wrong between a runner and its server; one class a kind."""

from __future__ import annotations


class RunnerError(Exception):
    """Anything a runner reports."""

    transient = False
    """Whether the same request may well succeed a little later."""
    retry_after: float | None = None
    """Seconds the server asked to wait, if it did."""
    repeated = False
    """Whether it follows others like it with no success between: the log tells of the first."""


class ServerUnreachable(RunnerError):
    """No answer: refused, cut, or not within its deadline."""

    transient = True


class BadAnswer(RunnerError):
    """An answer that is not the protocol's, such as a login page of a proxy."""

    transient = True


class HeadersFailed(RunnerError):
    """What was to make a connection's headers raised, or made something else."""

    transient = True


class ServerRefused(RunnerError):
    """An answer with an error status.

    `code` is the protocol's (`FENCED`, …), or empty if the answer was not in its shape.
    """

    about_claim = True
    """Whether it answers a call about the claim itself, and not about another entity."""

    def __init__(
        self, status: int, code: str, message: str, retry_after: float | None = None
    ) -> None:
        super().__init__(f"{status} {code or 'error'}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after
        # 401 too: tokens rotate, and the next request asks for its headers anew.
        self.transient = status >= 500 or status in (401, 408, 425, 429)

    @property
    def ends_claim(self) -> bool:
        """Whether this answer to a claim's token says that the claim is not ours."""
        return self.about_claim and (
            self.status == 401
            or self.code == "PRODUCER_FENCED"
            or (self.status == 409 and self.code in ("FENCED", ""))
            or (self.status == 404 and self.code == "NOT_FOUND")
        )


class RegistrationRefused(ServerRefused):
    """The server does not take this runner: its credentials, its id, or its settings."""

    @classmethod
    def of(cls, error: ServerRefused) -> RegistrationRefused:
        return cls(error.status, error.code, error.message, error.retry_after)


class ClaimLost(RunnerError):
    """The claim is not this runner's any more; whatever it was doing must end unreported."""


class BadPayload(RunnerError):
    """A message's payload is not of the model that the handler asked for."""


class RetryAfter(RunnerError):
    """Raised by a handler: its work cannot be done now; try again in so many seconds.

    At least 1, at most 30 days. A new message wakes the entity at once, as ever.
    """

    def __init__(self, seconds: float, reason: str = "") -> None:
        super().__init__(reason or f"try again in {seconds:g} s")
        self.seconds = min(max(float(seconds), 1.0), 30 * 86_400.0)


class GiveUp(RunnerError):
    """Raised by a handler: no attempt will do its work, and there is to be none.

    What the wake delivered is acknowledged, and set aside for an operator to see and redrive.
    """


class HandlerFailed(RunnerError):
    """A handler raised; its exception is the cause."""


class HandlerStuck(RunnerError):
    """A handler went on after it was cancelled, and was abandoned."""
