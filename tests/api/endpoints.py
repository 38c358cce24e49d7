"""Every endpoint, with a request that succeeds, for the tests that walk over all of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from django.apps import apps
from django.db import connection
from django.urls import URLPattern, URLResolver, get_resolver

from core.principals import Principal
from runners import tokens
from tests.standing import APPS
from tests.support import Api, Claim

OFFSET = "0000000000000000_0000000000000000"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "NONSENSE")


@dataclass(frozen=True)
class Endpoint:
    """A method of an address; ``who`` it lets in is a key of test_principals.LETS_IN."""

    method: str
    route: str
    who: str
    status: int = 200
    body: Any = None
    names: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method} /{self.route}"

    def path(self, names: dict[str, str]) -> str:
        """Its address, with these names in it, or its own."""
        found = {**names, **self.names}
        return "/" + re.sub(r"<\w+:(\w+)>", lambda match: found[match[1]], self.route)


RUNNERS = "_electric/runners"
RUNNER = f"{RUNNERS}/<id:runner_id>"
ENTITIES = "_electric/entities"
ENTITY = f"{ENTITIES}/<str:type_name>/<str:name>"
INBOX = f"{ENTITY}/inbox/<text:key>"
SCHEDULE = f"{ENTITY}/schedules/<text:sid>"
CRON = "_electric/observations/cron/ensure-stream"
TYPES = "_electric/entity-types"
TYPE = f"{TYPES}/<id:name>"
WAKE = "_electric/wake"
MAIN = "<str:type_name>/<str:name>/main"
SHARED = "_electric/shared-state/<text:shared_id>"
WAKES = "runners/<id:runner_id>/wake"
FEEDS = "_electric/feeds"

ENDPOINTS = [
    Endpoint("GET", "livez", "anyone"),
    Endpoint("GET", "metrics", "scraper"),
    Endpoint("GET", "readyz", "anyone"),
    Endpoint("GET", "_electric/health", "anyone"),
    Endpoint("GET", "_electric/openapi.json", "anyone"),
    Endpoint("GET", "_electric/docs", "anyone"),
    Endpoint("POST", RUNNERS, "caller", 201, {"id": "new", "label": "new"}),
    Endpoint("GET", RUNNERS, "caller"),
    Endpoint("GET", RUNNER, "owner"),
    Endpoint("DELETE", RUNNER, "owner", 204),
    Endpoint("POST", f"{RUNNER}/heartbeat", "owner", body={"lease_ms": 90_000}),
    Endpoint("POST", f"{RUNNER}/enable", "owner"),
    Endpoint("POST", f"{RUNNER}/disable", "owner"),
    Endpoint("GET", f"{RUNNER}/health", "owner"),
    Endpoint("POST", f"{RUNNER}/claim", "owner", body={}),
    Endpoint("POST", "_electric/wake-callbacks/<id:consumer_id>", "holder", body={"epoch": 1}),
    Endpoint("GET", ENTITIES, "caller"),
    Endpoint("PUT", ENTITY, "caller", 201, {"tags": {}}, {"name": "new"}),
    Endpoint("GET", ENTITY, "owner"),
    Endpoint("PATCH", ENTITY, "owner", body={"tags": {"color": "red"}}),
    Endpoint("DELETE", ENTITY, "owner", 204),
    Endpoint("POST", f"{ENTITY}/send", "actor", body={"payload": "more"}),
    Endpoint("PATCH", INBOX, "actor", body={"payload": "else"}, names={"key": "m1"}),
    Endpoint("DELETE", INBOX, "actor", names={"key": "m1"}),
    Endpoint("POST", f"{ENTITY}/signal", "owner", body={"signal": "SIGSTOP"}),
    Endpoint("POST", f"{ENTITY}/tags/<text:key>", "actor", body={"value": "red"}),
    Endpoint("DELETE", f"{ENTITY}/tags/<text:key>", "actor"),
    Endpoint(
        "PUT",
        SCHEDULE,
        "owner",
        body={"scheduleType": "future_send", "payload": 1, "fireAt": "2100-01-01T00:00:00Z"},
    ),
    Endpoint("DELETE", SCHEDULE, "owner"),
    Endpoint("POST", CRON, "caller", body={"expression": "*/5 * * * *"}),
    Endpoint("POST", TYPES, "caller", 201, {"name": "new", "description": ""}),
    Endpoint("GET", TYPES, "caller"),
    Endpoint("GET", TYPE, "owner", names={"name": "doc"}),
    Endpoint("DELETE", TYPE, "owner", 204, names={"name": "doc"}),
    Endpoint(
        "PATCH", f"{TYPE}/schemas", "owner", body={"inbox_schemas": {}}, names={"name": "doc"}
    ),
    Endpoint(
        "POST",
        WAKE,
        "owner",
        204,
        {"subscriberUrl": "/agent/e1", "sourceUrl": "/agent/e2", "condition": "runFinished"},
    ),
    Endpoint(
        "POST",
        f"{WAKE}/unregister",
        "owner",
        204,
        {"subscriberUrl": "/agent/e1", "sourceUrl": "/agent/e2"},
    ),
    Endpoint("GET", f"{FEEDS}/runners", "caller"),
    Endpoint("HEAD", f"{FEEDS}/runners", "caller"),
    Endpoint("GET", f"{FEEDS}/entities", "caller"),
    Endpoint("HEAD", f"{FEEDS}/entities", "caller"),
    Endpoint("GET", "_electric/webhook-sources", "caller"),
    Endpoint(
        "PUT",
        SHARED,
        "owner",
        201,
        names={"shared_id": "new/1"},
        headers={"Electric_Owner_Entity": "/agent/e1"},
    ),
    Endpoint("GET", SHARED, "owner"),
    Endpoint("HEAD", SHARED, "owner"),
    Endpoint("POST", SHARED, "owner", 204, [{"a": 1}]),
    Endpoint("GET", WAKES, "owner"),
    Endpoint("HEAD", WAKES, "owner"),
    Endpoint("GET", MAIN, "reader"),
    Endpoint("HEAD", MAIN, "reader"),
    Endpoint("POST", MAIN, "handler", 204, [{"a": 1}]),
]
TAKING_A_BODY = [each for each in ENDPOINTS if each.body is not None]


def routes() -> dict[str, set[str]]:
    """Every address of the URL configuration but the admin's, with the methods it takes."""
    return dict(_routes(get_resolver().url_patterns, ""))


