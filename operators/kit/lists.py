"""Read-only lists: read from a row on, without OFFSET or COUNT; columns and filters, declared."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.db.models.functions import Now
from django.forms import CheckboxInput
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin, checkbox
from unfold.contrib.filters.admin import TextFilter
from unfold.views import ChangeList

from core.clock import with_now
from operators.kit.markup import CALLED, NOTHING, entity_link, moment, runner_link

Narrow = Callable[[Any], Any]
"""Narrows a queryset."""


class Uncounted(Paginator):  # type: ignore[type-arg]
    """Django asks its paginator for a count before it reads a page; this one counts nothing."""

    count = 0


class KeysetChangeList(ChangeList):  # type: ignore[misc]
    """A list in the order of its primary key, read from a row on."""

    def __init__(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        query = request.GET.copy()
        self.after = query.pop("after", [""])[-1]
        self.before = query.pop("before", [""])[-1]
        self.turned = query.pop("order", [""])[-1] == "oldest"
        request.GET = query  # type: ignore[assignment]  # a place is not a filter
        super().__init__(request, *args, **kwargs)

    def get_ordering(self, request: HttpRequest, queryset: "QuerySet[Any]") -> list[str]:
        return [self.row_order]

    @property
    def row_order(self) -> str:
        """The list's order, or the reverse: the oldest first."""
        order: str = self.model_admin.row_order
        return order.removeprefix("-") if self.turned else order

    def get_results(self, request: HttpRequest) -> None:
        """Read one page, and one row more to know whether another page follows."""
        order = self.row_order
        descending = order.startswith("-")
        onward, backward = ("pk__lt", "pk__gt") if descending else ("pk__gt", "pk__lt")
        rows = self.queryset.defer(*self.model_admin.unseen)
        try:
            if self.before:
                rows = rows.filter(**{backward: self.before}).reverse()
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
        self.full_result_count = self.result_count  # so that the page does not mention a count
        self.show_full_result_count = self.show_admin_actions = True
        self.can_show_all = self.multi_page = False
        self.paginator = Uncounted([], self.list_per_page)

    @property
    def has_rows(self) -> bool:
        """Whether any page of the list has rows, as far as this one knows: its own may be gone."""
        return bool(self.result_list) or self.has_previous or self.has_next

    @property
    def narrowed_by(self) -> Iterator[tuple[str, str, str]]:
        """The filters in use: what each looks at, which value, and the list without it."""
        for spec in self.filter_specs:
            for name in spec.expected_parameters():
                if name in self.params:
                    labels = dict(getattr(spec, "lookup_choices", ()))
                    value = self.params[name]
                    without = self.get_query_string(remove=[name])
                    yield str(spec.title), str(labels.get(value, value)), str(without)

    @property
    def searched(self) -> str:
        """Of how many rows, the newest, these are those that fit; empty if they are of all."""
        within = any(
            getattr(spec, "is_of_newest", False) and spec.parameter_name in self.params
            for spec in self.filter_specs
        )
        parts = self.query and self.model_admin.search_parts
        return f"{SEARCHED:,}" if within or parts else ""

    @property
    def previous_link(self) -> str:
        return self._link(before=self.result_list[0].pk) if self.result_list else "?"

    @property
    def next_link(self) -> str:
        return self._link(after=self.result_list[-1].pk) if self.result_list else "?"

    @property
    def first_link(self) -> str:
        return self._link()

    def _link(self, **place: Any) -> str:
        return str(self.get_query_string(place | ({"order": "oldest"} if self.turned else {})))

    @property
    def turn_link(self) -> str:
        """A link to the list from its other end, if it has one: by age."""
        return str(self.get_query_string({} if self.turned else {"order": "oldest"}))

    @property
    def turns(self) -> bool:
        """Whether it is in the order of age."""
        return bool(self.model_admin.row_order.startswith("-"))


class ReadOnlyAdmin(ModelAdmin):  # type: ignore[misc]
    """Rows that no form creates, edits or deletes, each with ``now``."""

    row_order: ClassVar[str] = "-pk"
    unseen: ClassVar[Sequence[str]] = ()
    """Columns that the list does not show, and so does not load."""
    told: ClassVar[bool] = False
    """Whether open pages are told when such a row changes; otherwise they only look."""
    search_help_text: str | None
    search_parts: ClassVar[Sequence[str]] = ()
    """Columns of which a part is searched for, too, among the newest rows: no index finds parts."""

    change_list_template = "operators/list.html"
    empty_value_display = format_html('<span class="pw-none">{}</span>', NOTHING)
    list_display_links = None
    list_disable_select_all = True
    list_filter_sheet = True
    list_filter_submit = True
    list_fullwidth = True
    list_per_page = 50
    show_facets = admin.ShowFacets.NEVER
    show_full_result_count = False
    sortable_by = ()

    @admin.display(description="")
    def action_checkbox(self, obj: Any) -> SafeString:
        """A checkbox named after its row: fifty of one name tell a listener nothing."""
        box = CheckboxInput({**checkbox.attrs, "aria-label": f"Select {obj}"}, lambda value: False)
        return box.render(ACTION_CHECKBOX_NAME, str(obj.pk))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Any]", search_term: str
    ) -> tuple["QuerySet[Any]", bool]:
        term = search_term.strip()
        if not (term and self.search_parts):
            return super().get_search_results(request, queryset, term)  # type: ignore[no-any-return]
        rows = self.model._default_manager.all()
        whole, _ = super().get_search_results(request, rows, term)
        has_part = Q.create([(f"{name}__icontains", term) for name in self.search_parts], Q.OR)
        part = newest_of(rows.filter(has_part))
        found = whole.order_by().values("pk").union(part.order_by().values("pk"))
        return queryset.filter(pk__in=found), False

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return KeysetChangeList

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        return with_now(super().get_queryset(request))


