"""The REST API of entities: made, read, changed and deleted; sent to, signalled and tagged."""

from typing import Annotated, Any, Literal, cast
from urllib.parse import unquote

import msgspec
from django.http import HttpRequest, HttpResponse
from msgspec import UNSET, Meta, UnsetType

from api.acting import (
    ActingAuthentication,
    ActingHandlerAuthentication,
    Actor,
    HandlerAuthentication,
)
from api.fields import RESERVED_TYPES, DispatchPolicy, Key, known, policy_to
from api.lists import answer_page
from api.openapi import documented
from api.views import ApiView, EntityResource
from claims import endings
from core.bodies import Body, JsonObject, answer, parameter, read
from core.clock import epoch_ms
from core.errors import DuplicateUrl, InvalidRequest
from core.identifiers import is_id
from core.principals import Principal
from dispatch import entities, signals, types
from dispatch.models import Entity

Tags = dict[
    Annotated[str, Meta(min_length=1, max_length=256)], Annotated[str, Meta(max_length=4096)]
]
EntityUrl = Annotated[str, Meta(pattern=r"^/[^/]{1,128}/[^/]{1,128}$(?!\n)")]


class Sandbox(Body, frozen=True, kw_only=True):
    """Where an entity works: a profile that its runner advertises, or what its parent has."""

    profile: Key | UnsetType = UNSET
    key: Key | UnsetType = UNSET
    scope: Literal["entity", "wake"] | UnsetType = UNSET
    persistent: bool | UnsetType = UNSET
    owner: bool | UnsetType = UNSET
    inherit: bool | UnsetType = UNSET


class NewEntity(Body, frozen=True, kw_only=True):
    """An entity to be made."""

    args: JsonObject | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET
    dispatch_policy: DispatchPolicy | UnsetType = UNSET
    initialMessage: Any = UNSET  # noqa: N815
    initialMessageType: Key | UnsetType = UNSET  # noqa: N815
    parent: EntityUrl | UnsetType = UNSET
    sandbox: Sandbox | UnsetType = UNSET


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
    txid: int | UnsetType = UNSET
    externally_writable_collections: JsonObject | UnsetType = UNSET


class NewMessage(Body, frozen=True, kw_only=True):
    """A message; ``from`` and ``from_principal`` are the server's to say, and passed over."""

    payload: Any
    key: Key | UnsetType = UNSET
    type: Key | UnsetType = UNSET
    mode: Literal["immediate", "queued", "paused", "steer"] | UnsetType = UNSET
    position: Key | UnsetType = UNSET
    from_agent: EntityUrl | UnsetType = UNSET
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
    created_at: int
    txid: int


class TagValue(Body, frozen=True, kw_only=True):
    """The value of a tag."""

    value: Annotated[str, Meta(max_length=4096)]


def entity_body(
    entity: Entity, txid: int | UnsetType = UNSET, *, writable: JsonObject | None = None
) -> EntityBody:
    """An entity, with its dispatch state, as the API shows it.

    ``txid``: of what changed it. ``writable``: the externally writable collections of its type,
    where they are shown.
    """
    state = entity.dispatch_state
    return EntityBody(
        url=entity.url,
        type=entity.type,
        status=state.status,  # type: ignore[arg-type]
        streams={"main": entity.stream_path},
        dispatch_policy=policy_to(state.runner_id),
        tags=entity.tags,
        spawn_args=entity.spawn_args,
        sandbox=known(entity.sandbox),
        parent=known(entity.parent),
        externally_writable_collections=known(writable),
        created_by=entity.created_by,
        created_at=epoch_ms(entity.created_at),
        updated_at=epoch_ms(entity.updated_at),
        txid=txid,
    )


# --- Entities ---------------------------------------------------------------------------------


class EntitiesView(ApiView):
    """/_electric/entities"""

    @documented(
        "List the caller's entities",
        answers={200: list[EntityBody]},
        parameters=["limit", "before"],
    )
    def get(self, request: HttpRequest) -> HttpResponse:
        """The newest first; ``before`` an entity's url, those made before that one."""
        found = entities.entities_of(self.caller)
        before = parameter(request, "before")
        if before is not None:
            last = found.filter(url=before).first()
            if last is None:
                raise InvalidRequest.field("/before", "not the url of one of the caller's entities")
            found = found.filter(pk__lt=last.pk)
        return answer_page(request, found, entity_body, lambda each: ("before", each.url))


