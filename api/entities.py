"""The REST API of entities: made, read, changed and deleted; sent to, signalled and tagged."""

from datetime import timedelta
from typing import Annotated, Any, Literal

import msgspec
from django.contrib.admin.models import CHANGE
from django.http import HttpRequest, HttpResponse
from msgspec import UNSET, Meta, UnsetType

from api.acting import (
    ActingAuthentication,
    ActingHandlerAuthentication,
    ForActor,
    HandlerAuthentication,
)
from api.fields import (
    RESERVED_TYPES,
    DispatchPolicy,
    EntityStatus,
    EntityUrl,
    Key,
    ManifestKey,
    is_utf8,
    known,
    policy_to,
    principal_field,
)
from api.lists import answer_page, limit_of
from api.openapi import documented
from api.views import ApiView, EntityResource
from claims import endings, standing
from core import tracing
from core.bodies import Body, JsonObject, answer, parameter, read
from core.clock import epoch_ms
from core.errors import BadFields, DuplicateUrl, Forbidden, InvalidRequest, NotFound
from core.identifiers import is_entity_url, is_id, is_number
from core.principals import Principal
from dispatch import entities, inbox, signals, types
from dispatch.messages import Message
from dispatch.models import STATUSES, Entity, EntityQuerySet
from dispatch.streams import conditions

Tags = dict[
    Annotated[str, Meta(min_length=1, max_length=256)], Annotated[str, Meta(max_length=4096)]
]


MAX_DELAY_MS = 365 * 24 * 3_600_000
"""The longest that a message is delayed."""


class Sandbox(Body, frozen=True, kw_only=True):
    """Where an entity works: a profile that its runner advertises, or what its parent has."""

    profile: Key | UnsetType = UNSET
    """The name of a profile that the runner advertises."""
    key: Key | UnsetType = UNSET
    """Which of the sandboxes of that profile: the same key is the same sandbox."""
    scope: Literal["entity", "wake"] | UnsetType = UNSET
    """Whether it lasts for the entity or for one wake."""
    persistent: bool | UnsetType = UNSET
    """Whether it is kept between wakes."""
    owner: bool | UnsetType = UNSET
    """Whether this entity disposes of it."""
    inherit: bool | UnsetType = UNSET
    """Take the parent's profile and key."""


class NewWatch(Body, frozen=True, kw_only=True):
    """Wake the subscriber when this happens at the entity that is made."""

    subscriberUrl: EntityUrl  # noqa: N815
    """The entity that is to be woken."""
    condition: conditions.Condition
    """What it is woken for."""
    debounceMs: conditions.DebounceMs | UnsetType = UNSET  # noqa: N815
    """Milliseconds to wait after the last change, and then wake once for all."""
    timeoutMs: conditions.TimeoutMs | UnsetType = UNSET  # noqa: N815
    """Milliseconds after which it is woken if nothing happened; 0 is never."""
    includeResponse: bool | UnsetType = UNSET  # noqa: N815
    """Whether a finished run's text comes with the wake; true unless said otherwise."""
    manifestKey: ManifestKey | UnsetType = UNSET  # noqa: N815
    """A name of this registration: the next one of that name replaces it."""


class NewEntity(Body, frozen=True, kw_only=True):
    """An entity to be made."""

    args: JsonObject | UnsetType = UNSET
    """What its handler is given; checked by the type's `creation_schema`."""
    tags: Tags | UnsetType = UNSET
    """Its tags."""
    dispatch_policy: DispatchPolicy | UnsetType = UNSET
    """The runner that it is dispatched to. Without it: the parent's, or else the type's."""
    initialMessage: Any = UNSET  # noqa: N815
    """The payload of a first message, sent as it is made."""
    initialMessageType: Key | UnsetType = UNSET  # noqa: N815
    """The type of that message."""
    parent: EntityUrl | UnsetType = UNSET
    """The URL of an entity that the caller may act on, whose child it becomes."""
    sandbox: Sandbox | UnsetType = UNSET
    """Where it is to work."""
    wake: NewWatch | UnsetType = UNSET
    """Who is to be woken for what happens at the new entity."""


