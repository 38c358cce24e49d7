"""What a row of the existing server means here: by the rules that its request would be held to.

Each function raises NotTaken with the reason for a row that means nothing here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import MAXYEAR, UTC, datetime, timedelta
from typing import TypeVar

import msgspec
from django.conf import settings

from api import runners as runner_bodies
from api import types as type_bodies
from api.entities import NewEntity
from api.fields import RESERVED_TYPES
from api.wakes import WakeRegistration
from claims.models import ConsumerClaim
from core.bodies import JsonObject, decode
from core.clock import from_iso
from core.errors import InvalidRequest, pointer
from core.identifiers import is_entity_url, is_id
from core.principals import Principal
from dispatch import schemas, types
from dispatch.messages import Message
from dispatch.models import Entity
from dispatch.streams import conditions, sources
from dispatch.streams.registrations import Order
from dispatch.streams.schedules import PREFIX, FutureSend
from moving.report import Kind, NotTaken
from moving.source import Row

T = TypeVar("T")

PRINCIPALS = "principal"
"""The type of the existing server's own entities: one for each principal."""


# --- Principals and targets -------------------------------------------------------------------


def principal(said: object) -> Principal:
    """The principal that a key, a URL, or a bare user id names."""
    text = said if isinstance(said, str) else ""
    try:
        return Principal.parse(text)
    except ValueError as problem:
        if ":" in text or text.startswith("/"):
            raise NotTaken(f"{text!r} is no principal: {problem}") from None
    try:
        return Principal.parse(f"user:{text}")
    except ValueError:
        raise NotTaken(f"{text!r} is no user's id") from None


def owner(row: Row) -> Principal:
    """A runner's owner, from either form of its table."""
    return principal(row.get("owner_principal") or row.get("owner_user_id"))


def runner_id(policy: object, key: str, kind: Kind) -> str | None:
    """The runner that a dispatch policy names, or None; what else it names is noted."""
    targets = policy.get("targets") if isinstance(policy, dict) else None
    runner = None
    for target in targets if isinstance(targets, list) else []:
        match target:
            case {"type": "runner", "runnerId": str(named)} if runner is None and is_id(named):
                runner = named
            case {"type": "webhook"}:
                kind.note(key, "its webhook target is left behind: webhooks are not served here")
            case _:
                kind.note(key, "a target of its dispatch policy is left behind")
    return runner


# --- Runners ----------------------------------------------------------------------------------


def runner_facts(row: Row) -> JsonObject:
    """The fields of a `Runner`, with its id."""
    said = {
        "id": row.get("id"),
        "label": row.get("label") or row.get("id"),
        "kind": row.get("kind"),
        "admin_status": row.get("admin_status"),
        "sandbox_profiles": row.get("sandbox_profiles"),
    }
    facts = runner_bodies.facts_of(_held_to(said, runner_bodies.Registration))
    return {"id": row["id"], **facts, **_times(row, "created_at")}


# --- Types ------------------------------------------------------------------------------------


def type_facts(row: Row, grants: list[Row], kind: Kind) -> JsonObject:
    """The fields of an `EntityType`; schemas and grants that are refused here are noted."""
    name = row["name"]
    if name in RESERVED_TYPES:
        raise NotTaken("it is the existing server's own")
    policy = runner_id(row.get("default_dispatch_policy"), name, kind)
    said: JsonObject = {
        "name": name,
        "description": row.get("description") or "",
        "creation_schema": _taken_schema(row.get("creation_schema"), "creation_schema", name, kind),
        "inbox_schemas": _taken_schemas(row, "inbox_schemas", kind),
        "state_schemas": _taken_schemas(row, "state_schemas", kind),
        "permission_grants": _taken_grants(name, grants, kind),
        "slash_commands": row.get("slash_commands"),
        "serve_endpoint": row.get("serve_endpoint"),
        "externally_writable_collections": row.get("externally_writable_collections"),
    }
    if policy is not None:
        said["default_dispatch_policy"] = {"targets": [{"type": "runner", "runnerId": policy}]}
    try:
        facts = type_bodies.facts_of(_held_to(said, type_bodies.NewEntityType))
    except InvalidRequest as problem:
        raise NotTaken(_sentence(problem)) from None
    revision = row.get("revision")
    if isinstance(revision, int) and 1 <= revision < 2**31:
        facts["revision"] = revision
    return {**facts, **_times(row, "created_at", "updated_at")}


