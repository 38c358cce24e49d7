"""Entities, as operators see them and act on them."""

import json
from datetime import timedelta
from hashlib import sha256
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Exists, Func, OuterRef, QuerySet, TextField, Value
from django.db.models.functions import Now
from django.db.models.lookups import Exact, IsNull
from django.http import HttpRequest
from django.utils.html import format_html
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from claims import endings
from claims.models import ConsumerClaim
from claims.standing import DEAD, Trouble, of_runner, outlook, says_failing, trouble_of
from core.bodies import decode
from core.errors import InvalidRequest, InvalidSignal, NotRunning
from core.principals import Principal
from dispatch import entities, signals
from dispatch.messages import Message
from dispatch.models import STATUSES, DispatchState, Entity, EntityType, Registration
from operators import audit, conversation, timeline
from operators import state as states
from operators.family import family_of
from operators.kit.forms import NeededReasonForm, ReasonForm, TargetForm, propose_heir
from operators.kit.lists import (
    Narrow,
    ages,
    column,
    exact,
    moment_column,
    newest_of,
    row_column,
    words,
)
from operators.kit.markup import (
    badge,
    ident,
    lines,
    list_of,
    moment,
    page_of,
    principal,
    quiet,
    runner_link,
)
from operators.kit.verbs import Order, Verb
from operators.remedies import stands
from operators.shared_state import shared_states_of
from operators.talking import TalkingAdmin

# --- What may be done to an entity --------------------------------------------------------------


class MessageForm(forms.Form):
    payload = forms.CharField(
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 5}),
        help_text="JSON, or else it is sent as text.",
    )
    type = forms.CharField(
        label="Message type", max_length=256, required=False, widget=UnfoldAdminTextInputWidget()
    )
    reason = ReasonForm.base_fields["reason"]

    def clean_payload(self) -> Any:
        text = self.cleaned_data["payload"]
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return text
        try:
            return decode(text.encode(), Any)
        except InvalidRequest as exc:
            raise forms.ValidationError(exc.message) from None


def _signal_effect(says: str, says_claimed: str, *, already: str = "") -> Any:
    def effect(entity: Any) -> str:
        state = entity.dispatch_state
        if state.ended:
            raise InvalidSignal
        if already and state.status == already:
            raise InvalidRequest(f"It is already {already}.")
        return says_claimed if state.claimed else says

    return effect


def _signal(name: str) -> Any:
    def act(entity: Any, order: Order) -> str:
        send = endings.kill if name == "SIGKILL" else signals.send
        done = send(entity, signals.Signal(name, order.principal.url, order.reason or None))
        if done.previous_state == done.new_state:
            return f"still {done.new_state}"
        return f"{done.new_state}, was {done.previous_state}"

    return act


def _resume_effect(entity: Any) -> str:
    state = entity.dispatch_state
    if state.ended:
        raise InvalidSignal
    if not state.paused:
        raise InvalidRequest("It is not paused.")
    if not state.pending or state.claimed:
        return "Resumes."
    state.paused = False  # after this verb
    return f"Resumes, and as work is pending, {_outlook(entity)}."


def _wake_effect(entity: Any) -> str:
    problem = entities.why_not_woken(entity.dispatch_state)
    if problem is not None:
        raise problem
    warning = _warning(entity)
    if entity.dispatch_state.outstanding_wake_id is not None:
        return f"Its unclaimed wake is emitted again, with the same generation.{warning}"
    return f"Woken at once, without waiting for its delay to pass.{warning}"


def _trouble(entity: Any) -> Trouble | None:
    return trouble_of(entity.dispatch_state.runner, held=entity.held, now=entity.now)


def _warning(entity: Any) -> str:
    """A warning if its runner will not claim the wake, or is likely to fail again."""
    trouble = _trouble(entity)
    if trouble is None:
        runner_id = entity.dispatch_state.runner_id
        failing = says_failing(runner_id, entity.runner_failed, entity.runner_ended)
        return f" But {failing}. Move it instead." if failing else ""
    remedy = " Move it instead." if trouble.lasts else ""
    return f" But nobody claims it now: {trouble.says}.{remedy}"