class EntityView(EntityResource):
    """/_electric/entities/:type/:id"""

    authentication_classes = (ActingAuthentication,)

    @property
    def actor(self) -> Actor:
        """Who acts."""
        return cast(Actor, self.request.user)

    @property
    def caller(self) -> Principal:
        """Who calls; `put` alone takes one who calls in another's name. Raises Forbidden."""
        return self.actor.require_itself()

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
        caller = self.actor.prove(body.parent or "", within=False)
        message = None
        if body.initialMessage is not UNSET:
            message = entities.Message(
                body.initialMessage,
                caller.url,
                type=body.initialMessageType or None,
                principal=caller.url,
            )
        try:
            entity, txid = entities.create(
                caller,
                type_name,
                name,
                args=body.args or {},
                tags=body.tags or {},
                runner_id=_runner_id(body.dispatch_policy),
                parent=body.parent or "",
                sandbox=None if body.sandbox is UNSET else msgspec.to_builtins(body.sandbox),
                message=message,
            )
        except DuplicateUrl as duplicate:
            existing = entities.find(type_name, name)
            if entities.may_read(existing, caller):
                duplicate.details = {"entity": entity_body(existing)}
            raise
        return answer(entity_body(entity, txid), 201)

    @documented("Get an entity", answers={200: EntityBody})
    def get(self, request: HttpRequest, type_name: str, name: str) -> HttpResponse:
        """An entity that the caller may read."""
        entity = self.entity(type_name, name)
        entity_type = types.of(entity)
        writable = entity_type.externally_writable_collections if entity_type else None
        return answer(entity_body(entity, writable=writable))

    @documented("Change an entity", body=EntityChange, answers={200: EntityBody})
    def patch(self, request: HttpRequest, type_name: str, name: str) -> HttpResponse:
        """Replace what is given."""
        body = read(request, EntityChange)
        entity = self.entity(type_name, name)
        entities.update(
            self.caller,
            entity,
            tags=None if body.tags is UNSET else body.tags,
            runner_id=_runner_id(body.dispatch_policy),
        )
        return answer(entity_body(entities.find(type_name, name)))

    @documented("Delete an entity", answers={204: None})
    def delete(self, request: HttpRequest, type_name: str, name: str) -> HttpResponse:
        """Its stream goes with it, and an active claim is fenced."""
        entity = self.entity(type_name, name)
        with self.recorded(entity, "Deleted"):
            endings.delete_entity(entity)
        return HttpResponse(status=204)


def _runner_id(policy: DispatchPolicy | UnsetType) -> str | None:
    return None if policy is UNSET else policy.runner_id


class ActorView(EntityResource):
    """What may be done in the name of an entity's creator: by a handler, or its runner's owner."""

    @property
    def actor(self) -> Actor:
        """Who acts."""
        return cast(Actor, self.request.user)

    @property
    def caller(self) -> Principal:
        """The principal whose rights hold, which `entity` has made sure of."""
        return self.actor.principal

    def entity(self, type_name: str, name: str) -> Entity:
        """The entity that the call is about. Raises NotFound, Forbidden."""
        self.actor.prove(f"/{type_name}/{name}", within=True)
        entity = super().entity(type_name, name)
        self.actor.require_reach(entity)
        return entity


class SendView(ActorView):
    """/_electric/entities/:type/:id/send"""

    authentication_classes = (HandlerAuthentication,)

    @documented("Send a message", body=NewMessage, answers={200: Sent}, errors=[409])
    def post(self, request: HttpRequest, type_name: str, name: str) -> HttpResponse:
        """Append a message to an entity's stream, and wake it."""
        body = read(request, NewMessage)
        entity = self.entity(type_name, name)
        agent = body.from_agent or None
        handled = self.actor.url if self.actor.claim is not None else None
        if agent not in (None, handled) and self.caller.kind != "agent":
            raise InvalidRequest.field(
                "/from_agent", "believed only with that entity's write token, or of an agent"
            )
        message = entities.Message(
            body.payload,
            self.actor.url,
            key=body.key or None,
            type=body.type or None,
            mode=body.mode or "immediate",
            position=body.position or None,
            principal=self.caller.url,
            agent=agent,
        )
        return answer(Sent(txid=entities.send(entity, message)))


class SignalView(ActorView):
    """/_electric/entities/:type/:id/signal"""

    authentication_classes = (ActingAuthentication,)

    @documented("Signal an entity", body=NewSignal, answers={200: SignalBody}, errors=[409])
    def post(self, request: HttpRequest, type_name: str, name: str) -> HttpResponse:
        """Pause, resume, stop or kill an entity, or have its handler see the signal."""
        body = read(request, NewSignal)
        entity = self.entity(type_name, name)
        signal = signals.Signal(
            body.signal,
            self.caller.url,
            None if body.reason is UNSET else body.reason,
            body.payload,
        )
        if signal.name == "SIGKILL":
            with self.recorded(entity, "Killed"):
                done = endings.kill(entity, signal)
        else:
            done = signals.send(entity, signal)
        return answer(
            SignalBody(
                url=entity.url,
                signal=signal.name,
                previous_state=done.previous_state,
                new_state=done.new_state,
                created_at=epoch_ms(done.created_at),
                txid=done.txid,
            )
        )


class TagView(ActorView):
    """/_electric/entities/:type/:id/tags/:key"""

    authentication_classes = (ActingHandlerAuthentication,)

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
        entity = self.entity(type_name, name)
        txid = entities.set_tag(entity, key, value)
        return answer(entity_body(entities.find(type_name, name), txid))


def _is_utf8(request: HttpRequest) -> bool:
    """Whether the address is, as it was sent: Django escapes anew what is not."""
    try:
        unquote(request.META.get("RAW_URI", "").partition("?")[0], errors="strict")
    except UnicodeDecodeError:
        return False
    return True
