"""Consumer claims. `claims.lifecycle` is their only writer, and its docstring the state table."""

from datetime import datetime, timedelta

from django.db import models
from django.db.models import (
    Case,
    DateTimeField,
    Exists,
    ExpressionWrapper,
    F,
    OuterRef,
    Q,
    Subquery,
    Value,
    When,
)
from django.db.models.functions import Greatest, Now

from dispatch.models import Entity, StreamEvent
from runners.models import JSON, Runner

PARDONED_WITHIN = timedelta(minutes=10)
"""How long after an expiry it may still show that the runner had died; longer than most leases."""

QUIET = timedelta(minutes=10)
"""A claim that has been renewed for this long, and has written nothing, is worth a look."""


class OrphanReason(models.TextChoices):
    """Why nobody can be working on an active claim; the first reason that holds is shown.

    A dead runner's lease lapses, too, so a reason that concerns the runner comes first.
    """

    RUNNER_GONE = "runner_gone", "its runner is gone"
    RUNNER_DISABLED = "runner_disabled", "its runner is disabled"
    RUNNER_NEVER_SEEN = "runner_never_seen", "its runner was never seen"
    RUNNER_EXPIRED = "runner_expired", "its runner's heartbeat lease expired"
    LEASE_LAPSED = "lease_lapsed", "its lease has lapsed"


class ClaimQuerySet(models.QuerySet["ConsumerClaim"]):
    """Claims, selected by what the API, the admin, metrics and commands ask about them."""

    def active(self) -> "ClaimQuerySet":
        """Those that hold their entity."""
        return self.filter(status=ConsumerClaim.Status.ACTIVE)

    def unended(self) -> "ClaimQuerySet":
        """The same, where a statement names the claim; see `dispatch.models.WakeQuerySet`."""
        return self.filter(ended_at=None)

    def ended(self) -> "ClaimQuerySet":
        """Not active any more, however they ended."""
        return self.exclude(status=ConsumerClaim.Status.ACTIVE)

    def lapsed(self) -> "ClaimQuerySet":
        """Active, with a lease that is over."""
        return self.active().filter(lease_expires_at__lte=Now())

    def dated_ahead(self) -> "ClaimQuerySet":
        """Active, with a lease that ends later than one that begins now: the clock was set back."""
        later = Now() + F("lease") + timedelta(seconds=1)
        return self.active().filter(
            lease_expires_at__gt=ExpressionWrapper(later, output_field=DateTimeField())
        )

    def orphaned(self) -> "ClaimQuerySet":
        """Active, but lapsed, or of a runner that is expired, disabled, never seen or gone."""
        return self.active().filter(
            Q(lease_expires_at__lte=Now()) | Q(runner=None) | Q(runner__in=Runner.objects.unable())
        )

    def with_orphan_reason(self) -> "ClaimQuerySet":
        """With ``orphan_reason``, one of `OrphanReason` or "", and ``orphaned_since``.

        The reason is "" for exactly those that `orphaned` leaves out. It is not recorded when a
        runner was disabled, so the time is its last change, or the claim if that came later.
        """
        seen_until = "runner__liveness__lease_expires_at"
        known: list[tuple[Q, OrphanReason, str]] = [
            (Q(runner=None), OrphanReason.RUNNER_GONE, "claimed_at"),
            (
                Q(runner__admin_status=Runner.AdminStatus.DISABLED),
                OrphanReason.RUNNER_DISABLED,
                "runner__updated_at",
            ),
            (Q(**{seen_until: None}), OrphanReason.RUNNER_NEVER_SEEN, "runner__created_at"),
            (Q(**{f"{seen_until}__lte": Now()}), OrphanReason.RUNNER_EXPIRED, seen_until),
            (Q(lease_expires_at__lte=Now()), OrphanReason.LEASE_LAPSED, "lease_expires_at"),
        ]
        ended = ~Q(status=ConsumerClaim.Status.ACTIVE)
        return self.annotate(
            orphan_reason=Case(
                When(ended, then=Value("")),
                *(When(condition, then=Value(reason.value)) for condition, reason, _ in known),
                default=Value(""),
                output_field=models.CharField(),
            ),
            orphaned_since=Case(
                When(ended, then=None),
                *(
                    When(condition, then=Greatest("claimed_at", since))
                    for condition, _, since in known
                ),
                default=None,
                output_field=models.DateTimeField(),
            ),
        )

    def unused(self) -> "ClaimQuerySet":
        """Those whose runner has not shown that it knows of the claim."""
        return self.filter(last_heartbeat_at=None, write_token_hash="")

    def blameless(self) -> "ClaimQuerySet":
        """Those whose lease could not be renewed through no fault of the entity's handler.

        The runner's own liveness lease is over, or it is gone or disabled, or another process of it
        has registered since; or the servers were away, and have not been back for as long as the
        claim's lease.
        """
        dead = (
            Q(runner=None)
            | Q(runner__admin_status=Runner.AdminStatus.DISABLED)
            | Q(runner__liveness__lease_expires_at__lte=Now())
            | Q(runner__updated_at__gt=F("claimed_at"))
        )
        back = ServerPulse.objects.filter(resumed_at__gt=Now() - OuterRef("lease"))
        return self.filter(dead | Exists(back))

    def pardonable(self) -> "ClaimQuerySet":
        """Recently expired, and blamed on the entity's handler, although their runner was dead.

        When a runner dies, its claims' leases mostly lapse before its own. Its death shows only
        later, when it was not heard from since, or when another process of it registers.
        """
        silent = Q(
            runner__liveness__lease_expires_at__lte=Now(),
            runner__liveness__last_seen_at__lte=F("ended_at"),
        )
        lately = Now() - PARDONED_WITHIN
        return self.filter(
            silent | Q(runner__updated_at__gt=F("ended_at")),
            status=ConsumerClaim.Status.EXPIRED,
            ended_at__gt=lately,
            error="",
            entity__isnull=False,
        )

    def quiet(self) -> "ClaimQuerySet":
        """Active and renewed, but nothing was written to the entity's stream for `QUIET`.

        What others send to the entity is not written by its holder.
        """
        written = StreamEvent.objects.filter(entity=OuterRef("entity"), message_key=None)
        newest = Subquery(written.order_by("-offset").values("created_at")[:1])
        return (
            self.active()
            .filter(claimed_at__lte=Now() - QUIET, last_heartbeat_at__isnull=False)
            .filter(lease_expires_at__gt=Now())
            .annotate(written_at=newest)
            .filter(Q(written_at=None) | Q(written_at__lte=Now() - QUIET))
        )

    def opened_by(self, token_hash: str) -> "ClaimQuerySet":
        """Active, with a claim token or write token that has this hash."""
        return self.active().filter(Q(claim_token_hash=token_hash) | Q(write_token_hash=token_hash))


