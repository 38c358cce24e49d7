"""Manifest events are commands: what each asks for, whoever appends it to its entity's stream.

=================  ==========  =======================================================
value.kind                     a ``wake`` in it waits for
=================  ==========  =======================================================
child                          the entity at ``entity_url``
source             entity      the entity at ``config.entityUrl``, or else ``sourceRef``
source             …           a stream that is no entity's, by its ``sourceType``
shared-state                   the shared state of that ``id``
schedule           cron        its ``expression``, with or without a ``wake``
=================  ==========  =======================================================

A manifest event replaces what that of the same key asked for: without a ``wake`` nothing is waited
for any more, nor after a ``delete``. An ``update`` says only what changes. Other kinds ask for
nothing here.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from core.bodies import JsonObject, decode
from core.errors import InvalidRequest
from core.identifiers import SHARED_STATE_PREFIX, shared_state_name
from dispatch.cron import Cron
from dispatch.streams import conditions, schedules, sources
from dispatch.streams.events import operation_of
from dispatch.streams.registrations import Order

_CONDITION: Any = conditions.Condition
_KINDS = ("child", "source", "shared-state", "schedule")


def orders(events: Sequence[Any]) -> list[Order]:
    """The requests in these events, the last one for each key.

    Raises InvalidRequest for a condition or a source that this server cannot watch.
    """
    found: dict[str, Order] = {}
    for event in events:
        match event:
            case {"type": "manifest", "key": str(key)} if key:
                order = _order(key, event)
                if order is not None:
                    found[key] = order
    return list(found.values())


def ask_for_wakes(events: Sequence[Any]) -> bool:
    """Whether one of these events is a manifest event that may ask to wait for something."""
    return any(
        isinstance(event, dict)
        and event.get("type") == "manifest"
        and isinstance(event.get("value"), dict)
        and event["value"].get("wake") is not None
        for event in events
    )


def waits(events: Sequence[Any]) -> list[Order]:
    """Those of `orders` that wait for something."""
    return [each for each in orders(events) if each.wish is not None]


def observed(events: Sequence[Any]) -> dict[str, str | None]:
    """For each key of these manifest events, the shared state that it now names.

    None: it no longer names one. Keys that name none before and after are left out.
    """
    found: dict[str, str | None] = {}
    for event in events:
        match event:
            case {"type": "manifest", "key": str(key), "headers": {"operation": "delete"}} if key:
                found[key] = None
            case {"type": "manifest", "key": str(key), "value": dict(value)} if key:
                if value.get("kind") in ("source", "shared-state"):
                    found[key] = shared_state_name(_source(value))
    return found


def _order(key: str, event: JsonObject) -> Order | None:
    operation, value = operation_of(event), event.get("value")
    if operation == "delete":
        return Order("", None, key)
    if not isinstance(value, dict):
        return None
    if value.get("kind") not in _KINDS or (operation == "update" and _is_partial(value)):
        return None
    if value.get("kind") == "schedule":
        return _schedule(key, value)
    if value.get("wake") is None:
        return Order("", None, key)
    return Order(sources.require_served(_source(value), "/value"), _wish(value), key)


def _is_partial(value: JsonObject) -> bool:
    return "wake" not in value and "expression" not in value


def _schedule(key: str, value: JsonObject) -> Order:
    """A schedule's request: one that sends a message is a timer, and asks for nothing here.

    Nor does one that cannot be done; its owner is told (`dispatch.streams.schedules`).
    """
    cron = schedules.cron_of(value)
    if cron is None:
        return Order("", None, key)
    wish = _wish({**value, "wake": value.get("wake") or {"on": "change"}})
    payload = msgspec.json.encode(value["payload"]).decode()
    return Order(cron.path, wish, key, payload)


def _source(value: JsonObject) -> str:
    """The URL of what it waits for, "" if it names none."""
    config = value.get("config")
    named = {**value, **(config if isinstance(config, dict) else {})}
    url: object = None
    match value:
        case {"kind": "child"}:
            url = named.get("entity_url")
        case {"kind": "shared-state"}:
            url = _below(SHARED_STATE_PREFIX, named.get("id"))
        case {"kind": "source", "sourceType": "entity"}:
            url = named.get("entityUrl") or named.get("sourceRef")
        case {"kind": "source", "sourceType": "db"}:
            url = _below(SHARED_STATE_PREFIX, named.get("sourceRef"))
        case {"kind": "source", "sourceType": "entities"}:
            url = _below("/_entities/", named.get("sourceRef"))
        case {"kind": "source", "sourceType": "cron"}:
            url = _cron(named)
        case {"kind": "source"}:
            url = named.get("streamUrl")
    return url if isinstance(url, str) else ""


def _cron(named: JsonObject) -> object:
    if "expression" not in named:
        return named.get("streamUrl")
    match named:
        case {"expression": str(expression)} if isinstance(named.get("timezone", ""), str):
            try:
                return Cron.parse(expression, named.get("timezone", "UTC")).path
            except ValueError as problem:
                raise InvalidRequest.field("/value/config", str(problem)) from None
    raise InvalidRequest.field("/value/config", "expression and timezone are strings")


def _below(prefix: str, name: object) -> str:
    if not isinstance(name, str) or name.startswith(prefix):
        return name if isinstance(name, str) else ""
    return f"{prefix}{name}" if name else ""


def _wish(value: JsonObject) -> conditions.Wish:
    try:
        condition: Any = decode(msgspec.json.encode(value["wake"]), _CONDITION)
    except InvalidRequest as problem:
        raise InvalidRequest.field("/value/wake", problem.message) from None
    config = value.get("config")
    maps: list[Any] = [
        value.get("collections"),
        config.get("collections") if isinstance(config, dict) else {},
    ]
    types: dict[str, str] = {}
    for each in maps:
        for name, said in each.items() if isinstance(each, dict) else ():
            of = said.get("type") if isinstance(said, dict) else said
            if isinstance(of, str):
                types[name] = of
    return conditions.wish(condition, types=types)
