"""Who may do what: DRF permission classes, over the rules of `dispatch.entities`."""

from typing import Any

from django.http import HttpRequest
from rest_framework.permissions import SAFE_METHODS, BasePermission, IsAuthenticated

from dispatch import entities
from dispatch.models import Entity
from runners.models import Runner

__all__ = ["IsAuthenticated", "MayReadOrAct", "OwnsRunner"]


class OwnsRunner(BasePermission):
    """A runner is its owner's alone, and open to a token that is limited to that runner."""

    message = "The runner is another principal's, or the access token is for another runner."

    def has_object_permission(self, request: Any, view: Any, runner: Runner) -> bool:
        """Whether the caller owns the runner."""
        return runner.owner_principal == view.caller.url and request.auth in (None, runner.pk)


class MayReadOrAct(BasePermission):
    """Whoever may read an entity may look at it; changing it takes the creator's rights."""

    message = "The entity is another principal's."

    def has_object_permission(self, request: HttpRequest, view: Any, entity: Entity) -> bool:
        """Whether the caller may read the entity, or act on it."""
        if request.method in SAFE_METHODS:
            return entities.may_read(entity, view.caller)
        return entities.may_act(entity, view.caller)
