"""The runners' REST API: register, list, heartbeat, enable, disable, delete, health."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, cast

import msgspec
from django.contrib.admin.models import CHANGE
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from msgspec import UNSET, Meta, UnsetType

from api.authentication import FOR_ONE_RUNNER, RunnerAuthentication
from api.fields import known, principal_field
from api.lists import answer_page, limit_of
from api.openapi import documented
from api.views import ApiView, RunnerResource
from claims import endings, reports
from core.bodies import Body, Check, Id, JsonObject, answer, parameter, raw_body, read
from core.clock import iso, iso_or_none
from core.errors import BadFields, Forbidden, InvalidRequest
from core.identifiers import OFFSET_PATTERN, is_number
from core.principals import Principal
from dispatch import arrivals
from runners import diagnostics, registry
from runners.health import Liveness, Status, liveness
from runners.models import Runner, RunnerQuerySet

OTHER_PROCESS_HEADER = "Pullwake-Other-Process"
"""Ours: on a heartbeat's answer, `true` if another process of the same id reported before it."""

AdminStatus = Literal["enabled", "disabled"]
Kind = Literal["local", "cloud-worker", "sandbox", "ci", "server"]

Text = Annotated[str, Meta(min_length=1, max_length=256)]
Offset = Annotated[str, Meta(pattern=OFFSET_PATTERN)]


class SandboxProfile(Body, frozen=True, kw_only=True):
    """A sandbox that the runner offers."""

    name: Text
    """What entities name it by."""
    label: Text
    """What people read."""
    description: Annotated[str, Meta(max_length=4096)] | UnsetType = UNSET
    """More of that."""
    remote: bool | UnsetType = UNSET
    """Whether it is on another machine."""


class Registration(Body, frozen=True, kw_only=True):
    """A runner as it registers itself; what is left out keeps its value."""

    id: Id
    """The runner's id, of the caller's choice."""
    label: Text
    """What people read."""
    owner_principal: Annotated[str, Check(Principal.parse)] | UnsetType = UNSET
    """Whose it is: the caller, as a key or URL; anybody else is refused."""
    kind: Kind | UnsetType = UNSET
    """Where it runs; `local` unless said otherwise."""
    admin_status: AdminStatus | UnsetType = UNSET
    """Whether it may claim; `enabled` unless said otherwise."""
    wake_stream: str | UnsetType = UNSET
    """Its wake stream, `/runners/<id>/wake`; nothing else is taken."""
    sandbox_profiles: Annotated[list[SandboxProfile], Meta(max_length=256)] | UnsetType = UNSET
    """The sandboxes that it offers."""
    max_concurrent_claims: Annotated[int, Meta(ge=1, le=10_000)] | UnsetType | None = UNSET
    """How many claims it may hold at once; null for any number."""
    claim_lease_ms: Annotated[int, Meta(ge=1_000, le=600_000)] | UnsetType = UNSET
    """Milliseconds that its claims last unless they are renewed."""


class RunnerFacts(Body, frozen=True, kw_only=True):
    """What is told of a runner wherever one is shown."""

    id: str
    """Its id."""
    owner_principal: str
    """The canonical URL of its owner."""
    label: str
    """What people read."""
    kind: Kind
    """Where it runs."""
    admin_status: AdminStatus
    """Whether it may claim."""
    wake_stream: str
    """The path of its wake stream."""
    sandbox_profiles: list[JsonObject]
    """The sandboxes that it offers."""
    claim_lease_ms: int
    """Milliseconds that its claims last unless they are renewed."""
    created_at: str
    """When it was registered first."""
    updated_at: str
    """When its registration changed last."""
    max_concurrent_claims: int | UnsetType = UNSET
    """How many claims it may hold at once."""


class RunnerBody(RunnerFacts, frozen=True, kw_only=True):
    """A runner."""

    last_seen_at: str | UnsetType = UNSET
    """When it sent its last heartbeat."""
    liveness_lease_expires_at: str | UnsetType = UNSET
    """Until when that heartbeat counts."""
    wake_stream_offset: str | UnsetType = UNSET
    """Where it has read to in its wake stream: a restarted runner reads on from there."""
    diagnostics: JsonObject | UnsetType = UNSET
    """What it last reported of itself."""


