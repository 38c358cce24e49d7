"""What the operators' pages share: read-only lists without COUNT, and verbs with a confirmation.

No form here edits a row. A list is read page by page from a row on, a page tells a row's story,
and whatever changes anything is a `Verb`: it says beforehand what it will do to each row, goes
through the same functions as the API in one transaction with its audit entry, and is refused with
the reason when the state moved on.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import quote, unquote
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Paginator
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
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import TextFilter
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.views import ChangeList
from unfold.widgets import UnfoldAdminTextareaWidget

from core.clock import with_now
from core.errors import PullwakeError
from core.principals import Principal
from operators.markup import ident, list_of, moment, quiet

MOST_AT_ONCE = 100
"""Rows that one confirmation takes."""

# --- Lists ------------------------------------------------------------------------------------


class Uncounted(Paginator):  # type: ignore[type-arg]
    """Django asks its paginator for a count before it reads a page; this one asks nobody."""

    count = 0


class KeysetChangeList(ChangeList):  # type: ignore[misc]
    """A list in the order of its primary key, read from a row on: no OFFSET, no COUNT."""

    def __init__(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        query = request.GET.copy()
        self.after = query.pop("after", [""])[-1]
        self.before = query.pop("before", [""])[-1]
        request.GET = query  # type: ignore[assignment]  # a place is not a filter
        super().__init__(request, *args, **kwargs)

    def get_ordering(self, request: HttpRequest, queryset: "QuerySet[Any]") -> list[str]:
        """The one order that can be read from any row on."""
        return [self.model_admin.row_order]

    def get_results(self, request: HttpRequest) -> None:
        """Read one page, and one row more to know whether there is another."""
        order = self.model_admin.row_order
        back = order[1:] if order.startswith("-") else f"-{order}"
        onward, backward = ("pk__lt", "pk__gt") if order.startswith("-") else ("pk__gt", "pk__lt")
        rows = self.queryset.defer(*self.model_admin.unseen)
        try:
            if self.before:
                rows = rows.filter(**{backward: self.before}).order_by(back)
            elif self.after:
                rows = rows.filter(**{onward: self.after})
        except (ValueError, ValidationError) as exc:
            raise IncorrectLookupParameters(exc) from exc
        page = list(rows[: self.list_per_page + 1])
        more = len(page) > self.list_per_page
        page = page[: self.list_per_page]
        if self.before:
            page.reverse()
        self.result_list = page
        self.has_previous = more if self.before else bool(self.after)
        self.has_next = bool(self.before) or more
        self.result_count = len(page)
        self.full_result_count = self.result_count  # so that nothing is said of it
        self.show_full_result_count = self.show_admin_actions = True
        self.can_show_all = self.multi_page = False
        self.paginator = Uncounted([], self.list_per_page)

    @property
    def narrowed_by(self) -> Iterator[tuple[str, str, str]]:
        """The filters in use: what each looks at, for what, and the list without it."""
        for spec in self.filter_specs:
            for name in spec.expected_parameters():
                if name in self.params:
                    labels = dict(getattr(spec, "lookup_choices", ()))
                    value = self.params[name]
                    without = self.get_query_string(remove=[name])
                    yield str(spec.title), str(labels.get(value, value)), str(without)

    @property
    def previous_link(self) -> str:
        """The page before this one."""
        return self._link("before", self.result_list[0].pk) if self.result_list else "?"

    @property
    def next_link(self) -> str:
        """The page after this one."""
        return self._link("after", self.result_list[-1].pk) if self.result_list else "?"

    @property
    def first_link(self) -> str:
        """The first page."""
        return str(self.get_query_string())

    def _link(self, name: str, pk: Any) -> str:
        return str(self.get_query_string({name: pk}))


class ExactFilter(TextFilter):  # type: ignore[misc]
    """A filter for a whole value, which an index finds."""

    lookup: ClassVar[str]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Any]") -> "QuerySet[Any]":
        """Rows that have the value."""
        value = (self.value() or "").strip()
        return queryset.filter(**{self.lookup: value}) if value else queryset


class WordFilter(admin.SimpleListFilter):
    """A filter of named conditions, each a method or a condition of the queryset."""

    words: ClassVar[dict[str, tuple[str, Callable[[Any], Any]]]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Each word is a link. The form beside it keeps what no field of its own says.
        self.chosen = self.used_parameters.pop(str(self.parameter_name), None)

    def value(self) -> str | None:
        """The word in use."""
        return self.chosen

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The words."""
        return [(word, label) for word, (label, _) in self.words.items()]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Any]") -> "QuerySet[Any]":
        """Rows that meet the condition."""
        chosen = self.words.get(self.value() or "")
        narrowed: QuerySet[Any] = chosen[1](queryset) if chosen is not None else queryset
        return narrowed


