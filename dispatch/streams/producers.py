"""Idempotent producers: a retried append is appended once.

The rules are those of the Durable Streams protocol, as the wire contract's section on the main
stream gives them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from core import quotas
from core.errors import BadFields, InvalidRequest, ProducerFenced, ProducerGap
from core.identifiers import is_number
from dispatch.models import Entity, SharedState

_MAX = 2**53 - 1
"""The largest integer that every client's language keeps exact."""

HEADERS = ("Producer-Id", "Producer-Epoch", "Producer-Seq")


@dataclass(frozen=True, slots=True)
class Sequence:
    """What an append says about its producer: the id, the epoch, and the number within it."""

    producer_id: str
    epoch: int
    seq: int

    @classmethod
    def parse(cls, headers: Mapping[str, str], *, longest: int = 256) -> "Sequence | None":
        """Parse a request's headers; None without any.

        Raises InvalidRequest for an incomplete set, or bad values. ``longest``: characters that the
        id may have.
        """
        given = {name: headers[name] for name in HEADERS if name in headers}
        if not given:
            return None
        missing = [name for name in HEADERS if name not in given]
        if missing:
            details = [{"path": f"/{name}", "message": "is required"} for name in missing]
            raise InvalidRequest("Producer headers come all three or not.", details=details)
        producer_id, numbers, bad = given["Producer-Id"], [], BadFields()
        with bad:
            if not 1 <= len(producer_id) <= longest or not producer_id.isprintable():
                problem = f"expected 1 to {longest} printable characters"
                raise InvalidRequest.field("/Producer-Id", problem)
        for name in HEADERS[1:]:
            with bad:
                numbers.append(_number(name, given[name]))
        bad.refuse()
        return cls(producer_id, *numbers)


def advance(stream: Entity | SharedState, append: Sequence) -> bool:
    """Whether this append is new; False for a duplicate. The stream is locked.

    Raises ProducerFenced for a lower epoch, ProducerGap for a number that is not the next one,
    InvalidRequest for a new epoch that does not begin at 0, and RateLimited past
    PULLWAKE_MAX_PRODUCERS.
    """
    rows: Any = stream.producers
    known = rows.filter(producer_id=append.producer_id).first()
    if known is not None and append.epoch < known.epoch:
        raise ProducerFenced(epoch=known.epoch)
    if known is not None and append.epoch > known.epoch and append.seq != 0:
        raise InvalidRequest.field("/Producer-Seq", "a new epoch starts at 0")
    same_epoch = known is not None and append.epoch == known.epoch
    expected = known.seq + 1 if known is not None and same_epoch else 0
    if append.seq < expected:
        return False
    if append.seq > expected:
        raise ProducerGap(expected=expected, received=append.seq)
    place = {"epoch": append.epoch, "seq": append.seq}
    if known is None:
        quotas.take("producers", settings.PULLWAKE_MAX_PRODUCERS, stream.stream_path, rows.count)
        rows.create(producer_id=append.producer_id, **place)
    else:
        rows.filter(pk=known.pk).update(**place)
    return True


def _number(name: str, text: str) -> int:
    if not (is_number(text, 16) and int(text) <= _MAX):
        raise InvalidRequest.field(f"/{name}", f"expected an integer from 0 to {_MAX}")
    return int(text)
