"""Entity types: what entities of a type take, and who may make them."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from dispatch.models import EntityType
from operators.kit.lists import column, moment_column, row_column
from operators.kit.markup import ident, list_of, page_of, principal, runner_link, shortened
from operators.kit.verbs import OperatorAdmin


@admin.register(EntityType)
class EntityTypeAdmin(OperatorAdmin):
    row_order = "pk"
    unseen = ("creation_schema", "inbox_schemas", "state_schemas", "permission_grants")
    story_template = "operators/entity_type.html"
    list_display = (
        row_column("type", lambda row: ident(row.name, page_of("dispatch_entitytype", row.pk))),
        column("description", lambda row: shortened(row.description, 120)),
        column("default runner", lambda row: runner_link(row.default_runner_id)),
        column("registered by", lambda row: ident(principal(row.registered_by))),
        "revision",
        moment_column("updated_at", "updated"),
    )
    search_fields = ("name__startswith",)
    search_help_text = "Name, or how it begins"

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        return {
            "registrar": principal(row.registered_by),
            "grants": [
                (principal(grant["subject_value"]), grant["permission"])
                for grant in row.permission_grants
            ],
            "facts": {
                "Creation schema": row.creation_schema,
                "Inbox schemas": row.inbox_schemas,
                "State schemas": row.state_schemas,
            },
            "entities_url": list_of("dispatch_entity", type=row.pk),
        }
