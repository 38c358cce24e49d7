"""The REST API of claims: a runner claims a wake, and its handler calls back."""

from datetime import timedelta
from typing import Annotated, Any, Literal

import msgspec
from django.http import HttpRequest, HttpResponse
from msgspec import UNSET, Meta, UnsetType

from api.authentication import bearer
from api.lists import base_url
from api.openapi import documented
from api.views import ApiView, RunnerResource
from claims import lifecycle
from core import log_facts, tracing
from core.bodies import Body, Check, JsonObject, answer, clean_text, read
from core.clock import iso
from core.errors import BadFields, InvalidRequest, Unauthenticated
from core.principals import Principal
from core.tracing import TraceContext
from dispatch.streams import offsets

CURSOR_HEADER = "Pullwake-Cursor"
"""Ours: on a claim's answer, the offset up to which the entity's stream was acked before it."""
TAIL_HEADER = "Pullwake-Tail"
"""Ours: on a claim's answer, the tail of the entity's stream, which a done without acks acks."""

NONCE_HEADER = "Pullwake-Claim-Nonce"
"""Ours: on a claim or a mint, what the runner names its request by; sent again, it gets the same
claim, or the same write token."""

MAX_NONCE = 128
"""Characters."""

MAX_RETRY_AFTER_MS = 30 * 24 * 60 * 60 * 1000
"""How long a handler that failed may put its work off."""


class WakeEvent(Body, frozen=True, kw_only=True):
    """The wake event that a runner claims; only its subscription_id selects."""

    subscription_id: str | UnsetType = UNSET
    """The `subscription_id` of a wake event, which names the entity to claim; without it, or
    without its part for the entity, the oldest wake that waits is claimed.
    """


class StreamPlace(Body, frozen=True, kw_only=True):
    """A stream, and the place just before the first of its work that is not acked."""

    path: str
    """The stream's path, as in `streamPath`."""
    offset: str
    """Where to read on from: everything after it is to be handled."""


class ClaimedEntity(Body, frozen=True, kw_only=True):
    """The entity that was claimed, as it was before."""

    type: str
    """The name of its type."""
    status: str
    """What it was before the claim: `idle`."""
    url: str
    """Its path: `/<type>/<id>`."""
    streams: dict[str, str]
    """The path of its `main` stream."""
    tags: dict[str, str]
    """Its tags."""
    spawnArgs: JsonObject  # noqa: N815
    """The `args` that it was made with."""
    sandbox: JsonObject | None
    """Where it is to work; null for nowhere in particular."""
    createdBy: str  # noqa: N815
    """The canonical URL of its creator."""


class PrincipalBody(Body, frozen=True, kw_only=True):
    """A principal."""

    url: str
    """The canonical URL, `/principal/user%3Aalice`."""
    key: str
    """The key, `user:alice`."""
    kind: str
    """The part before the first colon."""
    id: str
    """The part after it."""


class ClaimBody(Body, frozen=True, kw_only=True):
    """A claim that was made."""

    consumerId: str  # noqa: N815
    """The claim's id, part of its `callback`."""
    epoch: int
    """The fencing token: one more with each wake of the entity. Every callback names it."""
    wakeId: str  # noqa: N815
    """The wake's id, with which a write token is minted."""
    streamPath: str  # noqa: N815
    """The entity's main stream, to read and append to."""
    streams: list[StreamPlace]
    """The streams to read, and from where."""
    callback: str
    """The absolute URL to call back at."""
    claimToken: str  # noqa: N815
    """The secret that callbacks are made with. It is told once."""
    triggerEvent: Literal["message_received"]  # noqa: N815
    """Why the entity was woken."""
    attempt: int
    """Which claim of the entity it is since one was released: 1, unless earlier ones failed or
    lapsed.
    """
    entity: ClaimedEntity
    """The entity that was claimed."""
    principal: PrincipalBody
    """The entity's creator."""
    traceparent: str | UnsetType = UNSET
    """Where in a trace its first work was sent: the parent of what is done for it. W3C's."""
    tracestate: str | UnsetType = UNSET
    """W3C's, which goes with it."""


class NothingToDo(Body, frozen=True, kw_only=True):
    """The entity is paused, stopping, or at its end."""

    done: Literal[True]
    """Always true."""


class Acked(Body, frozen=True, kw_only=True):
    """An offset up to which a stream has been worked off."""

    offset: Annotated[str, Check(offsets.parse)]
    """Everything up to here is worked off."""
    path: str | UnsetType = UNSET
    """The stream's path."""
    stream: str | UnsetType = UNSET
    """The same; `path` is taken where both are given."""


