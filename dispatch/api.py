"""The REST API of entities and entity types, and of the streams."""

from typing import Annotated, Any, Literal, cast
from urllib.parse import unquote

import msgspec
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from msgspec import UNSET, Meta, UnsetType

from config.api import ApiView
from config.bodies import Body, Id, JsonObject, answer, decode, parameter, raw_body, read
from config.clock import epoch_ms, iso
from config.errors import (
    DuplicateUrl,
    InvalidRequest,
    NotFound,
    PullwakeError,
    ServiceUnavailable,
    Unauthenticated,
    error_response,
    pointer,
    translate,
)
from config.identifiers import is_id, looked_up
from config.openapi import documented
from config.principals import Principal
from dispatch import access, entities, schemas, wakes
from dispatch.models import Entity, EntityType
from dispatch.streams import log, offsets, producers, reads
from runners.api import own_runner_alone, principal_field

Tags = dict[
    Annotated[str, Meta(min_length=1, max_length=256)], Annotated[str, Meta(max_length=4096)]
]
Key = Annotated[str, Meta(min_length=1, max_length=256)]
EntityUrl = Annotated[str, Meta(pattern=r"^/[^/]{1,128}/[^/]{1,128}$(?!\n)")]

RESERVED_TYPES = ("_electric",)
"""Entity types whose streams would stand where the API does."""


class Target(Body, frozen=True, kw_only=True):
    """Where wakes go."""

    type: Literal["runner"]
    runnerId: str  # noqa: N815  as runners write it


class DispatchPolicy(Body, frozen=True, kw_only=True):
    """To which runner an entity is dispatched."""

    targets: Annotated[list[Target], Meta(min_length=1, max_length=1)]

    @property
    def runner_id(self) -> str:
        """The one runner."""
        return self.targets[0].runnerId


class NewEntity(Body, frozen=True, kw_only=True):
    """An entity to be made."""

    args: JsonObject | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET
    dispatch_policy: DispatchPolicy | UnsetType = UNSET
    initialMessage: Any = UNSET  # noqa: N815
    initialMessageType: Key | UnsetType = UNSET  # noqa: N815
    parent: EntityUrl | UnsetType = UNSET
    sandbox: JsonObject | UnsetType = UNSET


class EntityChange(Body, frozen=True, kw_only=True):
    """What is to be replaced of an entity."""

    dispatch_policy: DispatchPolicy | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET


class EntityBody(Body, frozen=True, kw_only=True):
    """An entity."""

    url: str
    type: str
    status: Literal["idle", "running", "paused", "stopping", "stopped", "killed"]
    streams: dict[str, str]
    tags: dict[str, str]
    spawn_args: JsonObject
    created_by: str
    created_at: int
    updated_at: int
    dispatch_policy: DispatchPolicy | UnsetType = UNSET
    sandbox: JsonObject | UnsetType = UNSET
    parent: str | UnsetType = UNSET


class NewMessage(Body, frozen=True, kw_only=True):
    """A message; ``from`` and its like are the server's to say, and passed over."""

    payload: Any
    key: Key | UnsetType = UNSET
    type: Key | UnsetType = UNSET
    mode: Key | UnsetType = UNSET
    position: Any = UNSET
    afterMs: Annotated[float, Meta(le=0)] | UnsetType = UNSET  # noqa: N815


class Sent(Body, frozen=True, kw_only=True):
    """The transaction that a message was appended in."""

    txid: str


class NewSignal(Body, frozen=True, kw_only=True):
    """A signal."""

    signal: Literal["SIGSTOP", "SIGCONT", "SIGTERM", "SIGKILL", "SIGINT", "SIGHUP", "SIGUSR"]
    reason: Annotated[str, Meta(max_length=4096)] | UnsetType = UNSET
    payload: Any = UNSET


class SignalBody(Body, frozen=True, kw_only=True):
    """What a signal did."""

    url: str
    signal: str
    previous_state: str
    new_state: str
    created_at: str
    txid: str


class TagValue(Body, frozen=True, kw_only=True):
    """The value of a tag."""

    value: Annotated[str, Meta(max_length=4096)]


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
    inbox_schemas: dict[str, JsonObject] | UnsetType = UNSET
    state_schemas: dict[str, JsonObject] | UnsetType = UNSET
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


