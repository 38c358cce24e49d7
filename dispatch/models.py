"""Entities, their work, and the wakes that tell runners about it.

`dispatch.entities` writes entities, `dispatch.types` their types, `dispatch.wakes` dispatch states
and wakes, `dispatch.streams.log` events. No status is stored: it is computed from the dispatch
state, which knows the epoch of the claim that holds the entity.
"""

import hashlib
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from django.db import models
from django.db.models import Case, Count, F, OuterRef, Q, Subquery, When, Window
from django.db.models.functions import Coalesce, Now, RowNumber
from django.db.models.lookups import Exact, IsNull

from core.identifiers import SHARED_STATE_PREFIX
from core.principals import UNENCODED, Principal
from runners.models import JSON, PrincipalField, Runner, canonical


def subscription_key(url: str) -> str:
    """The entity part of a subscription id: 16 hex digits of the SHA-256 of the entity's URL."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]


MANAGE = "manage"
"""The permission that gives its holder the rights of an entity's creator."""


class EntityType(models.Model):
    """What entities of a type accept, who may make them, and where they are dispatched."""

    name = models.CharField(primary_key=True, max_length=128)
    description = models.TextField(blank=True)
    creation_schema = models.JSONField(null=True, blank=True)
    inbox_schemas = models.JSONField(null=True, blank=True)
    state_schemas = models.JSONField(null=True, blank=True)
    slash_commands = models.JSONField(null=True, blank=True)
    serve_endpoint = models.TextField(null=True, blank=True)
    externally_writable_collections = models.JSONField(null=True, blank=True)
    # The id of a runner that may not exist yet: its owner is checked when an entity is made.
    default_runner = models.CharField(
        max_length=128, null=True, blank=True, db_column="default_runner_id"
    )
    permission_grants = models.JSONField(default=list, blank=True)
    retain_events = models.PositiveIntegerField(
        null=True, blank=True, help_text="acked events that a living entity keeps; null: all"
    )
    retain_days = models.PositiveIntegerField(
        null=True, blank=True, help_text="for which a living entity keeps them; null: for ever"
    )
    registered_by = PrincipalField()
    registration = models.CharField(
        max_length=28,
        blank=True,
        default="",
        db_default="",
        help_text="new with each first registration of the name; its entities keep it",
    )
    revision = models.PositiveIntegerField(default=1)
    created_at = models.DateTimeField(db_default=Now())
    updated_at = models.DateTimeField(db_default=Now())

    class Meta:
        required_db_features = JSON
        default_permissions = ("view",)
        permissions = [
            ("transfer_entitytype", "Can transfer entity types"),
            ("retain_entitytype", "Can change what entity types keep"),
            ("remove_entitytype", "Can remove entity types"),
        ]
        constraints = [
            models.CheckConstraint(condition=canonical("registered_by"), name="type_registrar_url"),
        ]

    def __str__(self) -> str:
        return self.name

    def grants(self, principal: Principal, *permissions: str) -> bool:
        """Whether the principal is the registrar, or was granted one of these permissions."""
        subjects = {("principal", principal.url), ("principal_kind", principal.kind)}
        return self.registered_by == principal.url or any(
            grant["permission"] in permissions
            and (grant["subject_kind"], grant["subject_value"]) in subjects
            for grant in self.permission_grants
        )


_CLAIMED = Q(dispatch_state__ended="", dispatch_state__active_epoch__isnull=False)
_FREE = Q(dispatch_state__ended="", dispatch_state__active_epoch=None)

STATUSES = {
    "idle": _FREE & Q(dispatch_state__paused=False),
    "running": _CLAIMED & Q(dispatch_state__stop_requested=False),
    "stopping": _CLAIMED & Q(dispatch_state__stop_requested=True),
    "paused": _FREE & Q(dispatch_state__paused=True),
    "stopped": Q(dispatch_state__ended="stopped"),
    "killed": Q(dispatch_state__ended="killed"),
}
"""What `DispatchState.status` computes of a state, as the condition that finds it."""


class EntityQuerySet(models.QuerySet["Entity"]):
    """Entities, with computed columns."""

    def with_status(self, status: str) -> "EntityQuerySet":
        """Entities with this one of `STATUSES`."""
        return self.filter(STATUSES[status])

    def of(self, states: "DispatchStateQuerySet") -> "EntityQuerySet":
        """The entities of these dispatch states."""
        return self.filter(pk__in=states.values("pk"))

    def with_pending_since(self) -> "EntityQuerySet":
        """With ``pending_since``: when the oldest unacked work arrived, or None."""
        return self.annotate(pending_since=_pending_since("dispatch_state__"))


