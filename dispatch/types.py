"""Entity types: registered, and what they allow to whom and in which messages.

A type that nobody registered is open: anybody makes its entities, with any arguments and messages.
Registering its name takes over none of these: the rights of registrar and grantees, and the rules
for messages, hold for the entities that were made under that registration.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet, TextField
from django.db.models.functions import Cast, Now

from core import quotas
from core.bodies import JsonObject
from core.errors import Forbidden, InvalidRequest, NotFound, SchemaKeyExists
from core.identifiers import new_id
from core.prepared import Param, Select
from core.principals import Principal
from dispatch import models, schemas
from dispatch.models import Entity, EntityType
from dispatch.streams import waiters
from runners import changes, registry

SPAWN, MANAGE = "spawn", models.MANAGE

MAX_SCHEMAS = 100
"""A type's inbox schemas, and likewise its state schemas."""
MAX_SCHEMAS_BYTES = 1024 * 1024
"""Of either together, as JSON: an answer with the type must not be larger than any may be."""

_AT_A_TIME = 10

_TYPE = Select(lambda: EntityType.objects.filter(name=Param("name")))


def find(name: str) -> EntityType | None:
    """The registered type of this name, or None."""
    return _TYPE.first(name=name)


def of(entity: Entity) -> EntityType | None:
    """The type that an entity was made under, or None, also if its name was registered anew."""
    entity_type = find(entity.type) if entity.registration else None
    if entity_type is None or entity_type.registration != entity.registration:
        return None
    return entity_type


def granted(entity_type: EntityType | None, principal: Principal, *permissions: str) -> bool:
    """Whether the principal is the registrar, or was granted one of these permissions."""
    return entity_type is not None and entity_type.grants(principal, *permissions)


def check_message(
    entity_type: EntityType | None,
    payload: Any,
    message_type: str | None,
    path: str = "/payload",
    type_path: str = "/type",
) -> None:
    """Raise InvalidRequest for a message that the type's inbox_schemas do not allow.

    ``path`` is the JSON pointer of the payload, ``type_path`` of the message's type.
    """
    if entity_type is None or not entity_type.inbox_schemas or message_type is None:
        return
    inbox = entity_type.inbox_schemas
    if message_type not in inbox:
        raise InvalidRequest.field(type_path, f"the entity takes only {', '.join(sorted(inbox))}")
    schemas.check(payload, inbox[message_type], path, whose=entity_type.registered_by)


def register(caller: Principal, name: str, facts: JsonObject) -> EntityType:
    """Register a type, or update the given fields of one and raise its revision.

    ``facts`` are fields of `EntityType`. Raises Forbidden for a type that the caller may not
    change, for another principal's default runner, and for callers outside
    PULLWAKE_TYPE_REGISTRARS; RateLimited past PULLWAKE_MAX_TYPES.
    """
    default_runner = facts.get("default_runner")
    if default_runner is not None:
        _check_default(caller, default_runner)
    with transaction.atomic():
        registered = _lock(name)
        if registered is None:
            _require_registrar(caller)
            own = EntityType.objects.filter(registered_by=caller.url)
            quotas.take("entity types", settings.PULLWAKE_MAX_TYPES, caller.url, own.count)
            new = {"name": name, "registered_by": caller.url, "registration": new_id("reg")}
            try:
                with transaction.atomic():
                    return EntityType.objects.create(**new, **facts)
            except IntegrityError:  # another registration was first, so this one is an update
                registered = _lock(name)
        return _change(_require_manager(name, registered, caller), facts)


def add_schemas(caller: Principal, name: str, schemas: Mapping[str, JsonObject]) -> EntityType:
    """Add to a type's ``inbox_schemas`` and ``state_schemas``, and raise its revision.

    Raises SchemaKeyExists for a key that exists, InvalidRequest past `MAX_SCHEMAS` or
    `MAX_SCHEMAS_BYTES`, NotFound, and Forbidden for a type that the caller may not change.
    """
    with transaction.atomic():
        entity_type = _require_manager(name, _lock(name), caller)
        facts: JsonObject = {}
        for column, added in schemas.items():
            there: JsonObject = getattr(entity_type, column) or {}
            for key in added:
                if key in there:
                    raise SchemaKeyExists(f"The type {name} has the {column[:-1]} {key}.")
            facts[column] = {**there, **added}
            if len(facts[column]) > MAX_SCHEMAS:
                raise InvalidRequest.field(f"/{column}", f"more than {MAX_SCHEMAS} together")
            if len(msgspec.json.encode(facts[column])) > MAX_SCHEMAS_BYTES:
                problem = f"more than {MAX_SCHEMAS_BYTES} bytes together"
                raise InvalidRequest.field(f"/{column}", problem)
        return _change(entity_type, facts)


def delete(name: str, caller: Principal | None = None) -> None:
    """Delete a type; its entities live on. ``caller`` None: an operator.

    Raises NotFound, and Forbidden for a type that the caller may not change.
    """
    with transaction.atomic():
        entity_type = _require_manager(name, _lock(name), caller)
        _reset_feeds(_managers(entity_type))
        entity_type.delete()


def transfer(name: str, registrar: Principal) -> bool:
    """Make another principal a type's registrar, for operators: whether that changed anything.

    Its registration, and so the entities that were made under it, stay with it. Raises NotFound.
    """
    with transaction.atomic():
        entity_type = _require_manager(name, _lock(name), None)
        if entity_type.registered_by == registrar.url:
            return False
        _change(entity_type, {"registered_by": registrar.url})
        return True


