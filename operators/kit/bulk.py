"""A verb for all rows that match a list's filters: counted first, then done one batch a request.

The address holds the place that was reached: after an interruption, opening it again continues
there. Where that was in the midst of a batch, its first rows are done again.
"""

import re
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect

from core.identifiers import is_number

BATCH = 50
"""Rows of a request."""
LONGEST_S = 2.0
"""Seconds after which a request takes up no further row: one may be many entities of a runner."""
MOST_COUNTED = 10_000
"""Rows that are counted beforehand; more are done all the same."""

_PLACE = ("from", "run", "done", "refused", "total")
_DIGITS = 9
_RUN = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Place:
    """The progress: the key of the last row, and how many of how many were done and refused.

    ``run`` is the same from the confirmation to the end, also after an interruption.
    """

    last: str = ""
    run: str = ""
    done: int = 0
    refused: int = 0
    total: int = 0

    @property
    def seen(self) -> int:
        """Rows that were looked at."""
        return self.done + self.refused


def run(admin: Any, request: HttpRequest, verb: Any) -> HttpResponse:
    """Ask for a confirmation with a count; once it is given, do a batch and go on."""
    place = _take_place(request)
    filters = request.GET.urlencode()
    try:
        listed = admin.get_changelist_instance(request)
        rows = listed.queryset.order_by("pk")
        left = rows.filter(pk__gt=place.last) if place.last else rows
        if request.method != "POST":
            return _ask(admin, request, verb, left, place, filters, listed.searched)
        form = verb.form(request.POST)
        if not form.is_valid():
            return _ask(admin, request, verb, left, place, filters, listed.searched, form)
        batch = list(admin.with_prospects(left)[:BATCH])
    except (ValueError, ValidationError, IncorrectLookupParameters):
        raise Http404 from None
    done, refused = _act(admin, request, verb, batch, form, place.run)
    seen = done.total() + len(refused)
    now = Place(
        str(batch[seen - 1].pk) if seen else place.last,
        place.run,
        place.done + done.total(),
        place.refused + len(refused),
        max(place.total, place.seen + len(batch)),
    )
    if seen == len(batch) < BATCH:
        return _end(admin, request, verb, now, done, refused, filters)
    return show_progress(admin, request, verb, now, refused, _address(admin, verb, filters, now))


def show_progress(
    admin: Any,
    request: HttpRequest,
    verb: Any,
    place: Place,
    refused: Sequence[str],
    action: str,
    pks: Sequence[str] = (),
) -> HttpResponse:
    """A page that goes on at ``action`` with what was confirmed, for the rows ``pks`` if named.

    It waits for the operator if rows that they chose are refused, as nothing says so later.
    """
    confirmed = [(name, each) for name in request.POST for each in request.POST.getlist(name)]
    context = {
        "title": f"{verb.label}…",
        "verb": verb,
        "place": place,
        "refused": refused[:5],
        "waits": bool(pks and refused),
        "action": action,
        "kept": [each for each in confirmed if each[0] != "pk"] + [("pk", each) for each in pks],
    }
    answer: HttpResponse = admin.render(request, "operators/progress.html", context)
    return answer


def take_total(request: HttpRequest) -> int:
    """How much there was to do when an order that is done in steps began; 0 if it begins here."""
    total = request.GET.get("total", "")
    return int(total) if is_number(total, _DIGITS) else 0


def _act(
    admin: Any, request: HttpRequest, verb: Any, rows: Sequence[Any], form: Any, run: str
) -> tuple["Counter[str]", list[str]]:
    """Do it to the rows, in their order, or to the first of them if it takes long."""
    until = time.monotonic() + LONGEST_S
    done: Counter[str] = Counter()
    refused: list[str] = []
    for row in rows:
        said, is_done = admin.act_on(request, verb, row, form, run=run)
        if is_done and verb.left(row):
            break  # the next request goes on with it
        if is_done:
            done[said] += 1
        else:
            refused.append(said)
        if time.monotonic() > until:
            break
    return done, refused


def _take_place(request: HttpRequest) -> Place:
    """Take the place out of the query, in which only filters remain."""
    query = request.GET.copy()
    last, run, *counts = (query.pop(name, [""])[-1] for name in _PLACE)
    request.GET = query  # type: ignore[assignment]
    if not all(is_number(each, _DIGITS) for each in counts if each):
        raise Http404
    if run and not _RUN.fullmatch(run):
        raise Http404
    return Place(last, run or secrets.token_hex(8), *(int(each or 0) for each in counts))


def _address(admin: Any, verb: Any, filters: str, place: Place) -> str:
    values = (place.last, place.run, place.done, place.refused, place.total)
    reached = urlencode(dict(zip(_PLACE, values, strict=True)))
    return f"{admin.url_for_all(verb)}?{filters}{'&' if filters else ''}{reached}"


def _ask(
    admin: Any,
    request: HttpRequest,
    verb: Any,
    rows: Any,
    place: Place,
    filters: str,
    searched: str,
    form: Any = None,
) -> HttpResponse:
    count = len(rows.values_list("pk")[: MOST_COUNTED + 1])
    first = list(admin.with_prospects(rows)[:5])
    planned = replace(place, total=place.seen + count)
    context = {
        "title": f"{verb.label}?",
        "verb": verb,
        "form": form or verb.form(initial=verb.proposes(first)),
        "count": min(count, MOST_COUNTED),
        "more": count > MOST_COUNTED,
        "searched": searched,
        "place": place,
        "prospects": [admin.prospect(verb, row) for row in first],
        "action": _address(admin, verb, filters, planned),
        "back": admin.url_of_list(filters),
    }
    answer: HttpResponse = admin.render(request, "operators/confirm_all.html", context)
    return answer


def _end(
    admin: Any,
    request: HttpRequest,
    verb: Any,
    place: Place,
    done: "Counter[str]",
    refused: list[str],
    filters: str,
) -> HttpResponse:
    if place.done:
        said = f" ({done.most_common(1)[0][0]}, the last)" if done else ""
        messages.success(request, f"{verb.label}: {place.done} done{said}.")
    if place.refused:
        last = f" The last: {refused[-1]}" if refused else ""
        messages.warning(request, f"{verb.label}: {place.refused} refused.{last}")
    if not place.seen:
        messages.info(request, "Nothing fits any more.")
    return HttpResponseRedirect(admin.url_of_list(filters))
