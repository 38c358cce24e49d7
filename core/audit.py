"""Who did what: one structured line of the logger ``pullwake.audit``.

It has the principal, the verb, the target, the answer, the address and the request's id, and no
secret: nothing of a header but the id, nothing of a query or a body.
"""

import logging
import re
import secrets

from django.http import HttpRequest

from core.addresses import client_address

logger = logging.getLogger("pullwake.audit")

_MAX_TARGET = 512
_REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


def note(
    request: HttpRequest, *, principal: str, verb: str, answer: int | str, refused: bool = False
) -> str:
    """Leave the line of a request: the id that it has there.

    ``principal``: the key of the one who asked; ``answer``: an HTTP status, or a word.
    """
    # A proxy may have named the request.
    request_id: str = request.META.get("HTTP_X_REQUEST_ID", "")
    if not _REQUEST_ID.fullmatch(request_id):
        request_id = secrets.token_hex(8)
    facts = {
        "principal": principal,
        "verb": verb,
        "target": request.path[:_MAX_TARGET],
        "answer": answer,
        "address": client_address(request),
        "request_id": request_id,
    }
    if refused:
        logger.warning("refused", extra=facts)
    else:
        logger.info("done", extra=facts)
    return request_id