def retain(name: str, events: int | None, days: int | None) -> bool:
    """Set what living entities of a type keep of their acked events, for operators: whether that
    is another than before. None: all of them, or for ever. Raises NotFound.
    """
    with transaction.atomic():
        entity_type = _require_manager(name, _lock(name), None)
        if (entity_type.retain_events, entity_type.retain_days) == (events, days):
            return False
        _change(entity_type, {"retain_events": events, "retain_days": days})
        return True


def retaining() -> list[EntityType]:
    """Those whose living entities do not keep all acked events; schemas deferred."""
    rows = EntityType.objects.exclude(registration="").order_by("name")
    limited = rows.exclude(retain_events=None, retain_days=None)
    return list(limited.only("name", "registration", "retain_events", "retain_days"))


def managed_by(principal: Principal) -> list[EntityType]:
    """Types in whose entities the principal has the creators' rights; schemas deferred."""
    rows = _naming(principal, EntityType.objects.exclude(registration="")).only(
        "name", "registration", "registered_by", "permission_grants"
    )
    return [each for each in rows if granted(each, principal, MANAGE)]


def seen_by(principal: Principal, after: str = "") -> Iterator[EntityType]:
    """Types that the principal registered, may use, or has entities of; by name, past ``after``.

    The database skips other types, and the rest are loaded a few at a time: each may be large, and
    a registrar may have many.
    """
    rows = _naming(principal, _for(principal).filter(name__gt=after), Q(has_own=True))
    names = list(rows.order_by("name").values_list("name", flat=True))
    for start in range(0, len(names), _AT_A_TIME):
        some = _for(principal).filter(name__in=names[start : start + _AT_A_TIME])
        yield from (each for each in some.order_by("name") if _sees(principal, each))


def _naming(
    principal: Principal, rows: "QuerySet[EntityType]", which: Q | None = None
) -> "QuerySet[EntityType]":
    """Types that the principal registered, that name it or its kind in a grant, or ``which``."""
    named = (
        Q(registered_by=principal.url)
        | Q(granted_to__contains=f'"{principal.url}"')
        | Q(granted_to__contains=f'"{principal.kind}"')
    )
    with_grants = rows.annotate(granted_to=Cast("permission_grants", TextField()))
    return with_grants.filter(named if which is None else named | which)


def find_seen(principal: Principal, name: str) -> EntityType:
    """One of `seen_by`. Raises NotFound, or Forbidden for a type outside it."""
    entity_type = _for(principal).filter(pk=name).first()
    if entity_type is None:
        raise NotFound(f"There is no entity type {name}.")
    if not _sees(principal, entity_type):
        raise Forbidden(f"The type {name} is not the caller's to use.")
    return entity_type


def _for(principal: Principal) -> QuerySet[EntityType]:
    own = Entity.objects.filter(created_by=principal.url, type=OuterRef("name"))
    return EntityType.objects.annotate(has_own=Exists(own))


def _sees(principal: Principal, entity_type: Any) -> bool:
    return entity_type.has_own or granted(entity_type, principal, SPAWN, MANAGE)


def _lock(name: str) -> EntityType | None:
    return EntityType.objects.select_for_update().filter(pk=name).first()


def _change(entity_type: EntityType, facts: JsonObject) -> EntityType:
    """Change a locked type, and raise its revision."""
    if not entity_type.registration:  # a server of the previous version registered it
        facts = {**facts, "registration": new_id("reg")}
    EntityType.objects.filter(pk=entity_type.pk).update(
        revision=F("revision") + 1, updated_at=Now(), **facts
    )
    changed = EntityType.objects.get(pk=entity_type.pk)
    _reset_feeds(_managers(entity_type) ^ _managers(changed))
    return changed


def _managers(entity_type: EntityType) -> set[str]:
    """Who has the creators' rights in its entities: URLs of principals, and kinds of principals."""
    return {entity_type.registered_by} | {
        grant["subject_value"]
        for grant in entity_type.permission_grants
        if grant["permission"] == MANAGE
    }


def _reset_feeds(subjects: set[str]) -> None:
    """Make these, whose rights have changed, read the feed of entities from the start."""
    for subject in sorted(subjects):
        changes.depart(changes.Kind.ENTITY, subject)
    if subjects:
        waiters.announce(waiters.ENTITY_FEED)


def _require_manager(
    name: str, entity_type: EntityType | None, caller: Principal | None
) -> EntityType:
    if entity_type is None:
        raise NotFound(f"There is no entity type {name}.")
    if caller is not None and not granted(entity_type, caller, MANAGE):
        raise Forbidden(f"The type {name} is another principal's.")
    return entity_type


def _require_registrar(caller: Principal) -> None:
    allowed = settings.PULLWAKE_TYPE_REGISTRARS
    if allowed and not {caller.kind, caller.url} & allowed:
        raise Forbidden("PULLWAKE_TYPE_REGISTRARS does not let the caller register types.")


def _check_default(caller: Principal, runner_id: str) -> None:
    """A named runner that exists must be the caller's; it may also not exist yet."""
    try:
        runner = registry.find(runner_id)
    except NotFound:
        return
    registry.require_owner(runner, caller.url)
