"""Rows for tests, valid against every constraint, without the calls that would make them.

For state that a test begins with. A test of how a row comes about makes it as a caller would.
Times are the database's: `ago` and `ahead`.
"""

import uuid
from datetime import timedelta
from typing import Any, TypeVar

import msgspec
from django.db import models
from django.db.models import Model
from django.db.models.functions import Now
from django.utils import timezone
from factory.declarations import (
    LazyAttribute,
    LazyFunction,
    RelatedFactory,
    SelfAttribute,
    Sequence,
    SubFactory,
    Trait,
)
from factory.django import DjangoModelFactory
from factory.helpers import lazy_attribute, post_generation

from claims import tallies
from claims.models import ClaimTally, ConsumerClaim, DeadLetter, ServerPulse
from core.identifiers import hash_secret, new_id, new_secret
from core.principals import Principal
from dispatch.messages import Message
from dispatch.models import (
    Delivery,
    DispatchState,
    Entity,
    EntityType,
    Producer,
    QueuedMessage,
    Registration,
    SharedState,
    SharedStateEvent,
    SharedStateLink,
    SharedStateProducer,
    StreamEvent,
    TakenMessage,
    Timer,
    Wake,
    subscription_key,
)
from dispatch.streams import offsets
from runners.models import AccessToken, Change, Runner, RunnerLiveness, WakeStream
from tests.support import Api, Claim

M = TypeVar("M", bound=Model)

ALICE = Principal("user", "alice").url
LEASE = timedelta(seconds=30)


def ago(**duration: float) -> Any:
    """This long before the statement that writes it."""
    return Now() - timedelta(**duration)


def ahead(**duration: float) -> Any:
    """This long after the statement that writes it."""
    return Now() + timedelta(**duration)


class _Factory(DjangoModelFactory[M]):
    """Gives the row as it is stored, and not with the expressions that it was written with."""

    class Meta:
        abstract = True
        skip_postgeneration_save = True

    @classmethod
    def _create(cls, model_class: Any, *args: Any, **kwargs: Any) -> Any:
        made = super()._create(model_class, *args, **kwargs)
        if any(isinstance(each, models.Expression) for each in kwargs.values()):
            made.refresh_from_db()
        return made


# --- Runners ----------------------------------------------------------------------------------


class RunnerLivenessFactory(_Factory[RunnerLiveness]):
    """Never seen, as after registration."""

    class Meta:
        model = RunnerLiveness

    class Params:
        online = Trait(last_seen_at=Now(), lease_expires_at=ahead(minutes=1))
        silent = Trait(last_seen_at=ago(minutes=1), lease_expires_at=ago(seconds=1))

    runner = SubFactory("tests.factories.RunnerFactory", liveness=None)


class WakeStreamFactory(_Factory[WakeStream]):
    """Without a wake."""

    class Meta:
        model = WakeStream

    runner = SubFactory("tests.factories.RunnerFactory", wake_stream=None)


class ChangeFactory(_Factory[Change]):
    """That there is a runner of this id, or the entity of this URL."""

    class Meta:
        model = Change
        django_get_or_create = ("kind", "key")

    kind = Change.Kind.RUNNER
    key = Sequence(lambda n: f"runner-{n}")
    owner = ALICE
    transaction = 0


class RunnerFactory(_Factory[Runner]):
    """Alice's, enabled and never seen; ``liveness__…`` are facts of its liveness."""

    class Meta:
        model = Runner

    class Params:
        disabled = Trait(admin_status=Runner.AdminStatus.DISABLED)
        online = Trait(liveness__online=True)
        silent = Trait(liveness__silent=True)

    id = Sequence(lambda n: f"runner-{n}")
    owner_principal = ALICE
    label = SelfAttribute("id")
    claim_lease_ms = 30_000

    liveness = RelatedFactory(RunnerLivenessFactory, "runner")
    wake_stream = RelatedFactory(WakeStreamFactory, "runner")

    @post_generation
    def change(self: Any, create: bool, extracted: Any, **kwargs: Any) -> None:
        """Its place in the feed of runners, which takes it to be online."""
        ChangeFactory.create(key=self.pk, owner=self.owner_principal, told="online degraded")


class AccessTokenFactory(_Factory[AccessToken]):
    """Alice's, valid for ever."""

    class Meta:
        model = AccessToken

    class Params:
        secret = LazyFunction(lambda: new_secret("pwa"))
        expired = Trait(created_at=ago(days=2), expires_at=ago(days=1))
        revoked = Trait(revoked_at=Now())

    principal = ALICE
    token_hash = LazyAttribute(lambda token: hash_secret(token.secret))