def where(**conditions: Any) -> Callable[[Any], Any]:
    """A condition of a `WordFilter`: that columns have values."""
    return lambda rows: rows.filter(**conditions)


# --- Verbs ------------------------------------------------------------------------------------


class ReasonForm(forms.Form):
    """Why."""

    reason = forms.CharField(
        max_length=500,
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text="Kept in the audit log.",
    )


class NeededReasonForm(ReasonForm):
    """Why, which cannot be left out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["reason"].required = True


@dataclass(frozen=True, slots=True)
class Order:
    """What an operator confirmed: who, as whom in streams, why, and what else the form asked."""

    user: User
    reason: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def principal(self) -> Principal:
        """Who signals and sends in an operator's name."""
        return Principal("system", f"operator:{self.user.get_username()}")


@dataclass(frozen=True)
class Verb:
    """Something that an operator may do to rows.

    ``effect`` says of one row what will happen to it, or raises the `PullwakeError` that it would
    be refused with. ``act`` does it, and says in few words what it did; it may raise the same.
    """

    name: str
    label: str
    permission: str
    question: str
    effect: Callable[[Any], str]
    act: Callable[[Any, Order], str]
    form: type[forms.Form] = ReasonForm
    danger: bool = False
    deletes: bool = False
    one_transaction: bool = True
    """Otherwise ``act`` is many transactions: their locks must not pile up."""
    fits: Callable[[Any], bool] = lambda row: True
    """Whether the row's page offers it."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """What is about to happen to a row."""

    row: Any
    will: str
    refused: bool
    url: str


def log(user: Any, row: Model, message: str, *, flag: int = CHANGE) -> None:
    """Leave the entry that says who did what to which."""
    LogEntry.objects.log_actions(user.pk, [row], flag, message, single_object=True)


class OperatorAdmin(ModelAdmin):  # type: ignore[misc]
    """Rows that are read, and acted on by verbs alone."""

    row_order: ClassVar[str] = "-pk"
    unseen: ClassVar[Sequence[str]] = ()
    """Columns that the list does not show, and so does not load."""
    verbs: ClassVar[Sequence[Verb]] = ()
    search_help_text: str | None
    story_template: ClassVar[str]

    change_list_template = "operators/list.html"
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    sortable_by = ()
    list_per_page = 50
    list_disable_select_all = True
    list_fullwidth = True
    list_filter_submit = True
    list_filter_sheet = True

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody makes rows by a form."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody edits rows."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Rows are deleted by a verb, where there is one."""
        return False

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list without COUNT."""
        return KeysetChangeList

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        """The rows, each with ``now``."""
        return with_now(super().get_queryset(request))

    # --- One row's page

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """What the row's page shows."""
        raise NotImplementedError

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """The row's page."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        row = self.get_object(request, unquote(object_id))
        if row is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[no-any-return]
        context = {
            **self.admin_site.each_context(request),
            "title": str(row),
            "subtitle": None,
            "opts": self.opts,
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
        request.current_app = self.admin_site.name
        return TemplateResponse(request, self.story_template, context)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """What operators did to the row is in the audit log."""
        of = {"what": self.opts.model_name, "row": unquote(object_id)}
        return HttpResponseRedirect(list_of("admin_logentry", **of))

    # --- What may be done

    def with_prospects(self, rows: "QuerySet[Any]") -> "QuerySet[Any]":
        """The rows, with what the effects of verbs look at beside them."""
        return rows

    def permitted(self, request: HttpRequest) -> Iterator[Verb]:
        """The verbs that this operator may use."""
        return (verb for verb in self.verbs if request.user.has_perm(verb.permission))

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        """The verbs, for the rows that are ticked in the list.

        From 6.1 on Django names the place that it asks for; no other place here has actions.
        """
        return {
            verb.name: (self._ask(verb), verb.name, verb.label) for verb in self.permitted(request)
        }

    def _ask(self, verb: Verb) -> Callable[..., HttpResponse]:
        def ask(self: Any, request: HttpRequest, ticked: "QuerySet[Any]") -> HttpResponse:
            pks = request.POST.getlist(ACTION_CHECKBOX_NAME)
            return self.confirm(request, verb, pks, verb.form())  # type: ignore[no-any-return]

        return ask

    def get_urls(self) -> list[URLPattern]:
        """One address a verb, before those that hold a row's key."""
        verbs = [
            path(
                f"do/{verb.name}/",
                self.admin_site.admin_view(self.verb_view),
                {"name": verb.name},
                name=self._name(verb.name).partition(":")[2],
            )
            for verb in self.verbs
        ]
        return [*verbs, *super().get_urls()]

    def verb_url(self, verb: Verb, row: Any) -> str:
        """Where the verb is confirmed for one row."""
        return f"{reverse(self._name(verb.name))}?pk={quote(str(row.pk))}"

    def _name(self, name: str) -> str:
        return f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}_{name}"

    def verb_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Ask for a confirmation, and with it do it."""
        verb = next(each for each in self.verbs if each.name == name)
        if not (self.has_view_permission(request) and request.user.has_perm(verb.permission)):
            raise PermissionDenied
        pks = request.POST.getlist("pk") or [unquote(each) for each in request.GET.getlist("pk")]
        if not pks:
            raise Http404
        form = verb.form(request.POST) if request.method == "POST" else verb.form()
        if not form.is_valid():
            return self.confirm(request, verb, pks, form)
        order = Order(request.user, form.cleaned_data.pop("reason", ""), form.cleaned_data)  # type: ignore[arg-type]
        return self._carry_out(request, verb, pks[:MOST_AT_ONCE], order)

    def confirm(
        self, request: HttpRequest, verb: Verb, pks: Sequence[str], form: forms.Form
    ) -> HttpResponse:
        """The page that says what will happen to each."""
        rows = self._rows(request, pks[:MOST_AT_ONCE])
        prospects = [self._prospect(verb, row) for row in rows]
        context = {
            **self.admin_site.each_context(request),
            "title": f"{verb.label}?",
            "opts": self.opts,
            "verb": verb,
            "form": form,
            "prospects": prospects,
            "pointless": all(each.refused for each in prospects),
            "missing": min(len(pks), MOST_AT_ONCE) - len(rows),
            "left_out": max(len(pks) - MOST_AT_ONCE, 0),
            "verb_url": reverse(self._name(verb.name)),
            "back": self._back(rows),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "operators/confirm.html", context)

    def _prospect(self, verb: Verb, row: Any) -> Prospect:
        url = self._page(row)
        try:
            return Prospect(row, verb.effect(row), refused=False, url=url)
        except PullwakeError as exc:
            return Prospect(row, exc.message, refused=True, url=url)

    def _carry_out(
        self, request: HttpRequest, verb: Verb, pks: Sequence[str], order: Order
    ) -> HttpResponse:
        rows = self._rows(request, pks)
        done: Counter[str] = Counter()
        refused: list[str] = []
        for row in rows:
            try:
                with transaction.atomic() if verb.one_transaction else nullcontext():
                    said = verb.act(row, order)
                    why = f" Reason: {order.reason}" if order.reason else ""
                    flag = DELETION if verb.deletes else CHANGE
                    log(order.user, row, f"{verb.label}: {said}.{why}", flag=flag)
            except PullwakeError as exc:
                refused.append(f"{row}: {exc.message}")
            else:
                done[said] += 1
        missing = len(pks) - len(rows)
        if missing:
            refused.append(f"{missing} no longer there")
        _tell(request, verb, done, refused)
        return HttpResponseRedirect(self._back([] if verb.deletes and done else rows))

    def _rows(self, request: HttpRequest, pks: Iterable[str]) -> list[Any]:
        try:
            found = self.with_prospects(self.get_queryset(request)).filter(pk__in=list(pks))
        except (ValueError, ValidationError):
            raise Http404 from None
        return list(found.order_by(self.row_order))

    def _page(self, row: Any) -> str:
        return reverse(self._name("change"), args=(quote(str(row.pk)),))

    def _back(self, rows: Sequence[Any]) -> str:
        if len(rows) == 1:
            return self._page(rows[0])
        return reverse(self._name("changelist"))


def _tell(request: HttpRequest, verb: Verb, done: "Counter[str]", refused: list[str]) -> None:
    if done:
        total = done.total()
        counted = ", ".join(
            said if count == total else f"{said}: {count}" for said, count in done.most_common(5)
        )
        counted += ", …" if len(done) > 5 else ""
        messages.success(request, f"{verb.label}: {total} done ({counted}).")
    if refused:
        named = "; ".join(refused[:5]) + ("; …" if len(refused) > 5 else "")
        messages.warning(request, f"{verb.label}: {len(refused)} refused. {named}")


# --- The people, and what they did --------------------------------------------------------------

admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ModelAdmin):  # type: ignore[misc,type-arg]
    """Who may log in here."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):  # type: ignore[misc]
    """What a role may do."""


