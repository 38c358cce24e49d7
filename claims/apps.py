"""The claims app."""

from django.apps import AppConfig


class ClaimsConfig(AppConfig):
    """Leased, fenced claims of entities by runners."""

    name = "claims"