def _taken_schema(
    schema: object, path: str, name: str, kind: Kind, *, kept: bool = False
) -> object:
    if schema is None:
        return None
    try:
        schemas.check_schema(schema, path, kept=kept)
    except InvalidRequest as problem:
        kind.note(name, f"a schema is left behind: {_sentence(problem)}")
        return None
    return schema


def _taken_schemas(row: Row, column: str, kind: Kind) -> object:
    by_key = row.get(column)
    if not isinstance(by_key, dict):
        return None
    kept = column == schemas.ONLY_KEPT
    checked = {
        key: _taken_schema(schema, column + pointer(key), row["name"], kind, kept=kept)
        for key, schema in by_key.items()
    }
    return {key: schema for key, schema in checked.items() if schema is not None}


def _taken_grants(name: str, grants: list[Row], kind: Kind) -> list[JsonObject]:
    taken = []
    for row in grants:
        try:
            taken.append(_grant(row))
        except NotTaken as reason:
            kind.note(name, f"a grant is left behind: {reason}")
    return taken


def _grant(row: Row) -> JsonObject:
    if row.get("expires_at") is not None:
        raise NotTaken("it expires, and grants here hold until they are taken back")
    if row.get("permission") not in (types.SPAWN, types.MANAGE):
        raise NotTaken(f"{row.get('permission')!r} is no permission of types")
    kind, value = row.get("subject_kind"), row.get("subject_value")
    if kind == "principal":
        value = principal(value).url
    elif kind != "principal_kind" or value not in Principal.KINDS:
        raise NotTaken(f"{kind!r} {value!r} is nobody here")
    return {"subject_kind": kind, "subject_value": value, "permission": row["permission"]}


def grants_by_type(rows: list[Row]) -> dict[str, list[Row]]:
    """Grants by the name of their type, by whichever of these columns there is."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        name = row.get("entity_type") or row.get("entity_type_name") or row.get("type_name")
        found.setdefault(str(name or row.get("type") or row.get("name") or ""), []).append(row)
    return found


# --- Entities ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EntityFacts:
    """What an entity's own row says of it."""

    args: JsonObject
    tags: Mapping[str, str]
    sandbox: JsonObject | None
    parent: str
    paused: bool
    ended: str
    created_at: datetime
    updated_at: datetime


def require_entity(url: str) -> None:
    """Raise NotTaken for a row that is not an entity of a user's."""
    if url.startswith(f"/{PRINCIPALS}/"):
        raise NotTaken(f"entities of type {PRINCIPALS} are the existing server's own")
    if not is_entity_url(url) or url.split("/")[1] in RESERVED_TYPES:
        raise NotTaken("its URL is none of an entity's here")


def entity_facts(row: Row, kind: Kind) -> EntityFacts:
    """What an entity's row says of it."""
    url = row["url"]
    if row.get("type") != url.split("/")[1]:
        raise NotTaken("its type is another than its URL's")
    parent = row.get("parent") or ""
    if parent and (not is_entity_url(parent) or parent.startswith(f"/{PRINCIPALS}/")):
        kind.note(url, "its parent is left behind: none of an entity's URL")
        parent = ""
    said = {
        "args": row.get("spawn_args"),
        "tags": row.get("tags"),
        "sandbox": row.get("sandbox"),
        "parent": parent or None,
    }
    body = _held_to(said, NewEntity)
    status = row.get("status")
    if status not in ("spawning", "running", "idle", "paused", "stopping", "stopped", "killed"):
        raise NotTaken(f"{status!r} is no status")
    return EntityFacts(
        args=body.args or {},
        tags=body.tags or {},
        sandbox=msgspec.to_builtins(body.sandbox) if body.sandbox else None,
        parent=parent,
        paused=status == "paused",
        # Whom a stopping one waited for is gone with its claim.
        ended={"stopping": "stopped", "stopped": "stopped", "killed": "killed"}.get(status, ""),
        created_at=_of_ms(row.get("created_at")),
        updated_at=_of_ms(row.get("updated_at")),
    )


