"""The moving app."""

from django.apps import AppConfig


class MovingConfig(AppConfig):
    """What was taken over from another server."""

    name = "moving"
