"""Verbs: what an operator may do to rows, confirmed first, and recorded.

A verb says beforehand what it will do to each row, calls the same functions as the API in one
transaction with its audit entry, and is refused with the reason when the state has changed.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlencode

from django import forms
from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.admin.utils import quote, unquote
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.db.models import Model, QuerySet
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
)
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from core.errors import PullwakeError
from core.principals import Principal
from operators.kit import bulk, views
from operators.kit.forms import ReasonForm
from operators.kit.lists import ReadOnlyAdmin
from operators.kit.markup import list_of

MOST_AT_ONCE = 100
"""Rows that one confirmation takes."""


@dataclass(frozen=True, slots=True)
class Order:
    """What an operator confirmed, and the form's other answers."""

    user: User
    reason: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    run: str = ""
    """Of a verb for all that fit: the same after an interruption, which may repeat some rows."""
    total: int = 0
    """How much there was to do to the rows, where some of it was done in steps before this one."""

    @property
    def principal(self) -> Principal:
        """The principal that signals and sends for an operator."""
        return acting_as(self.user.get_username())

    def log(self, row: Model, message: str, *, flag: int = CHANGE) -> None:
        """Add the audit entry: what was done to the row, by whom and why."""
        why = f" Reason: {self.reason}" if self.reason else ""
        log(self.user, row, f"{message}.{why}", flag=flag)


@dataclass(frozen=True)
class Verb:
    """Something that an operator may do to rows.

    ``effect`` says about one row what will happen to it, or raises the `PullwakeError` that it
    would be refused with. ``act`` does it, and says in few words what it did; it may raise the
    same.
    """

    name: str
    label: str
    permission: str
    question: str
    effect: Callable[[Any], str]
    act: Callable[[Any, Order], str]
    form: type[forms.Form] = ReasonForm
    proposes: Callable[[Sequence[Any]], dict[str, Any]] = lambda rows: {}
    """What the form is filled in with for these rows."""
    also: str = ""
    """A second permission that it needs."""
    danger: bool = False
    deletes: bool = False
    prepare: Callable[[Any], object] = lambda row: None
    """What is done to the row before ``act``, in many transactions."""
    one_transaction: bool = True
    """Otherwise ``act`` is many transactions: their locks must not pile up."""
    left: Callable[[Any], int] = lambda row: 0
    """How much ``act`` has yet to do to the row: it is done in steps, until nothing is left."""
    fits: Callable[[Any], bool] = lambda row: True
    """Whether the row's page offers it: not where it would do nothing."""

    def amount(self, row: Any) -> int:
        """How much of a progress bar the row is."""
        return max(self.left(row), 1)

    def is_permitted(self, user: Any) -> bool:
        """Whether the user may do it."""
        return bool(user.has_perms([self.permission, *filter(None, [self.also])]))


@dataclass(frozen=True, slots=True)
class Prospect:
    """What will happen to a row."""

    row: Any
    will: str
    refused: bool
    url: str


def acting_as(username: str) -> Principal:
    """The principal that an operator is for the API."""
    return Principal("system", f"operator:{username}")


def log(user: Any, row: Model, message: str, *, flag: int = CHANGE) -> None:
    """Leave an audit entry."""
    LogEntry.objects.log_actions(user.pk, [row], flag, message, single_object=True)


