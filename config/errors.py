"""Every error a caller can meet: one class a rule, and the one place that makes HTTP of them.

The shape and the codes are those of the wire contract:
``{"error": {"code": "UPPER_SNAKE", "message": "one sentence", "details": ...}}``.
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar

import msgspec
from django.core.exceptions import DisallowedHost, SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from gunicorn.http.errors import ParseException
from psycopg_pool import PoolTimeout
from rest_framework import exceptions as drf

logger = logging.getLogger(__name__)


def pointer(*steps: object) -> str:
    """The JSON pointer to where these steps lead."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


class PullwakeError(Exception):
    """The server failed; nothing was changed."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "INTERNAL_SERVER_ERROR"

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.message = message or (self.__doc__ or "").partition("\n")[0]
        self.details = details
        self.headers = dict(headers or {})
        super().__init__(self.message)


class InvalidRequest(PullwakeError):
    """The request is not of the form that this endpoint takes."""

    status, code = 400, "INVALID_REQUEST"

    @classmethod
    def field(cls, path: str, message: str) -> "InvalidRequest":
        """The error for one bad field; ``path`` is a JSON pointer such as ``/lease_ms``."""
        return cls(f"{path} is not valid: {message}", details=[{"path": path, "message": message}])


class Unauthenticated(PullwakeError):
    """A valid credential is needed."""

    status, code = 401, "UNAUTHORIZED"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(PullwakeError):
    """The caller is known, but may not do this."""

    status, code = 403, "UNAUTHORIZED"


class ProducerFenced(PullwakeError):
    """A newer epoch of this producer has written."""

    status, code = 403, "PRODUCER_FENCED"


class NotFound(PullwakeError):
    """There is nothing at this address."""

    status, code = 404, "NOT_FOUND"


class MethodNotAllowed(PullwakeError):
    """This address does not take this method."""

    status, code = 405, "METHOD_NOT_ALLOWED"


class NotRunning(PullwakeError):
    """It is disabled, stopping, stopped or killed."""

    status, code = 409, "NOT_RUNNING"


class AlreadyClaimed(PullwakeError):
    """A live claim holds this entity."""

    status, code = 409, "ALREADY_CLAIMED"


class NoPendingWork(PullwakeError):
    """Nothing lies past this entity's cursor."""

    status, code = 409, "NO_PENDING_WORK"


class ClaimLimitReached(PullwakeError):
    """The runner holds as many claims as its max_concurrent_claims."""

    status, code = 409, "CLAIM_LIMIT_REACHED"


class Fenced(PullwakeError):
    """This claim has ended, or the epoch is not the claim's."""

    status, code = 409, "FENCED"


class InvalidOffset(PullwakeError):
    """An acked offset is beyond the tail, below the cursor, or of another stream."""

    status, code = 409, "INVALID_OFFSET"


class InvalidSignal(PullwakeError):
    """A stopped or killed entity takes no signals."""

    status, code = 409, "INVALID_SIGNAL"


class DuplicateUrl(PullwakeError):
    """An entity with this URL exists."""

    status, code = 409, "DUPLICATE_URL"


class ProducerGap(PullwakeError):
    """The sequence number is not the one that comes next."""

    status, code = 409, "PRODUCER_GAP"


class PayloadTooLarge(PullwakeError):
    """The body is larger than this server takes."""

    status, code = 413, "PAYLOAD_TOO_LARGE"


class UnsupportedMediaType(PullwakeError):
    """Bodies are JSON: send Content-Type: application/json."""

    status, code = 415, "UNSUPPORTED_MEDIA_TYPE"


class ServiceUnavailable(PullwakeError):
    """The database cannot be reached; try again."""

    status, code = 503, "SERVICE_UNAVAILABLE"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"Retry-After": "1"})


def error_response(error: PullwakeError) -> HttpResponse:
    """The contract's error body, with the error's status and headers."""
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.details is not None:
        body["details"] = error.details
    return HttpResponse(
        msgspec.json.encode({"error": body}),
        status=error.status,
        content_type="application/json",
        headers=error.headers,
    )


def translate(exc: BaseException) -> PullwakeError:
    """The error that the caller is told of for any exception; an unknown one is logged as ours."""
    match exc:
        case PullwakeError():
            return exc
        case drf.MethodNotAllowed():
            return MethodNotAllowed()
        case Http404() | drf.NotFound():
            return NotFound()
        case PoolTimeout() | OperationalError() | InterfaceError():
            logger.warning("database unavailable", exc_info=exc)
            return ServiceUnavailable()
        case DisallowedHost():
            return InvalidRequest("The Host header is not one of ALLOWED_HOSTS.")
        case ParseException():
            return InvalidRequest(f"The request is not HTTP that this server takes: {exc}.")
        case SuspiciousOperation() | drf.ParseError() | drf.NotAcceptable():
            return InvalidRequest()
        case _:
            logger.error("unhandled error", exc_info=exc)
            return PullwakeError()


def exception_handler(exc: Exception, context: dict[str, Any]) -> HttpResponse:
    """Django REST framework's EXCEPTION_HANDLER."""
    return error_response(translate(exc))


def _told(request: HttpRequest, error: PullwakeError) -> HttpResponse:
    """The error, as a page for whoever looks at the admin in a browser."""
    browser = "text/html" in request.headers.get("Accept", "")
    if browser and request.path_info.startswith("/admin/"):
        return render(request, "operators/error.html", {"error": error}, status=error.status)
    return error_response(error)


def page_not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler404."""
    return _told(request, NotFound())


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler400."""
    return _told(request, InvalidRequest())


def permission_denied(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler403."""
    return _told(request, Forbidden())


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500; Django has logged the exception by then."""
    return _told(request, PullwakeError())


assert all(HTTPStatus(cls.status) for cls in PullwakeError.__subclasses__())  # noqa: S101
