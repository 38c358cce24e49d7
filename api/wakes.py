"""The REST API of wakes between entities: what a subscriber is woken for, and where."""

from typing import Annotated

from django.http import HttpRequest, HttpResponse
from msgspec import UNSET, Meta, UnsetType

from api.acting import ActingAuthentication, ForActor
from api.fields import EntityUrl, ManifestKey
from api.openapi import documented
from api.views import ApiView
from core.bodies import Body, read
from core.errors import InvalidRequest
from dispatch import entities, registering
from dispatch.models import Entity
from dispatch.streams import conditions, registrations, sources

SourceUrl = Annotated[str, Meta(min_length=1, max_length=sources.MAX_URL)]


class WakeRegistration(Body, frozen=True, kw_only=True):
    """Wake the subscriber when this happens at the source."""

    subscriberUrl: EntityUrl  # noqa: N815  as runtimes write it
    """The entity that is to be woken."""
    sourceUrl: SourceUrl  # noqa: N815
    """What it is to be woken for: an entity, a shared state, or a cron expression's stream."""
    condition: conditions.Condition
    """What has to happen there."""
    debounceMs: conditions.DebounceMs | UnsetType = UNSET  # noqa: N815
    """Milliseconds to wait after the last change, and then wake once for all."""
    timeoutMs: conditions.TimeoutMs | UnsetType = UNSET  # noqa: N815
    """Milliseconds after which it is woken if nothing happened; 0 is never."""
    includeResponse: bool | UnsetType = UNSET  # noqa: N815
    """Whether a finished run's text comes with the wake; true unless said otherwise."""
    manifestKey: ManifestKey | UnsetType = UNSET  # noqa: N815
    """A name of this registration: the next one of that name replaces it."""


class WakeUnregistration(Body, frozen=True, kw_only=True):
    """The registrations of the subscriber at this source, or of this manifest key."""

    subscriberUrl: EntityUrl  # noqa: N815
    """The entity that was to be woken."""
    sourceUrl: SourceUrl | UnsetType = UNSET  # noqa: N815
    """For what; required without `manifestKey`."""
    manifestKey: ManifestKey | UnsetType = UNSET  # noqa: N815
    """The registration's name; required without `sourceUrl`."""


class SubscriberView(ForActor, ApiView):
    """Calls made for a subscriber, by a caller with rights in it."""

    authentication_classes = (ActingAuthentication,)

    def subscriber(self, url: str) -> Entity:
        """The subscriber. Raises NotFound, Forbidden."""
        subscriber = entities.find_own(self.actor.principal, url, "subscriber")
        self.actor.prove(url, within=False)
        return subscriber


class WakeView(SubscriberView):
    """/_electric/wake"""

    @documented(
        "Wake an entity for another",
        body=WakeRegistration,
        answers={204: None},
        operation="registerWake",
    )
    def post(self, request: HttpRequest) -> HttpResponse:
        """Have an entity woken for what happens at another; a second call changes the first's."""
        body = read(request, WakeRegistration)
        wish = conditions.wish(
            body.condition,
            include_response=body.includeResponse,
            debounce_ms=body.debounceMs,
            timeout_ms=body.timeoutMs,
        )
        source = sources.require_served(body.sourceUrl, "/sourceUrl")
        subscriber = self.subscriber(body.subscriberUrl)
        near_only = self.actor.owner not in (None, self.actor.principal)
        key = body.manifestKey or ""
        order = registrations.Order(source, wish, key, near_only=near_only)
        registering.register(subscriber, order)
        return HttpResponse(status=204)


class UnregisterView(SubscriberView):
    """/_electric/wake/unregister"""

    @documented(
        "Wake an entity no more",
        body=WakeUnregistration,
        answers={204: None},
        operation="unregisterWake",
    )
    def post(self, request: HttpRequest) -> HttpResponse:
        """Remove a subscriber's registrations, if there are any."""
        body = read(request, WakeUnregistration)
        if body.sourceUrl is UNSET and body.manifestKey is UNSET:
            raise InvalidRequest.field("/sourceUrl", "this, or manifestKey, is required")
        registrations.unregister(
            self.subscriber(body.subscriberUrl),
            source_url=body.sourceUrl or "",
            manifest_key=body.manifestKey or "",
        )
        return HttpResponse(status=204)