class ConsumerClaim(models.Model):
    """A runner's hold on an entity: leased, and fenced by (consumer_id, epoch)."""

    class Status(models.TextChoices):
        """Active ends as one of the others, and none of those ever changes."""

        ACTIVE = "active"
        RELEASED = "released"
        FAILED = "failed"
        EXPIRED = "expired"
        FENCED = "fenced"

    consumer_id = models.CharField(max_length=26)
    epoch = models.PositiveBigIntegerField(help_text="generation of the wake")
    # A claim outlives its entity and its runner, so that a late callback is told that it ended.
    entity = models.ForeignKey(Entity, null=True, on_delete=models.SET_NULL, related_name="claims")
    entity_url = models.CharField(max_length=258)
    runner = models.ForeignKey(
        Runner, null=True, on_delete=models.SET_NULL, related_name="claims", db_index=False
    )
    runner_name = models.CharField(
        max_length=128, help_text="the runner's id, also when it is gone"
    )
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.ACTIVE)
    claimed_at = models.DateTimeField(db_default=Now())
    last_heartbeat_at = models.DateTimeField(null=True)
    lease = models.DurationField(help_text="that a renewal gives")
    lease_expires_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    delivered_offset = models.PositiveBigIntegerField(help_text="the tail when it was claimed")
    acked_streams = models.JSONField(default=list)
    error = models.TextField(blank=True)
    claim_token_hash = models.CharField(max_length=64)
    write_token_hash = models.CharField(max_length=64, blank=True)
    nonce_hash = models.CharField(
        max_length=64,
        blank=True,
        default="",
        db_default="",
        help_text="of what its runner named the request that made it, to be answered it again",
    )

    objects = ClaimQuerySet.as_manager()

    now: datetime  # of `core.clock.with_now`

    class Meta:
        required_db_features = JSON
        verbose_name = "claim"
        default_permissions = ("view",)
        permissions = [("expire_consumerclaim", "Can take claims back")]
        indexes = [
            # Small however many claims exist; no index on what a heartbeat writes. No two of these
            # and `claim_one_active` serve one lookup, or PostgreSQL might read the other one whole.
            models.Index(
                fields=["runner"],
                name="claim_held",
                condition=Q(status="active", runner__isnull=False),
            ),
            models.Index(
                fields=["write_token_hash"],
                name="claim_writer",
                condition=Q(write_token_hash__gt=""),
            ),
            models.Index(fields=["runner", "-id"], name="claim_runner_newest"),
            models.Index(fields=["status", "ended_at"], name="claim_ended"),
            models.Index(fields=["claimed_at"], name="claim_claimed"),
            # Finds the claims in a part of an entity's stream, however many exist.
            models.Index(fields=["entity", "delivered_offset"], name="claim_in_stream"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["consumer_id", "epoch"], name="claim_identity"),
            models.UniqueConstraint(
                fields=["entity"], name="claim_one_active", condition=Q(status="active")
            ),
            models.CheckConstraint(condition=Q(epoch__gte=1), name="claim_epoch_from_1"),
            models.CheckConstraint(
                condition=~Q(status="active") | Q(lease_expires_at__isnull=False),
                name="claim_active_has_lease",
            ),
            models.CheckConstraint(
                condition=Q(status="active", ended_at=None)
                | (~Q(status="active") & Q(ended_at__isnull=False)),
                name="claim_ended_iff_terminal",
            ),
            models.CheckConstraint(
                condition=Q(ended_at=None) | Q(ended_at__gte=F("claimed_at")),
                name="claim_ends_after_it_began",
            ),
            models.CheckConstraint(
                condition=Q(status="active") | Q(write_token_hash=""),
                name="claim_write_token_dies",
            ),
            models.CheckConstraint(
                condition=~Q(status="active") | Q(entity__isnull=False),
                name="claim_active_has_entity",
            ),
        ]

    def __str__(self) -> str:
        return self.consumer_id

    @property
    def lease_end(self) -> datetime:
        """When the lease of an active claim ends; a constraint guarantees one."""
        assert self.lease_expires_at is not None  # noqa: S101
        return self.lease_expires_at


