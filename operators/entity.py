"""Entities and their dispatch states, wakes and entity types, as operators see and move them."""

import json
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from claims import endings
from core.bodies import decode
from core.errors import InvalidRequest, InvalidSignal, NotRunning
from dispatch import entities, signals
from dispatch.models import DispatchState, Entity, EntityType, StreamEvent, Wake
from operators.kit import (
    ExactFilter,
    NeededReasonForm,
    OperatorAdmin,
    Order,
    ReasonForm,
    Verb,
    WordFilter,
    where,
)
from operators.markup import (
    NOTHING,
    badge,
    entity_link,
    ident,
    lines,
    list_of,
    moment,
    page_of,
    principal,
    quiet,
    runner_link,
)
from operators.runner import TargetForm

# --- What may be done to an entity --------------------------------------------------------------


class MessageForm(forms.Form):
    """A message."""

    payload = forms.CharField(
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 5}),
        help_text="JSON, or else it is sent as text.",
    )
    type = forms.CharField(
        label="Message type", max_length=256, required=False, widget=UnfoldAdminTextInputWidget()
    )
    reason = ReasonForm.base_fields["reason"]

    def clean_payload(self) -> Any:
        """JSON, or the text itself."""
        text = self.cleaned_data["payload"]
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return text
        try:
            return decode(text.encode(), Any)
        except InvalidRequest as exc:
            raise forms.ValidationError(exc.message) from None


def _status(entity: Any) -> str:
    status: str = entity.dispatch_state.status
    return status


def _signal_effect(says: str, says_claimed: str, *, already: str = "") -> Any:
    def effect(entity: Any) -> str:
        state = entity.dispatch_state
        if state.ended:
            raise InvalidSignal
        if already and _status(entity) == already:
            raise InvalidRequest(f"It is {already} already.")
        return says_claimed if state.claimed else says

    return effect


def _signal(name: str, *, already: str = "") -> Any:
    def act(entity: Any, order: Order) -> str:
        send = endings.kill if name == "SIGKILL" else signals.send
        done = send(entity, signals.Signal(name, order.principal.url, order.reason or None))
        if done.previous_state == done.new_state:
            return f"still {done.new_state}"
        return f"{done.new_state}, was {done.previous_state}"

    return act


def _resume_effect(entity: Any) -> str:
    if entity.dispatch_state.ended:
        raise InvalidSignal
    if not entity.dispatch_state.paused:
        raise InvalidRequest("It is not paused.")
    pending = entity.dispatch_state.pending
    return "Resumes, and is woken: work is pending." if pending else "Resumes."


def _wake_effect(entity: Any) -> str:
    problem = entities.why_not_woken(entity.dispatch_state)
    if problem is not None:
        raise problem
    if entity.dispatch_state.outstanding_wake_id is not None:
        return "Its unclaimed wake is emitted again, with the same generation."
    return "Woken at once, without waiting out its delay."


def _wake(entity: Any, order: Order) -> str:
    entities.wake_now(entity)
    return "woken"


def _send_effect(entity: Any) -> str:
    state = entity.dispatch_state
    if state.ended or state.stop_requested:
        raise NotRunning("The entity is stopping, stopped or killed.")
    if state.paused:
        return "The message is appended to its stream, and waits until it is resumed."
    if state.claimed:
        return "The message is appended to its stream; the claim that runs takes it, or the next."
    return "The message is appended to its stream, and the entity is woken."


def _send(entity: Any, order: Order) -> str:
    message = entities.Message(
        order.data["payload"], order.principal.url, type=order.data["type"] or None
    )
    txid = entities.send(entity, message)
    return f"sent, txid {txid}"


def _move_effect(entity: Any) -> str:
    state = entity.dispatch_state
    if state.ended:
        raise NotRunning(f"The entity is {state.ended}.")
    along = ", and its unclaimed wake goes along" if state.outstanding_wake_id else ""
    stays = " The claim that runs stays where it is." if state.claimed else ""
    return (
        f"Dispatched to the runner named below{along}.{stays} That runner's owner can then read"
        " the entity."
    )


def _move(entity: Any, order: Order) -> str:
    if not entities.move(entity, order.data["target"]):
        raise InvalidRequest("It is dispatched to that runner already.")
    return f"moved to {order.data['target']}"