# --- Dispatch ---------------------------------------------------------------------------------


class EntityTypeFactory(_Factory[EntityType]):
    """Without a schema or a grant."""

    class Meta:
        model = EntityType

    name = Sequence(lambda n: f"type-{n}")
    description = "Works"
    registered_by = ALICE
    registration = Sequence(lambda n: f"reg_{n}")


class DispatchStateFactory(_Factory[DispatchState]):
    """Idle, with nothing but the event of the entity's creation in its stream."""

    class Meta:
        model = DispatchState

    class Params:
        pending = Trait(tail=2, last_work_offset=2)
        queued = Trait(tail=2, queue_waiting=True)
        stopped = Trait(ended=DispatchState.End.STOPPED)
        killed = Trait(ended=DispatchState.End.KILLED)
        failing = Trait(failures=3)

    entity = SubFactory("tests.factories.EntityFactory", dispatch_state=None)
    runner = SubFactory(RunnerFactory)
    tail = 1
    cursor = 1


class StreamEventFactory(_Factory[StreamEvent]):
    """An event in which nothing is to be done; with ``message``, an inbox message."""

    class Meta:
        model = StreamEvent

    class Params:
        type = "text"
        value = LazyFunction(dict)
        message = Trait(
            type="inbox",
            work=True,
            message_key=Sequence(lambda n: f"message-{n}"),
            value=LazyFunction(lambda: {"from": ALICE, "payload": "hi"}),
        )

    entity = SubFactory("tests.factories.EntityFactory", created=None)
    offset = 1

    @lazy_attribute
    def data(self: Any) -> str:
        """As `dispatch.streams.log` writes it."""
        event = {
            "type": self.type,
            "key": self.message_key or f"event-{self.offset}",
            "value": self.value,
            "headers": {"operation": "insert", "offset": offsets.encode(self.offset)},
        }
        return msgspec.json.encode(event).decode()


class QueuedMessageFactory(_Factory[QueuedMessage]):
    """The only one in the queue of an entity, which knows it: the message at ``offset`` 2."""

    class Meta:
        model = QueuedMessage

    entity = SubFactory("tests.factories.EntityFactory", queued=True, queue=None)
    key = LazyAttribute(
        lambda queued: (
            StreamEvent.objects.get(entity=queued.entity, offset=queued.offset).message_key
        )
    )
    position = b""
    offset = 2
    held = False


class TakenMessageFactory(_Factory[TakenMessage]):
    """One that waited in the queue until the claim of ``epoch`` took it."""

    class Meta:
        model = TakenMessage

    entity = SubFactory("tests.factories.EntityFactory", pending=True)
    key = "taken"
    position = b""
    offset = 2
    held = False
    epoch = 1


def _registration(type_name: str) -> str:
    registered = EntityType.objects.filter(name=type_name).first()
    return registered.registration if registered else ""


class EntityFactory(_Factory[Entity]):
    """Alice's, idle, dispatched to ``runner``, one of its own unless one is given.

    ``pending``: with a message that nobody has worked off; ``queued``: with one of that mode.
    ``dispatch_state__…`` are facts of its dispatch state.
    """

    class Meta:
        model = Entity

    class Params:
        runner = SubFactory(RunnerFactory)
        pending = Trait(
            dispatch_state__pending=True,
            message=RelatedFactory(StreamEventFactory, "entity", message=True, offset=2),
        )
        queued = Trait(
            dispatch_state__queued=True,
            message=RelatedFactory(
                StreamEventFactory,
                "entity",
                message=True,
                work=False,
                offset=2,
                value={"from": ALICE, "payload": "hi", "mode": "queued", "status": "pending"},
            ),
            queue=RelatedFactory(QueuedMessageFactory, "entity"),
        )
        paused = Trait(dispatch_state__paused=True)
        stopped = Trait(dispatch_state__stopped=True)
        killed = Trait(dispatch_state__killed=True)
        failing = Trait(dispatch_state__failing=True)

    type = LazyAttribute(lambda entity: entity.url.split("/")[1])
    url = Sequence(lambda n: f"/agent/entity-{n}")
    subscription_key = LazyAttribute(lambda entity: subscription_key(entity.url))
    created_by = ALICE
    registration = LazyAttribute(lambda entity: _registration(entity.type))

    dispatch_state = RelatedFactory(
        DispatchStateFactory, "entity", runner=SelfAttribute("..runner")
    )
    created = RelatedFactory(StreamEventFactory, "entity", type="entity_created")

    @post_generation
    def change(self: Any, create: bool, extracted: Any, **kwargs: Any) -> None:
        """Its place in the feed of entities."""
        facts = {"type": self.type, "registration": self.registration, "owner": self.created_by}
        ChangeFactory.create(kind=Change.Kind.ENTITY, key=self.url, **facts)


