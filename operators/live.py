"""Tells an open page that what it shows has changed, so that it reads itself again at once.

A page asks with the mark that it was given last, and the answer is held until something changed. It
names nothing: what the page then reads is what its reader may see.
"""

import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_GET

from core.database import hand_back
from core.identifiers import is_number
from dispatch.models import DispatchState, Entity
from dispatch.streams import waiters
from runners import changes
from runners.changes import Kind, Mark

LONGEST_S = 30.0
"""Seconds that an answer is held at most."""

LOOK_S = 2.0
"""Seconds after which it looks without having been told: a hint may be lost."""

PACE_S = 0.2
"""Seconds between being told and looking, so that many changes are one."""

MOST_HELD = 30
"""By one operator in each worker process; of a page that was left, no longer than `LOOK_S`."""

RETRY_S = 10
"""Seconds after which one that holds too many may ask again."""

_DIGITS = 18

_ESTABLISHED = b"\x01"
"""The state of a TCP connection that neither side has closed, as Linux's TCP_INFO begins with."""

_held: Counter[int] = Counter()


@dataclass(frozen=True, slots=True)
class Seen:
    """What a page knows: of runners, of entities or of its one entity, and of its stream."""

    runners: Mark
    entities: Mark
    tail: int = 0

    def encode(self) -> str:
        """As the page gives it back."""
        marks = (self.runners, self.entities)
        return ".".join(f"{each.below}.{each.beyond}" for each in marks) + f".{self.tail}"

    @classmethod
    def parse(cls, text: str) -> "Seen | None":
        """The mark of an address; None for one that was not given here."""
        parts = text.split(".")
        if len(parts) != 5 or not all(is_number(each, 2 * _DIGITS) for each in parts):
            return None
        numbers = [int(each) for each in parts]
        if any(each >= 10**_DIGITS for each in (numbers[0], numbers[2])):
            return None
        return cls(Mark(*numbers[:2]), Mark(*numbers[2:4]), numbers[4])


@dataclass(frozen=True, slots=True)
class View:
    """What a page shows: everything, or one entity and its stream."""

    entity: Entity | None = None

    @property
    def keys(self) -> list[str]:
        """What its waiter is told of."""
        feeds = [waiters.RUNNER_FEED, waiters.ENTITY_FEED]
        return feeds if self.entity is None else [*feeds, waiters.entity_stream_key(self.entity.pk)]

    @property
    def url(self) -> str:
        """Its row in the feed of entities, if it is one."""
        return "" if self.entity is None else self.entity.url

    def now(self) -> Seen:
        """What is to be seen now."""
        runners, entities = changes.mark(Kind.RUNNER), changes.mark(Kind.ENTITY, self.url)
        return Seen(runners, entities, self._tail())

    def changed_since(self, seen: Seen) -> list[str]:
        """What is not as it was: ``rows``, ``stream``, or both."""
        rows = changes.is_passed(seen.runners, Kind.RUNNER) or changes.is_passed(
            seen.entities, Kind.ENTITY, self.url
        )
        stream = self._tail() != seen.tail
        return [name for name, is_new in (("rows", rows), ("stream", stream)) if is_new]

    def _tail(self) -> int:
        if self.entity is None:
            return 0
        tails = DispatchState.objects.filter(pk=self.entity.pk).values_list("tail", flat=True)
        return tails.first() or 0


@require_GET
def changed(request: HttpRequest) -> HttpResponse:
    """What changed ``since`` a mark, once something did, and the next mark.

    Without a mark, or with one that was not given here, it is answered at once. ``entity`` is the
    key of the one that the page is about.
    """
    user: Any = request.user
    view = _view(request)
    seen = Seen.parse(request.GET.get("since", ""))
    if seen is None:
        return _answer(view.now(), [])
    if _held[user.pk] >= MOST_HELD:
        return HttpResponse(status=429, headers={"Retry-After": str(RETRY_S)})
    with _holding(user.pk):
        news = _wait(request, view, seen)
    return _answer(view.now() if news else seen, news)


def _view(request: HttpRequest) -> View:
    user: Any = request.user
    if not user.has_perms(["runners.view_runner", "dispatch.view_entity"]):
        raise PermissionDenied
    key = request.GET.get("entity", "")
    if not key:
        return View()
    if not is_number(key, _DIGITS):
        raise Http404
    entity = Entity.objects.filter(pk=int(key)).only("pk", "url").first()
    if entity is None:
        raise Http404
    return View(entity)


def _wait(request: HttpRequest, view: View, seen: Seen) -> list[str]:
    deadline = time.monotonic() + min(settings.PULLWAKE_LONG_POLL_MS / 1000, LONGEST_S)
    with waiters.hub.waiter(*view.keys) as grown:
        while True:
            grown.clear()
            news = view.changed_since(seen)
            remaining = deadline - time.monotonic()
            if news or remaining <= 0 or waiters.hub.closing or _is_gone(request):
                return news
            hand_back()  # a waiting request holds no connection
            if grown.wait(min(remaining, LOOK_S)):
                time.sleep(PACE_S)


def _is_gone(request: HttpRequest) -> bool:
    """Whether the browser closed the connection, as it does when the page is left."""
    connected = request.META.get("gunicorn.socket")
    if connected is None or not hasattr(socket, "TCP_INFO"):
        return False
    state: bytes = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return state != _ESTABLISHED


@contextmanager
def _holding(pk: int) -> Iterator[None]:
    _held[pk] += 1
    try:
        yield
    finally:
        _held[pk] -= 1
        if not _held[pk]:
            del _held[pk]


def _answer(seen: Seen, news: list[str]) -> HttpResponse:
    answer = JsonResponse({"mark": seen.encode(), "changed": news})
    answer.headers["Cache-Control"] = "no-store"
    return answer