# --- Columns ----------------------------------------------------------------------------------


def column(title: str, value: Callable[[Any], Any], *, name: str = "") -> Callable[[Any], Any]:
    """A column for ``list_display``; ``name`` is that of its CSS class, ``field-…``."""

    @admin.display(description=title)
    def shown(row: Any) -> Any:
        said = value(row)
        return None if said == NOTHING else said

    shown.__name__ = name or title.replace(" ", "_")
    return shown


def row_column(title: str, value: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The column that identifies the row, which gets the most room."""
    return column(title, value, name="row")


def moment_column(field: str, title: str) -> Callable[[Any], Any]:
    """A time, relative to now."""
    return column(title, lambda row: moment(getattr(row, field), row.now))


ENTITY = column("entity", lambda row: entity_link(row.entity_id, row.entity_url))
RUNNER = column("runner", lambda row: runner_link(row.runner_id))

# --- Filters ----------------------------------------------------------------------------------


class ExactFilter(TextFilter):  # type: ignore[misc]
    """A filter for a whole value, which an index finds."""

    narrow: ClassVar[Callable[[Any, str], Any]]
    is_of_newest: ClassVar[bool]
    """Whether it finds only what is among the newest rows (`newest_of`)."""

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Any]") -> Any:
        value = (self.value() or "").strip()
        return type(self).narrow(queryset, value) if value else queryset


def exact(
    title: str,
    parameter: str,
    by: str | Callable[[Any, str], Any],
    *,
    is_of_newest: bool = False,
) -> type[ExactFilter]:
    """The filter for rows whose column ``by`` has the value, or that ``by(rows, value)`` leaves."""

    def narrow(rows: Any, value: str) -> Any:
        return rows.filter(**{by: value}) if isinstance(by, str) else by(rows, value)

    members = {
        "title": title,
        "parameter_name": parameter,
        "narrow": staticmethod(narrow),
        "is_of_newest": is_of_newest,
    }
    return type("Exact", (ExactFilter,), members)


SEARCHED = 10_000
"""Rows, the newest, in which is looked for what no index finds."""


def newest_of(rows: Any) -> Any:
    """Those of the rows that are among the newest: no table is scanned as a whole."""
    return rows.filter(pk__in=rows.model._default_manager.order_by("-pk").values("pk")[:SEARCHED])


class WordFilter(admin.SimpleListFilter):
    """A filter of named conditions: each has a word for the address, a label, and what it does."""

    words: ClassVar[Mapping[str, tuple[str, Narrow]]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Each word is a link. The form beside it keeps filters that have no field in it.
        self.chosen = self.used_parameters.pop(str(self.parameter_name), None)

    def value(self) -> str | None:
        return self.chosen

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(word, label) for word, (label, _) in self.words.items()]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Any]") -> Any:
        chosen = self.words.get(self.value() or "")
        return chosen[1](queryset) if chosen is not None else queryset


def words(title: str, parameter: str, named: Mapping[str, tuple[str, Narrow]]) -> type[WordFilter]:
    """The filter of these conditions."""
    members = {"title": title, "parameter_name": parameter, "words": named}
    return type("Words", (WordFilter,), members)


def values(column: str, of: Iterable[str]) -> dict[str, tuple[str, Narrow]]:
    """For `words`: the column has this value, for each of these."""
    return {value: (CALLED.get(value, value), where(**{column: value})) for value in of}


def where(**conditions: Any) -> Narrow:
    """For `words`: columns have these values."""
    return lambda rows: rows.filter(**conditions)


SPANS = {
    "hour": (timedelta(hours=1), "an hour"),
    "day": (timedelta(days=1), "a day"),
    "week": (timedelta(days=7), "a week"),
}


def ages(column: str) -> dict[str, tuple[str, Narrow]]:
    """For `words`: that the time in a column is in the last hour, day or week, or before."""
    within = {
        word: (f"in the last {word}", where(**{f"{column}__gt": Now() - span}))
        for word, (span, _) in SPANS.items()
    }
    before = {
        f"older-{word}": (f"more than {a} ago", where(**{f"{column}__lte": Now() - span}))
        for word, (span, a) in SPANS.items()
    }
    return within | before