class Heartbeat(Body, frozen=True, kw_only=True):
    """A runner's sign of life; what is left out keeps its value."""

    lease_ms: Annotated[float, Meta(ge=1_000, le=3_600_000)] | UnsetType = UNSET
    """Milliseconds that it counts as online for; 30 000 unless said otherwise."""
    wake_stream_offset: Offset | UnsetType = UNSET
    """Where it has read to in its wake stream."""
    wakeStreamOffset: Offset | UnsetType = UNSET  # noqa: N815  runners may write either
    """The same as `wake_stream_offset`."""
    liveness_lease_expires_at: Annotated[datetime, Meta(tz=True)] | UnsetType = UNSET
    """The end of that time, instead of `lease_ms`: 1 s to 1 h from now."""
    # Any, as what only reports fails no call.
    diagnostics: Annotated[Any, Meta(extra_json_schema={"type": "object"})] = UNSET
    """What it reports of itself: sixteen fields are known, and each is kept if it is valid."""


class RunnerHealth(Body, frozen=True, kw_only=True):
    """The runner as the server sees it."""

    id: str
    """Its id."""
    admin_status: AdminStatus
    """Whether it may claim."""
    liveness_status: Liveness
    """`offline` if it is disabled or was never seen, else whether its heartbeat still counts."""
    lease_expires_at: str | None
    """Until when its last heartbeat counts."""
    lease_remaining_ms: int | None
    """Milliseconds until then."""
    wake_stream: str
    """The path of its wake stream."""
    wake_stream_offset: str | None
    """Where it has read to."""
    last_seen_at: str | None
    """When it sent its last heartbeat."""
    created_at: str
    """When it was registered first."""


class ActiveClaim(Body, frozen=True, kw_only=True):
    """A claim that the runner holds."""

    consumer_id: str
    """The claim's id."""
    epoch: int
    """Its epoch."""
    entity_url: str
    """The entity that it holds."""
    stream_path: str
    """That one's main stream."""
    claimed_at: str
    """When it was made."""
    last_heartbeat_at: str | None
    """When it was renewed last."""
    lease_expires_at: str
    """When it lapses."""


class ActiveClaims(Body, frozen=True, kw_only=True):
    """The claims that the runner holds, oldest first."""

    active_count: int
    """How many there are."""
    active: list[ActiveClaim]
    """Each of them, or the oldest 1 000."""


class DispatchCounts(Body, frozen=True, kw_only=True):
    """Of the entities dispatched to the runner."""

    entities_with_active_claim: int
    """How many are held by a claim."""
    entities_with_outstanding_wake: int
    """How many have a wake that nobody has claimed yet."""
    entities_with_pending_work: int
    """How many have work, and no claim."""


class HealthVerdict(Body, frozen=True, kw_only=True):
    """The worst of the issues, and each in a sentence."""

    status: Status
    """The worst of the issues."""
    issues: list[str]
    """A sentence for each."""


class HealthReport(Body, frozen=True, kw_only=True):
    """Everything that is known of a runner; what has no value is null."""

    runner: RunnerHealth
    """What the server knows of it."""
    client: JsonObject | None
    """What it last reported of itself."""
    claims: ActiveClaims
    """The claims that it holds."""
    dispatch: DispatchCounts
    """The entities that are dispatched to it."""
    health: HealthVerdict
    """What to make of all that."""


def runner_facts(runner: Runner) -> JsonObject:
    """What `RunnerFacts` has of a runner."""
    return {
        "id": runner.id,
        "owner_principal": runner.owner_principal,
        "label": runner.label,
        "kind": runner.kind,
        "admin_status": runner.admin_status,
        "wake_stream": runner.wake_stream_path,
        "sandbox_profiles": runner.sandbox_profiles,
        "claim_lease_ms": runner.claim_lease_ms,
        "created_at": iso(runner.created_at),
        "updated_at": iso(runner.updated_at),
        "max_concurrent_claims": known(runner.max_concurrent_claims),
    }


def runner_body(runner: Runner) -> RunnerBody:
    """A runner, with its liveness, as the API shows it."""
    seen = runner.liveness
    return RunnerBody(
        **runner_facts(runner),
        last_seen_at=known(iso_or_none(seen.last_seen_at)),
        liveness_lease_expires_at=known(iso_or_none(seen.lease_expires_at)),
        wake_stream_offset=known(seen.wake_stream_offset),
        diagnostics=known(seen.diagnostics),
    )


def facts_of(body: Registration) -> JsonObject:
    """The fields of `Runner` that are given."""
    facts = msgspec.structs.asdict(body)
    for not_a_fact in ("id", "owner_principal", "wake_stream"):
        del facts[not_a_fact]
    facts = {name: value for name, value in facts.items() if value is not UNSET}
    if "sandbox_profiles" in facts:
        facts["sandbox_profiles"] = msgspec.to_builtins(facts["sandbox_profiles"])
    return facts


