"""The dispatch app."""

from django.apps import AppConfig


class DispatchConfig(AppConfig):
    """Entities, their streams, and the wakes that their work causes."""

    name = "dispatch"