def _known(value: Any) -> Any:
    return UNSET if value is None or value == "" else value


def _policy(runner_id: str | None) -> DispatchPolicy | UnsetType:
    if runner_id is None:
        return UNSET
    return DispatchPolicy(targets=[Target(type="runner", runnerId=runner_id)])


def entity_body(entity: Entity, *, claimed: bool | None = None) -> EntityBody:
    """An entity, with its dispatch state; ``claimed`` (None looks): whether a claim is active."""
    state = entity.dispatch_state
    if claimed is None:
        claimed = entity.claims.active().exists()
    return EntityBody(
        url=entity.url,
        type=entity.type,
        status=state.status(claimed=claimed),  # type: ignore[arg-type]
        streams={"main": entity.stream_path},
        dispatch_policy=_policy(state.runner_id),
        tags=entity.tags,
        spawn_args=entity.spawn_args,
        sandbox=_known(entity.sandbox),
        parent=_known(entity.parent),
        created_by=entity.created_by,
        created_at=epoch_ms(entity.created_at),
        updated_at=epoch_ms(entity.updated_at),
    )


def entity_type_body(entity_type: EntityType) -> EntityTypeBody:
    """An entity type as the API shows it."""
    return EntityTypeBody(
        name=entity_type.name,
        description=entity_type.description,
        creation_schema=_known(entity_type.creation_schema),
        inbox_schemas=_known(entity_type.inbox_schemas),
        state_schemas=_known(entity_type.state_schemas),
        default_dispatch_policy=_policy(entity_type.default_runner_id),
        permission_grants=entity_type.permission_grants,
        registered_by=entity_type.registered_by,
        revision=entity_type.revision,
        created_at=iso(entity_type.created_at),
        updated_at=iso(entity_type.updated_at),
    )


# --- Entities ---------------------------------------------------------------------------------

PAGE = 1000
"""Rows of a list at the most; the next page is asked for with the last one's url."""


class EntitiesView(ApiView):
    """/_electric/entities"""

    @documented(
        "List the caller's entities", answers={200: list[EntityBody]}, parameters=["before"]
    )
    def get(self, request: HttpRequest) -> HttpResponse:
        """The newest 1000; ``before`` an entity's url, the 1000 made before that one."""
        found = entities.entities_of(self.caller)
        before = parameter(request, "before")
        if before is not None:
            last = found.filter(url=before).first()
            if last is None:
                raise InvalidRequest.field("/before", "not the url of one of the caller's entities")
            found = found.filter(pk__lt=last.pk)
        return answer(
            [
                entity_body(each, claimed=each.claimed)
                for each in found.select_related("dispatch_state")[:PAGE]
            ]
        )


class EntityView(ApiView):
    """/_electric/entities/:type/:id"""

    @documented("Make an entity", body=NewEntity, answers={201: EntityBody}, errors=[409])
    def put(self, request: HttpRequest, type_name: str, name: str) -> HttpResponse:
        """Make an entity, and wake it if it is made with a first message."""
        bad = [] if is_id(type_name) and type_name not in RESERVED_TYPES else ["/type"]
        bad += [] if is_id(name) else ["/id"]
        if bad:
            raise InvalidRequest(
                "The entity's type and id must be of the form of ids.",
                details=[{"path": path, "message": "no id, or reserved"} for path in bad],
            )
        body = read(request, NewEntity, empty=True)
        message = None
        if body.initialMessage is not UNSET:
            message = entities.Message(
                body.initialMessage,
                self.caller.url,
                type=body.initialMessageType or None,
            )
        try:
            entity = entities.create(
                self.caller,
                type_name,
                name,
                args=body.args or {},
                tags=body.tags or {},
                runner_id=_runner_id(body.dispatch_policy),
                parent=body.parent or "",
                sandbox=body.sandbox or None,
                message=message,
            )
        except DuplicateUrl as duplicate:
            existing = access.find(type_name, name)
            if entities.may_read(existing, self.caller):
                duplicate.details = {"entity": entity_body(existing)}
            raise
        return answer(entity_body(entity, claimed=False), 201)

    @documented("Get an entity", answers={200: EntityBody})
    def get(self, request: HttpRequest, type_name: str, name: str) -> HttpResponse:
        """An entity that the caller may read."""
        return answer(entity_body(access.find_to_read(self.caller, type_name, name)))

    @documented("Change an entity", body=EntityChange, answers={200: EntityBody})
    def patch(self, request: HttpRequest, type_name: str, name: str) -> HttpResponse:
        """Replace what is given."""
        body = read(request, EntityChange)
        entity = access.find_to_act(self.caller, type_name, name)
        entities.update(
            self.caller,
            entity,
            tags=None if body.tags is UNSET else body.tags,
            runner_id=_runner_id(body.dispatch_policy),
        )
        return answer(entity_body(access.find(type_name, name)))

    @documented("Delete an entity", answers={204: None})
    def delete(self, request: HttpRequest, type_name: str, name: str) -> HttpResponse:
        """Its stream goes with it, and an active claim is fenced."""
        entities.delete(access.find_to_act(self.caller, type_name, name))
        return HttpResponse(status=204)