class EntityChange(Body, frozen=True, kw_only=True):
    """What is to be replaced of an entity."""

    dispatch_policy: DispatchPolicy | UnsetType = UNSET
    """The runner that is to have its next wake; a running claim stays where it is."""
    tags: Tags | UnsetType = UNSET
    """All its tags from now on."""


class StandingBody(Body, frozen=True, kw_only=True):
    """Why nobody is at work on what an entity has to do."""

    reason: standing.Reason
    """Which of the reasons it is."""
    message: str
    """The same in a sentence, with what helps."""
    since: int | UnsetType = UNSET
    """Since when, in milliseconds since 1970."""


class EntityFacts(Body, frozen=True, kw_only=True):
    """What is told of an entity wherever one is shown."""

    url: str
    """Its path: `/<type>/<id>`."""
    type: str
    """The name of its type."""
    status: EntityStatus
    """What it does: `running` exactly while a claim on it is active."""
    streams: dict[str, str]
    """The path of its `main` stream."""
    tags: dict[str, str]
    """Its tags."""
    created_by: str
    """The canonical URL of its creator."""
    created_at: int
    """When it was made, in milliseconds since 1970."""
    updated_at: int
    """When it changed last, in milliseconds since 1970."""
    dispatch_policy: DispatchPolicy | UnsetType = UNSET
    """The runner that it is dispatched to; left out where it has none."""
    parent: str | UnsetType = UNSET
    """The URL of the entity whose child it is."""


class EntityBody(EntityFacts, frozen=True, kw_only=True):
    """An entity."""

    spawn_args: JsonObject
    """The `args` that it was made with."""
    sandbox: JsonObject | UnsetType = UNSET
    """Where it works."""
    txid: int | UnsetType = UNSET
    """The number of the change, where the call made one."""
    externally_writable_collections: JsonObject | UnsetType = UNSET
    """The type's, of which others than handlers may write."""
    standing: StandingBody | UnsetType = UNSET
    """Why nobody is at work on what it has to do, where that is so."""


Mode = Literal["immediate", "queued", "paused", "steer"]


class NewMessage(Body, frozen=True, kw_only=True):
    """A message; ``from`` and ``from_principal`` are the server's to say, and passed over.

    ``afterMs``: sent that much later, but accepted or refused now; nothing or less is at once.
    """

    payload: Any
    """What is sent: any JSON; checked by the type's `inbox_schemas`."""
    key: Key | UnsetType = UNSET
    """Makes the call idempotent: a second message of the same key is the first one."""
    type: Key | UnsetType = UNSET
    """The type of the message, which its handler tells messages apart by."""
    mode: Mode | UnsetType = UNSET
    """How it is taken: at once, in turn, or not before it is released. `immediate` unless said
    otherwise.
    """
    position: Key | UnsetType = UNSET
    """Its place in the queue: such texts are ordered as texts are."""
    from_agent: EntityUrl | UnsetType = UNSET
    """The URL of the entity that sends it; believed with that entity's write token, or of an
    `agent:` principal.
    """
    afterMs: Annotated[float, Meta(le=MAX_DELAY_MS)] | UnsetType = UNSET  # noqa: N815
    """Milliseconds to send it after; 0 or less is now."""


class MessageChange(Body, frozen=True, kw_only=True):
    """What is to be changed of a message."""

    payload: Any = UNSET
    """Its new payload."""
    mode: Mode | UnsetType = UNSET
    """Its new mode."""
    position: Key | UnsetType = UNSET
    """Its new place in the queue."""
    status: Literal["pending", "processed", "cancelled"] | UnsetType = UNSET
    """What becomes of it: to be done, done, or never to be done."""


class Sent(Body, frozen=True, kw_only=True):
    """The transaction that a message, or a manifest's entry, was or will be appended in."""

    txid: str
    """The id of the change, which the event on the stream has in `headers.txid`."""