def _outlook(entity: Any) -> str:
    return outlook(entity.dispatch_state, held=entity.held, now=entity.now)


def _may_be_woken(entity: Any) -> bool:
    """Whether it may be woken, and that changes anything: a full runner cannot claim it earlier."""
    state = entity.dispatch_state
    trouble = _trouble(entity)
    lost = trouble is not None and (trouble.lasts or state.outstanding_wake_id is not None)
    return not lost and entities.why_not_woken(state) is None


def _wake(entity: Any, order: Order) -> str:
    entities.wake_now(entity)
    trouble = _trouble(entity)
    if trouble is None:
        return "woken"
    return f"emitted, but {entity.dispatch_state.runner_id} cannot claim it now"


def _send_effect(entity: Any) -> str:
    state = entity.dispatch_state
    problem = entities.why_not_sent(state)
    if problem is not None:
        raise problem
    appended = "The message is appended to its stream"
    if state.paused:
        return f"{appended}, and waits until the entity is resumed."
    if state.claimed:
        return f"{appended}. The active claim handles it, or the next one does."
    state.last_work_offset = state.tail + 1  # after this verb
    return f"{appended}; {_outlook(entity)}."


def _send(entity: Any, order: Order) -> str:
    payload, kind = order.data["payload"], order.data["type"] or None
    said = sha256(json.dumps([payload, kind]).encode()).hexdigest()
    message = Message(
        payload,
        order.principal.url,
        # What is done again after an interruption is the same message, not another one.
        key=f"{order.run}-{said[:16]}" if order.run else None,
        type=kind,
        principal=order.principal.url,
    )
    return f"sent, txid {entities.send(entity, message)}"


def _move_effect(entity: Any) -> str:
    state = entity.dispatch_state
    if state.ended:
        raise NotRunning(f"The entity is {state.ended}.")
    along = ", together with its unclaimed wake" if state.outstanding_wake_id else ""
    stays = ""
    if state.claimed:
        trouble = _trouble(entity)
        stays = " Its active claim stays with the present runner"
        # A disabled one may finish what it holds.
        dead = trouble is not None and trouble.reason in DEAD
        stays += f", and {trouble.says}: take it back, too." if trouble and dead else "."
    waits = ""
    if state.retry_at is not None and state.retry_at > entity.now:
        waits = " It waits out its delay there, unless it is woken now."
    return (
        f"Dispatched to the runner named below{along}.{stays}{waits} That runner's owner can then"
        " read the entity."
    )


def _move(entity: Any, order: Order) -> str:
    if not entities.move(entity, order.data["target"]):
        raise InvalidRequest("It is already dispatched to that runner.")
    return f"moved to {order.data['target']}"


def _lives(entity: Any) -> bool:
    return not entity.dispatch_state.ended


def _is_open(entity: Any) -> bool:
    """Whether it takes messages, and was not asked to stop."""
    return not entity.dispatch_state.closed


WAKE = Verb(
    "wake",
    "Wake now",
    "dispatch.wake_entity",
    "Wake these entities now?",
    _wake_effect,
    _wake,
    fits=_may_be_woken,
)

MOVE = Verb(
    "move",
    "Move",
    "dispatch.move_entity",
    "Dispatch these entities to another runner?",
    _move_effect,
    _move,
    form=TargetForm,
    proposes=lambda entities: propose_heir(
        (each.dispatch_state.runner for each in entities),
        (each.created_by for each in entities),
    ),
    fits=_lives,
)

VERBS = (
    WAKE,
    Verb(
        "send",
        "Send a message",
        "dispatch.send_entity",
        "Send a message to these entities?",
        _send_effect,
        _send,
        form=MessageForm,
        fits=_is_open,
    ),
    MOVE,
    Verb(
        "pause",
        "Pause",
        "dispatch.pause_entity",
        "Pause these entities?",
        _signal_effect(
            "Pauses. Its work waits until it is resumed.",
            "Pauses when its claim has ended. Until then it runs.",
            already="paused",
        ),
        _signal("SIGSTOP"),
        fits=lambda entity: _is_open(entity) and not entity.dispatch_state.paused,
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
            "Stops for good. It takes no more messages, and is never woken again.",
            "Stops for good when its claim has ended.",
        ),
        _signal("SIGTERM"),
        danger=True,
        fits=_is_open,
    ),
    Verb(
        "kill",
        "Kill",
        "dispatch.kill_entity",
        "Kill these entities at once?",
        _signal_effect(
            "Ends for good, at once.",
            "Ends for good, at once. Its active claim is fenced, and the work in progress is lost.",
        ),
        _signal("SIGKILL"),
        form=NeededReasonForm,
        danger=True,
        fits=_lives,
    ),
)