class Entity(models.Model):
    """An agent, a session or a job: what messages are sent to."""

    type = models.CharField(max_length=128)
    registration = models.CharField(
        max_length=28,
        blank=True,
        default="",
        db_default="",
        help_text="of its type, that it was made under; empty: nobody had registered it",
    )
    url = models.CharField(max_length=258, unique=True)
    subscription_key = models.CharField(max_length=16, db_index=True)
    tags = models.JSONField(default=dict)
    spawn_args = models.JSONField(default=dict)
    sandbox = models.JSONField(null=True)
    parent = models.CharField(max_length=258, blank=True)
    created_by = PrincipalField()
    created_at = models.DateTimeField(db_default=Now())
    updated_at = models.DateTimeField(db_default=Now())

    objects = EntityQuerySet.as_manager()

    class Meta:
        required_db_features = JSON
        verbose_name_plural = "entities"
        default_permissions = ("view",)
        permissions = [
            ("pause_entity", "Can pause entities"),
            ("resume_entity", "Can resume entities"),
            ("stop_entity", "Can stop entities"),
            ("kill_entity", "Can kill entities"),
            ("wake_entity", "Can wake entities now"),
            ("send_entity", "Can send messages to entities"),
            ("move_entity", "Can move entities to another runner"),
        ]
        indexes = [
            models.Index(fields=["created_by", "-id"], name="entity_creator"),
            models.Index(fields=["type", "-id"], name="entity_type"),
            models.Index(fields=["parent", "-id"], name="entity_parent", condition=~Q(parent="")),
            models.Index(fields=["created_at"], name="entity_created"),
        ]
        constraints = [
            models.CheckConstraint(condition=canonical("created_by"), name="entity_creator_url"),
        ]

    def __str__(self) -> str:
        return self.url

    @property
    def stream_path(self) -> str:
        """Where its main stream is read and written."""
        return f"{self.url}/main"


FAILING = 2
"""An entity keeps failing once this many claims in a row have ended without a release."""


_PENDING = Q(last_work_offset__gt=F("cursor")) | Q(queue_waiting=True)
# One condition of two columns: by an index of one SQLite would look at every state without a wake.
_WOKEN_OR_CLAIMED = Coalesce(
    "outstanding_wake", "active_epoch", output_field=models.BigIntegerField()
)
_UNWOKEN = Q(IsNull(_WOKEN_OR_CLAIMED, True)) & _PENDING


def _oldest_work(field: str, state: str = "") -> Subquery:
    """This column of the oldest work past a dispatch state's cursor.

    ``state`` is the lookup path from the queried rows to their dispatch state.
    """
    events = StreamEvent.objects.filter(
        work=True, entity_id=OuterRef("pk"), offset__gt=OuterRef(f"{state}cursor")
    )
    return Subquery(events.order_by("offset").values(field)[:1])


def _pending_since(state: str = "") -> Coalesce:
    queued = QueuedMessage.objects.filter(
        entity_id=OuterRef("pk"), entity__dispatch_state__queue_waiting=True
    )
    oldest = Subquery(queued.order_by("created_at").values("created_at")[:1])
    return Coalesce(_oldest_work("created_at", state), oldest)