class NewSignal(Body, frozen=True, kw_only=True):
    """A signal."""

    signal: Literal["SIGSTOP", "SIGCONT", "SIGTERM", "SIGKILL", "SIGINT", "SIGHUP", "SIGUSR"]
    """SIGSTOP pauses, SIGCONT resumes, SIGTERM stops, SIGKILL kills and fences the claim; the
    others are the handler's.
    """
    reason: Annotated[str, Meta(max_length=4096)] | UnsetType = UNSET
    """Why, for whoever reads the stream."""
    payload: Any = UNSET
    """Anything, for the handler."""


class SignalBody(Body, frozen=True, kw_only=True):
    """What a signal did."""

    url: str
    """The entity's path."""
    signal: str
    """The signal."""
    previous_state: str
    """The entity's status before."""
    new_state: str
    """Its status since."""
    created_at: int
    """When it was signalled, in milliseconds since 1970."""
    txid: int
    """The number of the change."""


class TagValue(Body, frozen=True, kw_only=True):
    """The value of a tag."""

    value: Annotated[str, Meta(max_length=4096)]
    """The tag's value."""


def entity_facts(entity: Entity) -> JsonObject:
    """What `EntityFacts` has of an entity, with its dispatch state."""
    state = entity.dispatch_state
    return {
        "url": entity.url,
        "type": entity.type,
        "status": state.status,
        "streams": {"main": entity.stream_path},
        "tags": entity.tags,
        "created_by": entity.created_by,
        "created_at": epoch_ms(entity.created_at),
        "updated_at": epoch_ms(entity.updated_at),
        "dispatch_policy": policy_to(state.runner_id),
        "parent": known(entity.parent),
    }


def entity_body(
    entity: Entity,
    txid: int | UnsetType = UNSET,
    *,
    writable: JsonObject | None = None,
    stands: standing.Standing | None = None,
) -> EntityBody:
    """An entity, with its dispatch state, as the API shows it.

    ``txid``: of the change that is answered. ``writable``: the externally writable collections of
    its type, and ``stands``: why it stands, where these are shown.
    """
    return EntityBody(
        **entity_facts(entity),
        spawn_args=entity.spawn_args,
        sandbox=known(entity.sandbox),
        externally_writable_collections=known(writable),
        txid=txid,
        standing=UNSET if stands is None else _standing_body(stands),
    )


def _standing_body(stands: standing.Standing) -> StandingBody:
    since = UNSET if stands.since is None else epoch_ms(stands.since)
    return StandingBody(reason=stands.reason, message=stands.says, since=since)


# --- Entities ---------------------------------------------------------------------------------


class EntitiesView(ApiView):
    """/_electric/entities"""

    @documented(
        "List the caller's entities",
        answers={200: list[EntityBody]},
        parameters=["type", "status", "parent", "created_by", "limit", "before"],
        sends=["Link"],
    )
    def get(self, request: HttpRequest) -> HttpResponse:
        """The newest first, of the type, status, parent and creator that are asked for.

        ``before`` an entity's url: those made before that one.
        """
        own = entities.entities_of(self.caller)
        found, bad = own, BadFields()
        with bad:
            limit = limit_of(request)
        with bad:
            found = _narrow(request, own, self.caller)
        with bad:
            before = parameter(request, "before")
            if before is not None:
                found = found.filter(pk__lt=_key(own, before))
        bad.refuse()
        return answer_page(
            request, limit, found, entity_body, lambda each: ("before", str(each.pk))
        )


def _key(own: EntityQuerySet, before: str) -> int:
    """The key that a page's link has, of an entity that may be gone since; or that of a URL.

    Raises InvalidRequest.
    """
    if is_number(before, 18):
        return int(before)
    key: int | None = own.filter(url=before).values_list("pk", flat=True).first()
    if key is None:
        raise InvalidRequest.field("/before", "not the url of one of the caller's entities")
    return key


