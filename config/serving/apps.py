"""The serving app: it brings ``manage.py serve``, and the checks of how it is set."""

from django.apps import AppConfig
from django.conf import settings

from config.serving import checks  # noqa: F401  importing them registers them

if settings.SENTRY_DSN:
    from config.serving import error_reports


class ServingConfig(AppConfig):
    """Serving."""

    name = "config.serving"

    def ready(self) -> None:
        """Start reporting errors, of servers and of commands."""
        if settings.SENTRY_DSN:
            error_reports.start()