class DispatchStateQuerySet(models.QuerySet["DispatchState"]):
    """Dispatch states, selected by what has to be done about them."""

    def pending(self) -> "DispatchStateQuerySet":
        """With work past the cursor, or a queued message to take."""
        return self.filter(_PENDING)

    def failing(self) -> "DispatchStateQuerySet":
        """Those whose claims ended repeatedly without a release, and that are still retried."""
        return self.filter(failures__gte=FAILING, ended="")

    def stranded(self) -> "DispatchStateQuerySet":
        """With pending work, but no runner that could do it."""
        return self.pending().awake().filter(runner=None)

    def waiting(self) -> "DispatchStateQuerySet":
        """With pending work that could be done, and no claim."""
        return self.pending().awake().filter(active_epoch=None)

    def with_pending_since(self) -> "DispatchStateQuerySet":
        """With ``pending_since``: when the oldest unacked work arrived, or None."""
        return self.annotate(pending_since=_pending_since())

    def longest_waiting(self) -> "DispatchStateQuerySet":
        """For each runner, and for none, the state that waits longest, oldest first.

        With ``pending_since``, and ``n``: how many of that runner's wait.
        """
        of_runner = Window(Count("pk"), partition_by="runner")
        since = F("pending_since").asc(nulls_last=True)
        place = Window(RowNumber(), partition_by="runner", order_by=[since, F("pk").asc()])
        waiting = self.waiting().with_pending_since().annotate(n=of_runner, place=place)
        return waiting.filter(place=1).order_by(since, "pk")

    def with_first_work(self) -> "DispatchStateQuerySet":
        """With ``first_work``: the offset of the oldest work past the cursor, or None.

        And with ``first_trace``, the ``trace`` of its message; where no work lies past the cursor,
        that of the message that is next in the queue.
        """
        # Of the state, not of each event: or the whole stream would be read for the one event.
        queue = QueuedMessage.objects.filter(entity_id=OuterRef(OuterRef("pk")))
        head = Subquery(queue.order_by("position", "offset").values("offset")[:1])
        queued = StreamEvent.objects.filter(entity_id=OuterRef("pk"), offset=head)
        past_cursor = When(last_work_offset__gt=F("cursor"), then=_oldest_work("trace"))
        named = {
            "first_work": _oldest_work("offset"),
            "first_trace": Case(past_cursor, default=Subquery(queued.values("trace")[:1])),
        }
        return self.annotate(**named)

    def claimed(self) -> "DispatchStateQuerySet":
        """Whose entity a claim holds."""
        return self.filter(active_epoch__isnull=False)

    def unwoken(self) -> "DispatchStateQuerySet":
        """With pending work, and neither a wake nor a claim: in a delay, paused, or at its end."""
        return self.filter(_UNWOKEN)

    def awake(self) -> "DispatchStateQuerySet":
        """Neither paused nor ended."""
        return self.filter(paused=False, ended="")

    def retry_due(self) -> "DispatchStateQuerySet":
        """Those whose delay after a failure is over."""
        return self.filter(retry_at__lte=Now())