class Callback(Body, frozen=True, kw_only=True):
    """What a handler calls back with: done, failed, a claim of a write token, or a heartbeat."""

    epoch: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    """The claim's epoch; required, unless `generation` gives it."""
    generation: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    """The same as `epoch`."""
    wakeId: str | UnsetType = UNSET  # noqa: N815
    """The wake's id; with it and without `acks`, a write token is minted, and another before it
    is void.
    """
    wake_id: str | UnsetType = UNSET
    """The same as `wakeId`."""
    acks: Annotated[list[Acked], Meta(max_length=1000)] | UnsetType = UNSET
    """How far streams have been worked off. A done without any acks all that was there when the
    claim was made.
    """
    done: bool | UnsetType = UNSET
    """The work is done: the claim is released."""
    failed: bool | UnsetType = UNSET
    """The work failed: the claim ends, and its entity is woken again after a delay."""
    error: Any = UNSET
    """Why it failed, for the operator; anything is taken."""
    retry_after_ms: Annotated[int, Meta(ge=1_000, le=MAX_RETRY_AFTER_MS)] | UnsetType = UNSET
    """Milliseconds until a failed claim's entity is woken again, instead of 10 s that double
    each time.
    """
    give_up: bool | UnsetType = UNSET
    """With `failed`: do not try again. The work is acked, and kept as a dead letter."""


class CallbackAnswer(Body, frozen=True, kw_only=True):
    """What became of a callback."""

    ok: Literal[True]
    """Always true."""
    writeToken: str | UnsetType = UNSET  # noqa: N815
    """The secret to append to the entity's stream with. Of a mint."""
    next_wake: bool | UnsetType = UNSET
    """Whether more work waits, and a wake for it has been emitted."""
    lease_expires_at: str | UnsetType = UNSET
    """When the claim lapses, unless it is renewed before. Of a heartbeat."""
    entity_cleared: bool | UnsetType = UNSET
    """Whether this call ended the claim; false where it had been released before."""
    retry_at: str | UnsetType = UNSET
    """When the entity is woken again. Of a failure."""


class ClaimView(RunnerResource):
    """/_electric/runners/:id/claim"""

    @documented(
        "Claim a wake",
        body=WakeEvent,
        answers={200: (ClaimBody, NothingToDo), 204: None},
        errors=[409],
        headers=[NONCE_HEADER],
        sends=[CURSOR_HEADER, TAIL_HEADER],
    )
    def post(self, request: HttpRequest, runner_id: str) -> HttpResponse:
        """Claim the entity that a wake event names, or the oldest wake."""
        body = read(request, WakeEvent, empty=True)
        runner = self.runner(runner_id)
        subscription = None if body.subscription_id is UNSET else body.subscription_id
        verdict = lifecycle.acquire(runner, subscription, _nonce(request))
        match verdict:
            case None:
                return HttpResponse(status=204)
            case lifecycle.NotAwake():
                return answer(NothingToDo(done=True))
        places = {
            CURSOR_HEADER: offsets.encode(verdict.cursor),
            TAIL_HEADER: offsets.encode(verdict.claim.delivered_offset),
        }
        log_facts.note(**_facts(verdict))
        return answer(claim_body(verdict, base_url(request), _place(verdict)), headers=places)


def _nonce(request: HttpRequest) -> str:
    nonce: str = request.META.get("HTTP_PULLWAKE_CLAIM_NONCE", "")
    if len(nonce) > MAX_NONCE:
        raise InvalidRequest(f"{NONCE_HEADER} is longer than {MAX_NONCE} characters.")
    return nonce


def _facts(made: lifecycle.Acquisition) -> dict[str, Any]:
    return {"entity": made.entity.url, "epoch": made.claim.epoch}


def _place(made: lifecycle.Acquisition) -> TraceContext | None:
    """The trace position of a claim: its own span, if spans are made."""
    if tracing.tracer is None or made.sent is None:
        return made.sent
    return tracing.tracer.claimed(made.sent, made.waited or timedelta(), _facts(made))


def claim_body(
    made: lifecycle.Acquisition, callbacks: str, place: TraceContext | None
) -> ClaimBody:
    """A claim as its runner receives it; ``callbacks`` is this server's own URL."""
    claim, entity = made.claim, made.entity
    creator = Principal.parse(entity.created_by)
    offset = offsets.encode_just_past(made.just_past)
    return ClaimBody(
        consumerId=claim.consumer_id,
        epoch=claim.epoch,
        wakeId=claim.consumer_id,
        streamPath=entity.stream_path,
        streams=[StreamPlace(path=entity.stream_path, offset=offset)],
        callback=f"{callbacks}/_electric/wake-callbacks/{claim.consumer_id}",
        claimToken=made.claim_token,
        triggerEvent="message_received",
        attempt=made.attempt,
        entity=ClaimedEntity(
            type=entity.type,
            status="idle",  # its former status: only such an entity is claimed
            url=entity.url,
            streams={"main": entity.stream_path},
            tags=entity.tags,
            spawnArgs=entity.spawn_args,
            sandbox=entity.sandbox,
            createdBy=entity.created_by,
        ),
        principal=PrincipalBody(url=creator.url, key=creator.key, kind=creator.kind, id=creator.id),
        traceparent=UNSET if place is None else place.traceparent,
        tracestate=UNSET if place is None else place.state or UNSET,
    )


