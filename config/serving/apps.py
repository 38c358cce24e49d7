"""The serving app: it brings ``manage.py serve``, and the checks of how it is set."""

from django.apps import AppConfig


class ServingConfig(AppConfig):
    """Serving."""

    name = "config.serving"

    def ready(self) -> None:
        """Register the checks."""
        from config.serving import checks  # noqa: F401