class WhoFilter(ExactFilter):
    """By the operator."""

    title = "user name"
    parameter_name = "who"
    lookup = "user__username"


class WhatFilter(WordFilter):
    """By the kind of thing that was acted on."""

    title = "kind"
    parameter_name = "what"
    words = {
        model: (label, where(content_type__app_label=app, content_type__model=model))
        for app, model, label in (
            ("runners", "runner", "runners"),
            ("claims", "consumerclaim", "claims"),
            ("dispatch", "entity", "entities"),
            ("runners", "accesstoken", "access tokens"),
            ("auth", "user", "users"),
            ("auth", "group", "groups"),
        )
    }


class WhichFilter(ExactFilter):
    """By the row that was acted on."""

    title = "id of what was acted on"
    parameter_name = "row"
    lookup = "object_id"


@admin.register(LogEntry)
class LogEntryAdmin(OperatorAdmin):
    """Who did what to which, and why."""

    list_display = ("when", "who", "what", "which", "said")
    list_display_links = None
    list_select_related = ("user", "content_type")
    list_filter = (WhoFilter, WhatFilter, WhichFilter)
    search_fields = ("object_id",)
    search_help_text = "Id of what was acted on"

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Any]", search_term: str
    ) -> tuple["QuerySet[Any]", bool]:
        """By the id of the row that was acted on."""
        term = search_term.strip()
        return (queryset.filter(object_id=term) if term else queryset), False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever was given the permission to view log entries."""
        return bool(request.user.has_perm("admin.view_logentry"))

    @admin.display(description="when")
    def when(self, entry: Any) -> str:
        """When it was done."""
        return moment(entry.action_time, entry.now)

    @admin.display(description="who")
    def who(self, entry: LogEntry) -> str:
        """Who did it."""
        return entry.user.get_username()

    @admin.display(description="what")
    def what(self, entry: LogEntry) -> str:
        """What kind of thing it was done to."""
        return quiet(entry.content_type.name if entry.content_type else "")

    @admin.display(description="which")
    def which(self, entry: LogEntry) -> str:
        """What it was done to."""
        url = None if entry.is_deletion() else entry.get_admin_url()
        return ident(entry.object_repr, url)

    @admin.display(description="what was done, and why")
    def said(self, entry: LogEntry) -> str:
        """What was done."""
        return entry.get_change_message()

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> Any:
        """An entry is all in its line."""
        return HttpResponseRedirect(reverse("admin:admin_logentry_changelist"))