class OperatorAdmin(ReadOnlyAdmin):
    """Rows with a list, a page each, and verbs."""

    verbs: ClassVar[Sequence[Verb]] = ()
    story_template: ClassVar[str]

    # --- One row's page

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """What ``story_template`` shows of the row."""
        raise NotImplementedError

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        row = self.get_object(request, unquote(object_id))
        if row is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[no-any-return]
        context = {
            "title": str(row),
            "subtitle": None,
            "original": row,
            "object_id": object_id,
            "now": row.now,
            "verbs": [
                (verb, self.verb_url(verb, row))
                for verb in self.permitted(request)
                if verb.fits(row)
            ],
            "history_url": list_of("admin_logentry", what=self.opts.model_name, row=row.pk),
            **self.story(request, row),
        }
        return self.render(request, self.story_template, context)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        of = {"what": self.opts.model_name, "row": unquote(object_id)}
        return HttpResponseRedirect(list_of("admin_logentry", **of))

    def render(self, request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
        """A page of this admin."""
        page = {"opts": self.opts, "told": self.told}
        context = {**self.admin_site.each_context(request), **page, **context}
        request.current_app = self.admin_site.name
        return TemplateResponse(request, template, context)

    # --- What may be done

    def get_object(self, request: HttpRequest, object_id: str, from_field: Any = None) -> Any:
        """The row with its prospects: its page offers the verbs that apply."""
        try:
            return next(iter(self._rows(request, [object_id])), None)
        except Http404:
            return None

    def with_prospects(self, rows: "QuerySet[Any]") -> "QuerySet[Any]":
        """The rows, with what the effects of verbs look at beside them."""
        return rows

    def permitted(self, request: HttpRequest) -> Iterator[Verb]:
        """The verbs that this operator may use."""
        return (verb for verb in self.verbs if verb.is_permitted(request.user))

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        """The verbs for the rows that are ticked in the list.

        From 6.1 on Django names the location that it asks for; only lists have actions here.
        """
        return {
            verb.name: (self._ask(verb), verb.name, verb.label) for verb in self.permitted(request)
        }

    def _ask(self, verb: Verb) -> Callable[..., HttpResponse]:
        def ask(self: Any, request: HttpRequest, ticked: "QuerySet[Any]") -> HttpResponse:
            pks = request.POST.getlist(ACTION_CHECKBOX_NAME)
            return self.confirm(request, verb, pks)  # type: ignore[no-any-return]

        return ask

    def get_urls(self) -> list[URLPattern]:
        """One address a verb, before those that hold a row's key."""
        view = self.admin_site.admin_view(self.verb_view)
        verbs = [
            path(f"do/{verb.name}/", view, {"name": verb.name}, name=self._url_name(verb.name))
            for verb in self.verbs
        ]
        view = self.admin_site.admin_view(self.verb_for_all)
        verbs += [
            path(f"all/{verb.name}/", view, {"name": verb.name}, name=self._url_name_all(verb))
            for verb in self.verbs
        ]
        view = self.admin_site.admin_view(self.save_view)
        saved = path("views/", view, name=self._url_name("views"))
        return [*verbs, saved, *super().get_urls()]

    def _url_name_all(self, verb: Verb) -> str:
        return self._url_name(f"all-{verb.name}")

    def url_for_all(self, verb: Verb) -> str:
        """Where the verb is confirmed for all rows that fit the filters of the query."""
        return self._url(f"all-{verb.name}")

    def url_of_list(self, filters: str) -> str:
        """The list with these filters."""
        return f"{self._url('changelist')}?{filters}"

    def url_of_views(self) -> str:
        """Where views of the list are saved and removed."""
        return self._url("views")

    def save_view(self, request: HttpRequest) -> HttpResponse:
        """Save the list's filters under a name."""
        return views.answer(self, request)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The list; if it is filtered, with the verbs for all matching rows."""
        extra = {**views.context_of(self, request), **(extra_context or {})}
        offered = self.permitted(request) if extra["filters"] else ()
        extra["for_all"] = [
            (verb, f"{self.url_for_all(verb)}?{extra['filters']}") for verb in offered
        ]
        return super().changelist_view(request, extra)  # type: ignore[no-any-return]

    def verb_url(self, verb: Verb, row: Any) -> str:
        """Where the verb is confirmed for one row."""
        return f"{self._url(verb.name)}?pk={quote(str(row.pk))}"

    def _url_name(self, name: str) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{name}"

    def _url(self, name: str, *args: str) -> str:
        return reverse(f"{self.admin_site.name}:{self._url_name(name)}", args=args)

    def _url_of(self, row: Any) -> str:
        return self._url("change", quote(str(row.pk)))

    def _permitted_verb(self, request: HttpRequest, name: str) -> Verb:
        verb = next(each for each in self.verbs if each.name == name)
        if not (self.has_view_permission(request) and verb.is_permitted(request.user)):
            raise PermissionDenied
        return verb

    def verb_for_all(self, request: HttpRequest, name: str) -> HttpResponse:
        """The same for all rows that match the list's filters."""
        return bulk.run(self, request, self._permitted_verb(request, name))

    def verb_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Ask for a confirmation; once it is there, act."""
        verb = self._permitted_verb(request, name)
        pks = request.POST.getlist("pk") or [unquote(each) for each in request.GET.getlist("pk")]
        if not pks:
            raise Http404
        if request.method != "POST":
            return self.confirm(request, verb, pks)
        form = verb.form(request.POST)
        if not form.is_valid():
            return self.confirm(request, verb, pks, form)
        return self._carry_out(request, verb, pks[:MOST_AT_ONCE], form)

    def confirm(
        self,
        request: HttpRequest,
        verb: Verb,
        pks: Sequence[str],
        form: forms.Form | None = None,
    ) -> HttpResponse:
        """The page that says what will happen to each; ``form`` is one that has errors."""
        rows = self._rows(request, pks[:MOST_AT_ONCE])
        if form is None:
            form = verb.form(initial=verb.proposes(rows))
        prospects = [self.prospect(verb, row) for row in rows]
        context = {
            "title": f"{verb.label}?",
            "verb": verb,
            "form": form,
            "prospects": prospects,
            "pointless": all(each.refused for each in prospects),
            "missing": min(len(pks), MOST_AT_ONCE) - len(rows),
            "left_out": max(len(pks) - MOST_AT_ONCE, 0),
            # With the rows, so that a person who must log in first returns to them.
            "verb_url": self._url_to_confirm(verb, pks),
            "back": self._url_back(rows),
        }
        return self.render(request, "operators/confirm.html", context)

    def prospect(self, verb: Verb, row: Any) -> Prospect:
        """What the verb will do to the row, or why it is refused."""
        try:
            return Prospect(row, verb.effect(row), refused=False, url=self._url_of(row))
        except PullwakeError as exc:
            return Prospect(row, exc.message, refused=True, url=self._url_of(row))

    def _carry_out(
        self, request: HttpRequest, verb: Verb, pks: Sequence[str], form: forms.Form
    ) -> HttpResponse:
        rows = self._rows(request, pks)
        before = bulk.take_total(request)
        total = before or sum(map(verb.amount, rows))
        done: Counter[str] = Counter()
        refused: list[str] = []
        going: list[Any] = []
        until = time.monotonic() + bulk.LONGEST_S
        for row in rows:
            if time.monotonic() > until and not verb.one_transaction:
                going.append(row)
                continue
            said, is_done = self.act_on(request, verb, row, form, total=before)
            if is_done:
                done[said] += 1
            else:
                refused.append(said)
            if is_done and verb.left(row):
                going.append(row)
        missing = len(pks) - len(rows)
        if missing:
            refused.append(f"{missing} no longer there")
        if going:
            place = bulk.Place(done=total - sum(map(verb.amount, going)), total=total)
            pks = [str(row.pk) for row in going]
            action = f"{self._url_to_confirm(verb, pks)}&total={total}"
            return bulk.show_progress(self, request, verb, place, refused, action, pks)
        _tell(request, verb, done, refused)
        return HttpResponseRedirect(self._url_back([] if verb.deletes and done else rows))

    def act_on(
        self,
        request: HttpRequest,
        verb: Verb,
        row: Any,
        form: forms.Form,
        *,
        run: str = "",
        total: int = 0,
    ) -> tuple[str, bool]:
        """Do it to the row: what was done, or which was refused and why; and if it was done."""
        asked = dict(form.cleaned_data)
        user: Any = request.user
        order = Order(user, asked.pop("reason", ""), asked, run, total)
        try:
            verb.prepare(row)
            with transaction.atomic() if verb.one_transaction else nullcontext():
                said = verb.act(row, order)
                flag = DELETION if verb.deletes else CHANGE
                order.log(row, f"{verb.label}: {said}", flag=flag)
        except PullwakeError as exc:
            return f"{row}: {exc.message}", False
        return said, True

    def _url_to_confirm(self, verb: Verb, pks: Iterable[str]) -> str:
        return f"{self._url(verb.name)}?{urlencode([('pk', quote(pk)) for pk in pks])}"

    def _rows(self, request: HttpRequest, pks: Iterable[str]) -> list[Any]:
        try:
            found = self.with_prospects(self.get_queryset(request)).filter(pk__in=list(pks))
        except (ValueError, ValidationError):
            raise Http404 from None
        return list(found.order_by("pk"))  # oldest first: what is redriven keeps its order

    def _url_back(self, rows: Sequence[Any]) -> str:
        return self._url_of(rows[0]) if len(rows) == 1 else self._url("changelist")


def _tell(request: HttpRequest, verb: Verb, done: "Counter[str]", refused: list[str]) -> None:
    if done:
        total = done.total()
        told = ", ".join(
            said if count == total else f"{said}: {count}" for said, count in done.most_common(5)
        )
        told += ", …" if len(done) > 5 else ""
        messages.success(request, f"{verb.label}: {total} done ({told}).")
    if refused:
        named = "; ".join(refused[:5]) + ("; …" if len(refused) > 5 else "")
        messages.warning(request, f"{verb.label}: {len(refused)} refused. {named}")