def _narrow(request: HttpRequest, found: EntityQuerySet, caller: Principal) -> EntityQuerySet:
    """Those of the caller's entities that the request asks for.

    Raises InvalidRequest, and Forbidden for another creator than the caller.
    """
    bad = BadFields()
    with bad:
        asked_type = parameter(request, "type")
        if asked_type is not None and not is_id(asked_type):
            raise InvalidRequest.field("/type", "no entity type")
    with bad:
        status = parameter(request, "status")
        if status is not None and status not in STATUSES:
            raise InvalidRequest.field("/status", f"expected one of {', '.join(STATUSES)}")
    with bad:
        parent = parameter(request, "parent")
        if parent is not None and not is_entity_url(parent):
            raise InvalidRequest.field("/parent", "not the url of an entity")
    with bad:
        creator = parameter(request, "created_by")
        whose = caller if creator is None else principal_field(creator, "/created_by")
    bad.refuse()
    if whose != caller:
        raise Forbidden("Entities are listed to their creator alone.")
    if asked_type is not None:
        found = found.filter(type=asked_type)
    if status is not None:
        found = found.with_status(status)
    if parent is not None:
        found = found.filter(parent=parent)
    return found


class EntityView(ForActor, EntityResource):
    """/_electric/entities/:type/:id"""

    authentication_classes = (ActingAuthentication,)

    @property
    def caller(self) -> Principal:
        """Who calls; `put` alone takes one who calls in another's name. Raises Forbidden."""
        return self.actor.require_itself()

    @documented(
        "Make an entity",
        body=NewEntity,
        answers={201: EntityBody},
        errors=[409],
        headers=["traceparent", "tracestate"],
    )
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
        watch = None if body.wake is UNSET else body.wake
        about = [body.parent or "", watch.subscriberUrl if watch is not None else ""]
        caller = self.actor.principal
        for url in dict.fromkeys(filter(None, about)) or [""]:
            caller = self.actor.prove(url, within=False)
        message = None
        if body.initialMessage is not UNSET:
            message = Message(
                body.initialMessage,
                caller.url,
                type=body.initialMessageType or None,
                principal=caller.url,
                trace=tracing.cause(),
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
                watch=None if watch is None else _watch(watch),
            )
        except DuplicateUrl as duplicate:
            existing = entities.at(f"/{type_name}/{name}")
            if existing is not None and entities.may_read(existing, caller):
                duplicate.details = {"entity": self._shown(existing)}
            raise
        return answer(entity_body(entity, txid), 201)

    def _shown(self, existing: Entity) -> EntityBody | JsonObject:
        """An entity that the principal may read; where another calls in its name and may do nothing
        about that one, only the address, which is what runtimes look at.
        """
        try:
            self.actor.prove(existing.url, within=True)
        except Forbidden:
            return {"url": existing.url, "streams": {"main": existing.stream_path}}
        return entity_body(existing)

    @documented("Get an entity", answers={200: EntityBody})
    def get(self, request: HttpRequest, type_name: str, name: str) -> HttpResponse:
        """An entity that the caller may read."""
        entity = self.entity(type_name, name)
        entity_type = types.of(entity)
        writable = entity_type.externally_writable_collections if entity_type else None
        stands = standing.find(entity.pk)
        return answer(entity_body(entity, writable=writable, stands=stands))

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
        return answer(entity_body(entities.find_again(entity)))

    @documented("Delete an entity", answers={204: None})
    def delete(self, request: HttpRequest, type_name: str, name: str) -> HttpResponse:
        """Its stream goes with it, and an active claim is fenced."""
        entity = self.entity(type_name, name)
        endings.forget_past_of_entity(entity)
        with self.recorded(entity, "Deleted"):
            endings.delete_entity(entity)
        return HttpResponse(status=204)


def _watch(asked: NewWatch) -> entities.Watch:
    wish = conditions.wish(
        asked.condition,
        include_response=asked.includeResponse,
        debounce_ms=asked.debounceMs,
        timeout_ms=asked.timeoutMs,
    )
    return entities.Watch(asked.subscriberUrl, wish, asked.manifestKey or "")