class DispatchState(models.Model):
    """Where an entity stands: the row that is locked before anything of the entity changes.

    Offsets count the events of the main stream: an event's offset is the number of events up to
    and including it.
    """

    class End(models.TextChoices):
        """How an entity ended."""

        STOPPED = "stopped"
        KILLED = "killed"

    class Watched(models.IntegerChoices):
        """What others asked to be told about an entity; it only grows."""

        NOT = 0
        FOR_RUNS = 1
        FOR_CHANGES = 2

    entity = models.OneToOneField(
        Entity, on_delete=models.CASCADE, primary_key=True, related_name="dispatch_state"
    )
    runner = models.ForeignKey(
        Runner, null=True, on_delete=models.SET_NULL, related_name="dispatch_states"
    )
    generation = models.PositiveBigIntegerField(default=0, help_text="of the newest wake")
    tail = models.PositiveBigIntegerField(default=0, help_text="offset of the newest event")
    cursor = models.PositiveBigIntegerField(default=0, help_text="acked offset")
    last_work_offset = models.PositiveBigIntegerField(
        default=0, help_text="offset of the newest work"
    )
    queue_waiting = models.BooleanField(
        default=False, db_default=False, help_text="a queued message is the next to be taken"
    )
    given_offset = models.PositiveBigIntegerField(
        null=True,
        help_text="of the first work that the active claim was given, 0 for a queued message"
        " alone; null once it took one of those",
    )
    claimed_tail = models.PositiveBigIntegerField(
        default=0, db_default=0, help_text="the tail when the active claim was made"
    )
    signals_open = models.BooleanField(
        default=False,
        db_default=False,
        help_text="a SIGSTOP or SIGTERM came during the active claim",
    )
    watched = models.PositiveSmallIntegerField(
        choices=Watched.choices,
        default=Watched.NOT,
        db_default=Watched.NOT,
        help_text="what there may be registrations for, so that others ask no table",
    )
    outstanding_wake = models.OneToOneField(
        "dispatch.Wake", null=True, on_delete=models.SET_NULL, related_name="outstanding_for"
    )
    active_epoch = models.PositiveBigIntegerField(
        null=True, help_text="epoch of the active claim; `claims.lifecycle` sets and clears it"
    )
    paused = models.BooleanField(default=False)
    stop_requested = models.BooleanField(default=False)
    ended = models.CharField(max_length=8, choices=End.choices, default="", blank=True)
    failures = models.PositiveIntegerField(default=0, help_text="claims in a row not released")
    retry_at = models.DateTimeField(null=True, help_text="not woken before, after a failure")
    last_wake_at = models.DateTimeField(null=True)
    last_claimed_at = models.DateTimeField(null=True)
    last_released_at = models.DateTimeField(null=True)

    objects = DispatchStateQuerySet.as_manager()

    now: datetime  # of `core.clock.with_now`
    first_work: int | None = None  # of `with_first_work`
    first_trace: str | None = None
    runner_owner: str | None = None  # of a state that `dispatch.wakes` locked to be taken
    kept: "dict[str, object]"
    """How it was in the database when it was locked, or saved since."""
    before: "tuple[object, ...] | None" = None
    """Its `seen` when it was locked; None where the feed is to be told in any case."""

    class Meta:
        default_permissions = ("view",)
        indexes = [
            models.Index(fields=["runner"], name="state_to_do", condition=_PENDING),
            models.Index(fields=["runner"], name="state_unwoken", condition=_UNWOKEN),
            models.Index(
                fields=["runner"],
                name="state_claimed",
                condition=Q(active_epoch__isnull=False),
            ),
            models.Index(
                fields=["retry_at"], name="state_retry", condition=Q(retry_at__isnull=False)
            ),
            # Operators look for rare rows: each of these indexes is small.
            models.Index(
                fields=["failures"], name="state_failing", condition=Q(failures__gte=FAILING)
            ),
            models.Index(fields=["entity"], name="state_paused", condition=Q(paused=True)),
            models.Index(
                fields=["entity"], name="state_stopping", condition=Q(stop_requested=True)
            ),
            models.Index(fields=["ended"], name="state_ended", condition=Q(ended__gt="")),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(cursor__lte=F("tail")), name="state_cursor_within_stream"
            ),
            models.CheckConstraint(
                condition=Q(last_work_offset__lte=F("tail")), name="state_work_within_stream"
            ),
            models.CheckConstraint(
                condition=Q(outstanding_wake=None)
                | Q(ended="", paused=False, runner__isnull=False),
                name="state_wake_only_when_awake",
            ),
            models.CheckConstraint(
                condition=Q(outstanding_wake=None) | Q(active_epoch=None),
                name="state_woken_or_claimed",
            ),
            models.CheckConstraint(
                condition=Q(active_epoch=None) | Q(active_epoch__lte=F("generation"), ended=""),
                name="state_claim_of_a_wake",
            ),
        ]

    def __str__(self) -> str:
        return f"dispatch state of entity {self.entity_id}"

    @property
    def pending(self) -> bool:
        """Whether work lies past the cursor, or a message waits in the queue."""
        return self.last_work_offset > self.cursor or self.queue_waiting

    @property
    def due(self) -> bool:
        """Whether the entity may be woken now, if it is neither claimed nor woken."""
        retry_over = self.retry_at is None or self.retry_at <= self.now
        return self.pending and self.awake and self.runner_id is not None and retry_over

    @property
    def seen(self) -> tuple[object, ...]:
        """What the feed of entities shows of it."""
        return (self.runner_id, self.status, self.pending, self.active_epoch, self.failures)

    @property
    def failing(self) -> bool:
        """Whether its claims ended repeatedly without a release."""
        return self.failures >= FAILING

    @property
    def awake(self) -> bool:
        """Whether it may be woken at all: neither paused nor ended."""
        return not (self.paused or self.closed)

    @property
    def closed(self) -> bool:
        """Whether it takes no more messages: it is stopping, stopped or killed."""
        return bool(self.stop_requested or self.ended)

    @property
    def claimed(self) -> bool:
        """Whether the entity has an active claim."""
        return self.active_epoch is not None

    @property
    def near_only(self) -> bool:
        """Whether its handler is kept to what is near: its runner is not its creator's own."""
        return self.runner is None or self.runner.owner_principal != self.entity.created_by

    @property
    def status(self) -> str:
        """killed, stopped, stopping, running, paused or idle."""
        if self.ended:
            return self.ended
        if self.claimed:
            return "stopping" if self.stop_requested else "running"
        return "paused" if self.paused else "idle"


class WakeQuerySet(models.QuerySet["Wake"]):
    """Wakes, selected by whether they still matter."""

    def outstanding(self) -> "WakeQuerySet":
        """Emitted, and neither claimed nor withdrawn."""
        return self.filter(status=Wake.Status.OUTSTANDING)

    def unended(self) -> "WakeQuerySet":
        """The same, where a statement names the wake, in words that fit none of their indexes.

        PostgreSQL reads such an index whole, until it knows how many there are, for that costs as
        much as finding the one where they are few.
        """
        return self.exclude(status__in=[Wake.Status.CLAIMED, Wake.Status.WITHDRAWN])


