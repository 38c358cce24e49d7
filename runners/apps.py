"""The runners app."""

from django.apps import AppConfig


class RunnersConfig(AppConfig):
    """Runners, their liveness, and who may call."""

    name = "runners"
