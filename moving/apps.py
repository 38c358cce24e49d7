"""The moving app."""

from django.apps import AppConfig


class MovingConfig(AppConfig):
    """The record of what was taken over from another server."""

    name = "moving"