def _lives(entity: Any) -> bool:
    return not entity.dispatch_state.ended


VERBS = (
    Verb(
        "wake",
        "Wake now",
        "dispatch.wake_entity",
        "Wake these entities now?",
        _wake_effect,
        _wake,
        fits=lambda entity: bool(_lives(entity) and entity.dispatch_state.pending),
    ),
    Verb(
        "send",
        "Send a message",
        "dispatch.send_entity",
        "Send a message to these entities?",
        _send_effect,
        _send,
        form=MessageForm,
        fits=_lives,
    ),
    Verb(
        "move",
        "Move",
        "dispatch.move_entity",
        "Dispatch these entities to another runner?",
        _move_effect,
        _move,
        form=TargetForm,
        fits=_lives,
    ),
    Verb(
        "pause",
        "Pause",
        "dispatch.pause_entity",
        "Pause these entities?",
        _signal_effect(
            "Pauses: its work waits until it is resumed.",
            "Pauses once its claim has ended; until then it runs.",
            already="paused",
        ),
        _signal("SIGSTOP"),
        fits=lambda entity: _lives(entity) and not entity.dispatch_state.paused,
    ),
    Verb(
        "resume",
        "Resume",
        "dispatch.resume_entity",
        "Resume these entities?",
        _resume_effect,
        _signal("SIGCONT"),
        fits=lambda entity: bool(_lives(entity) and entity.dispatch_state.paused),
    ),
    Verb(
        "stop",
        "Stop",
        "dispatch.stop_entity",
        "Stop these entities for good?",
        _signal_effect(
            "Stops for good: it takes no message and is never woken again.",
            "Stops for good once its claim has ended.",
        ),
        _signal("SIGTERM"),
        danger=True,
        fits=_lives,
    ),
    Verb(
        "kill",
        "Kill",
        "dispatch.kill_entity",
        "Kill these entities at once?",
        _signal_effect(
            "Ends for good, at once.",
            "Ends for good, at once; the claim that runs is fenced, and what it is working on is"
            " thrown away.",
        ),
        _signal("SIGKILL"),
        form=NeededReasonForm,
        danger=True,
        fits=_lives,
    ),
)

# --- Filters ----------------------------------------------------------------------------------

_NOT_ENDED = Q(dispatch_state__ended="")


class StatusFilter(WordFilter):
    """By the computed status."""

    title = "status"
    parameter_name = "status"
    words = {
        "idle": (
            "idle",
            where(
                dispatch_state__ended="",
                dispatch_state__paused=False,
                dispatch_state__active_epoch=None,
            ),
        ),
        "running": ("running", lambda rows: rows.running()),
        "stopping": ("stopping", where(dispatch_state__stop_requested=True)),
        "paused": ("paused", where(dispatch_state__paused=True, dispatch_state__active_epoch=None)),
        "stopped": ("stopped", where(dispatch_state__ended="stopped")),
        "killed": ("killed", where(dispatch_state__ended="killed")),
    }


class WorkFilter(WordFilter):
    """By what stands between an entity and its work."""

    title = "work"
    parameter_name = "work"
    words = {
        "waiting": (
            "pending, could be done, and unclaimed",
            lambda rows: rows.of(DispatchState.objects.waiting()),
        ),
        "pending": ("pending", lambda rows: rows.of(DispatchState.objects.pending())),
        "unclaimed": (
            "pending, and unclaimed",
            lambda rows: rows.of(DispatchState.objects.pending().filter(active_epoch=None)),
        ),
        "stranded": (
            "pending, and no runner",
            lambda rows: rows.of(DispatchState.objects.stranded()),
        ),
        "failing": ("keeps failing", lambda rows: rows.of(DispatchState.objects.failing())),
        "delayed": (
            "waits after a failure",
            lambda rows: rows.of(DispatchState.objects.filter(retry_at__isnull=False)),
        ),
        "woken": (
            "woken, unclaimed",
            lambda rows: rows.of(DispatchState.objects.filter(outstanding_wake__isnull=False)),
        ),
    }


