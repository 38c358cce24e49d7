"""A verb for all rows that match a list's filters: counted first, then done one batch a request.

The address holds the place that was reached: after an interruption, opening it again continues
there.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect

BATCH = 50
"""Rows of a request."""
MOST_COUNTED = 10_000
"""Rows that are counted beforehand; more are done all the same."""

_PLACE = ("from", "done", "refused", "total")


@dataclass(frozen=True, slots=True)
class Place:
    """The progress: the key of the last row, and how many of how many were done and refused."""

    last: str
    done: int
    refused: int
    total: int

    @property
    def seen(self) -> int:
        """Rows that were looked at."""
        return self.done + self.refused


def run(admin: Any, request: HttpRequest, verb: Any) -> HttpResponse:
    """Ask for a confirmation with a count; once it is given, do a batch and go on."""
    place = _take_place(request)
    filters = request.GET.urlencode()
    rows = admin.get_changelist_instance(request).queryset.order_by("pk")
    try:
        left = rows.filter(pk__gt=place.last) if place.last else rows
        if request.method != "POST":
            return _ask(admin, request, verb, left, place, filters)
        form = verb.form(request.POST)
        if not form.is_valid():
            return _ask(admin, request, verb, left, place, filters, form)
        batch = list(admin.with_prospects(left)[:BATCH])
    except (ValueError, ValidationError):
        raise Http404 from None
    done, refused = admin.act_on(request, verb, batch, form)
    now = Place(
        str(batch[-1].pk) if batch else place.last,
        place.done + done.total(),
        place.refused + len(refused),
        max(place.total, place.seen + len(batch)),
    )
    if len(batch) < BATCH:
        return _end(admin, request, verb, now, done, refused, filters)
    context = {
        "title": f"{verb.label}…",
        "verb": verb,
        "place": now,
        "refused": refused[:5],
        "action": _address(admin, verb, filters, now),
        "kept": [(name, each) for name in request.POST for each in request.POST.getlist(name)],
    }
    answer: HttpResponse = admin.render(request, "operators/progress.html", context)
    return answer


def _take_place(request: HttpRequest) -> Place:
    """Take the place out of the query, in which only filters remain."""
    query = request.GET.copy()
    last, *counts = (query.pop(name, [""])[-1] for name in _PLACE)
    request.GET = query  # type: ignore[assignment]
    if not all(each.isdecimal() and len(each) < 10 for each in counts if each):
        raise Http404
    return Place(last, *(int(each or 0) for each in counts))


def _address(admin: Any, verb: Any, filters: str, place: Place) -> str:
    values = (place.last, place.done, place.refused, place.total)
    reached = urlencode(dict(zip(_PLACE, values, strict=True)))
    return f"{admin.url_for_all(verb)}?{filters}{'&' if filters else ''}{reached}"


def _ask(
    admin: Any,
    request: HttpRequest,
    verb: Any,
    rows: Any,
    place: Place,
    filters: str,
    form: Any = None,
) -> HttpResponse:
    count = len(rows.values_list("pk")[: MOST_COUNTED + 1])
    first = list(admin.with_prospects(rows)[:5])
    planned = Place(place.last, place.done, place.refused, place.seen + count)
    context = {
        "title": f"{verb.label}?",
        "verb": verb,
        "form": form or verb.form(initial=verb.proposes(first)),
        "count": min(count, MOST_COUNTED),
        "more": count > MOST_COUNTED,
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
