"""The REST API of feeds: what changes of runners and of entities, read as streams are."""

from typing import Any, Literal, cast

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from msgspec import UNSET, UnsetType, to_builtins

from api.authentication import RunnerAuthentication
from api.entities import EntityFacts, entity_facts
from api.openapi import documented
from api.runners import RunnerFacts, runner_facts
from api.streams import LIVE, READ_PARAMETERS, serve
from api.views import ApiView
from claims.feeds import Feed, Sight
from core.bodies import Body, JsonObject, parameter
from core.clock import epoch_ms
from core.errors import BadFields, InvalidRequest
from core.identifiers import is_id
from runners import changes
from runners.health import Liveness, Status
from runners.models import Change, Runner

MAX_TAGS = 8
"""That a reader may ask for at once."""


class RunnerRow(RunnerFacts, frozen=True, kw_only=True):
    """A runner as its feed has it: all but what each heartbeat changes."""

    liveness_status: Liveness
    """Whether its heartbeat still counts."""
    health_status: Status
    """The worst of its issues."""


class ClaimRow(Body, frozen=True, kw_only=True):
    """The active claim of an entity."""

    consumer_id: str
    """The claim's id."""
    epoch: int
    """Its epoch."""
    runner_id: str
    """The runner that holds it."""
    claimed_at: int
    """When it was made, in milliseconds since 1970."""


class EntityRow(EntityFacts, frozen=True, kw_only=True):
    """An entity as its feed has it; ``failures`` are claims in a row that were not released."""

    pending: bool
    """Whether it has work that is not acked."""
    failures: int
    """Claims in a row that were not released."""
    claim: ClaimRow | None
    """Its active claim; null for none."""


class RunnerEvent(Body, frozen=True, kw_only=True):
    """A change of a runner; ``delete`` has no value, and ``reset`` neither type nor key."""

    headers: dict[str, str]
    """What happened: `operation`, or a control such as `reset`."""
    type: Literal["runner"] | UnsetType = UNSET
    """Always `runner`."""
    key: str | UnsetType = UNSET
    """The runner's id."""
    value: RunnerRow | UnsetType = UNSET
    """What it is since."""


class EntityEvent(Body, frozen=True, kw_only=True):
    """A change of an entity; ``delete`` has no value, and ``reset`` neither type nor key."""

    headers: dict[str, str]
    """What happened: `operation`, or a control such as `reset`."""
    type: Literal["entity"] | UnsetType = UNSET
    """Always `entity`."""
    key: str | UnsetType = UNSET
    """The entity's URL."""
    value: EntityRow | UnsetType = UNSET
    """What it is since."""


def show_runner(change: Change, runner: Runner) -> JsonObject:
    """A runner, as its feed was told that it is."""
    alive, _, status = (change.told or "offline degraded").partition(" ")
    row = RunnerRow(
        **runner_facts(runner),
        liveness_status=cast(Liveness, alive),
        health_status=cast(Status, status),
    )
    return cast(JsonObject, to_builtins(row))


def show_entity(change: Change, entity: Any) -> JsonObject:
    """An entity with its dispatch state and its active claim."""
    state, claim = entity.dispatch_state, entity.claim
    row = EntityRow(
        **entity_facts(entity),
        pending=state.pending,
        failures=state.failures,
        claim=claim
        and ClaimRow(
            consumer_id=claim.consumer_id,
            epoch=claim.epoch,
            runner_id=claim.runner_name,
            claimed_at=epoch_ms(claim.claimed_at),
        ),
    )
    return cast(JsonObject, to_builtins(row))


class RunnersFeedView(ApiView):
    """/_electric/feeds/runners"""

    authentication_classes = (RunnerAuthentication,)

    @documented(
        "Follow the caller's runners",
        answers={200: list[RunnerEvent], **LIVE, 204: None, 304: None},
        parameters=READ_PARAMETERS,
    )
    def get(self, request: HttpRequest) -> HttpResponseBase:
        """The caller's runners, then what changes of them; a heartbeat alone is no change."""
        only = str(self.request.auth or "")
        return serve(request, Feed(Sight(changes.Kind.RUNNER, self.caller, only), show_runner))

    @documented("Find the end of the feed of runners", answers={200: None})
    def head(self, request: HttpRequest) -> HttpResponseBase:
        """The headers alone."""
        return self.get(request)


class EntitiesFeedView(ApiView):
    """/_electric/feeds/entities"""

    @documented(
        "Follow the entities that the caller may read",
        answers={200: list[EntityEvent], **LIVE, 204: None, 304: None},
        parameters=[*READ_PARAMETERS, "type", "tag"],
    )
    def get(self, request: HttpRequest) -> HttpResponseBase:
        """Those of a type, and with all the tags that are asked for; then what changes of them.

        ``tag`` is a name, or ``name=value``, and may be given more than once.
        """
        bad = BadFields()
        with bad:
            asked_type = parameter(request, "type") or ""
            if asked_type and not is_id(asked_type):
                raise InvalidRequest.field("/type", "no entity type")
        with bad:
            tags = _tags(request)
        bad.refuse()
        sight = Sight(changes.Kind.ENTITY, self.caller, type=asked_type, tags=tags)
        return serve(request, Feed(sight, show_entity))

    @documented("Find the end of the feed of entities", answers={200: None})
    def head(self, request: HttpRequest) -> HttpResponseBase:
        """The headers alone."""
        return self.get(request)


def _tags(request: HttpRequest) -> tuple[tuple[str, str | None], ...]:
    asked = request.GET.getlist("tag")
    if len(asked) > MAX_TAGS:
        raise InvalidRequest.field("/tag", f"more than {MAX_TAGS}")
    if any("\0" in each for each in asked):
        raise InvalidRequest.field("/tag", "holds a NUL character")
    pairs = [each.partition("=") for each in sorted(asked)]
    return tuple((name, value if equals else None) for name, equals, value in pairs)