class Wake(models.Model):
    """One wake of an entity; its runner's wake stream is a view of those outstanding."""

    class Status(models.TextChoices):
        """Outstanding ends in one of the others."""

        OUTSTANDING = "outstanding"
        CLAIMED = "claimed"
        WITHDRAWN = "withdrawn"

    wake_id = models.CharField(max_length=26, unique=True)
    entity = models.ForeignKey(Entity, on_delete=models.CASCADE, related_name="wakes")
    generation = models.PositiveBigIntegerField()
    runner = models.ForeignKey(Runner, null=True, on_delete=models.SET_NULL, related_name="wakes")
    status = models.CharField(max_length=12, choices=Status.choices, default=Status.OUTSTANDING)
    offset = models.PositiveBigIntegerField(help_text="in the runner's wake stream")
    created_at = models.DateTimeField(db_default=Now())
    emitted_at = models.DateTimeField(db_default=Now())
    emissions = models.PositiveIntegerField(default=1)

    objects = WakeQuerySet.as_manager()

    now: datetime  # of `core.clock.with_now`

    class Meta:
        default_permissions = ("view",)
        indexes = [
            models.Index(
                fields=["runner", "offset"], name="wake_stream", condition=Q(status="outstanding")
            ),
            models.Index(
                fields=["runner", "id"], name="wake_oldest", condition=Q(status="outstanding")
            ),
            models.Index(
                fields=["emitted_at"], name="wake_stale", condition=Q(status="outstanding")
            ),
            models.Index(fields=["-id"], name="wake_withdrawn", condition=Q(status="withdrawn")),
        ]
        constraints = [
            models.UniqueConstraint(fields=["entity", "generation"], name="wake_generation_once"),
            models.UniqueConstraint(
                fields=["entity"], name="wake_one_outstanding", condition=Q(status="outstanding")
            ),
            models.CheckConstraint(condition=Q(generation__gte=1), name="wake_generation_from_1"),
            models.CheckConstraint(
                condition=~Q(status="outstanding") | Q(runner__isnull=False),
                name="wake_outstanding_has_runner",
            ),
        ]

    def __str__(self) -> str:
        return self.wake_id


@models.BooleanField.register_lookup
class ExactBoolean(Exact):
    """A boolean column by itself, as Django 5.2 writes it on every database.

    Django 6.1 compares it with 1 on SQLite, and an index serves only conditions that are written as
    its own is: ``event_work``, made under 5.2, would be of no use under 6.1.
    """

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, Any]:
        """``work``, or ``NOT work``."""
        if not isinstance(self.rhs, bool):
            return super().as_sql(compiler, connection)
        column, params = self.process_lhs(compiler, connection)
        return (column if self.rhs else f"NOT {column}"), params


class StreamEvent(models.Model):
    """An event of an entity's main stream, as the JSON text that readers get."""

    id = models.BigAutoField(primary_key=True)
    entity = models.ForeignKey(
        Entity, on_delete=models.CASCADE, related_name="events", db_index=False
    )
    offset = models.PositiveBigIntegerField()
    message_key = models.CharField(max_length=256, null=True, help_text="of an inbox message")
    data = models.TextField()
    work = models.BooleanField(
        default=False, db_default=False, help_text="the entity is woken for it"
    )
    trace = models.TextField(
        null=True, help_text="of a message, the trace that it was sent in: `core.tracing`"
    )
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        default_permissions = ()
        indexes = [
            # However much a handler wrote, the oldest work past the cursor is one lookup away.
            models.Index(fields=["entity", "offset"], name="event_work", condition=Q(work=True)),
        ]
        constraints = [
            models.UniqueConstraint(fields=["entity", "offset"], name="event_offset_once"),
            models.UniqueConstraint(
                fields=["entity", "message_key"],
                name="event_message_once",
                condition=Q(message_key__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"event {self.offset} of entity {self.entity_id}"


class _Message(models.Model):
    key = models.CharField(max_length=256)
    # As bytes, which every database sorts as the clients that choose positions do.
    position = models.BinaryField(max_length=1024)
    offset = models.PositiveBigIntegerField(help_text="of the message")
    held = models.BooleanField(help_text="of mode paused: nothing after it is taken")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        abstract = True


class QueuedMessage(_Message):
    """A message of mode queued or paused that no handler has taken yet: work, wherever it lies.

    Only `dispatch.streams.work` writes these, from the events of the stream.
    """

    entity = models.ForeignKey(
        Entity, on_delete=models.CASCADE, related_name="queue", db_index=False
    )

    class Meta:
        default_permissions = ()
        indexes = [
            models.Index(fields=["entity", "position", "offset"], name="queue_order"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["entity", "key"], name="queue_message_once"),
        ]

    def __str__(self) -> str:
        return f"queued message {self.key} of entity {self.entity_id}"


class TakenMessage(_Message):
    """A message that the active claim took from the queue: it waits again should the claim fail.

    Only `dispatch.streams.work` writes these.
    """

    entity = models.ForeignKey(
        Entity, on_delete=models.CASCADE, related_name="taken", db_index=False
    )
    epoch = models.PositiveBigIntegerField(help_text="of the claim")

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["entity", "key"], name="taken_message_once"),
        ]

    def __str__(self) -> str:
        return f"message {self.key} taken by claim {self.epoch} of entity {self.entity_id}"


class ProducerPlace(models.Model):
    """How far an idempotent producer has written to a stream."""

    epoch = models.PositiveBigIntegerField()
    seq = models.PositiveBigIntegerField(help_text="the newest accepted")

    class Meta:
        abstract = True


class Producer(ProducerPlace):
    """How far an idempotent producer has written to an entity's main stream."""

    entity = models.ForeignKey(Entity, on_delete=models.CASCADE, related_name="producers")
    producer_id = models.CharField(max_length=256)

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["entity", "producer_id"], name="producer_once"),
        ]

    def __str__(self) -> str:
        return f"producer {self.producer_id} of entity {self.entity_id}"