class RunnersView(ApiView):
    """/_electric/runners"""

    authentication_classes = (RunnerAuthentication,)

    @documented("Register a runner", body=Registration, answers={201: RunnerBody})
    def post(self, request: HttpRequest) -> HttpResponse:
        """Register a runner, or update one's own."""
        body = read(request, Registration)
        if self.request.auth not in (None, body.id):
            raise Forbidden(FOR_ONE_RUNNER)
        owner, bad = self.caller, BadFields()
        with bad:
            if body.owner_principal is not UNSET:
                owner = principal_field(body.owner_principal, "/owner_principal")
        with bad:
            if body.wake_stream not in (UNSET, f"/runners/{body.id}/wake"):
                raise InvalidRequest.field("/wake_stream", f"it is /runners/{body.id}/wake")
        bad.refuse()
        if owner != self.caller:
            raise Forbidden("A runner is registered by its owner.")
        return answer(runner_body(arrivals.register(self.caller, body.id, facts_of(body))), 201)

    @documented(
        "List the caller's runners",
        answers={200: list[RunnerBody]},
        parameters=["owner_principal", "limit", "before"],
        sends=["Link"],
    )
    def get(self, request: HttpRequest) -> HttpResponse:
        """The caller's runners, newest first; ``before`` an id: those older than that one."""
        bad = BadFields()
        with bad:
            limit = limit_of(request)
        with bad:
            named = parameter(request, "owner_principal")
            if named is not None and principal_field(named, "/owner_principal") != self.caller:
                raise Forbidden("These are another principal's runners.")
        runners = Runner.objects.owned_by(self.caller).select_related("liveness")
        if self.request.auth is not None:
            runners = runners.filter(pk=self.request.auth)
        with bad:
            before = parameter(request, "before")
            if before is not None:
                runners = _older(runners, *_place(runners, before))
        bad.refuse()
        return answer_page(
            request,
            limit,
            runners.order_by("-created_at", "-id"),
            runner_body,
            lambda each: ("before", _named_place(each)),
        )


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _named_place(runner: Runner) -> str:
    """Where a page goes on that follows this runner: when it was made, in µs, and its id."""
    return f"{(runner.created_at - _EPOCH) // timedelta.resolution}/{runner.pk}"


def _older(runners: RunnerQuerySet, made: datetime, last: str) -> RunnerQuerySet:
    """Those that follow, in a list of the newest first, the one of that time and id."""
    earlier = made - timedelta.resolution
    # SQLite compares times as text, of three digits or of six: none equals another.
    since, until = Q(created_at__gt=earlier), Q(created_at__lt=made + timedelta.resolution)
    return runners.filter(Q(created_at__lte=earlier) | since & until & Q(pk__lt=last))


def _place(runners: RunnerQuerySet, before: str) -> tuple[datetime, str]:
    """When a runner was made, and its id: by `_named_place`, as it may be gone, or by its id.

    Raises InvalidRequest.
    """
    made, slash, runner_id = before.partition("/")
    if slash and is_number(made, 16):
        return _EPOCH + timedelta(microseconds=int(made)), runner_id
    last = runners.filter(pk=before).first()
    if last is None:
        raise InvalidRequest.field("/before", "not the id of one of the caller's runners")
    return last.created_at, last.pk


class RunnerView(RunnerResource):
    """/_electric/runners/:id"""

    find = staticmethod(registry.find_seen)

    @documented("Get a runner", answers={200: RunnerBody})
    def get(self, request: HttpRequest, runner_id: str) -> HttpResponse:
        """One's own runner."""
        return answer(runner_body(self.runner(runner_id)))

    @documented("Delete a runner", answers={204: None})
    def delete(self, request: HttpRequest, runner_id: str) -> HttpResponse:
        """Its claims expire and its entities are freed."""
        runner = self.runner(runner_id)
        endings.forget_past_of_runner(runner)
        with self.recorded(runner, "Deleted"):
            endings.delete_runner(runner)
        return HttpResponse(status=204)


class HeartbeatView(RunnerResource):
    """/_electric/runners/:id/heartbeat"""

    find = staticmethod(registry.find_seen)
    reports = True

    @documented(
        "Report that a runner lives",
        body=Heartbeat,
        answers={200: RunnerBody},
        sends=[OTHER_PROCESS_HEADER],
        operation="heartbeat",
    )
    def post(self, request: HttpRequest, runner_id: str) -> HttpResponse:
        """Renew the runner's liveness lease."""
        body = read(request, Heartbeat, empty=True, any_text=True)
        runner = self.runner(runner_id)
        offset = body.wake_stream_offset
        if offset is UNSET:
            offset = body.wakeStreamOffset
        told = None if body.diagnostics is UNSET else diagnostics.cleaned(body.diagnostics)
        headers = _other_process(runner, told)
        registry.heartbeat(
            runner,
            now=runner.now,
            lease_expires_at=_lease_end(body, runner.now),
            wake_stream_offset=None if offset is UNSET else offset,
            diagnostics=told,
        )
        return answer(runner_body(runner), headers=headers)