def _runner_id(policy: DispatchPolicy | UnsetType) -> str | None:
    return None if policy is UNSET else policy.runner_id


class ActorView(ApiView):
    """What an entity's creator may do, and a handler with its write token."""

    authentication_classes = (access.ActorAuthentication,)

    @property
    def actor(self) -> access.Actor:
        """Who acts."""
        return cast(access.Actor, self.request.user)


class SendView(ActorView):
    """/_electric/entities/:type/:id/send"""

    @documented("Send a message", body=NewMessage, answers={200: Sent}, errors=[409])
    def post(self, request: HttpRequest, type_name: str, name: str) -> HttpResponse:
        """Append a message to an entity's stream, and wake it."""
        body = read(request, NewMessage)
        entity = access.find_to_act(self.actor.principal, type_name, name)
        message = entities.Message(
            body.payload,
            self.actor.url,
            key=body.key or None,
            type=body.type or None,
            mode=body.mode or "immediate",
            position=body.position,
        )
        return answer(Sent(txid=entities.send(entity, message)))


class SignalView(ApiView):
    """/_electric/entities/:type/:id/signal"""

    @documented("Signal an entity", body=NewSignal, answers={200: SignalBody}, errors=[409])
    def post(self, request: HttpRequest, type_name: str, name: str) -> HttpResponse:
        """Pause, resume, stop or kill an entity, or have its handler see the signal."""
        body = read(request, NewSignal)
        entity = access.find_to_act(self.caller, type_name, name)
        done = entities.signal(
            entity,
            body.signal,
            sender=self.caller.url,
            reason=None if body.reason is UNSET else body.reason,
            payload=body.payload,
        )
        return answer(
            SignalBody(
                url=entity.url,
                signal=done.signal,
                previous_state=done.previous_state,
                new_state=done.new_state,
                created_at=iso(done.created_at),
                txid=done.txid,
            )
        )


class TagView(ActorView):
    """/_electric/entities/:type/:id/tags/:key"""

    @documented("Set a tag", body=TagValue, answers={200: EntityBody})
    def post(self, request: HttpRequest, type_name: str, name: str, key: str) -> HttpResponse:
        """Set a tag of an entity."""
        return self._set(type_name, name, key, read(request, TagValue).value)

    @documented("Remove a tag", answers={200: EntityBody})
    def delete(self, request: HttpRequest, type_name: str, name: str, key: str) -> HttpResponse:
        """Take a tag off an entity, if it has it."""
        return self._set(type_name, name, key, None)

    def _set(self, type_name: str, name: str, key: str, value: str | None) -> HttpResponse:
        if not 1 <= len(key) <= 256 or not key.isprintable() or not _is_utf8(self.request):
            raise InvalidRequest.field("/key", "a tag's key is 1 to 256 printable characters")
        entity = access.find_to_act(self.actor.principal, type_name, name)
        entities.set_tag(entity, key, value)
        return answer(entity_body(access.find(type_name, name)))


def _is_utf8(request: HttpRequest) -> bool:
    """Whether the address is, as it was sent: Django escapes anew what is not."""
    try:
        unquote(request.META.get("RAW_URI", "").partition("?")[0], errors="strict")
    except UnicodeDecodeError:
        return False
    return True