class SharedState(models.Model):
    """A stream that several entities read and write; it goes with the last one that has it.

    `dispatch.shared_states` makes and deletes these, and decides who may use one.
    """

    name = models.CharField(max_length=512)
    tail = models.PositiveBigIntegerField(default=0, help_text="offset of the newest event")
    created_by = PrincipalField()
    created_at = models.DateTimeField(db_default=Now())

    now: datetime  # of `core.clock.with_now`

    class Meta:
        default_permissions = ("view",)
        indexes = [
            models.Index(fields=["created_by"], name="shared_state_creator"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["name"], name="shared_state_name_once"),
            models.CheckConstraint(
                condition=canonical("created_by"), name="shared_state_creator_url"
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def stream_path(self) -> str:
        """Where it is read and written, and how registrations name it."""
        return f"{SHARED_STATE_PREFIX}{self.name}"

    @property
    def urls(self) -> list[str]:
        """The URLs that may name it as a source: as it is, or encoded, with or without slashes."""
        encoded = {quote(self.name, safe=UNENCODED + kept) for kept in ("", "/")}
        return sorted({self.stream_path, *(f"{SHARED_STATE_PREFIX}{each}" for each in encoded)})


class SharedStateEvent(models.Model):
    """An event of a shared state, as the JSON text that readers get."""

    state = models.ForeignKey(
        SharedState, on_delete=models.CASCADE, related_name="events", db_index=False
    )
    offset = models.PositiveBigIntegerField()
    data = models.TextField()
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["state", "offset"], name="shared_state_event_offset_once"
            ),
        ]

    def __str__(self) -> str:
        return f"event {self.offset} of shared state {self.state_id}"


class SharedStateProducer(ProducerPlace):
    """How far an idempotent producer has written to a shared state."""

    state = models.ForeignKey(SharedState, on_delete=models.CASCADE, related_name="producers")
    producer_id = models.CharField(max_length=1024)

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["state", "producer_id"], name="shared_state_producer_once"
            ),
        ]

    def __str__(self) -> str:
        return f"producer {self.producer_id} of shared state {self.state_id}"


class SharedStateLink(models.Model):
    """Says that an entity has a shared state, or observes one, which may not exist yet."""

    entity = models.ForeignKey(
        Entity, on_delete=models.CASCADE, related_name="shared_state_links", db_index=False
    )
    name = models.CharField(max_length=512)
    manifest = models.CharField(
        max_length=64,
        blank=True,
        default="",
        help_text="SHA-256 of the key of the manifest event that says so; empty: it has it",
    )

    class Meta:
        default_permissions = ()
        indexes = [models.Index(fields=["name"], name="shared_state_linked")]
        constraints = [
            models.UniqueConstraint(
                fields=["entity", "manifest", "name"], name="shared_state_link_once"
            ),
        ]

    def __str__(self) -> str:
        return f"link of entity {self.entity_id} to shared state {self.name}"


class RegistrationQuerySet(models.QuerySet["Registration"]):
    """Registrations, selected by what has to be done about them."""

    def due(self) -> "RegistrationQuerySet":
        """Those that are due, longest due first."""
        return self.filter(due_at__lte=Now()).order_by("due_at", "pk")