class TypeFilter(ExactFilter):
    """By type."""

    title = "type"
    parameter_name = "type"
    lookup = "type"


class DispatchedToFilter(ExactFilter):
    """By the runner that it is dispatched to."""

    title = "runner id"
    parameter_name = "runner"
    lookup = "dispatch_state__runner_id"


# --- Entities ---------------------------------------------------------------------------------


@admin.register(Entity)
class EntityAdmin(OperatorAdmin):
    """What has work, where it stands, and what stands in its way."""

    verbs = VERBS
    unseen = ("tags", "spawn_args", "sandbox")
    story_template = "operators/entity.html"
    list_display = ("entity", "status", "runner", "work", "wake", "failures", "created")
    list_display_links = None
    list_filter = (StatusFilter, WorkFilter, TypeFilter, DispatchedToFilter)
    search_fields = ("url",)
    search_help_text = "URL or its beginning, such as /agent/hello"

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        """Entities with their dispatch state, and whether each is claimed."""
        rows: Any = super().get_queryset(request)
        told: QuerySet[Any] = rows.with_pending_since()
        return told.select_related("dispatch_state__outstanding_wake")

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Any]", search_term: str
    ) -> tuple["QuerySet[Any]", bool]:
        """By the beginning of the URL, or the entity part of a subscription id."""
        term = search_term.strip()
        if not term:
            return queryset, False
        beginning = Q(url__startswith=term if term.startswith("/") else f"/{term}")
        if len(term) == 16 and not term.startswith("/"):
            return queryset.filter(beginning | Q(subscription_key=term)), False
        return queryset.filter(beginning), False

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """Where it stands, and what happened last."""
        state = row.dispatch_state
        events = row.events.order_by("-offset")[:20]
        return {
            "state": state,
            "status": _status(row),
            "creator": principal(row.created_by),
            "facts": {"Tags": row.tags, "Spawn args": row.spawn_args, "Sandbox": row.sandbox},
            "claims": list(row.claims.order_by("-pk")[:10]),
            "wakes": list(row.wakes.order_by("-generation")[:10]),
            "events": [_readable(event) for event in events],
            "claims_url": list_of("claims_consumerclaim", entity=row.url),
            "wakes_url": list_of("dispatch_wake", entity=row.url),
            "type_known": EntityType.objects.filter(pk=row.type).exists(),
        }

    @admin.display(description="entity")
    def entity(self, entity: Any) -> str:
        """Its URL."""
        return ident(entity.url, page_of("dispatch_entity", entity.pk))

    @admin.display(description="status")
    def status(self, entity: Any) -> str:
        """Its computed status."""
        return badge(_status(entity))

    @admin.display(description="runner")
    def runner(self, entity: Any) -> str:
        """Where it is dispatched to."""
        state = entity.dispatch_state
        if state.runner_id is not None:
            return runner_link(state.runner_id)
        if state.pending and not state.ended:
            return badge("no runner", "bad", "Its work waits until it is given a runner")
        return quiet("none")

    @admin.display(description="work")
    def work(self, entity: Any) -> str:
        """Whether work is pending, since when, and the cursor against the tail."""
        state = entity.dispatch_state
        place = quiet(f"cursor {state.cursor} of {state.tail}")
        if not state.pending or state.ended:
            return lines(quiet("none"), place)
        return lines(badge("pending", "info"), moment(entity.pending_since, entity.now), place)

    @admin.display(description="unclaimed wake")
    def wake(self, entity: Any) -> str:
        """The wake that nobody claimed yet."""
        wake = entity.dispatch_state.outstanding_wake
        if wake is None:
            return NOTHING
        return lines(f"generation {wake.generation}", moment(wake.created_at, entity.now))

    @admin.display(description="failures")
    def failures(self, entity: Any) -> str:
        """Claims in a row not released, and when it is tried again."""
        state = entity.dispatch_state
        if not state.failures:
            return NOTHING
        tries = None
        if state.retry_at is not None:
            tries = format_html("next try {}", moment(state.retry_at, entity.now))
        return lines(badge(f"{state.failures} in a row", "bad" if state.failing else "warn"), tries)

    @admin.display(description="created")
    def created(self, entity: Any) -> str:
        """Since when it is there."""
        return moment(entity.created_at, entity.now)


