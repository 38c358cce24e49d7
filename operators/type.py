"""Entity types: what entities of a type take, and who may make them."""

from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from unfold.widgets import UnfoldAdminTextInputWidget

from core.errors import InvalidRequest
from core.principals import Principal
from dispatch import types
from dispatch.models import EntityType
from operators.kit.forms import NeededReasonForm, ReasonForm
from operators.kit.lists import column, moment_column, row_column
from operators.kit.markup import counted, ident, list_of, page_of, principal, runner_link, shortened
from operators.kit.verbs import OperatorAdmin, Order, Verb


class RegistrarForm(ReasonForm):
    """Who becomes the registrar."""

    registrar = forms.CharField(
        max_length=512,
        widget=UnfoldAdminTextInputWidget(),
        help_text="A principal, such as user:alice.",
    )
    field_order = ("registrar", "reason")

    def clean_registrar(self) -> Principal:
        try:
            return Principal.parse(self.cleaned_data["registrar"].strip())
        except ValueError as exc:
            raise forms.ValidationError(f"Not a principal: {exc}.") from None


class RetentionForm(ReasonForm):
    """What is kept of a stream; both left empty: all."""

    events = forms.IntegerField(
        label="Acked events",
        min_value=1,
        max_value=1_000_000_000,
        required=False,
        widget=UnfoldAdminTextInputWidget(),
        help_text="So many of the newest are kept; empty: any number.",
    )
    days = forms.IntegerField(
        min_value=1,
        max_value=36_500,
        required=False,
        widget=UnfoldAdminTextInputWidget(),
        help_text="They are kept for so long; empty: for ever.",
    )
    field_order = ("events", "days", "reason")


def kept(kind: Any) -> str:
    """What a type's living entities keep of their acked events."""
    limits = []
    if kind.retain_events is not None:
        limits.append(f"the newest {kind.retain_events}")
    if kind.retain_days is not None:
        limits.append(f"those of the last {counted(kind.retain_days, 'day')}")
    return " of ".join(limits) or "all"


def _retain_effect(kind: Any) -> str:
    return (
        f"Of their acked events its living entities keep {kept(kind)} so far. What they need not"
        " keep after this is removed within the hour, for good: handlers that build their state"
        " from the whole stream do not find it again."
    )


def _retain(kind: Any, order: Order) -> str:
    if not types.retain(kind.pk, order.data["events"], order.data["days"]):
        raise InvalidRequest(f"It keeps {kept(kind)} already.")
    return f"keeps {kept(EntityType.objects.get(pk=kind.pk))}"


def _proposed(kinds: Sequence[Any]) -> dict[str, Any]:
    """What they all keep by now."""
    limits = {(each.retain_events, each.retain_days) for each in kinds}
    return dict(zip(("events", "days"), limits.pop(), strict=True)) if len(limits) == 1 else {}


def _transfer_effect(kind: Any) -> str:
    default = " Its default runner holds only if it is theirs, too." if kind.default_runner else ""
    return (
        f"{principal(kind.registered_by)} loses, and the principal named below gets, all rights to"
        f" it and to the entities that were made under it.{default}"
    )


def _transfer(kind: Any, order: Order) -> str:
    registrar = order.data["registrar"]
    if not types.transfer(kind.pk, registrar):
        raise InvalidRequest(f"{registrar.key} is already its registrar.")
    return f"transferred to {registrar.key}"


def _remove_effect(kind: Any) -> str:
    return (
        "Its schemas and grants are gone, and anybody may make entities of its name or register it"
        " anew. Its entities live on, and are their creators' alone."
    )


def _remove(kind: Any, order: Order) -> str:
    types.delete(kind.pk)
    return "removed"


VERBS = (
    Verb(
        "transfer",
        "Transfer",
        "dispatch.transfer_entitytype",
        "Make another principal the registrar of these entity types?",
        _transfer_effect,
        _transfer,
        form=RegistrarForm,
    ),
    Verb(
        "retain",
        "Retention",
        "dispatch.retain_entitytype",
        "Change what the entities of these types keep?",
        _retain_effect,
        _retain,
        form=RetentionForm,
        proposes=_proposed,
    ),
    Verb(
        "remove",
        "Remove",
        "dispatch.remove_entitytype",
        "Remove these entity types?",
        _remove_effect,
        _remove,
        form=NeededReasonForm,
        danger=True,
        deletes=True,
    ),
)


@admin.register(EntityType)
class EntityTypeAdmin(OperatorAdmin):
    verbs = VERBS
    row_order = "pk"
    unseen = ("creation_schema", "inbox_schemas", "state_schemas", "permission_grants")
    story_template = "operators/entity_type.html"
    list_display = (
        row_column("type", lambda row: ident(row.name, page_of("dispatch_entitytype", row.pk))),
        column("description", lambda row: shortened(row.description, 120)),
        column("default runner", lambda row: runner_link(row.default_runner)),
        column("registered by", lambda row: ident(principal(row.registered_by))),
        "revision",
        moment_column("updated_at", "updated"),
    )
    search_fields = ("name__icontains",)
    search_help_text = "Part of the name"

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        return {
            "registrar": principal(row.registered_by),
            "kept": kept(row),
            "grants": [
                (principal(grant["subject_value"]), grant["permission"])
                for grant in row.permission_grants
            ],
            "facts": {
                "Creation schema": row.creation_schema,
                "Inbox schemas": row.inbox_schemas,
                "State schemas": row.state_schemas,
                "Slash commands": row.slash_commands,
                "Externally writable collections": row.externally_writable_collections,
            },
            "entities_url": list_of("dispatch_entity", type=row.pk),
        }