class CallbackView(ApiView):
    """/_electric/wake-callbacks/:consumerId"""

    authentication_classes = ()
    permission_classes = ()

    @documented(
        "Call back about a claim",
        body=Callback,
        answers={200: CallbackAnswer},
        errors=[409],
        headers=["Electric-Claim-Token", NONCE_HEADER],
        operation="callBack",
    )
    def post(self, request: HttpRequest, consumer_id: str) -> HttpResponse:
        """Mint a write token, renew the lease, or end the claim."""
        token = request.META.get("HTTP_ELECTRIC_CLAIM_TOKEN") or bearer(request)
        if not token:
            raise Unauthenticated("A callback needs its claim token.")
        try:
            body = read(request, Callback, reports=["error"])
            bad = BadFields()
            with bad:
                credentials = _credentials(body, consumer_id, token)
                log_facts.note(epoch=credentials.epoch)
            with bad:
                acks = _acks(body)
            bad.refuse()
            nonce = _nonce(request)
        except InvalidRequest:
            # A caller without the claim gets 401, not a hint about the body.
            lifecycle.authenticate(consumer_id, token)
            raise
        done = _carry_out(body, credentials, acks, nonce)
        self.verb, self.reports = _verb(body, done)
        return answer(done)


def _credentials(body: Callback, consumer_id: str, token: str) -> lifecycle.Credentials:
    epoch = body.generation if body.epoch is UNSET else body.epoch
    if epoch is UNSET:
        raise InvalidRequest.field("/epoch", "is required")
    if body.done and body.failed:
        raise InvalidRequest.field("/failed", "a claim is done or failed, not both")
    for name in ("give_up", "retry_after_ms"):
        if getattr(body, name) and not body.failed:
            raise InvalidRequest.field(f"/{name}", "only where the claim is failed")
    if body.give_up and body.retry_after_ms:
        raise InvalidRequest.field("/give_up", "what is given up is not tried again")
    wake_id = body.wake_id if body.wakeId is UNSET else body.wakeId
    return lifecycle.Credentials(consumer_id, epoch, token, None if wake_id is UNSET else wake_id)


def _error(reported: Any) -> str:
    """A handler's error as it is stored: whatever it is, it never fails the call."""
    if reported is UNSET or reported is None:
        return ""
    text = reported if isinstance(reported, str) else msgspec.json.encode(reported).decode()
    return clean_text(text, lifecycle.MAX_ERROR)


def _carry_out(
    body: Callback,
    credentials: lifecycle.Credentials,
    acks: list[lifecycle.Ack] | None,
    nonce: str,
) -> CallbackAnswer:
    if body.done:
        release = lifecycle.release(credentials, acks)
        return CallbackAnswer(
            ok=True,
            next_wake=release.next_wake is not None,
            entity_cleared=release.entity_cleared,
        )
    if body.give_up:
        lifecycle.give_up(credentials, _error(body.error), acks)
        return CallbackAnswer(ok=True, entity_cleared=True)
    if body.failed:
        later = timedelta(milliseconds=body.retry_after_ms) if body.retry_after_ms else None
        failure = lifecycle.fail(credentials, _error(body.error), retry_after=later)
        return CallbackAnswer(
            ok=True,
            entity_cleared=True,
            retry_at=UNSET if failure.retry_at is None else iso(failure.retry_at),
        )
    if credentials.wake_id is not None and acks is None:
        return CallbackAnswer(ok=True, writeToken=lifecycle.mint(credentials, nonce))
    expires_at = lifecycle.renew(credentials, acks or ())
    return CallbackAnswer(ok=True, next_wake=False, lease_expires_at=iso(expires_at))


def _verb(body: Callback, done: CallbackAnswer) -> tuple[str, bool]:
    """What a callback did, and whether it was a mere report."""
    if body.done:
        return "Release a claim", False
    if body.failed:
        return "Fail a claim", False
    if done.writeToken is not UNSET:
        return "Mint a write token", False
    return "Renew a claim's lease", True


def _acks(body: Callback) -> list[lifecycle.Ack] | None:
    """The acks; None if there are none, and a done then acks everything that was delivered."""
    if not body.acks:
        return None
    acks, bad = [], BadFields()
    for index, each in enumerate(body.acks):
        path = (each.stream if each.path is UNSET else each.path) or ""
        with bad:
            if not path:
                raise InvalidRequest.field(f"/acks/{index}/path", "is required")
        with bad:
            offset = offsets.decode(each.offset, f"/acks/{index}/offset")
            acks.append(lifecycle.Ack("/" + path.removeprefix("/"), offset))
    bad.refuse()
    return acks