def _readable(event: StreamEvent) -> dict[str, Any]:
    """An event of a main stream, with its JSON set out."""
    try:
        data = json.loads(event.data)
    except ValueError:
        data = event.data
    kind = data.get("type", "") if isinstance(data, dict) else ""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    return {"offset": event.offset, "when": event.created_at, "type": kind, "text": text[:20_000]}


# --- Dispatch states ----------------------------------------------------------------------------


class StateWorkFilter(WordFilter):
    """By what stands between an entity and its work."""

    title = "work"
    parameter_name = "work"
    words = {
        "pending": ("pending", lambda rows: rows.pending()),
        "stranded": ("pending, and no runner", lambda rows: rows.stranded()),
        "failing": ("keeps failing", lambda rows: rows.failing()),
    }


class StateRunnerFilter(ExactFilter):
    """By runner."""

    title = "runner id"
    parameter_name = "runner"
    lookup = "runner_id"


@admin.register(DispatchState)
class DispatchStateAdmin(OperatorAdmin):
    """The rows that are locked, as they are; an entity's page tells what they mean."""

    list_display = (
        "entity_",
        "runner_",
        "generation",
        "place",
        "flags",
        "failures",
        "woken",
        "claimed_",
        "released",
    )
    list_display_links = None
    list_filter = (StateWorkFilter, StateRunnerFilter)
    search_fields = ("entity__url",)
    search_help_text = "URL of the entity or its beginning"

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        """States with the URL of their entity."""
        return (
            super()
            .get_queryset(request)
            .select_related("entity")
            .only(*(field.attname for field in DispatchState._meta.concrete_fields), "entity__url")
        )

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Any]", search_term: str
    ) -> tuple["QuerySet[Any]", bool]:
        """By the beginning of the entity's URL."""
        term = search_term.strip()
        return (queryset.filter(entity__url__startswith=term) if term else queryset), False

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> Any:
        """The entity's page shows its state."""
        from django.http import HttpResponseRedirect

        return HttpResponseRedirect(page_of("dispatch_entity", object_id))

    @admin.display(description="entity")
    def entity_(self, state: Any) -> str:
        """Whose state it is."""
        return entity_link(state.entity_id, state.entity.url)

    @admin.display(description="runner")
    def runner_(self, state: Any) -> str:
        """Where it is dispatched to."""
        return runner_link(state.runner_id)

    @admin.display(description="cursor, work, tail")
    def place(self, state: Any) -> str:
        """The three offsets."""
        return f"{state.cursor}, {state.last_work_offset}, {state.tail}"

    @admin.display(description="flags")
    def flags(self, state: Any) -> str:
        """Paused, asked to stop, ended, woken."""
        said = {
            "paused": state.paused,
            "stopping": state.stop_requested,
            state.ended: state.ended,
            "woken": state.outstanding_wake_id,
            "pending": state.pending,
        }
        return ", ".join(word for word, holds in said.items() if holds) or NOTHING

    @admin.display(description="woken")
    def woken(self, state: Any) -> str:
        """When it was last woken."""
        return moment(state.last_wake_at, state.now)

    @admin.display(description="claimed")
    def claimed_(self, state: Any) -> str:
        """When it was last claimed."""
        return moment(state.last_claimed_at, state.now)

    @admin.display(description="released")
    def released(self, state: Any) -> str:
        """When it was last released."""
        return moment(state.last_released_at, state.now)


# --- Wakes --------------------------------------------------------------------------------------


class WakeStatusFilter(WordFilter):
    """By what became of it."""

    title = "status"
    parameter_name = "status"
    words = {
        "outstanding": ("unclaimed", where(status="outstanding")),
        "claimed": ("claimed", where(status="claimed")),
        "withdrawn": ("withdrawn", where(status="withdrawn")),
    }


class WakeRunnerFilter(ExactFilter):
    """By runner."""

    title = "runner id"
    parameter_name = "runner"
    lookup = "runner_id"


class WakeEntityFilter(ExactFilter):
    """By entity."""

    title = "entity URL"
    parameter_name = "entity"
    lookup = "entity__url"