class ProducerFactory(_Factory[Producer]):
    """One that has written once."""

    class Meta:
        model = Producer

    entity = SubFactory(EntityFactory)
    producer_id = Sequence(lambda n: f"producer-{n}")
    epoch = 0
    seq = 0


class SharedStateFactory(_Factory[SharedState]):
    """Alice's, with one event; an entity of hers has it."""

    class Meta:
        model = SharedState

    name = Sequence(lambda n: f"shared-{n}")
    tail = 1
    created_by = ALICE

    link = RelatedFactory(
        "tests.factories.SharedStateLinkFactory", None, name=SelfAttribute("..name")
    )
    event = RelatedFactory("tests.factories.SharedStateEventFactory", "state")


class SharedStateLinkFactory(_Factory[SharedStateLink]):
    """That an entity has a shared state."""

    class Meta:
        model = SharedStateLink

    entity = SubFactory(EntityFactory)
    name = "shared"


class SharedStateEventFactory(_Factory[SharedStateEvent]):
    """The first event of a shared state."""

    class Meta:
        model = SharedStateEvent

    state = SubFactory(SharedStateFactory, event=None)
    offset = 1
    data = '{"type": "state:board", "key": "k", "value": {}, "headers": {"operation": "insert"}}'


class SharedStateProducerFactory(_Factory[SharedStateProducer]):
    """One that has written once."""

    class Meta:
        model = SharedStateProducer

    state = SubFactory(SharedStateFactory)
    producer_id = Sequence(lambda n: f"producer-{n}")
    epoch = 0
    seq = 0


class RegistrationFactory(_Factory[Registration]):
    """For finished runs of an entity that is yet to come; with ``due``, its wait was over."""

    class Meta:
        model = Registration

    class Params:
        due = Trait(timeout_ms=1000, timeout_at=ago(seconds=1), due_at=ago(seconds=1))

    subscriber = SubFactory(EntityFactory)
    creator = SelfAttribute("subscriber.created_by")
    source_url = Sequence(lambda n: f"/agent/source-{n}")
    identity = Sequence(lambda n: f"{n:064d}")
    condition = Registration.Condition.RUN_FINISHED


class DeliveryFactory(_Factory[Delivery]):
    """Of a run that finished."""

    class Meta:
        model = Delivery

    registration = SubFactory(RegistrationFactory, deliver_at=ago(seconds=1), due_at=ago(seconds=1))
    offset = 2
    data = '{"collection": "runs", "kind": "update", "key": "run-1"}'


class TimerFactory(_Factory[Timer]):
    """A delayed send, due in an hour; with ``schedule`` an entity's to itself."""

    class Meta:
        model = Timer

    class Params:
        due = Trait(due_at=ago(seconds=1))
        late = Trait(due_at=ago(minutes=1))
        failed = Trait(due_at=ago(minutes=1), failed_at=ago(minutes=1), error="It was stopped.")
        scheduled = Trait(
            owner=SelfAttribute("target"),
            schedule=Sequence(lambda n: f"s{n}"),
            entry=LazyAttribute(lambda timer: f'{{"key": "schedule:{timer.schedule}"}}'),
            principal=ALICE,
        )

    target = SubFactory(EntityFactory)
    target_url = SelfAttribute("target.url")
    creator = SelfAttribute("target.created_by")
    key = Sequence(lambda n: f"k{n}")
    message = LazyAttribute(
        lambda timer: msgspec.json.encode(Message("hi", ALICE, key=timer.key)).decode()
    )
    txid = LazyFunction(lambda: str(uuid.uuid4()))
    due_at = ahead(hours=1)


def _next_generation(wake: Any) -> int:
    return DispatchState.objects.get(pk=wake.entity.pk).generation + 1


def _next_offset(wake: Any) -> int:
    streams = WakeStream.objects.filter(runner=wake.runner)
    streams.update(tail=models.F("tail") + 1)
    return streams.get().tail


class WakeFactory(_Factory[Wake]):
    """Outstanding: of an entity with work, which knows it, on its runner's stream."""

    class Meta:
        model = Wake

    class Params:
        claimed = Trait(status=Wake.Status.CLAIMED)
        withdrawn = Trait(status=Wake.Status.WITHDRAWN)
        stale = Trait(created_at=ago(minutes=30), emitted_at=ago(minutes=30))

    entity = SubFactory(EntityFactory, pending=True)
    runner = LazyAttribute(lambda wake: DispatchState.objects.get(pk=wake.entity.pk).runner)
    wake_id = LazyFunction(lambda: new_id("w"))
    generation = LazyAttribute(_next_generation)
    offset = LazyAttribute(_next_offset)

    @post_generation
    def known(wake: Any, create: bool, extracted: Any, **_: Any) -> None:  # noqa: N805
        """To the dispatch state."""
        outstanding = wake.status == Wake.Status.OUTSTANDING
        DispatchState.objects.filter(pk=wake.entity_id).update(
            generation=wake.generation,
            outstanding_wake=wake if outstanding else None,
            last_wake_at=Now(),
        )