# --- Filters ----------------------------------------------------------------------------------


def _whose_state(narrow: Narrow) -> Narrow:
    return lambda entities: entities.of(narrow(DispatchState.objects.all()))


def _with_tag(rows: Any, said: str) -> Any:
    """Those among the newest that have the tag: ``key=value``, or ``key`` with any value."""
    key, equals, value = said.partition("=")
    tag = _TagText(key)
    return newest_of(rows.filter(Exact(tag, Value(value)) if equals else IsNull(tag, False)))


class _TagText(Func):
    """The value of a tag.

    Not ``tags__…``, since a key may contain the separators of lookups; and not Django's
    KeyTextTransform, which takes a number for a place in a list.
    """

    function = "jsonb_extract_path_text"
    output_field = TextField()

    def __init__(self, key: str) -> None:
        super().__init__("tags", Value(key))

    def as_sqlite(self, compiler: Any, connection: Any, **facts: Any) -> Any:
        """SQLite's function takes a path, in which not every key can be written."""
        return self.as_sql(
            compiler,
            connection,
            template="(SELECT value FROM json_each(%(expressions)s))",
            arg_joiner=") WHERE (key = ",
            **facts,
        )


def _created_by(rows: Any, key: str) -> Any:
    try:
        return rows.filter(created_by=Principal.parse(key).url)
    except ValueError:
        return rows.none()


def _with_last_error(rows: Any, text: str) -> Any:
    """Whose newest claim of all ended with an error that has this text, of the newest claims."""
    later = ConsumerClaim.objects.filter(entity=OuterRef("entity"), pk__gt=OuterRef("pk"))
    newest = newest_of(ConsumerClaim.objects.filter(~Exists(later), error__icontains=text))
    return rows.filter(pk__in=newest.values("entity"))


def _waits_longer(length: timedelta) -> Narrow:
    waiting: Any = DispatchState.objects.waiting().with_pending_since()
    return lambda rows: rows.of(waiting.filter(pending_since__lte=Now() - length))


WORK = {word: (label, _whose_state(narrow)) for word, (label, narrow) in states.WORK.items()}
WORK |= {
    "waiting-minutes": ("waits for ten minutes or more", _waits_longer(timedelta(minutes=10))),
    "waiting-hours": ("waits for an hour or more", _waits_longer(timedelta(hours=1))),
}


def _with_status(status: str) -> Narrow:
    return lambda entities: entities.with_status(status)


STATUS = {status: (status, _with_status(status)) for status in STATUSES}

_REGISTERED = Exists(Registration.objects.filter(subscriber=OuterRef("pk")))
WAITS: dict[str, tuple[str, Narrow]] = {
    "yes": ("yes", lambda rows: rows.filter(_REGISTERED)),
    "no": ("no", lambda rows: rows.exclude(_REGISTERED)),
}

# --- Entities ---------------------------------------------------------------------------------


