"""Every error a caller can meet: one class a rule, its docstring the message, and a stable code.

The codes are the wire contract's. What HTTP makes of them is said in `api.http_errors` alone.
"""

from types import TracebackType
from typing import Any, ClassVar


def pointer(*steps: object) -> str:
    """The JSON pointer that these steps spell."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


class PullwakeError(Exception):
    """The server failed; nothing was changed."""

    code: ClassVar[str] = "INTERNAL_SERVER_ERROR"

    def __init__(self, message: str | None = None, *, details: Any = None) -> None:
        self.message = message or (self.__doc__ or "").partition("\n")[0]
        self.details = details
        super().__init__(self.message)


class InvalidRequest(PullwakeError):
    """The request is not of the form that this endpoint takes."""

    code = "INVALID_REQUEST"

    @classmethod
    def field(cls, path: str, message: str) -> "InvalidRequest":
        """The error for one bad field; ``path`` is a JSON pointer such as ``/lease_ms``."""
        return cls(f"{path} is not valid: {message}", details=[{"path": path, "message": message}])


class BadFields:
    """Checks of one request, each in a ``with`` of its own; the error names every bad field.

    `refuse` raises it, if a check found something.
    """

    def __init__(self) -> None:
        self._problems: list[InvalidRequest] = []

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(problem, InvalidRequest) or not problem.details:
            return False
        self._problems.append(problem)
        return True

    def refuse(self) -> None:
        """Raise InvalidRequest for all that was found, if anything was."""
        if len(self._problems) == 1:
            raise self._problems[0]
        details = [each for problem in self._problems for each in problem.details]
        if details:
            named = ", ".join(each["path"] for each in details)
            raise InvalidRequest(f"Not valid: {named}.", details=details)


class Unauthenticated(PullwakeError):
    """A valid credential is needed."""

    code = "UNAUTHORIZED"


class Forbidden(PullwakeError):
    """The caller is known, but may not do this."""

    code = "UNAUTHORIZED"


class ProducerFenced(PullwakeError):
    """A newer epoch of this producer has written."""

    code = "PRODUCER_FENCED"

    def __init__(self, *, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch


class NotFound(PullwakeError):
    """There is nothing at this address."""

    code = "NOT_FOUND"


class MethodNotAllowed(PullwakeError):
    """This address does not take this method."""

    code = "METHOD_NOT_ALLOWED"


class NotRunning(PullwakeError):
    """It is disabled, stopping, stopped or killed."""

    code = "NOT_RUNNING"


class AlreadyClaimed(PullwakeError):
    """A live claim holds this entity."""

    code = "ALREADY_CLAIMED"


class NoPendingWork(PullwakeError):
    """Nothing lies past this entity's cursor."""

    code = "NO_PENDING_WORK"


class ClaimLimitReached(PullwakeError):
    """The runner holds as many claims as its max_concurrent_claims."""

    code = "CLAIM_LIMIT_REACHED"


class Fenced(PullwakeError):
    """This claim has ended, or the epoch is not the claim's."""

    code = "FENCED"


class InvalidOffset(PullwakeError):
    """An acked offset is beyond the tail, below the cursor, or of another stream."""

    code = "INVALID_OFFSET"


class InvalidSignal(PullwakeError):
    """A stopped or killed entity takes no signals."""

    code = "INVALID_SIGNAL"


class DuplicateUrl(PullwakeError):
    """An entity with this URL exists."""

    code = "DUPLICATE_URL"


class SchemaKeyExists(PullwakeError):
    """The type has a schema by this name."""

    code = "SCHEMA_KEY_EXISTS"


class ProducerGap(PullwakeError):
    """The sequence number is not the one that comes next."""

    code = "PRODUCER_GAP"

    def __init__(self, *, expected: int, received: int) -> None:
        super().__init__()
        self.expected = expected
        self.received = received


class OffsetGone(PullwakeError):
    """The events that follow this offset were removed."""

    code = "OFFSET_GONE"

    def __init__(self, *, earliest: str) -> None:
        super().__init__(
            f"The events that follow this offset were removed: what is left follows {earliest}.",
            details={"earliest_offset": earliest},
        )
        self.earliest = earliest


class PayloadTooLarge(PullwakeError):
    """The body is larger than this server takes."""

    code = "PAYLOAD_TOO_LARGE"


class UnsupportedMediaType(PullwakeError):
    """Bodies are JSON: send Content-Type: application/json."""

    code = "UNSUPPORTED_MEDIA_TYPE"


class RateLimited(PullwakeError):
    """The caller asks too often, or has as much as one may have."""

    code = "RATE_LIMITED"

    def __init__(self, message: str | None = None, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ServiceUnavailable(PullwakeError):
    """The database cannot serve this now; try again."""

    code = "SERVICE_UNAVAILABLE"