@admin.register(Wake)
class WakeAdmin(OperatorAdmin):
    """What runners were told, and what became of it."""

    story_template = "operators/wake.html"
    list_display = ("wake", "status_", "entity_", "runner_", "created", "emitted")
    list_display_links = None
    list_filter = (WakeStatusFilter, WakeRunnerFilter, WakeEntityFilter)
    search_fields = ("wake_id",)
    search_help_text = "Wake id, whole"

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        """Wakes with the URL of their entity."""
        return (
            super()
            .get_queryset(request)
            .select_related("entity")
            .only(*(field.attname for field in Wake._meta.concrete_fields), "entity__url")
        )

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Any]", search_term: str
    ) -> tuple["QuerySet[Any]", bool]:
        """By the whole wake id."""
        term = search_term.strip()
        return (queryset.filter(wake_id=term) if term else queryset), False

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """The wake, and the claim that took it."""
        claims = row.entity.claims.filter(consumer_id=row.wake_id)
        return {"claim": claims.first()}

    @admin.display(description="wake")
    def wake(self, wake: Any) -> str:
        """Its id and generation."""
        link = ident(wake.wake_id, page_of("dispatch_wake", wake.pk))
        return lines(link, quiet(f"generation {wake.generation}"))

    @admin.display(description="status")
    def status_(self, wake: Any) -> str:
        """What became of it."""
        return badge("unclaimed", "warn") if wake.status == "outstanding" else badge(wake.status)

    @admin.display(description="entity")
    def entity_(self, wake: Any) -> str:
        """Who was woken."""
        return entity_link(wake.entity_id, wake.entity.url)

    @admin.display(description="runner")
    def runner_(self, wake: Any) -> str:
        """Who was told."""
        return runner_link(wake.runner_id)

    @admin.display(description="created")
    def created(self, wake: Any) -> str:
        """When the entity was woken."""
        return moment(wake.created_at, wake.now)

    @admin.display(description="last emitted")
    def emitted(self, wake: Any) -> str:
        """When the runner was last told, and how often."""
        again = quiet(f"{wake.emissions} times") if wake.emissions > 1 else None
        return lines(moment(wake.emitted_at, wake.now), again)


# --- Entity types -------------------------------------------------------------------------------


@admin.register(EntityType)
class EntityTypeAdmin(OperatorAdmin):
    """What entities of a type take, and who may make them."""

    row_order = "pk"
    unseen = ("creation_schema", "inbox_schemas", "state_schemas", "permission_grants")
    story_template = "operators/entity_type.html"
    list_display = ("name_", "description_", "runner", "registrar", "revision", "updated")
    list_display_links = None
    search_fields = ("name",)
    search_help_text = "Name or its beginning"

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Any]", search_term: str
    ) -> tuple["QuerySet[Any]", bool]:
        """By the beginning of the name."""
        term = search_term.strip()
        return (queryset.filter(name__startswith=term) if term else queryset), False

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """The schemas and the grants."""
        schemas = {
            "Creation schema": row.creation_schema,
            "Inbox schemas": row.inbox_schemas,
            "State schemas": row.state_schemas,
        }
        return {
            "registrar": principal(row.registered_by),
            "grants": [
                (principal(grant["subject_value"]), grant["permission"])
                for grant in row.permission_grants
            ],
            "facts": schemas,
            "entities_url": list_of("dispatch_entity", type=row.pk),
        }

    @admin.display(description="type")
    def name_(self, kind: Any) -> str:
        """Its name."""
        return ident(kind.name, page_of("dispatch_entitytype", kind.pk))

    @admin.display(description="description")
    def description_(self, kind: Any) -> str:
        """What it is for."""
        text: str = kind.description
        return text if len(text) <= 120 else f"{text[:119]}…"

    @admin.display(description="default runner")
    def runner(self, kind: Any) -> str:
        """Where its entities are dispatched by default."""
        return runner_link(kind.default_runner_id)

    @admin.display(description="registered by")
    def registrar(self, kind: Any) -> str:
        """Whose it is."""
        return ident(principal(kind.registered_by))

    @admin.display(description="updated")
    def updated(self, kind: Any) -> str:
        """When it last changed."""
        return moment(kind.updated_at, kind.now)
