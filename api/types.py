"""The REST API of entity types."""

from typing import Annotated, Any, Literal

import msgspec
from django.http import HttpRequest, HttpResponse
from msgspec import UNSET, Meta, UnsetType

from api.fields import RESERVED_TYPES, DispatchPolicy, Key, known, policy_to, principal_field
from api.lists import answer_page, limit_of
from api.openapi import documented
from api.views import ApiView
from core.bodies import Body, Id, JsonObject, answer, parameter, read
from core.clock import iso
from core.errors import BadFields, InvalidRequest, pointer
from core.identifiers import is_id
from core.principals import Principal
from dispatch import schemas, types
from dispatch.models import EntityType

Schemas = Annotated[dict[str, JsonObject], Meta(max_length=types.MAX_SCHEMAS)]
Text = Annotated[str, Meta(max_length=4096)]


class Grant(Body, frozen=True, kw_only=True):
    """Who besides the registrar may make a type's entities, or manage them.

    Until it is revoked, and for that type alone: a request for another kind of grant is refused.
    """

    subject_kind: Literal["principal", "principal_kind"]
    """Whether it is granted to one principal or to a kind of them."""
    subject_value: str
    """The principal, as a key or URL; or the kind."""
    permission: Annotated[
        Literal["spawn", "manage"], Meta(description="the only permissions of types")
    ]
    """What it lets them do: make entities of the type, or all that its registrar may."""
    propagation: (
        Annotated[Literal["self"], Meta(description="grants are not inherited")] | UnsetType
    ) = UNSET
    """Always `self`."""
    copy_to_children: bool | UnsetType = UNSET
    """Taken, and without effect."""
    expires_at: (
        Annotated[None, Meta(description="a grant holds until it is taken back")] | UnsetType
    ) = UNSET
    """Always null."""


class SlashArgument(Body, frozen=True, kw_only=True):
    """An argument of a slash command."""

    name: Key
    """Its name."""
    type: Literal["string", "number", "boolean"]
    """What it takes."""
    required: bool | UnsetType = UNSET
    """Whether it has to be given."""
    description: Text | UnsetType = UNSET
    """What people read."""


class SlashCommand(Body, frozen=True, kw_only=True):
    """A command that a type's entities offer; each gets it as an event of its stream."""

    name: Key
    """The command, without its slash."""
    description: Text | UnsetType = UNSET
    """What people read."""
    arguments: Annotated[list[SlashArgument], Meta(max_length=256)] | UnsetType = UNSET
    """What it takes."""


class WritableCollection(Body, frozen=True, kw_only=True):
    """A collection of a type's entities that others than their handler may write."""

    type: Key
    """The type of the collection's events."""
    contract: Any = UNSET
    """What its values are like: kept, not enforced."""
    operations: (
        Annotated[list[Literal["insert", "update", "delete"]], Meta(max_length=3)] | UnsetType
    ) = UNSET
    """What may be done; `insert` unless said otherwise."""


class Retention(Body, frozen=True, kw_only=True):
    """What an entity keeps, while it lives, of the events of its stream that are acked.

    The others are removed, oldest first. Of both limits the one that is met first holds.
    """

    events: Annotated[int, Meta(ge=1, le=1_000_000_000)] | UnsetType = UNSET
    """So many, the newest."""
    days: Annotated[int, Meta(ge=1, le=36_500)] | UnsetType = UNSET
    """Those that came in so many days."""


class NewEntityType(Body, frozen=True, kw_only=True):
    """An entity type as it is registered; what is left out keeps its value."""

    name: Id
    """Its name, the first part of its entities' URLs."""
    description: Annotated[str, Meta(max_length=65_536)]
    """What people read."""
    creation_schema: JsonObject | UnsetType = UNSET
    """The JSON Schema that the `args` of its entities must satisfy."""
    inbox_schemas: Schemas | UnsetType = UNSET
    """JSON Schemas of payloads, by the type of the message."""
    state_schemas: Schemas | UnsetType = UNSET
    """JSON Schemas of what handlers write, by the type of the event: kept, not enforced."""
    default_dispatch_policy: DispatchPolicy | UnsetType | None = UNSET
    """The runner of entities that are made without one; it need not be registered yet."""
    permission_grants: Annotated[list[Grant], Meta(max_length=1000)] | UnsetType = UNSET
    """Who else may make its entities, or manage it."""
    slash_commands: Annotated[list[SlashCommand], Meta(max_length=256)] | UnsetType = UNSET
    """The commands that its handler understands."""
    serve_endpoint: Annotated[str, Meta(max_length=2048)] | UnsetType | None = UNSET
    """Where an app serves it: kept, not called."""
    externally_writable_collections: dict[str, WritableCollection] | UnsetType = UNSET
    """The collections that others than handlers may write to, by name."""
    retention: Retention | UnsetType | None = UNSET
    """What its living entities keep of their acked events; null, as at first: all."""


