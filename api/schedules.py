"""The REST API of schedules: an entity's own, and the streams that stand for cron expressions."""

from typing import Annotated, Any, Literal

from django.http import HttpRequest, HttpResponse
from msgspec import UNSET, Meta, UnsetType, field

from api.acting import ActingAuthentication, ForActor
from api.entities import ActorView, Sent, require_key
from api.fields import EntityUrl, Key
from api.openapi import documented
from api.views import ApiView
from core.bodies import Body, Check, answer, read
from core.clock import from_iso, iso
from core.errors import BadFields, InvalidRequest
from core.principals import Principal
from dispatch import schedules, zones
from dispatch.cron import Cron
from dispatch.models import Entity
from dispatch.streams.conditions import DebounceMs, TimeoutMs
from dispatch.streams.schedules import FutureSend

Text = Annotated[str, Meta(max_length=256)]
Expression = Annotated[Text, Check(Cron.parse)]
Zone = Annotated[Text, Check(zones.canonical)]


class NewSchedule(Body, frozen=True, kw_only=True):
    """A schedule: ``future_send`` needs fireAt, ``cron`` an expression."""

    scheduleType: Literal["future_send", "cron"]  # noqa: N815
    """Once, at `fireAt`; or again and again, as `expression` says."""
    payload: Any
    """What is sent: any JSON."""
    fireAt: Annotated[Text, Check(from_iso)] | UnsetType = UNSET  # noqa: N815
    """When, in ISO-8601; the past is now. Required of a `future_send`."""
    targetUrl: EntityUrl | UnsetType = UNSET  # noqa: N815
    """The entity that it is sent to; this one unless said otherwise."""
    messageType: Key | UnsetType = UNSET  # noqa: N815
    """The type of the message."""
    sender: Annotated[str, Meta(max_length=512)] | UnsetType = field(name="from", default=UNSET)
    """Whom it is from: the caller or the entity."""
    expression: Expression | UnsetType = UNSET
    """Five fields, or six with seconds first; also `@daily` and the like. Required of a `cron`."""
    timezone: Zone | UnsetType = UNSET
    """The time zone, by its IANA name; UTC unless said otherwise."""
    debounceMs: DebounceMs | UnsetType = UNSET  # noqa: N815
    """Milliseconds to wait after a tick."""
    timeoutMs: TimeoutMs | UnsetType = UNSET  # noqa: N815
    """Milliseconds after which the entity is woken if there was no tick; 0 is never."""


class CronStream(Body, frozen=True, kw_only=True):
    """A cron expression."""

    expression: Expression
    """Five fields, or six with seconds first; also `@daily` and the like."""
    timezone: Zone | UnsetType = UNSET
    """The time zone, by its IANA name; UTC unless said otherwise."""


class CronStreamBody(Body, frozen=True, kw_only=True):
    """Where its stream is."""

    streamUrl: str  # noqa: N815
    """The path to register a wake for."""


class ScheduleView(ActorView):
    """/_electric/entities/:type/:id/schedules/:sid"""

    authentication_classes = (ActingAuthentication,)

    @documented("Set a schedule", body=NewSchedule, answers={200: Sent}, errors=[409])
    def put(self, request: HttpRequest, type_name: str, name: str, sid: str) -> HttpResponse:
        """Send a message at a time, or wake the entity whenever a cron expression says."""
        body = read(request, NewSchedule)
        require_key(request, sid, "/sid")
        entity = self.entity(type_name, name)
        if body.scheduleType == "cron":
            cron = _cron(body.expression, body.timezone)
            txid = schedules.set_cron(
                entity,
                sid,
                cron,
                body.payload,
                debounce_ms=body.debounceMs or 0,
                timeout_ms=body.timeoutMs or 0,
            )
            return answer(Sent(txid=txid))
        bad = BadFields()
        with bad:
            moment = _moment(_given(body.fireAt, "/fireAt"))
        with bad:
            sender = self._sender(entity, body.sender)
        bad.refuse()
        asked = FutureSend(
            payload=body.payload,
            fireAt=moment,
            targetUrl=body.targetUrl or None,
            senderUrl=sender,
            messageType=body.messageType or None,
        )
        near_only = self.actor.owner is not None
        txid = schedules.set_future_send(entity, sid, asked, self.caller, near_only=near_only)
        return answer(Sent(txid=txid))

    @documented("Cancel a schedule", answers={200: Sent}, errors=[409])
    def delete(self, request: HttpRequest, type_name: str, name: str, sid: str) -> HttpResponse:
        """Cancel it, if there is one."""
        require_key(request, sid, "/sid")
        return answer(Sent(txid=schedules.cancel(self.entity(type_name, name), sid)))

    def _sender(self, entity: Entity, asked: str | UnsetType) -> str:
        """Whom a message is from: the caller, or the entity whose schedule it is."""
        if asked is UNSET:
            return self.caller.url
        if asked == entity.url:
            return asked
        try:
            if Principal.parse(asked) == self.caller:
                return self.caller.url
        except ValueError:
            pass
        raise InvalidRequest.field("/from", "neither the caller nor the entity")


class CronStreamView(ForActor, ApiView):
    """/_electric/observations/cron/ensure-stream"""

    authentication_classes = (ActingAuthentication,)

    @documented("Find a cron expression's stream", body=CronStream, answers={200: CronStreamBody})
    def post(self, request: HttpRequest) -> HttpResponse:
        """The path to register at: nothing is created, the expression is all of it."""
        body = read(request, CronStream)
        self.actor.prove(None, within=False)
        return answer(CronStreamBody(streamUrl=_cron(body.expression, body.timezone).path))


def _given(text: str | UnsetType, path: str) -> str:
    if text is UNSET:
        raise InvalidRequest.field(path, "is required of this type of schedule")
    return text


def _moment(text: str) -> str:
    """The moment in our wire form."""
    try:
        return iso(from_iso(text))
    except ValueError:
        raise InvalidRequest.field("/fireAt", "not an ISO-8601 date") from None


def _cron(expression: str | UnsetType, timezone: str | UnsetType) -> Cron:
    zone, bad = "UTC", BadFields()
    with bad:
        if timezone is not UNSET:
            zone = _zone(timezone)
    with bad:
        cron = _ticks(_given(expression, "/expression"), zone)
    bad.refuse()
    return cron


def _zone(timezone: str) -> str:
    try:
        return zones.canonical(timezone)
    except ValueError as problem:
        raise InvalidRequest.field("/timezone", str(problem)) from None


def _ticks(expression: str, zone: str) -> Cron:
    try:
        return Cron.parse(expression, zone)
    except ValueError as problem:
        raise InvalidRequest.field("/expression", str(problem)) from None
