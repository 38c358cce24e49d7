"""Every address of the REST API."""

from django.urls import path, register_converter
from django.urls.converters import PathConverter, StringConverter

from api import (
    claims,
    entities,
    feeds,
    runners,
    schedules,
    shared_state,
    streams,
    types,
    wakes,
    webhook_sources,
)
from core.identifiers import ID_REGEX


class _TextConverter(PathConverter):
    """Any text: WSGI has decoded an encoded slash by then."""

    regex = "(?s:.+)"


class _IdConverter(StringConverter):
    """An id that is looked up: an address with anything else does not exist."""

    regex = ID_REGEX


register_converter(_TextConverter, "text")
register_converter(_IdConverter, "id")

_ENTITY = "_electric/entities/<str:type_name>/<str:name>"

_RUNNER = "_electric/runners/<id:runner_id>"

urlpatterns = [
    # First what runners and handlers call all the time: addresses are tried in this order.
    path("_electric/wake-callbacks/<id:consumer_id>", claims.CallbackView.as_view()),
    path(f"{_RUNNER}/heartbeat", runners.HeartbeatView.as_view()),
    path(f"{_RUNNER}/claim", claims.ClaimView.as_view()),
    path(f"{_ENTITY}/send", entities.SendView.as_view()),
    path("runners/<id:runner_id>/wake", streams.WakeStreamView.as_view()),
    path("_electric/runners", runners.RunnersView.as_view()),
    path(_RUNNER, runners.RunnerView.as_view()),
    path(f"{_RUNNER}/enable", runners.EnableView.as_view()),
    path(f"{_RUNNER}/disable", runners.DisableView.as_view()),
    path(f"{_RUNNER}/health", runners.HealthView.as_view()),
    path("_electric/entities", entities.EntitiesView.as_view()),
    path(_ENTITY, entities.EntityView.as_view()),
    path(f"{_ENTITY}/inbox/<text:key>", entities.InboxView.as_view()),
    path(f"{_ENTITY}/signal", entities.SignalView.as_view()),
    path(f"{_ENTITY}/tags/<text:key>", entities.TagView.as_view()),
    path(f"{_ENTITY}/schedules/<text:sid>", schedules.ScheduleView.as_view()),
    path("_electric/observations/cron/ensure-stream", schedules.CronStreamView.as_view()),
    path("_electric/wake", wakes.WakeView.as_view()),
    path("_electric/wake/unregister", wakes.UnregisterView.as_view()),
    path("_electric/entity-types", types.EntityTypesView.as_view()),
    path("_electric/entity-types/<id:name>", types.EntityTypeView.as_view()),
    path("_electric/entity-types/<id:name>/schemas", types.SchemasView.as_view()),
    path("_electric/shared-state/<text:shared_id>", shared_state.SharedStateView.as_view()),
    path("_electric/feeds/runners", feeds.RunnersFeedView.as_view()),
    path("_electric/feeds/entities", feeds.EntitiesFeedView.as_view()),
    path("_electric/webhook-sources", webhook_sources.WebhookSourcesView.as_view()),
    # Last, since it takes an address such as that of the shared state "main", too.
    path("<str:type_name>/<str:name>/main", streams.MainStreamView.as_view()),
]
