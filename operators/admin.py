"""Every page: Django's admin looks for them here."""

from operators import claim, entity, kit, runner

__all__ = ["claim", "entity", "kit", "runner"]