class NewSchemas(Body, frozen=True, kw_only=True):
    """Schemas to be added to a type's."""

    inbox_schemas: Schemas | UnsetType = UNSET
    """Schemas to add, by the type of the message."""
    state_schemas: Schemas | UnsetType = UNSET
    """Schemas to add, by the type of the event."""


class EntityTypeBody(Body, frozen=True, kw_only=True):
    """An entity type."""

    name: str
    """Its name."""
    description: str
    """What people read."""
    permission_grants: list[JsonObject]
    """Who else may make its entities, or manage it."""
    registered_by: str
    """The canonical URL of its registrar."""
    revision: int
    """One more with each change."""
    created_at: str
    """When it was registered first."""
    updated_at: str
    """When it changed last."""
    creation_schema: JsonObject | UnsetType = UNSET
    """The JSON Schema of its entities' `args`."""
    inbox_schemas: JsonObject | UnsetType = UNSET
    """JSON Schemas of payloads, by the type of the message."""
    state_schemas: JsonObject | UnsetType = UNSET
    """JSON Schemas of what handlers write, by the type of the event."""
    default_dispatch_policy: DispatchPolicy | UnsetType = UNSET
    """The runner of entities that are made without one."""
    slash_commands: list[JsonObject] | UnsetType = UNSET
    """The commands that its handler understands."""
    serve_endpoint: str | UnsetType = UNSET
    """Where an app serves it."""
    externally_writable_collections: JsonObject | UnsetType = UNSET
    """The collections that others than handlers may write to, by name."""
    retention: Retention | UnsetType = UNSET
    """What its living entities keep of their acked events; without it, all."""


def entity_type_body(entity_type: EntityType) -> EntityTypeBody:
    """An entity type as the API shows it."""
    return EntityTypeBody(
        name=entity_type.name,
        description=entity_type.description,
        creation_schema=known(entity_type.creation_schema),
        inbox_schemas=known(entity_type.inbox_schemas),
        state_schemas=known(entity_type.state_schemas),
        default_dispatch_policy=policy_to(entity_type.default_runner),
        slash_commands=known(entity_type.slash_commands),
        serve_endpoint=known(entity_type.serve_endpoint),
        externally_writable_collections=known(entity_type.externally_writable_collections),
        retention=_retention(entity_type),
        permission_grants=entity_type.permission_grants,
        registered_by=entity_type.registered_by,
        revision=entity_type.revision,
        created_at=iso(entity_type.created_at),
        updated_at=iso(entity_type.updated_at),
    )


def _retention(entity_type: EntityType) -> Retention | UnsetType:
    if entity_type.retain_events is None and entity_type.retain_days is None:
        return UNSET
    return Retention(events=known(entity_type.retain_events), days=known(entity_type.retain_days))


class EntityTypesView(ApiView):
    """/_electric/entity-types"""

    @documented("Register an entity type", body=NewEntityType, answers={201: EntityTypeBody})
    def post(self, request: HttpRequest) -> HttpResponse:
        """Register a type, or update what is given of it."""
        body = read(request, NewEntityType)
        if body.name in RESERVED_TYPES:
            raise InvalidRequest.field("/name", "reserved")
        registered = types.register(self.caller, body.name, facts_of(body, self.caller.url))
        return answer(entity_type_body(registered), 201)

    @documented(
        "List entity types",
        answers={200: list[EntityTypeBody]},
        parameters=["limit", "after"],
        sends=["Link"],
    )
    def get(self, request: HttpRequest) -> HttpResponse:
        """Those that the caller registered, may use, or has entities of, by name.

        ``after`` a name: those that follow it.
        """
        bad = BadFields()
        with bad:
            limit = limit_of(request)
        with bad:
            after = parameter(request, "after") or ""
        bad.refuse()
        seen = types.seen_by(self.caller, after=after)
        return answer_page(
            request, limit, seen, entity_type_body, lambda each: ("after", each.name)
        )