@admin.register(Entity)
class EntityAdmin(TalkingAdmin):
    verbs = VERBS
    unseen = ("tags", "spawn_args", "sandbox")
    told = True
    story_template = "operators/entity.html"
    list_display = (
        row_column("entity", lambda row: ident(row.url, page_of("dispatch_entity", row.pk))),
        column("status", lambda row: badge(row.dispatch_state.status)),
        "runner",
        "work",
        "wake",
        "failures",
        moment_column("created_at", "created"),
    )
    list_filter = (
        words("status", "status", STATUS),
        words("work", "work", WORK),
        words("waits for others", "waits", WAITS),
        words("created", "age", ages("created_at")),
        exact("type", "type", "type"),
        exact("creator (kind:id)", "creator", _created_by),
        exact("tag (key=value, or key)", "tag", _with_tag, is_of_newest=True),
        exact("runner id", "runner", "dispatch_state__runner_id"),
        exact("parent's URL", "parent", "parent"),
        exact("text of the last error", "error", _with_last_error, is_of_newest=True),
    )
    search_fields = ("url__startswith",)
    search_parts = ("url",)
    search_help_text = "Part of the URL, or a tag such as team=search"

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        rows: Any = super().get_queryset(request)
        told: QuerySet[Any] = rows.with_pending_since()
        return told.select_related("dispatch_state__outstanding_wake")

    def with_prospects(self, rows: "QuerySet[Any]") -> "QuerySet[Any]":
        told: QuerySet[Any] = rows.select_related(
            "dispatch_state__outstanding_wake", "dispatch_state__runner__liveness"
        ).annotate(**of_runner("dispatch_state__runner"))
        return told

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Any]", search_term: str
    ) -> tuple["QuerySet[Any]", bool]:
        """Search by the beginning of the URL, the subscription key, a tag, or a part of the URL.

        The first slash may be left out, as in the names of wake streams. No index finds parts or
        tags: only the newest `SEARCHED` are looked at.
        """
        term = search_term.strip()
        if not term:
            return queryset, False
        begins = Entity.objects.filter(url__startswith=term if term[0] == "/" else f"/{term}")
        part = newest_of(Entity.objects.filter(url__icontains=term))
        if "=" in term:
            part = _with_tag(Entity.objects.all(), term)
        found = begins.values("pk").union(part.values("pk"))
        if len(term) == 16:
            found = found.union(Entity.objects.filter(subscription_key=term).values("pk"))
        return queryset.filter(pk__in=found), False

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        state = row.dispatch_state
        state.now = row.now
        shown = timeline.newest(state)
        active = next((each.claim for each in shown.spells if each.holds), None)
        return {
            "state": state,
            "done": audit.last(row, "Pause") if state.paused else None,
            **stands(row.pk, row.now, request.user),
            "status": state.status,
            "creator": principal(row.created_by),
            "facts": {"Tags": row.tags, "Spawn args": row.spawn_args, "Sandbox": row.sandbox},
            "timeline": shown,
            "ahead": timeline.ahead(state, active),
            "claims_url": list_of("claims_consumerclaim", entity=row.url),
            "wakes_url": list_of("dispatch_wake", entity=row.url),
            "letters_url": list_of("claims_deadletter", entity=row.url),
            "timers_url": list_of("dispatch_timer", entity=row.url),
            **family_of(row, row.now),
            "shared_states": shared_states_of(row),
            "conversation": conversation.newest(row, state),
            "type_known": EntityType.objects.filter(pk=row.type).exists(),
        }

    @admin.display(description="runner")
    def runner(self, entity: Any) -> str:
        state = entity.dispatch_state
        if state.runner_id is not None:
            return runner_link(state.runner_id)
        if state.pending and not state.ended:
            return badge("no runner", title="Its work waits until it is given a runner")
        return quiet("none")

    @admin.display(description="work")
    def work(self, entity: Any) -> str:
        state = entity.dispatch_state
        place = quiet(f"cursor {state.cursor} of {state.tail}")
        if not state.pending or state.ended:
            return lines(quiet("none"), place)
        return lines(badge("pending"), moment(entity.pending_since, entity.now), place)

    @admin.display(description="unclaimed wake")
    def wake(self, entity: Any) -> str | None:
        wake = entity.dispatch_state.outstanding_wake
        if wake is None:
            return None
        return lines(f"generation {wake.generation}", moment(wake.created_at, entity.now))

    @admin.display(description="failures")
    def failures(self, entity: Any) -> str | None:
        state = entity.dispatch_state
        if not state.failures:
            return None
        tries = None
        if state.retry_at is not None:
            tries = format_html("next try due {}", moment(state.retry_at, entity.now))
        return lines(badge(f"{state.failures} in a row", "bad" if state.failing else "warn"), tries)