def _runner_id(policy: DispatchPolicy | UnsetType) -> str | None:
    return None if policy is UNSET else policy.runner_id


class ActorView(ForActor, EntityResource):
    """Calls in the name of an entity's creator: by a handler, or by its runner's owner."""

    @property
    def caller(self) -> Principal:
        """The principal whose rights count, after `entity` has checked them."""
        return self.actor.principal

    def entity(self, type_name: str, name: str) -> Entity:
        """The entity that the call is about. Raises NotFound, Forbidden."""
        entity = super().entity(type_name, name)
        # Once it is found: should another be at its URL by now, the proof is about that one.
        self.actor.prove(entity.url, within=True)
        self.actor.require_reach(entity)
        return entity


class SendView(ActorView):
    """/_electric/entities/:type/:id/send"""

    authentication_classes = (HandlerAuthentication,)
    find = staticmethod(entities.find_alone)

    @documented(
        "Send a message",
        body=NewMessage,
        answers={200: Sent},
        errors=[409],
        headers=["traceparent", "tracestate"],
    )
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
        message = Message(
            body.payload,
            self.actor.url,
            key=body.key or None,
            type=body.type or None,
            mode=body.mode or "immediate",
            position=body.position or None,
            principal=self.caller.url,
            agent=agent,
            trace=tracing.cause(),
        )
        after = timedelta(milliseconds=max(body.afterMs or 0, 0))
        return answer(Sent(txid=entities.send(entity, message, after)))


class InboxView(ActorView):
    """/_electric/entities/:type/:id/inbox/:key"""

    authentication_classes = (ActingHandlerAuthentication,)

    @documented("Edit a message", body=MessageChange, answers={200: Sent}, errors=[409])
    def patch(self, request: HttpRequest, type_name: str, name: str, key: str) -> HttpResponse:
        """Change what is given of a message that was sent."""
        body = read(request, MessageChange)
        given = {each: getattr(body, each) for each in body.__struct_fields__}
        change = {each: value for each, value in given.items() if value is not UNSET}
        if not change:
            raise InvalidRequest("There is nothing to change: payload, mode, position or status.")
        return answer(Sent(txid=inbox.edit(self._with_message(type_name, name, key), key, change)))

    @documented("Delete a message", answers={200: Sent}, errors=[409])
    def delete(self, request: HttpRequest, type_name: str, name: str, key: str) -> HttpResponse:
        """It is not to be done any more, if nobody has taken it yet."""
        return answer(Sent(txid=inbox.delete(self._with_message(type_name, name, key), key)))

    def _with_message(self, type_name: str, name: str, key: str) -> Entity:
        """The entity, unless no message can have this key. Raises NotFound."""
        entity = self.entity(type_name, name)
        if "\0" in key or not is_utf8(self.request):
            raise NotFound("There is no such message.")
        return entity


RECORDED = {
    "SIGSTOP": "Paused",
    "SIGCONT": "Resumed",
    "SIGTERM": "Stopped",
    "SIGKILL": "Killed",
}
"""Signals that change where an entity stands, as operators read of them in their audit log."""


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
        send = endings.kill if signal.name == "SIGKILL" else signals.send
        if signal.name in RECORDED:
            with self.recorded(entity, RECORDED[signal.name], flag=CHANGE):
                done = send(entity, signal)
        else:
            done = send(entity, signal)
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
        require_key(self.request, key, "/key")
        entity = self.entity(type_name, name)
        txid = entities.set_tag(entity, key, value)
        return answer(entity_body(entities.find_again(entity), txid))


def require_key(request: HttpRequest, key: str, path: str) -> None:
    """Raise InvalidRequest for a key in the address that is not valid."""
    if not 1 <= len(key) <= 256 or not key.isprintable() or not is_utf8(request):
        raise InvalidRequest.field(path, "expected 1 to 256 printable characters")