def facts_of(body: NewEntityType, whose: str = "") -> JsonObject:
    """The given fields of `EntityType`. Raises InvalidRequest for schemas and grants.

    ``whose``: the URL of the principal that calls; "" where none does.
    """
    facts: JsonObject = {"description": body.description}
    bad = BadFields()
    with bad:  # of schemas the first bad one, as each may take long to check
        if body.creation_schema is not UNSET:
            schemas.check_schema(body.creation_schema, "/creation_schema", whose=whose)
            facts["creation_schema"] = body.creation_schema
        facts |= _by_type(body, whose)
    with bad:
        if body.default_dispatch_policy is not UNSET:
            facts["default_runner"] = _default_runner(body.default_dispatch_policy)
    for name in ("slash_commands", "serve_endpoint", "externally_writable_collections"):
        if getattr(body, name) is not UNSET:
            facts[name] = msgspec.to_builtins(getattr(body, name))
    with bad:
        if body.retention is not UNSET:
            facts |= _retained(body.retention)
    if body.permission_grants is not UNSET:
        facts["permission_grants"] = grants = []
        for index, grant in enumerate(body.permission_grants):
            with bad:
                grants.append(_canonical_grant(grant, index))
    bad.refuse()
    return facts


def _by_type(body: NewEntityType | NewSchemas, whose: str) -> JsonObject:
    """The given inbox and state schemas. Raises InvalidRequest for invalid ones."""
    given = {name: getattr(body, name) for name in ("inbox_schemas", "state_schemas")}
    given = {name: by_type for name, by_type in given.items() if by_type is not UNSET}
    for name, by_type in given.items():
        for key, schema in by_type.items():
            kept = name == schemas.ONLY_KEPT
            schemas.check_schema(schema, pointer(name, key), whose=whose, kept=kept)
    return given


def _default_runner(policy: DispatchPolicy | None) -> str | None:
    if policy is None:
        return None
    if not is_id(policy.runner_id):
        path = "/default_dispatch_policy/targets/0/runnerId"
        raise InvalidRequest.field(path, "no id of a runner")
    return policy.runner_id


def _retained(retention: Retention | None) -> JsonObject:
    limits = (UNSET, UNSET) if retention is None else (retention.events, retention.days)
    if retention is not None and limits == (UNSET, UNSET):
        raise InvalidRequest.field("/retention", "expected events, days, or both")
    events, days = (None if each is UNSET else each for each in limits)
    return {"retain_events": events, "retain_days": days}


def _canonical_grant(grant: Grant, index: int) -> JsonObject:
    named = ("subject_kind", "subject_value", "permission")
    facts: JsonObject = {name: getattr(grant, name) for name in named}
    if grant.copy_to_children:
        where = f"/permission_grants/{index}/copy_to_children"
        raise InvalidRequest.field(where, "grants are not inherited")
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
        """One of those that are listed."""
        return answer(entity_type_body(types.find_seen(self.caller, name)))

    @documented("Delete an entity type", answers={204: None})
    def delete(self, request: HttpRequest, name: str) -> HttpResponse:
        """For its registrar and those who manage it; its entities live on, as their creators'."""
        with self.recorded(EntityType(name=name), "Deleted"):
            types.delete(name, self.caller)
        return HttpResponse(status=204)


class SchemasView(ApiView):
    """/_electric/entity-types/:name/schemas"""

    @documented(
        "Add schemas to an entity type",
        body=NewSchemas,
        answers={200: EntityTypeBody},
        errors=[409],
    )
    def patch(self, request: HttpRequest, name: str) -> HttpResponse:
        """Add schemas by new keys; one that is there is registered anew to change."""
        added = _by_type(read(request, NewSchemas), self.caller.url)
        return answer(entity_type_body(types.add_schemas(self.caller, name, added)))