# --- Entity types -----------------------------------------------------------------------------


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
        return answer(entity_type_body(entities.register_type(self.caller, body.name, facts)), 201)

    @documented("List entity types", answers={200: list[EntityTypeBody]})
    def get(self, request: HttpRequest) -> HttpResponse:
        """All types, by name."""
        return answer([entity_type_body(each) for each in EntityType.objects.order_by("name")])


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
        looked_up(name)
        entity_type = EntityType.objects.filter(pk=name).first()
        if entity_type is None:
            raise NotFound(f"There is no entity type {name}.")
        return answer(entity_type_body(entity_type))


# --- Streams ----------------------------------------------------------------------------------

READ_PARAMETERS = ("offset", "live", "cursor")
LIVE: dict[int | tuple[int, str], Any] = {(200, "text/event-stream"): str}


class WakeStreamView(ApiView):
    """/runners/:id/wake"""

    @documented(
        "Read a runner's wakes",
        answers={200: list[JsonObject], **LIVE, 204: None, 304: None},
        parameters=READ_PARAMETERS,
    )
    def get(self, request: HttpRequest, runner_id: str) -> HttpResponseBase:
        """The wakes that wait for one's own runner."""
        runner = own_runner_alone(self.caller, runner_id)
        return reads.serve(request, reads.WakesOf(runner.pk))

    @documented("Find the tail of a runner's wakes", answers={200: None})
    def head(self, request: HttpRequest, runner_id: str) -> HttpResponseBase:
        """The headers alone."""
        return self.get(request, runner_id)

    def handle_exception(self, exc: Exception) -> HttpResponse:  # type: ignore[override]
        """Trouble is 503 with Retry-After: the existing client does not back off otherwise."""
        error = translate(exc)
        return error_response(ServiceUnavailable() if error.status == 500 else error)


class MainStreamView(ApiView):
    """/:type/:id/main"""

    authentication_classes = ()

    @documented(
        "Read an entity's stream",
        answers={200: list[Any], **LIVE, 204: None, 304: None},
        parameters=READ_PARAMETERS,
        headers=["Electric-Claim-Token"],
    )
    def get(self, request: HttpRequest, type_name: str, name: str) -> HttpResponseBase:
        """For whoever may read the entity, and the holder of its active claim."""
        entity = access.find_to_read_stream(request, type_name, name)
        return reads.serve(request, reads.EventsOf(entity.pk))

    @documented("Find the tail of an entity's stream", answers={200: None})
    def head(self, request: HttpRequest, type_name: str, name: str) -> HttpResponseBase:
        """The headers alone."""
        return self.get(request, type_name, name)

    @documented(
        "Append to an entity's stream",
        body=Any,
        answers={200: None, 204: None},
        errors=[409],
        headers=["Electric-Claim-Token", *producers.HEADERS],
    )
    def post(self, request: HttpRequest, type_name: str, name: str) -> HttpResponse:
        """Append an event, or an array of events, with the active claim's write token."""
        token = access.claim_token(request)
        if token is None:
            raise Unauthenticated("Appending needs the active claim's write token.")
        entity = access.find_for_holder(type_name, name)
        try:
            sequence = producers.Sequence.parse(request.headers)
            events = _events(request)
        except PullwakeError:
            # Who may not write is told that, not what an event looks like.
            if access.written_by(token) != entity:
                raise Unauthenticated(access.NOT_THE_HOLDER) from None
            raise
        with transaction.atomic():
            state = wakes.lock_of(entity.pk)
            if state is None or access.written_by(token) != entity:
                raise Unauthenticated(access.NOT_THE_HOLDER)
            new = sequence is None or producers.advance(entity, sequence)
            if new:
                log.append(state, events)
                wakes.save(state)
        response = HttpResponse(status=200 if new and sequence is not None else 204)
        response.headers["Stream-Next-Offset"] = offsets.encode(state.tail)
        if sequence is not None:
            response.headers["Producer-Epoch"] = str(sequence.epoch)
            response.headers["Producer-Seq"] = str(sequence.seq)
        return response


def _events(request: HttpRequest) -> list[Any]:
    body = decode(raw_body(request), Any)
    events = body if isinstance(body, list) else [body]
    if not events:
        raise InvalidRequest("There is no event to append.")
    return events