def _other_process(runner: Runner, told: JsonObject | None) -> dict[str, str]:
    """Whether the previous heartbeat came from another living process with the same id."""
    seen, before = runner.liveness, runner.liveness.diagnostics
    if not told or not before or before.get("status") == "stopped":
        return {}
    lives = seen.lease_expires_at is not None and seen.lease_expires_at > runner.now
    started, other = told.get("started_at"), before.get("started_at")
    if not lives or not started or not other or started == other:
        return {}
    return {OTHER_PROCESS_HEADER: "true"}


def _lease_end(body: Heartbeat, now: datetime) -> datetime:
    if body.liveness_lease_expires_at is not UNSET:
        lease = body.liveness_lease_expires_at - now
        if not timedelta(seconds=1) <= lease <= timedelta(hours=1):
            raise InvalidRequest.field(
                "/liveness_lease_expires_at", "it must be 1 s to 1 h from now"
            )
        return body.liveness_lease_expires_at.astimezone(UTC)
    if body.lease_ms is not UNSET:
        return now + timedelta(milliseconds=body.lease_ms)
    return now + registry.HEARTBEAT_LEASE


class AdminStatusView(RunnerResource):
    """/_electric/runners/:id/enable and /disable"""

    status: ClassVar[Runner.AdminStatus]

    @documented("Enable or disable a runner", answers={200: RunnerBody})
    def post(self, request: HttpRequest, runner_id: str) -> HttpResponse:
        """Let the runner claim, or no longer."""
        raw_body(request)  # nobody reads it, but it has to be JSON like any other
        runner = self.runner(runner_id)
        with self.recorded(runner, str(self.status).capitalize(), flag=CHANGE):
            runner = arrivals.set_admin_status(runner, self.status)
        return answer(runner_body(runner))


class EnableView(AdminStatusView):
    """/_electric/runners/:id/enable"""

    operation = "enableRunner"
    status = Runner.AdminStatus.ENABLED


class DisableView(AdminStatusView):
    """/_electric/runners/:id/disable"""

    operation = "disableRunner"
    status = Runner.AdminStatus.DISABLED


class HealthView(RunnerResource):
    """/_electric/runners/:id/health"""

    find = staticmethod(reports.find_counted)

    @documented("Report a runner's health", answers={200: HealthReport})
    def get(self, request: HttpRequest, runner_id: str) -> HttpResponse:
        """Everything that is known of one's own runner."""
        return answer(health_body(reports.examine(self.runner(runner_id))))


def health_body(report: reports.Report) -> HealthReport:
    """A runner's health as the API shows it."""
    runner, now = report.runner, report.runner.now
    seen = runner.liveness
    expires_at = seen.lease_expires_at
    remaining = None if expires_at is None else (expires_at - now) // timedelta(milliseconds=1)
    return HealthReport(
        runner=RunnerHealth(
            id=runner.id,
            admin_status=cast(AdminStatus, runner.admin_status),
            liveness_status=liveness(runner, now),
            lease_expires_at=iso_or_none(expires_at),
            lease_remaining_ms=None if remaining is None else max(remaining, 0),
            wake_stream=runner.wake_stream_path,
            wake_stream_offset=seen.wake_stream_offset,
            last_seen_at=iso_or_none(seen.last_seen_at),
            created_at=iso(runner.created_at),
        ),
        client=seen.diagnostics,
        claims=ActiveClaims(
            active_count=report.held,
            active=[
                ActiveClaim(
                    consumer_id=claim.consumer_id,
                    epoch=claim.epoch,
                    entity_url=claim.entity_url,
                    stream_path=f"{claim.entity_url}/main",
                    claimed_at=iso(claim.claimed_at),
                    last_heartbeat_at=iso_or_none(claim.last_heartbeat_at),
                    lease_expires_at=iso(claim.lease_end),
                )
                for claim in report.claims
            ],
        ),
        dispatch=DispatchCounts(
            entities_with_active_claim=report.active,
            entities_with_outstanding_wake=report.outstanding,
            entities_with_pending_work=report.pending,
        ),
        health=HealthVerdict(status=report.health.status, issues=list(report.health.issues)),
    )
