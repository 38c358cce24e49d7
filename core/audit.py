"""Who did what: one structured line of the logger ``pullwake.audit``, and entries for operators.

A line has the principal, the verb, the target, the answer, the address and the request's id, and no
secret: nothing of a header but the id, nothing of a query or a body.
"""

import logging

from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from core.addresses import client_address

logger = logging.getLogger("pullwake.audit")

NO_OPERATOR = "(no operator)"
"""The user of the audit log's entries about what no operator did."""

_THROUGH_API = ", through the API."
_MAX_TARGET = 512


def note(
    request: HttpRequest,
    *,
    principal: str,
    verb: str,
    answer: int | str,
    refused: bool = False,
    target: str = "",
) -> None:
    """Log one line for a request.

    ``principal`` is the caller's key; ``answer`` is an HTTP status, or a word. ``target`` is the
    request's path, unless that holds a secret.
    """
    facts = {
        "principal": principal,
        "verb": verb,
        "target": target or request.path[:_MAX_TARGET],
        "answer": answer,
        "address": client_address(request),
        "request_id": request.META.get("HTTP_X_REQUEST_ID", ""),
    }
    if refused:
        logger.warning("refused", extra=facts)
    else:
        logger.info("done", extra=facts)


def record(row: Model, message: str, *, flag: int) -> None:
    """Add an entry to the operators' audit log for something that no operator did.

    Each entry needs a user: this one has a name that no form accepts, and cannot log in.
    """
    users = get_user_model()._default_manager
    nobody, _ = users.get_or_create(username=NO_OPERATOR, defaults={"is_active": False})
    LogEntry.objects.log_actions(nobody.pk, [row], flag, message, single_object=True)


def record_call(row: Model, what: str, *, flag: int) -> None:
    """`record` what a caller of the API did: ``Killed by user:alice``."""
    record(row, what + _THROUGH_API, flag=flag)


def calls() -> "QuerySet[LogEntry]":
    """The entries about callers of the API, who can make as many as they like."""
    return LogEntry.objects.filter(
        user__username=NO_OPERATOR, change_message__endswith=_THROUGH_API
    )
