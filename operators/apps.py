"""The operators app."""

from django.apps import AppConfig, apps
from django.db.models.signals import post_migrate

from operators.roles import make_roles


class OperatorsConfig(AppConfig):
    """The admin, and the roles that come with it."""

    name = "operators"

    def ready(self) -> None:
        """Roles need every app's permissions, and claims is the last app with models."""
        last = apps.get_app_config("claims")
        post_migrate.connect(make_roles, sender=last, dispatch_uid="operators.roles")
