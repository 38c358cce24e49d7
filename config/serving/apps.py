"""The serving app: it brings ``manage.py serve``, and the checks of how it is set."""

from django.apps import AppConfig

from config.serving import checks  # noqa: F401  importing them registers them


class ServingConfig(AppConfig):
    """Serving."""

    name = "config.serving"
