"""The one place that makes HTTP of errors, in the wire contract's one shape:

``{"error": {"code": "UPPER_SNAKE", "message": "one sentence", "details": ...}}``.
"""

import logging
from typing import Any

from django.core.exceptions import DisallowedHost, SuspiciousOperation
from django.http import Http404, HttpResponse
from rest_framework import exceptions as drf

from core import errors
from core.bodies import answer
from core.database import advice, is_passing, note_trouble
from core.errors import PullwakeError

logger = logging.getLogger(__name__)

STATUSES: dict[type[PullwakeError], int] = {
    errors.InvalidRequest: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.ProducerFenced: 403,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.NotRunning: 409,
    errors.AlreadyClaimed: 409,
    errors.NoPendingWork: 409,
    errors.ClaimLimitReached: 409,
    errors.Fenced: 409,
    errors.InvalidOffset: 409,
    errors.InvalidSignal: 409,
    errors.DuplicateUrl: 409,
    errors.SchemaKeyExists: 409,
    errors.ProducerGap: 409,
    errors.OffsetGone: 410,
    errors.PayloadTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.RateLimited: 429,
    PullwakeError: 500,
    errors.ServiceUnavailable: 503,
}
"""The status of each error; every class is here."""

RETRY_AFTER_S = 1
"""When a caller may try again after a 503."""


def status_of(error: PullwakeError) -> int:
    """The HTTP status of an error."""
    return STATUSES[type(error)]


def error_response(error: PullwakeError) -> HttpResponse:
    """The contract's error body, with the error's status and headers."""
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.details is not None:
        body["details"] = error.details
    return answer({"error": body}, status_of(error), _headers(error))


def _headers(error: PullwakeError) -> dict[str, str]:
    match error:
        case errors.Unauthenticated():
            return {"WWW-Authenticate": "Bearer"}
        case errors.ServiceUnavailable():
            return {"Retry-After": str(RETRY_AFTER_S)}
        case errors.RateLimited():
            return {"Retry-After": str(error.retry_after_s)}
        case errors.ProducerFenced():
            return {"Producer-Epoch": str(error.epoch)}
        case errors.ProducerGap():
            return {
                "Producer-Expected-Seq": str(error.expected),
                "Producer-Received-Seq": str(error.received),
            }
        case errors.OffsetGone():
            return {"Stream-Earliest-Offset": error.earliest}
    return {}


def translate(exc: BaseException) -> PullwakeError:
    """Map any exception to the error that the caller is told; an unknown one is logged as ours."""
    match exc:
        case PullwakeError():
            return exc
        case drf.MethodNotAllowed():
            return errors.MethodNotAllowed()
        case Http404() | drf.NotFound():
            return errors.NotFound()
        case drf.NotAuthenticated() | drf.AuthenticationFailed():
            return errors.Unauthenticated()
        case drf.PermissionDenied():
            return errors.Forbidden()
        case _ if is_passing(exc):
            note_trouble(logger, "database unavailable", exc)
            return errors.ServiceUnavailable(advice(exc))
        case DisallowedHost():
            return errors.InvalidRequest("The Host header is not one of ALLOWED_HOSTS.")
        case SuspiciousOperation() | drf.ParseError() | drf.NotAcceptable():
            return errors.InvalidRequest()
        case _:
            logger.error("unhandled error", exc_info=exc)
            return PullwakeError()


def exception_handler(exc: Exception, context: dict[str, Any]) -> HttpResponse:
    """Django REST framework's EXCEPTION_HANDLER."""
    return error_response(translate(exc))
