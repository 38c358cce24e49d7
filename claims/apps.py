"""The claims app."""

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class ClaimsConfig(AppConfig):
    """Leased, fenced claims of entities by runners."""

    name = "claims"

    def ready(self) -> None:
        """The roles need every app's permissions, and this is the last app."""
        from claims.groups import make_roles

        post_migrate.connect(make_roles, sender=self, dispatch_uid="claims.groups")
