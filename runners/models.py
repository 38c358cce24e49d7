"""Runners: who they are, whether they live, the access tokens of all callers; and what changed.

`runners.registry` is the only writer of `Runner` and `RunnerLiveness`, `runners.changes` of
`Change`.
"""

from datetime import datetime
from typing import Any

from django.db import models
from django.db.models import F, Func, Q, Value
from django.db.models.functions import Now, Substr
from django.db.models.lookups import Exact

from core.principals import MAX_URL_LENGTH, URL_CHARACTERS, URL_PREFIX, Principal

JSON = ["supports_json_field"]
"""What a model with a JSON column requires of a database, so that nobody asks the database for it.

The checks of Django 6.1 would, before every command, in a transaction: on SQLite that waits for
whoever writes, and after ten seconds says that SQLite has no JSON.
"""


class PrincipalField(models.CharField):  # type: ignore[type-arg]
    """The canonical URL of a principal."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "max_length": MAX_URL_LENGTH})


def canonical(column: str) -> Q:
    """The condition that a column holds the canonical URL of a principal."""
    kinds = Q()
    for kind in Principal.KINDS:
        beginning = f"{URL_PREFIX}{kind}%3A"
        kinds |= Q(**{f"{column}__startswith": beginning}) & ~Q(**{column: beginning})
    # The databases' regular expressions differ, but both can strip characters:
    # stripping what only a URL may hold leaves nothing of a valid key.
    key = Substr(column, len(URL_PREFIX) + 1)
    rest = Func(key, Value(URL_CHARACTERS), function="LTRIM", output_field=models.TextField())
    return kinds & Q(Exact(rest, Value("")))


class RunnerQuerySet(models.QuerySet["Runner"]):
    """Runners, selected by what a caller or an operator asks about them."""

    def owned_by(self, principal: Principal) -> "RunnerQuerySet":
        """Those that this principal owns."""
        return self.filter(owner_principal=principal.url)

    def enabled(self) -> "RunnerQuerySet":
        """Those that may claim."""
        return self.filter(admin_status=Runner.AdminStatus.ENABLED)

    def able(self) -> "RunnerQuerySet":
        """Those that can be working: enabled, and heard from in time."""
        return self.enabled().filter(liveness__lease_expires_at__gt=Now())

    def unable(self) -> "RunnerQuerySet":
        """Those that cannot be working: disabled, never seen, or with a lapsed liveness lease."""
        return self.exclude(
            admin_status=Runner.AdminStatus.ENABLED, liveness__lease_expires_at__gt=Now()
        )


class Runner(models.Model):
    """A process that claims the wakes of the entities dispatched to it."""

    class Kind(models.TextChoices):
        """Where it runs."""

        LOCAL = "local"
        CLOUD_WORKER = "cloud-worker"
        SANDBOX = "sandbox"
        CI = "ci"
        SERVER = "server"

    class AdminStatus(models.TextChoices):
        """Whether its owner lets it claim."""

        ENABLED = "enabled"
        DISABLED = "disabled"

    id = models.CharField(primary_key=True, max_length=128)
    owner_principal = PrincipalField()
    label = models.CharField(max_length=256)
    kind = models.CharField(max_length=16, choices=Kind.choices, default=Kind.LOCAL)
    admin_status = models.CharField(
        max_length=16, choices=AdminStatus.choices, default=AdminStatus.ENABLED
    )
    sandbox_profiles = models.JSONField(default=list)
    max_concurrent_claims = models.PositiveIntegerField(null=True, blank=True)
    claim_lease_ms = models.PositiveIntegerField(help_text="milliseconds")
    created_at = models.DateTimeField(db_default=Now())
    updated_at = models.DateTimeField(db_default=Now())

    objects = RunnerQuerySet.as_manager()

    now: datetime  # of `core.clock.with_now`

    class Meta:
        required_db_features = JSON
        default_permissions = ("view", "delete")
        permissions = [
            ("enable_runner", "Can enable runners"),
            ("disable_runner", "Can disable runners"),
        ]
        indexes = [
            models.Index(fields=["owner_principal", "-created_at"], name="runner_owner"),
        ]
        constraints = [
            models.CheckConstraint(condition=canonical("owner_principal"), name="runner_owner_url"),
            models.CheckConstraint(
                condition=Q(max_concurrent_claims=None) | Q(max_concurrent_claims__gte=1),
                name="runner_max_claims_positive",
            ),
            models.CheckConstraint(
                condition=Q(claim_lease_ms__gte=1000), name="runner_claim_lease"
            ),
        ]

    def __str__(self) -> str:
        return self.id

    @property
    def wake_stream_path(self) -> str:
        """The path at which it reads its wakes."""
        return f"/runners/{self.id}/wake"

    @property
    def enabled(self) -> bool:
        """Whether its owner lets it claim."""
        return self.admin_status == self.AdminStatus.ENABLED


class RunnerLiveness(models.Model):
    """What a runner last said about itself.

    It is written every few seconds, so it is narrow, has no index on what a heartbeat writes, and
    its pages keep room (fillfactor, migration 0002): every heartbeat is a HOT update.
    """

    runner = models.OneToOneField(
        Runner, on_delete=models.CASCADE, primary_key=True, related_name="liveness"
    )
    last_seen_at = models.DateTimeField(null=True)
    lease_expires_at = models.DateTimeField(null=True)
    wake_stream_offset = models.CharField(max_length=64, null=True)
    diagnostics = models.JSONField(null=True)

    class Meta:
        required_db_features = JSON
        default_permissions = ()
        verbose_name_plural = "runner liveness"

    def __str__(self) -> str:
        return f"liveness of {self.runner_id}"


class WakeStream(models.Model):
    """The tail of a runner's wake stream; locking this row hands out its offsets.

    `dispatch.wakes` moves it. It is a separate row because it is locked last, and the runner first.
    """

    runner = models.OneToOneField(
        Runner, on_delete=models.CASCADE, primary_key=True, related_name="wake_stream"
    )
    tail = models.PositiveBigIntegerField(default=0)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"wake stream of {self.runner_id}"


class AccessTokenQuerySet(models.QuerySet["AccessToken"]):
    """Access tokens, selected by whether they are valid."""

    def valid(self) -> "AccessTokenQuerySet":
        """Those neither revoked nor expired."""
        return self.filter(revoked_at=None).filter(Q(expires_at=None) | Q(expires_at__gt=Now()))

    def expired(self) -> "AccessTokenQuerySet":
        """Those that expired without having been revoked."""
        return self.filter(revoked_at=None, expires_at__lte=Now())


class AccessToken(models.Model):
    """A bearer credential bound to one principal, or to one of its runners; only its hash is kept.

    A token with scope "metrics" reads /metrics and does nothing in its principal's name.
    """

    class Scope(models.TextChoices):
        """What the token opens."""

        ALL = "", "all that its principal may"
        METRICS = "metrics", "metrics"

    principal = PrincipalField()
    token_hash = models.CharField(max_length=64, unique=True)
    label = models.CharField(max_length=256, blank=True)
    # Not a foreign key: the runner may register with this token.
    runner_id = models.CharField("runner", max_length=128, null=True, blank=True)
    scope = models.CharField(
        max_length=16, choices=Scope.choices, default=Scope.ALL, db_default=Scope.ALL, blank=True
    )
    created_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    last_used_from = models.GenericIPAddressField(null=True, blank=True)

    objects = AccessTokenQuerySet.as_manager()

    class Meta:
        default_permissions = ("view",)
        permissions = [
            ("issue_accesstoken", "Can issue access tokens"),
            ("revoke_accesstoken", "Can revoke access tokens"),
        ]
        indexes = [
            models.Index(
                fields=["revoked_at"], name="token_revoked", condition=Q(revoked_at__isnull=False)
            ),
        ]
        constraints = [
            models.CheckConstraint(condition=canonical("principal"), name="token_principal_url"),
            models.CheckConstraint(
                condition=Q(expires_at=None) | Q(expires_at__gt=F("created_at")),
                name="token_expires_later",
            ),
            models.CheckConstraint(
                condition=Q(scope="") | Q(runner_id=None), name="token_runner_or_scope"
            ),
        ]

    def __str__(self) -> str:
        key = Principal.parse(self.principal).key
        return f"{key} ({self.label})" if self.label else key


class Change(models.Model):
    """The place of the newest change of a runner or an entity in its feed: one row for each.

    Only `runners.changes` writes these rows, in the transaction that makes the change; a feed's
    events are the rows themselves, as they are when they are read. So a feed holds each row once,
    at its newest place. A deleted row stays as ``gone`` for PULLWAKE_RETENTION_DAYS. A row that is
    ``departed`` tells its ``owner`` that ``key`` is out of its sight, or, without a key, that it
    must read everything again because its rights in other people's entities changed.
    """

    class Kind(models.TextChoices):
        """The feed it belongs to."""

        RUNNER = "runner"
        ENTITY = "entity"

    kind = models.CharField(max_length=8, choices=Kind.choices)
    key = models.CharField(max_length=258, help_text="the runner's id, or the entity's URL")
    transaction = models.BigIntegerField(
        help_text="that changed it last: its number on PostgreSQL, a count of changes on SQLite"
    )
    owner = PrincipalField(help_text="the runner's, or who made the entity; or a kind of these")
    other_owner = PrincipalField(
        blank=True, default="", help_text="of the entity's runner, if it is another principal"
    )
    type = models.CharField(max_length=128, blank=True, default="", help_text="of an entity")
    registration = models.CharField(max_length=28, blank=True, default="")
    told = models.CharField(
        max_length=32, blank=True, default="", help_text="a runner's liveness and its health"
    )
    retagged = models.BigIntegerField(
        default=0, help_text="the transaction that changed the entity's tags last"
    )
    gone = models.BooleanField(default=False)
    departed = models.BooleanField(default=False)
    changed_at = models.DateTimeField(db_default=Now())

    now: datetime  # of `core.clock.with_now`

    class Meta:
        default_permissions = ()
        indexes = [
            models.Index(fields=["kind", "transaction", "id"], name="change_order"),
            models.Index(fields=["owner", "kind", "transaction"], name="change_owner"),
            models.Index(
                fields=["other_owner", "transaction"],
                name="change_other_owner",
                condition=Q(other_owner__gt=""),
            ),
            models.Index(
                fields=["changed_at"],
                name="change_over",
                condition=Q(gone=True) | Q(departed=True),
            ),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "key"], name="change_newest", condition=Q(departed=False)
            ),
        ]

    def __str__(self) -> str:
        return f"change of {self.kind} {self.key}"