def is_pending(state: Row) -> bool:
    """Whether an entity had work: yet to be told of, told and not claimed, or in a claim's hands.

    The claim is expired by being left behind, and with it all else of its dispatch.
    """
    return bool(
        state.get("pending_source_streams")
        or state.get("pending_since")
        or state.get("outstanding_wake_id")
        or state.get("active_consumer_id")
    )


# --- Claims -----------------------------------------------------------------------------------


def claim(row: Row, entity: Entity | None, runner: str | None, now: datetime) -> ConsumerClaim:
    """A claim as history: an active one expired at the end of its lease, or ``now``."""
    consumer_id, epoch, status = row.get("consumer_id"), row.get("epoch"), row.get("status")
    if not isinstance(consumer_id, str) or not 1 <= len(consumer_id) <= 26:
        raise NotTaken("its consumer id has more than 26 characters, or none")
    if not isinstance(epoch, int) or epoch < 1:
        raise NotTaken("its epoch is not 1 or more")
    if status not in ("active", "released", "expired", "failed"):
        raise NotTaken(f"{status!r} is no status of a claim")
    claimed_at = row.get("claimed_at")
    if not isinstance(claimed_at, datetime):
        raise NotTaken("it has no claimed_at")
    beat, lapsed = row.get("last_heartbeat_at"), row.get("lease_expires_at")
    lease = timedelta(milliseconds=settings.PULLWAKE_CLAIM_LEASE_MS)
    if lapsed is not None and lapsed > (beat or claimed_at):
        lease = lapsed - (beat or claimed_at)
    if status == "released":
        ended_at = row.get("released_at") or row.get("updated_at")
    else:
        ended_at = (lapsed if status != "failed" else None) or row.get("updated_at")
    return ConsumerClaim(
        consumer_id=consumer_id,
        epoch=epoch,
        entity=entity,
        entity_url=(row.get("entity_url") or "")[:258],
        runner_id=runner,
        runner_name=(row.get("runner_id") or "")[:128],
        status="expired" if status == "active" else status,
        claimed_at=claimed_at,
        last_heartbeat_at=beat,
        lease=lease,
        lease_expires_at=lapsed,
        ended_at=max(claimed_at, min(ended_at or now, now)),
        delivered_offset=0,
        acked_streams=_acks(row),
        claim_token_hash="",
    )


def acked_offset(claims: list[Row], url: str) -> str | None:
    """The greatest offset of an entity's main stream that any of its claims acked."""
    acked = [
        each["offset"]
        for row in claims
        for each in _acks(row)
        if each["path"].strip("/") == f"{url}/main".strip("/")
    ]
    return max(acked, default=None)


def _acks(row: Row) -> list[JsonObject]:
    """What a claim acked, with the offsets of the existing server; what is no such thing is not."""
    said = row.get("acked_streams")
    return [
        {"path": path, "offset": offset}
        for each in (said if isinstance(said, list) else [])
        if isinstance(each, dict)
        and isinstance(path := each.get("path"), str)
        and isinstance(offset := each.get("offset"), str)
    ]


# --- What is to come --------------------------------------------------------------------------

_OVER = ("completed_at", "cancelled_at", "fired_at", "sent_at", "failed_at")


@dataclass(frozen=True, slots=True)
class Task:
    """A message that was to be sent: an entity's schedule, or a delayed send, at a time."""

    target: str
    at: datetime
    message: Message
    owner: str = ""
    schedule: str = ""
    entry: FutureSend | None = None


