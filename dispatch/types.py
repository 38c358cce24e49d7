"""Entity types: registered, and what they allow whom and which messages.

A type that nobody registered is open: anybody makes its entities, with any arguments and messages.
"""

from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F
from django.db.models.functions import Now

from core import quotas
from core.bodies import JsonObject
from core.errors import Forbidden, InvalidRequest
from core.prepared import Param, Select
from core.principals import Principal
from dispatch import schemas
from dispatch.models import EntityType
from runners import registry

SPAWN, MANAGE = "spawn", "manage"

_TYPE = Select(lambda: EntityType.objects.filter(name=Param("name")))


def find(name: str) -> EntityType | None:
    """The registered type of this name, or None."""
    return _TYPE.first(name=name)


def granted(entity_type: EntityType | None, principal: Principal, *permissions: str) -> bool:
    """Whether the registrar is this principal, or granted it one of these permissions."""
    if entity_type is None:
        return False
    subjects = {("principal", principal.url), ("principal_kind", principal.kind)}
    return entity_type.registered_by == principal.url or any(
        grant["permission"] in permissions
        and (grant["subject_kind"], grant["subject_value"]) in subjects
        for grant in entity_type.permission_grants
    )


def check_message(
    entity_type: EntityType | None, payload: Any, message_type: str | None, path: str
) -> None:
    """Raise InvalidRequest for a message that the type's inbox_schemas do not allow.

    ``path`` is the JSON pointer of the payload.
    """
    inbox = entity_type.inbox_schemas if entity_type is not None else None
    if not inbox or message_type is None:
        return
    if message_type not in inbox:
        raise InvalidRequest.field("/type", f"the entity takes only {', '.join(sorted(inbox))}")
    schemas.check(payload, inbox[message_type], path)


def register(caller: Principal, name: str, facts: JsonObject) -> EntityType:
    """Register a type, or update what is given of one and raise its revision.

    ``facts`` are fields of `EntityType`, and ``runner_id`` for its default runner (None: no
    default). Raises Forbidden for a type that is not the caller's to change, and for the runner
    what `registry.lock_own` raises; RateLimited past PULLWAKE_MAX_TYPES.
    """
    facts = dict(facts)
    with transaction.atomic():
        if "runner_id" in facts:
            runner_id = facts.pop("runner_id")
            facts["default_runner"] = (
                registry.lock_own(caller, runner_id) if runner_id is not None else None
            )
        known = EntityType.objects.select_for_update(of=("self",)).filter(pk=name)
        registered = known.first()
        if registered is None:
            own = EntityType.objects.filter(registered_by=caller.url)
            quotas.take("entity types", settings.PULLWAKE_MAX_TYPES, caller.url, own.count)
            try:
                with transaction.atomic():
                    return EntityType.objects.create(name=name, registered_by=caller.url, **facts)
            except IntegrityError:  # another registration was first, so this one is an update
                registered = known.get()
        if not granted(registered, caller, MANAGE):
            raise Forbidden(f"The type {name} is another principal's.")
        known.update(revision=F("revision") + 1, updated_at=Now(), **facts)
        return EntityType.objects.get(pk=name)
