"""The audit log: who did what to which, and why."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db.models import Model, Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponseRedirect
from django.urls import reverse

from dispatch.models import Entity
from operators.kit.lists import column, exact, moment_column, where, words
from operators.kit.markup import ident, quiet
from operators.kit.verbs import OperatorAdmin

KINDS = (
    ("runners", "runner", "runners"),
    ("claims", "consumerclaim", "claims"),
    ("claims", "deadletter", "dead letters"),
    ("dispatch", "entity", "entities"),
    ("dispatch", "wake", "wakes"),
    ("dispatch", "entitytype", "entity types"),
    ("runners", "accesstoken", "access tokens"),
    ("auth", "user", "users"),
    ("auth", "group", "groups"),
)


def _which(entry: LogEntry) -> str:
    return ident(entry.object_repr, None if entry.is_deletion() else entry.get_admin_url())


@admin.register(LogEntry)
class LogEntryAdmin(OperatorAdmin):
    list_display = (
        moment_column("action_time", "when"),
        column("who", lambda entry: entry.user.get_username()),
        column("what", lambda entry: quiet(entry.content_type.name if entry.content_type else "")),
        column("which", _which),
        column("what was done, and why", LogEntry.get_change_message, name="said"),
    )
    list_select_related = ("user", "content_type")
    list_filter = (
        exact("user name", "who", "user__username"),
        words(
            "kind",
            "what",
            {
                model: (label, where(content_type__app_label=app, content_type__model=model))
                for app, model, label in KINDS
            },
        ),
        exact("id of what was acted on", "row", "object_id"),
    )
    search_fields = ("object_id__exact",)
    search_help_text = "Id of what was acted on"

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Django's would also admit everybody who may change log entries."""
        return bool(request.user.has_perm("admin.view_logentry"))

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> Any:
        """An entry has no page: its line has everything."""
        return HttpResponseRedirect(reverse("admin:admin_logentry_changelist"))


_NEWEST = 50_000
"""Entries that a page looks through for who did something: they are in no index by their row, and
a verb for all that fit makes one for each of thousands."""
_MONTH = timedelta(days=30)


def last(row: Model, *done: str) -> LogEntry | None:
    """The newest entry on a row that begins with one of these: who did it, also through the API.

    One statement. None if it is older than the newest `_NEWEST` entries.
    """
    newest = LogEntry.objects.order_by("-pk").values("pk")[:_NEWEST]
    return _that_say(row, done).filter(pk__in=newest).first()


def last_of_month(row: Model, *done: str) -> LogEntry | None:
    """The same of all the last month's entries, for rows of a kind that has few of them."""
    return _that_say(row, done).filter(action_time__gt=Now() - _MONTH).first()


def _that_say(row: Model, done: Sequence[str]) -> "QuerySet[LogEntry]":
    said = Q.create([("change_message__startswith", word) for word in done], Q.OR)
    kind = ContentType.objects.get_for_model(row)
    entries = LogEntry.objects.filter(said, content_type=kind, object_id=row.pk)
    return entries.select_related("user").order_by("-pk")


def of_entities(beginning: str, *, after: int) -> list[tuple[str, str]]:
    """The keys of entities with an entry that begins so, and that entry, of the last month.

    ``after`` is the key of an entry: those before it do not count.
    """
    entries = LogEntry.objects.filter(
        content_type=ContentType.objects.get_for_model(Entity),
        action_time__gt=Now() - _MONTH,
        change_message__startswith=beginning,
        pk__gt=after,
    )
    return [(each.object_id or "0", each.change_message) for each in entries.order_by("-pk")]
