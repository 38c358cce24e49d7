"""The serving app: it brings ``manage.py serve``."""

from django.apps import AppConfig


class ServingConfig(AppConfig):
    """Serving."""

    name = "config.serving"
