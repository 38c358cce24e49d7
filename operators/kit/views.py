"""Saved views: a list with its filters under a name, for all who may see that list."""

from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db.models import Q
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect

from operators.models import SavedView

MOST = 30
"""Views of one list."""

PLACE = ("after", "before", "order")
"""Of a list's address what says where in it one is, and is no filter."""


class ViewForm(forms.Form):
    """A name for the filters of a list."""

    name = forms.CharField(max_length=64)
    query = forms.CharField(max_length=1000)


def views_of(admin: Any) -> list[SavedView]:
    """Those of the list, by name: one statement."""
    return list(SavedView.objects.filter(list=admin.opts.label_lower).order_by("name")[:MOST])


def answer(admin: Any, request: HttpRequest) -> HttpResponse:
    """Save a view, or with ``remove`` let go of one that is the caller's own."""
    if not admin.has_view_permission(request):
        raise PermissionDenied
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    user: Any = request.user
    views = SavedView.objects.filter(list=admin.opts.label_lower)
    name = request.POST.get("remove")
    if name is not None:
        own = Q() if user.is_superuser else Q(saved_by=user)
        gone, _ = views.filter(own, name=name).delete()
        said = f"The view {name} is removed." if gone else f"The view {name} is not yours."
        messages.info(request, said)
        return HttpResponseRedirect(admin.url_of_list(""))
    form = ViewForm(request.POST)
    query = request.POST.get("query", "")
    if not form.is_valid():
        messages.error(request, "A view needs a name of at most 64 characters, and filters.")
    elif views.count() >= MOST:
        messages.error(request, f"The list has {MOST} views already: remove one first.")
    else:
        name, query = form.cleaned_data["name"], form.cleaned_data["query"]
        _, is_new = views.get_or_create(
            name=name, defaults={"list": admin.opts.label_lower, "query": query, "saved_by": user}
        )
        said = f"Saved as {name}." if is_new else f"There is a view {name}: remove that one first."
        (messages.success if is_new else messages.error)(request, said)
    return HttpResponseRedirect(admin.url_of_list(query))


def context_of(admin: Any, request: HttpRequest) -> dict[str, Any]:
    """What the page of a list shows of views; ``filters`` are those that it has."""
    query = request.GET.copy()
    for each in PLACE:
        query.pop(each, None)
    filters = urlencode(sorted((key, value) for key in query for value in query.getlist(key)))
    return {"saved": views_of(admin), "filters": filters, "views_url": admin.url_of_views()}