class Registration(models.Model):
    """A request to wake an entity, the subscriber, when something happens at a source.

    The source is an entity, which may not exist yet, or another stream.
    `dispatch.streams.registrations` writes these, and sets when each is due.
    """

    class Condition(models.TextChoices):
        """What has to happen."""

        RUN_FINISHED = "run_finished"
        CHANGE = "change"

    subscriber = models.ForeignKey(Entity, on_delete=models.CASCADE, related_name="registrations")
    source_url = models.TextField(db_index=True, help_text="at most 2 048 bytes")
    manifest_key = models.TextField(
        blank=True, default="", help_text="of the subscriber's manifest event that it is of"
    )
    identity = models.CharField(
        max_length=64,
        help_text="SHA-256 of the manifest key, or else of source and condition",
    )
    condition = models.CharField(max_length=12, choices=Condition.choices)
    collections = models.JSONField(default=list, help_text="of a change; none: all")
    types = models.JSONField(
        default=dict, help_text="event types of collections, as the manifest event has them"
    )
    ops = models.JSONField(default=list, help_text="operations of a change; none: all")
    include_response = models.BooleanField(default=True)
    debounce_ms = models.PositiveIntegerField(default=0)
    timeout_ms = models.PositiveBigIntegerField(default=0, help_text="0: none")
    last_offset = models.PositiveBigIntegerField(
        null=True, help_text="in the source, of the newest that matched"
    )
    told_given = models.PositiveBigIntegerField(
        null=True, help_text="the first work of the claim whose completed run was told of last"
    )
    told_epoch = models.PositiveBigIntegerField(null=True, help_text="of that claim")
    told_tail = models.PositiveBigIntegerField(
        null=True, help_text="the source's tail when that claim was made"
    )
    first_at = models.DateTimeField(null=True, help_text="when the oldest undelivered matched")
    deliver_at = models.DateTimeField(null=True, help_text="when its deliveries are due")
    timeout_at = models.DateTimeField(null=True, help_text="when its wait is over")
    tick_at = models.DateTimeField(null=True, help_text="when a cron source ticks next")
    payload = models.TextField(
        blank=True, default="", db_default="", help_text="told at each tick, as JSON"
    )
    due_at = models.DateTimeField(null=True, help_text="the earliest of these three")
    closed = models.BooleanField(
        default=False, help_text="its source is at its end: it goes with its last delivery"
    )
    near_only = models.BooleanField(
        default=False,
        db_default=False,
        help_text="told of its subscriber's parent and descendants, and of what its runner's owner "
        "may read",
    )
    creator = PrincipalField(blank=True, default="", db_default="", help_text="the subscriber's")
    created_at = models.DateTimeField(db_default=Now())

    objects = RegistrationQuerySet.as_manager()

    now: datetime  # of `core.clock.with_now`

    class Meta:
        required_db_features = JSON
        default_permissions = ()
        indexes = [
            models.Index(
                fields=["due_at"], name="registration_due", condition=Q(due_at__isnull=False)
            ),
            models.Index(
                fields=["creator", "due_at", "id"],
                name="registration_share",
                condition=Q(due_at__isnull=False),
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["subscriber", "identity"], name="registration_once"),
            models.CheckConstraint(
                condition=Q(due_at__isnull=False)
                | Q(deliver_at=None, timeout_at=None, tick_at=None),
                name="registration_is_due",
            ),
        ]

    def __str__(self) -> str:
        return f"registration {self.pk} of entity {self.subscriber_id}"

    @property
    def awaited(self) -> str:
        """What is to happen, in words: ``finished run``, or ``changes of todo (insert)``."""
        if self.condition == self.Condition.RUN_FINISHED:
            return "finished run"
        of = f" of {', '.join(self.collections)}" if self.collections else ""
        return f"changes{of}" + (f" ({', '.join(self.ops)})" if self.ops else "")


class Delivery(models.Model):
    """An event of the source that a registration's subscriber has not been told of yet.

    It is written in the transaction that appends the event, and deleted in the one that appends the
    wake to the subscriber's stream.
    """

    registration = models.ForeignKey(
        Registration, on_delete=models.CASCADE, related_name="deliveries", db_index=False
    )
    offset = models.PositiveBigIntegerField(help_text="of the event in the source")
    data = models.TextField(help_text="what the wake says of it, as JSON")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        default_permissions = ()
        verbose_name_plural = "deliveries"
        constraints = [
            models.UniqueConstraint(fields=["registration", "offset"], name="delivery_once"),
        ]

    def __str__(self) -> str:
        return f"delivery {self.offset} of registration {self.registration_id}"


