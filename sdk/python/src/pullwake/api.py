"""The server's calls, typed. Field names, paths and headers are the protocol's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from . import tracing
from .errors import BadAnswer, ServerRefused
from .timing import Timing
from .transport import Answer, Transport, dump

START = "-1"
"""The offset before the first event of a stream."""

NO_WORK = frozenset({"ALREADY_CLAIMED", "NO_PENDING_WORK", "CLAIM_LIMIT_REACHED"})
"""Refusals of a claim that are answers, not errors."""

HANDLERS_CALLS = 64
"""Calls on behalf of handlers at a time: what they do at once must not take every connection."""

DEFAULT_LEASE = 30.0
"""Seconds; for a server that does not say."""


@dataclass(frozen=True, slots=True)
class Registration:
    """How a runner presents itself. What is None keeps the value the server holds."""

    runner_id: str
    label: str
    kind: str | None = None
    owner_principal: str | None = None
    sandbox_profiles: Sequence[Mapping[str, Any]] | None = None
    max_concurrent_claims: int | None = None
    claim_lease: float | None = None
    """Seconds."""

    def body(self) -> dict[str, Any]:
        fields = {
            "id": self.runner_id,
            "label": self.label,
            "kind": self.kind,
            "owner_principal": self.owner_principal,
            "sandbox_profiles": self.sandbox_profiles,
            "max_concurrent_claims": self.max_concurrent_claims,
            "claim_lease_ms": None if self.claim_lease is None else round(self.claim_lease * 1000),
        }
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class RunnerRecord:
    """What the server holds about a runner, as far as the runner goes by it."""

    wake_stream: str
    wake_stream_offset: str | None
    claim_lease: float
    """Seconds."""
    max_concurrent_claims: int | None
    admin_status: str
    owner: str | None = None
    """A principal's URL."""
    created_at: str | None = None
    started_at: str | None = None
    """When the process that last reported was started, by its own clock."""
    other_process: bool = False
    """Another process of this id had reported since this one last did."""

    @classmethod
    def parse(cls, body: dict[str, Any], runner_id: str) -> RunnerRecord:
        """Raises BadAnswer for anything but this runner."""
        if body.get("id") != runner_id:
            raise BadAnswer("an answer is not this runner's record")
        lease_ms = _number(body.get("claim_lease_ms"))
        reported = body.get("diagnostics")
        limit = _number(body.get("max_concurrent_claims"))
        return cls(
            wake_stream=_text(body, "wake_stream") or f"/runners/{quote(runner_id)}/wake",
            wake_stream_offset=_text(body, "wake_stream_offset"),
            claim_lease=lease_ms / 1000 if lease_ms else DEFAULT_LEASE,
            max_concurrent_claims=int(limit) if limit else None,
            admin_status=_text(body, "admin_status") or "enabled",
            owner=_text(body, "owner_principal"),
            created_at=_text(body, "created_at"),
            started_at=_text(reported, "started_at") if isinstance(reported, dict) else None,
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """A claim the server granted."""

    consumer_id: str
    epoch: int
    wake_id: str
    stream_path: str
    tail: str | None
    """The main stream's end at the claim: up to here is what this claim delivers."""
    cursor: str
    """What was acknowledged before: from here on is what this claim delivers."""
    callback: str
    claim_token: str = field(repr=False)
    trigger_event: str | None
    entity: dict[str, Any]
    principal: dict[str, Any]
    attempt: int
    """1, and more after failures in a row."""
    sent_at: float
    """The lease clock when the claim left: the lease runs from then at the earliest."""
    traceparent: str | None = None
    """Of the message that woke it, where that was sent with one."""

    @property
    def entity_url(self) -> str:
        url = self.entity.get("url")
        return url if isinstance(url, str) else self.stream_path.removesuffix("/main")

    @property
    def entity_type(self) -> str:
        kind = self.entity.get("type")
        return kind if isinstance(kind, str) else self.entity_url.strip("/").split("/")[0]


@dataclass(frozen=True, slots=True)
class NoWork:
    """The claim found nothing to do."""

    reason: str


class Api:
    """Calls on behalf of one runner. All raise what `Transport.call` raises."""

    def __init__(self, transport: Transport, registration: Registration, timing: Timing) -> None:
        self.transport = transport
        self.registration = registration
        self.timing = timing
        self._work = asyncio.Semaphore(HANDLERS_CALLS)
        self._runner = f"/_electric/runners/{quote(registration.runner_id, safe='')}"

    async def register(self, known: RunnerRecord | None = None) -> RunnerRecord:
        """Make the runner known. For one that is, this changes only what it says anew.

        One that was `known` is only asked for, unless it was deleted meanwhile: to register it
        again would emit all its wakes again, which it has read.
        """
        if known is not None:
            try:
                record = await self.get()
            except ServerRefused as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
            else:
                if record.created_at == known.created_at:
                    return record
        registration = self.registration
        answer = await self._call("POST", "/_electric/runners", registration.body())
        return RunnerRecord.parse(answer.object(), registration.runner_id)

    async def get(self, deadline: float | None = None) -> RunnerRecord:
        """What the server holds about the runner."""
        answer = await self._call("GET", self._runner, deadline=deadline)
        return RunnerRecord.parse(answer.object(), self.registration.runner_id)

    async def heartbeat(
        self, *, lease: float, offset: str | None, diagnostics: dict[str, Any], deadline: float
    ) -> RunnerRecord:
        """Report the runner alive for `lease` seconds, and the stream read up to `offset`."""
        # Null is no value of this one: before the first heartbeat it is left out.
        if diagnostics.get("last_heartbeat_ok") is None:
            diagnostics = {k: v for k, v in diagnostics.items() if k != "last_heartbeat_ok"}
        body: dict[str, Any] = {
            "lease_ms": min(3_600_000, max(1_000, round(lease * 1000))),
            "diagnostics": diagnostics,
        }
        if offset is not None:
            body["wake_stream_offset"] = offset
        answer = await self._call("POST", f"{self._runner}/heartbeat", body, deadline=deadline)
        record = RunnerRecord.parse(answer.object(), self.registration.runner_id)
        return replace(record, other_process=answer.says("pullwake-other-process"))

    async def claim(self, event: Mapping[str, Any], nonce: str) -> Grant | NoWork:
        """Claim the work that `event` woke this runner for.

        With the `nonce` of a claim whose answer was lost, the server answers that one again.
        """
        try:
            extra = {"Pullwake-Claim-Nonce": nonce}
            answer = await self._call("POST", f"{self._runner}/claim", dict(event), extra=extra)
        except ServerRefused as error:
            if error.code in NO_WORK:
                return NoWork(error.code)
            raise
        if answer.status == 204:
            return NoWork("nothing to claim")
        body = answer.object()
        if body.get("done") is True:
            return NoWork("the entity is not to run")
        return _grant(body, answer)

    async def mint(self, grant: Grant, nonce: str) -> str:
        """The write token of this `nonce` for the claim; it replaces one of another."""
        body = {"wakeId": grant.wake_id, "epoch": grant.epoch}
        answer = await self._callback(grant, body, extra={"Pullwake-Claim-Nonce": nonce})
        token = _text(answer.object(), "writeToken")
        if not token:
            raise BadAnswer("a claim was answered without a write token")
        return token

    async def renew(self, grant: Grant, deadline: float, acked: str | None = None) -> float:
        """Renew the claim's lease, and acknowledge its stream up to `acked`.

        Returns the lease clock when the request left.
        """
        body: dict[str, Any] = {"epoch": grant.epoch}
        if acked is not None:
            body["acks"] = _acks(grant, acked)
        answer = await self._callback(grant, body, deadline)
        _accepted(answer)
        return answer.sent_at

    async def done(self, grant: Grant, acked: str | None) -> dict[str, Any]:
        """Release the claim and acknowledge its stream up to `acked`."""
        body = {"epoch": grant.epoch, "acks": _acks(grant, acked), "done": True}
        return _accepted(await self._callback(grant, body))

    async def failed(
        self, grant: Grant, error: str, retry_after: float | None = None
    ) -> dict[str, Any]:
        """Release the claim with nothing acknowledged, to be woken for it again later.

        `retry_after` says when, in seconds; else the server does.
        """
        body: dict[str, Any] = {"epoch": grant.epoch, "failed": True, "error": error}
        if retry_after is not None:
            body["retry_after_ms"] = round(retry_after * 1000)
        return _accepted(await self._callback(grant, body))

    async def give_up(self, grant: Grant, reason: str, acked: str | None) -> dict[str, Any]:
        """Release the claim, and have its work up to `acked` set aside for an operator."""
        body: dict[str, Any] = {"epoch": grant.epoch, "failed": True, "give_up": True}
        body |= {"error": reason, "acks": _acks(grant, acked)}
        return _accepted(await self._callback(grant, body))

    async def read(self, path: str, offset: str, token: str, *, live: bool = False) -> Answer:
        """One read of an entity's stream; a `live` one waits until there is something to read."""
        timing = self.timing
        return await self.transport.call(
            "GET",
            self.transport.url(path),
            params={"offset": offset, "live": "long-poll"} if live else {"offset": offset},
            token=token,
            deadline=timing.long_poll_deadline if live else timing.request_timeout,
        )

    async def send(self, entity_url: str, body: Mapping[str, Any], token: str) -> None:
        """Send a message to an entity, as the handler whose write token this is."""
        await self._of_entity("POST", entity_url, "/send", body, token=token)

    async def set_tag(self, entity_url: str, key: str, value: str | None, token: str) -> None:
        """Set a tag of an entity, or take it off."""
        method, body = ("DELETE", None) if value is None else ("POST", {"value": value})
        await self._of_entity(method, entity_url, f"/tags/{quote(key, safe='')}", body, token=token)

    async def spawn(self, entity_url: str, body: Mapping[str, Any], creator: str | None) -> None:
        """Make an entity, in the name of `creator`, a principal's key.

        Making one carries no token of the claim, so it is this runner's owner who calls.
        """
        await self._of_entity("PUT", entity_url, "", body, extra=_in_the_name_of(creator))

    async def watch(self, body: Mapping[str, Any], creator: str | None) -> None:
        """Register an entity to be woken for what happens elsewhere."""
        try:
            extra = _in_the_name_of(creator)
            await self._call("POST", "/_electric/wake", dict(body), extra=extra)
        except ServerRefused as error:
            error.about_claim = False
            raise

    async def _of_entity(
        self,
        method: str,
        entity_url: str,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        token: str | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> Answer:
        url = "/".join(quote(part, safe="") for part in entity_url.strip("/").split("/"))
        async with self._work:
            try:
                path = f"/_electric/entities/{url}{path}"
                return await self._call(method, path, body, token=token, extra=extra)
            except ServerRefused as error:
                # Only a write token that is dead says something of the claim.
                error.about_claim = token is not None and error.status == HTTPStatus.UNAUTHORIZED
                raise

    async def append(
        self, path: str, body: bytes, token: str, *, producer: str, epoch: int, seq: int
    ) -> Answer:
        """Append to an entity's stream, exactly once for each (producer, epoch, seq)."""
        async with self._work:
            return await self.transport.call(
                "POST",
                self.transport.url(path),
                content=body,
                token=token,
                extra={
                    "Producer-Id": producer,
                    "Producer-Epoch": str(epoch),
                    "Producer-Seq": str(seq),
                },
                deadline=self.timing.request_timeout,
            )

    async def _call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = None,
        extra: Mapping[str, str] | None = None,
        deadline: float | None = None,
    ) -> Answer:
        return await self.transport.call(
            method,
            self.transport.url(path),
            json_body=body,
            token=token,
            extra=extra,
            deadline=self.timing.request_timeout if deadline is None else deadline,
        )

    async def _callback(
        self,
        grant: Grant,
        body: dict[str, Any],
        deadline: float | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> Answer:
        return await self.transport.call(
            "POST",
            grant.callback,
            json_body=body,
            token=grant.claim_token,
            extra=extra,
            deadline=self.timing.request_timeout if deadline is None else deadline,
        )


def dump_events(events: Sequence[Mapping[str, Any]]) -> bytes:
    """Events as the body of one append. Raises ValueError or TypeError for what is not JSON."""
    return dump([dict(event) for event in events])


def _acks(grant: Grant, acked: str | None) -> list[dict[str, str]]:
    return [] if acked is None else [{"path": grant.stream_path, "offset": acked}]


def _in_the_name_of(creator: str | None) -> dict[str, str]:
    return {} if creator is None else {"Electric-Principal": creator}


def _grant(body: dict[str, Any], answer: Answer) -> Grant:
    path, callback = _text(body, "streamPath"), _text(body, "callback")
    consumer_id, token = _text(body, "consumerId"), _text(body, "claimToken")
    epoch = body.get("epoch")
    if not (path and callback and consumer_id and token) or type(epoch) is not int:
        raise BadAnswer("a claim was granted without all it needs")
    entity, principal = body.get("entity"), body.get("principal")
    return Grant(
        consumer_id=consumer_id,
        epoch=epoch,
        wake_id=_text(body, "wakeId") or consumer_id,
        stream_path="/" + path.lstrip("/"),
        tail=answer.headers.get("pullwake-tail"),
        cursor=answer.headers.get("pullwake-cursor", START),
        callback=callback,
        claim_token=token,
        trigger_event=_text(body, "triggerEvent"),
        entity=entity if isinstance(entity, dict) else {},
        principal=principal if isinstance(principal, dict) else {},
        attempt=int(_number(body.get("attempt")) or 1),
        sent_at=answer.sent_at,
        traceparent=tracing.well_formed(body.get("traceparent")),
    )


def _accepted(answer: Answer) -> dict[str, Any]:
    body = answer.object()
    if body.get("ok") is not True:
        raise BadAnswer("a callback's answer does not say ok")
    return body


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None
