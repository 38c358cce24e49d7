"""Addresses of entities, entity types and streams."""

from django.urls import path, register_converter
from django.urls.converters import PathConverter

from dispatch import api


class _TextConverter(PathConverter):
    """Any text: an encoded slash in it is a slash by the time that WSGI has it."""

    regex = "(?s:.+)"


register_converter(_TextConverter, "text")

_ENTITY = "_electric/entities/<str:type_name>/<str:name>"

urlpatterns = [
    path("_electric/entities", api.EntitiesView.as_view()),
    path(_ENTITY, api.EntityView.as_view()),
    path(f"{_ENTITY}/send", api.SendView.as_view()),
    path(f"{_ENTITY}/signal", api.SignalView.as_view()),
    path(f"{_ENTITY}/tags/<text:key>", api.TagView.as_view()),
    path("_electric/entity-types", api.EntityTypesView.as_view()),
    path("_electric/entity-types/<str:name>", api.EntityTypeView.as_view()),
    path("runners/<str:runner_id>/wake", api.WakeStreamView.as_view()),
    path("<str:type_name>/<str:name>/main", api.MainStreamView.as_view()),
]
