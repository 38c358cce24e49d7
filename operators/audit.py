"""The audit log: who did what to which, and why."""

from typing import Any

from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.http import HttpRequest, HttpResponseRedirect
from django.urls import reverse

from operators.kit.lists import column, exact, moment_column, where, words
from operators.kit.markup import ident, quiet
from operators.kit.verbs import OperatorAdmin

KINDS = (
    ("runners", "runner", "runners"),
    ("claims", "consumerclaim", "claims"),
    ("dispatch", "entity", "entities"),
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
        """Django's would let in whoever may change log entries, too."""
        return bool(request.user.has_perm("admin.view_logentry"))

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> Any:
        """An entry has no page: its line says it all."""
        return HttpResponseRedirect(reverse("admin:admin_logentry_changelist"))