def _routes(patterns: list[Any], prefix: str) -> Iterator[tuple[str, set[str]]]:
    for pattern in patterns:
        route = prefix + str(pattern.pattern)
        if route.rstrip("/") == "admin":
            continue
        if isinstance(pattern, URLResolver):
            yield from _routes(pattern.url_patterns, route)
        elif isinstance(pattern, URLPattern):
            yield route, _methods(pattern.callback)


def _methods(view: Any) -> set[str]:
    kind = getattr(view, "cls", None)
    if kind is None:  # a function, which cannot be asked
        return {"GET"}
    own = {each for each in METHODS if each != "OPTIONS" and hasattr(kind, each.lower())}
    # A HEAD that is answered as the GET is none of its own.
    return own - {"HEAD"} if getattr(kind, "head", None) is getattr(kind, "get", None) else own


def bearer(principal: str, **facts: Any) -> Api:
    """The API as the bearer of a new access token calls it."""
    _, secret = tokens.issue(Principal.parse(principal), **facts)
    return Api(Authorization=f"Bearer {secret}")


@dataclass(frozen=True)
class Scene:
    """Alice's runner r1 holds /agent/e1 and has the wake of /agent/e2; Bob's r2 holds /agent/e3."""

    alice: Api
    bob: Api
    claim: Claim
    write_token: str
    others_claim: Claim
    others_write_token: str

    @classmethod
    def set(cls) -> "Scene":
        """Make it."""
        alice, bob = bearer("user:alice"), bearer("user:bob")
        alice.post(f"/{TYPES}", {"name": "doc", "description": ""})
        claims = []
        for api, runner_id, url in ((alice, "r1", "/agent/e1"), (bob, "r2", "/agent/e3")):
            # Not over before the last test of a module.
            api.register(runner_id, claim_lease_ms=600_000)
            api.make_entity(url, runner_id, tags={"color": "blue"})
            api.send(url, key="m1")
            claims.append(api.claim(runner_id))
        alice.make_entity("/agent/e2")
        alice.send("/agent/e2")
        alice.share("s/1")
        mine, others = claims
        return cls(alice, bob, mine, mine.mint(), others, others.mint())

    @property
    def names(self) -> dict[str, str]:
        """What the endpoints' addresses name."""
        return {
            "runner_id": "r1",
            "type_name": "agent",
            "name": "e1",
            "key": "color",
            "shared_id": "s/1",
            "sid": "daily",
            "consumer_id": self.claim.body["consumerId"],
        }

    def holder(self, endpoint: Endpoint) -> Api:
        """The API as one who may call this endpoint."""
        secret = {"handler": self.write_token, "holder": self.claim.body["claimToken"]}
        if endpoint.who in secret:
            return Api(Electric_Claim_Token=secret[endpoint.who])
        return self.alice


def everything() -> dict[str, list[tuple[Any, ...]]]:
    """All rows of ours, but when a token was last used: to see that nothing was changed."""
    found = {}
    with connection.cursor() as cursor:
        for table, query in _queries().items():
            cursor.execute(query)
            found[table] = cursor.fetchall()
    return found


@cache
def _queries() -> dict[str, str]:
    """By table, what reads it: as the database has it, for that takes a tenth of making objects."""
    return {
        model._meta.db_table: 'SELECT {} FROM "{}" ORDER BY "{}"'.format(  # noqa: S608
            ", ".join(
                f'"{field.column}"'
                for field in model._meta.concrete_fields
                if field.name != "last_used_at"
            ),
            model._meta.db_table,
            model._meta.pk.column,
        )
        for app in APPS
        for model in apps.get_app_config(app).get_models()
    }