class TimerQuerySet(models.QuerySet["Timer"]):
    """Timers, selected by whether they will still fire."""

    def pending(self) -> "TimerQuerySet":
        """Not fired yet; fired timers are deleted."""
        return self.filter(failed_at=None)

    def due(self) -> "TimerQuerySet":
        """To be fired now."""
        return self.pending().filter(due_at__lte=Now())

    def late(self) -> "TimerQuerySet":
        """Overdue: nobody seems to fire them."""
        return self.pending().filter(due_at__lte=Now() - LATE)

    def failed(self) -> "TimerQuerySet":
        """Those whose message could not be sent."""
        return self.filter(failed_at__isnull=False)

    def with_owner_url(self) -> "TimerQuerySet":
        """With ``owner_url``: the entity whose schedule it is, or None."""
        return self.annotate(owner_url=F("owner__url"))


LATE = timedelta(seconds=10)
"""A timer that is due for longer is late."""


class Timer(models.Model):
    """A message to be sent once, at a time: a delayed send, or an entity's own schedule.

    The transaction that sends the message deletes the row. A message that could not be sent stays
    for operators to see. Only `dispatch.timers` writes these; a pending timer never changes.
    """

    target = models.ForeignKey(
        Entity,
        null=True,
        on_delete=models.SET_NULL,
        related_name="timers",
        help_text="whom the message is for; null once it was deleted",
    )
    target_url = models.CharField(max_length=258)
    key = models.CharField(max_length=256, help_text="of the message")
    message = models.TextField(help_text="as JSON")
    txid = models.CharField(max_length=36, help_text="which the message will bear")
    owner = models.ForeignKey(
        Entity,
        null=True,
        on_delete=models.CASCADE,
        related_name="schedules",
        help_text="whose schedule it is; null of a delayed send",
    )
    schedule = models.CharField(max_length=256, blank=True, default="")
    entry = models.TextField(
        blank=True, default="", help_text="of a schedule in its owner's manifest, as JSON"
    )
    principal = PrincipalField(null=True, help_text="whose rights a schedule's is sent with")
    near_only = models.BooleanField(
        default=False, help_text="sent to its owner's parent and descendants, and no further"
    )
    creator = PrincipalField(
        blank=True, default="", db_default="", help_text="the owner's, or else the target's"
    )
    due_at = models.DateTimeField()
    failed_at = models.DateTimeField(null=True)
    error = models.TextField(blank=True, default="", help_text="why it cannot be sent")
    created_at = models.DateTimeField(db_default=Now())

    objects = TimerQuerySet.as_manager()

    now: datetime  # of `core.clock.with_now`

    class Meta:
        default_permissions = ("view",)
        indexes = [
            models.Index(
                fields=["due_at", "id"], name="timer_due", condition=Q(failed_at__isnull=True)
            ),
            models.Index(
                fields=["creator", "due_at", "id"],
                name="timer_share",
                condition=Q(failed_at__isnull=True),
            ),
            models.Index(
                fields=["failed_at"], name="timer_failed", condition=Q(failed_at__isnull=False)
            ),
        ]
        constraints = [
            # Several schedules may send the same message: the first one does.
            models.UniqueConstraint(
                fields=["target", "key"],
                name="timer_message_once",
                condition=Q(failed_at__isnull=True, owner__isnull=True),
            ),
            models.UniqueConstraint(
                fields=["owner", "schedule"],
                name="timer_schedule_once",
                condition=Q(owner__isnull=False),
            ),
            models.CheckConstraint(
                condition=Q(owner__isnull=True, principal__isnull=True, schedule="", entry="")
                | Q(owner__isnull=False, principal__isnull=False, schedule__gt="", entry__gt=""),
                name="timer_schedule_of_an_owner",
            ),
            models.CheckConstraint(
                condition=Q(failed_at__isnull=True) | Q(error__gt=""),
                name="timer_failed_for_a_reason",
            ),
            models.CheckConstraint(condition=canonical("principal"), name="timer_principal_url"),
        ]

    def __str__(self) -> str:
        return f"timer {self.pk} for {self.target_url}"

    @property
    def name(self) -> str:
        """What an operator calls it."""
        return f"schedule {self.schedule}" if self.schedule else "delayed send"

    @property
    def state(self) -> str:
        """pending, due, late or failed; with ``now``."""
        if self.failed_at is not None:
            return "failed"
        if self.due_at > self.now:
            return "pending"
        return "late" if self.due_at <= self.now - LATE else "due"