def task(row: Row) -> Task:
    """The message that a scheduled task is to send."""
    if any(row.get(column) is not None for column in _OVER):
        raise NotTaken("it is over")
    if row.get("status") not in (None, "pending", "scheduled"):
        raise NotTaken(f"it is {row.get('status')}")
    if str(row.get("kind") or "").startswith("cron"):
        raise NotTaken("a tick of a cron schedule: its registration ticks")
    said, at = row.get("payload"), row.get("fire_at") or row.get("due_at")
    if not isinstance(said, dict) or not isinstance(at, datetime):
        raise NotTaken("it does not say what it sends, and when")
    if at.year == MAXYEAR:
        raise NotTaken(f"it is due in the year {MAXYEAR}, which is never")
    owner_url = row.get("owner_entity_url") or row.get("owner_url") or ""
    target = _first(said, "targetUrl", "entityUrl", "target") or row.get("target_url") or owner_url
    if not isinstance(target, str) or not is_entity_url(target) or "payload" not in said:
        raise NotTaken("it does not say what it sends, and to which entity")
    kind = _first(said, "messageType", "type")
    manifest_key = row.get("manifest_key") or ""
    if owner_url and manifest_key.startswith(PREFIX):
        entry = FutureSend(
            payload=said["payload"],
            fireAt=at.isoformat(),
            targetUrl=target,
            messageType=kind if isinstance(kind, str) else None,
        )
        name = manifest_key.removeprefix(PREFIX)
        if not 1 <= len(name) <= 256:
            raise NotTaken("a schedule's id has 1 to 256 characters")
        return Task(target, at, Message(None, ""), owner_url, name, entry)
    key = _first(said, "key")
    if isinstance(key, str) and len(key) > 256:
        raise NotTaken("a message's key has 1 to 256 characters")
    sender = _first(said, "from", "senderUrl", "from_principal") or ""
    return Task(
        target,
        at,
        Message(
            said["payload"],
            str(sender),
            key=key if isinstance(key, str) and key else f"scheduled-task-{row.get('id')}",
            type=kind if isinstance(kind, str) else None,
        ),
    )


def registration(row: Row) -> tuple[str, Order]:
    """Which entity is to be woken, and for what."""
    said = {
        "subscriberUrl": row.get("subscriber_url"),
        "sourceUrl": row.get("source_url"),
        "condition": row.get("condition"),
        "debounceMs": row.get("debounce_ms"),
        "timeoutMs": None if row.get("timeout_consumed") else row.get("timeout_ms"),
        "includeResponse": row.get("include_response"),
        "manifestKey": row.get("manifest_key") or None,
    }
    body = _held_to(said, WakeRegistration)
    wish = conditions.wish(
        body.condition,
        include_response=body.includeResponse,
        debounce_ms=body.debounceMs,
        timeout_ms=body.timeoutMs,
    )
    try:
        source = sources.require_served(body.sourceUrl, "/sourceUrl")
    except InvalidRequest as problem:
        raise NotTaken(_sentence(problem)) from None
    return body.subscriberUrl, Order(source, wish, body.manifestKey or "")


# --- The kit ----------------------------------------------------------------------------------


def _held_to(said: JsonObject, kind: type[T]) -> T:
    """What a row says, as the body of the request that would say it."""
    given = {name: value for name, value in said.items() if value is not None}
    try:
        return decode(msgspec.json.encode(given), kind)
    except OverflowError:
        raise NotTaken("it holds a number of more than 64 bits") from None
    except InvalidRequest as problem:
        raise NotTaken(_sentence(problem)) from None


def _sentence(problem: InvalidRequest) -> str:
    details = problem.details if isinstance(problem.details, list) else []
    said = [f"{each['path']}: {each['message']}" for each in details]
    return "; ".join(said) or str(problem)


def _first(said: JsonObject, *names: str) -> object:
    return next((said[name] for name in names if said.get(name) is not None), None)


def _times(row: Row, *columns: str) -> JsonObject:
    """The times that a row gives."""
    times: JsonObject = {}
    for column in columns:
        said = row.get(column)
        if isinstance(said, datetime):
            times[column] = said
        elif isinstance(said, str):
            try:
                times[column] = from_iso(said)
            except ValueError:
                continue
    return times


def _of_ms(said: object) -> datetime:
    try:
        return datetime.fromtimestamp(float(str(said)) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        raise NotTaken("its times are no milliseconds since 1970") from None