class DeadLetter(models.Model):
    """Work that a handler gave up: acked, and kept for an operator to redrive.

    Only `claims.dead_letters` writes these. The event stays in its entity's stream.
    """

    entity = models.ForeignKey(Entity, on_delete=models.CASCADE, related_name="dead_letters")
    offset = models.PositiveBigIntegerField(help_text="of the event in its entity's main stream")
    reason = models.TextField(blank=True)
    attempts = models.PositiveIntegerField(help_text="claims that it took, the last one among them")
    runner_name = models.CharField(max_length=128, help_text="the id of who gave it up")
    given_up_at = models.DateTimeField(db_default=Now())
    redriven_at = models.DateTimeField(null=True)

    now: datetime  # of `core.clock.with_now`

    class Meta:
        default_permissions = ("view",)
        permissions = [("redrive_deadletter", "Can redrive dead letters")]
        indexes = [
            models.Index(
                fields=["given_up_at"], name="dead_letter_open", condition=Q(redriven_at=None)
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["entity", "offset"], name="dead_letter_once"),
        ]

    def __str__(self) -> str:
        return f"dead letter {self.pk}"


class ServerPulse(models.Model):
    """When any server last lived and last came back, and what the reaper last did: one row.

    Only `claims.reaper` writes it. Without it, a reaper that starts after an outage would blame
    runners for not renewing when nobody could renew.
    """

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    seen_at = models.DateTimeField(help_text="a server was up")
    resumed_at = models.DateTimeField(help_text="a server came up after none was")
    reaped_at = models.DateTimeField(null=True)
    expired = models.PositiveIntegerField(default=0, help_text="claims, in the last round")
    reemitted = models.PositiveIntegerField(default=0, help_text="wakes, in the last round")
    retried = models.PositiveIntegerField(default=0, help_text="entities, in the last round")

    now: datetime  # of `core.clock.with_now`

    class Meta:
        default_permissions = ()
        constraints = [models.CheckConstraint(condition=Q(id=1), name="server_pulse_one_row")]

    def __str__(self) -> str:
        return f"servers seen at {self.seen_at}"


class ClaimTally(models.Model):
    """How many claims began and ended in five minutes, so that no chart counts claims.

    Only `claims.tallies` writes these.
    """

    since = models.DateTimeField(primary_key=True)
    acquired = models.PositiveIntegerField(default=0)
    released = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    expired = models.PositiveIntegerField(default=0)
    fenced = models.PositiveIntegerField(default=0)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"claims since {self.since}"
