"""The REST API of entity types."""

from typing import Annotated, Literal

import msgspec
from django.http import HttpRequest, HttpResponse
from msgspec import UNSET, Meta, UnsetType

from api.fields import RESERVED_TYPES, DispatchPolicy, known, policy_to, principal_field
from api.lists import answer_page
from api.openapi import documented
from api.views import ApiView
from core.bodies import Body, Id, JsonObject, answer, parameter, read
from core.clock import iso
from core.errors import InvalidRequest, NotFound, pointer
from core.identifiers import require_id
from core.principals import Principal
from dispatch import schemas, types
from dispatch.models import EntityType


class Grant(Body, frozen=True, kw_only=True):
    """Who besides the registrar may make a type's entities, or manage them."""

    subject_kind: Literal["principal", "principal_kind"]
    subject_value: str
    permission: Literal["spawn", "manage"]


class NewEntityType(Body, frozen=True, kw_only=True):
    """An entity type as it is registered; what is left out keeps its value."""

    name: Id
    description: Annotated[str, Meta(max_length=65_536)]
    creation_schema: JsonObject | UnsetType = UNSET
    inbox_schemas: Annotated[dict[str, JsonObject], Meta(max_length=100)] | UnsetType = UNSET
    state_schemas: Annotated[dict[str, JsonObject], Meta(max_length=100)] | UnsetType = UNSET
    default_dispatch_policy: DispatchPolicy | UnsetType | None = UNSET
    permission_grants: Annotated[list[Grant], Meta(max_length=1000)] | UnsetType = UNSET


class EntityTypeBody(Body, frozen=True, kw_only=True):
    """An entity type."""

    name: str
    description: str
    permission_grants: list[JsonObject]
    registered_by: str
    revision: int
    created_at: str
    updated_at: str
    creation_schema: JsonObject | UnsetType = UNSET
    inbox_schemas: JsonObject | UnsetType = UNSET
    state_schemas: JsonObject | UnsetType = UNSET
    default_dispatch_policy: DispatchPolicy | UnsetType = UNSET


def entity_type_body(entity_type: EntityType) -> EntityTypeBody:
    """An entity type as the API shows it."""
    return EntityTypeBody(
        name=entity_type.name,
        description=entity_type.description,
        creation_schema=known(entity_type.creation_schema),
        inbox_schemas=known(entity_type.inbox_schemas),
        state_schemas=known(entity_type.state_schemas),
        default_dispatch_policy=policy_to(entity_type.default_runner_id),
        permission_grants=entity_type.permission_grants,
        registered_by=entity_type.registered_by,
        revision=entity_type.revision,
        created_at=iso(entity_type.created_at),
        updated_at=iso(entity_type.updated_at),
    )


class EntityTypesView(ApiView):
    """/_electric/entity-types"""

    @documented("Register an entity type", body=NewEntityType, answers={201: EntityTypeBody})
    def post(self, request: HttpRequest) -> HttpResponse:
        """Register a type, or update what is given of it."""
        body = read(request, NewEntityType)
        if body.name in RESERVED_TYPES:
            raise InvalidRequest.field("/name", "reserved")
        facts: JsonObject = {"description": body.description}
        if body.creation_schema is not UNSET:
            schemas.check_schema(body.creation_schema, "/creation_schema")
            facts["creation_schema"] = body.creation_schema
        for name in ("inbox_schemas", "state_schemas"):
            by_type = getattr(body, name)
            if by_type is not UNSET:
                for key, schema in by_type.items():
                    schemas.check_schema(schema, pointer(name, key))
                facts[name] = by_type
        if body.default_dispatch_policy is not UNSET:
            policy = body.default_dispatch_policy
            facts["runner_id"] = policy and policy.runner_id
        if body.permission_grants is not UNSET:
            facts["permission_grants"] = [
                _canonical_grant(grant, index) for index, grant in enumerate(body.permission_grants)
            ]
        return answer(entity_type_body(types.register(self.caller, body.name, facts)), 201)

    @documented(
        "List entity types", answers={200: list[EntityTypeBody]}, parameters=["limit", "after"]
    )
    def get(self, request: HttpRequest) -> HttpResponse:
        """All types, by name; ``after`` a name, those that follow it."""
        found = EntityType.objects.order_by("name")
        after = parameter(request, "after")
        if after is not None:
            found = found.filter(name__gt=after)
        return answer_page(request, found, entity_type_body, lambda each: ("after", each.name))


def _canonical_grant(grant: Grant, index: int) -> JsonObject:
    facts: JsonObject = msgspec.to_builtins(grant)
    path = f"/permission_grants/{index}/subject_value"
    if grant.subject_kind == "principal":
        facts["subject_value"] = principal_field(grant.subject_value, path).url
    elif grant.subject_value not in Principal.KINDS:
        raise InvalidRequest.field(path, f"expected one of {', '.join(Principal.KINDS)}")
    return facts


class EntityTypeView(ApiView):
    """/_electric/entity-types/:name"""

    @documented("Get an entity type", answers={200: EntityTypeBody})
    def get(self, request: HttpRequest, name: str) -> HttpResponse:
        """One type."""
        require_id(name)
        entity_type = types.find(name)
        if entity_type is None:
            raise NotFound(f"There is no entity type {name}.")
        return answer(entity_type_body(entity_type))