# --- Claims -----------------------------------------------------------------------------------


def _ended(status: str, **facts: Any) -> Any:
    return Trait(status=status, ended_at=Now(), write_token_hash="", **facts)


class ConsumerClaimFactory(_Factory[ConsumerClaim]):
    """Active: of an entity with work, which knows it, and whose runner is online.

    ``token`` is its claim token's secret. `handle` is what its holder does with it.
    """

    class Meta:
        model = ConsumerClaim

    class Params:
        token = LazyFunction(lambda: new_secret("pwc"))
        wake = SubFactory(WakeFactory, entity=SelfAttribute("..entity"), claimed=True)
        lapsed = Trait(claimed_at=ago(hours=1), lease_expires_at=ago(minutes=30))
        orphaned = Trait(entity__runner__online=False, entity__runner__silent=True)
        released = _ended("released")
        failed = _ended("failed", error="no such tool")
        expired = _ended("expired")
        fenced = _ended("fenced")

    entity = SubFactory(EntityFactory, pending=True)
    entity__runner__online = True
    consumer_id = SelfAttribute("wake.wake_id")
    epoch = SelfAttribute("wake.generation")
    runner = SelfAttribute("wake.runner")
    entity_url = SelfAttribute("entity.url")
    runner_name = SelfAttribute("runner.id")
    claimed_at = Now()
    lease = LEASE
    lease_expires_at = ahead(seconds=30)
    delivered_offset = 2
    claim_token_hash = LazyAttribute(lambda claim: hash_secret(claim.token))

    @post_generation
    def known(claim: Any, create: bool, extracted: Any, **_: Any) -> None:  # noqa: N805
        """To the dispatch state."""
        states = DispatchState.objects.filter(pk=claim.entity_id)
        if claim.status == ConsumerClaim.Status.ACTIVE:
            states.update(
                active_epoch=claim.epoch,
                given_offset=models.F("last_work_offset"),
                last_claimed_at=Now(),
            )
        elif claim.status == ConsumerClaim.Status.RELEASED:
            states.update(cursor=claim.delivered_offset, last_released_at=Now(), failures=0)
        else:
            states.update(failures=models.F("failures") + 1)
        if claim.status == ConsumerClaim.Status.FAILED:
            states.update(retry_at=ahead(seconds=10))


def handle(api: Api, **facts: Any) -> Claim:
    """A claim as its holder uses it, of a row with these facts."""
    token = new_secret("pwc")
    row = ConsumerClaimFactory.create(token=token, **facts)
    path, tail = f"{row.entity_url}/main", row.delivered_offset
    body = {
        "consumerId": row.consumer_id,
        "wakeId": row.consumer_id,
        "epoch": row.epoch,
        "claimToken": token,
        "streamPath": path,
        "streams": [{"path": path, "offset": offsets.encode_just_past(tail - 1)}],
    }
    return Claim(api, body, offsets.encode(tail))


class DeadLetterFactory(_Factory[DeadLetter]):
    """Of the work of an entity, which is acked."""

    class Meta:
        model = DeadLetter

    class Params:
        redriven = Trait(redriven_at=Now())

    entity = SubFactory(EntityFactory, pending=True)
    offset = 2
    reason = "no such tool"
    attempts = 3
    runner_name = "r1"

    @post_generation
    def known(letter: Any, create: bool, extracted: Any, **_: Any) -> None:  # noqa: N805
        """To the dispatch state."""
        DispatchState.objects.filter(pk=letter.entity_id).update(cursor=letter.offset)


class ServerPulseFactory(_Factory[ServerPulse]):
    """A server lives, and has for an hour."""

    class Meta:
        model = ServerPulse

    class Params:
        away = Trait(seen_at=ago(minutes=1))
        back = Trait(resumed_at=Now())

    seen_at = Now()
    resumed_at = ago(hours=1)


class ClaimTallyFactory(_Factory[ClaimTally]):
    """Nothing in five minutes."""

    class Meta:
        model = ClaimTally

    since = LazyFunction(lambda: tallies.floor(timezone.now()) - timedelta(hours=1))
