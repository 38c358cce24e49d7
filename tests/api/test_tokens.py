"""Access tokens that are for one runner, their last use, and the end of what they hold open."""

import time
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from core.principals import Principal
from runners import tokens
from runners.models import AccessToken
from tests.api.endpoints import bearer
from tests.serving.conftest import Held, long_poll, make_idle, tail
from tests.support import Server

RUNNERS = "/_electric/runners"


@pytest.fixture
def r1(alice):
    """The bearer of a token for Alice's runner r1, who also has r2; each has an entity."""
    for runner_id in ("r1", "r2"):
        alice.register(runner_id)
        alice.make_entity(f"/agent/{runner_id}", runner_id, initialMessage="hi")
    return bearer("user:alice", runner_id="r1")


def test_it_registers_and_lists_its_runner_alone(db):
    token = bearer("user:alice", runner_id="r1")
    token.register("r1")
    assert token.post(RUNNERS, {"id": "r2", "label": "r2"}).status == 403
    bearer("user:alice").register("r3")
    assert [each["id"] for each in token.get(RUNNERS).body] == ["r1"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("POST", "/heartbeat"),
        ("POST", "/disable"),
        ("POST", "/enable"),
        ("GET", "/health"),
        ("POST", "/claim"),
        ("DELETE", ""),
    ],
)
def test_it_acts_as_its_runner_and_as_no_other(r1, method, path):
    assert r1(method, f"{RUNNERS}/r2{path}").status == 403
    assert r1(method, f"{RUNNERS}/r1{path}").status in (200, 204)


def test_it_reads_the_wakes_of_its_runner_alone(r1):
    assert [each["stream"] for each in r1.wakes("r1")] == ["agent/r1/main"]
    assert r1.get("/runners/r2/wake").status == 403


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/_electric/entities", None),
        ("GET", "/_electric/entities/agent/r1", None),
        ("PUT", "/_electric/entities/agent/new", {}),
        ("PATCH", "/_electric/entities/agent/r1", {"tags": {}}),
        ("DELETE", "/_electric/entities/agent/r1", None),
        ("POST", "/_electric/entities/agent/r1/send", {"payload": 1}),
        ("POST", "/_electric/entities/agent/r1/signal", {"signal": "SIGKILL"}),
        ("POST", "/_electric/entities/agent/r1/tags/a", {"value": "b"}),
        ("GET", "/_electric/entity-types", None),
        ("POST", "/_electric/entity-types", {"name": "t", "description": ""}),
        ("GET", "/_electric/webhook-sources", None),
        ("GET", "/agent/r1/main", None),
        ("GET", "/metrics", None),
    ],
)
def test_it_opens_nothing_else(r1, method, path, body):
    assert r1(method, path, body).status == 403


def test_its_handler_does_its_work_while_its_claim_lasts(r1, alice):
    claim = r1.claim("r1")
    assert r1.get("/agent/r1/main").status == 200
    child = {"parent": "/agent/r1"}
    assert r1("PUT", "/_electric/entities/agent/child", child).status == 201
    assert r1("PUT", "/_electric/entities/agent/c2", {"parent": "/agent/r2"}).status == 403
    alice.claim("r2")  # another runner's claim of the same owner opens nothing
    assert r1.get("/agent/r2/main").status == 403
    assert r1.post("/_electric/entities/agent/r2/signal", {"signal": "SIGKILL"}).status == 403
    claim.done()
    assert r1("PUT", "/_electric/entities/agent/c3", child).status == 403
    assert r1.get("/agent/r1/main").status == 403


def test_its_handler_uses_the_shared_states_of_its_entity(r1, alice):
    """The runtime makes one, reads it and writes to it with its runner's token alone."""
    others = alice.share("theirs", "/agent/r2")
    own, put = "/_electric/shared-state/own", {"Electric_Owner_Entity": "/agent/r1"}
    text = {"type": "text", "key": "k", "headers": {"operation": "insert"}}
    assert r1("PUT", own, **put).status == 403
    claim = r1.claim("r1")
    assert r1("PUT", own, **put).status == 201
    assert r1.post(own, text).status == 204
    assert [each["key"] for each in r1.get(own).body] == ["k"]
    assert r1.get(own, Electric_Principal="user:bob").status == 403
    assert r1.get(others).status == r1.post(others, text).status == 403
    value = {"kind": "shared-state", "id": "theirs"}
    seen = {**text, "type": "manifest", "key": "shared-state:theirs", "value": value}
    assert claim.append(seen, token=claim.mint()).status == 204
    assert r1.get(others).status == 200
    claim.done()
    assert r1.get(own).status == r1.post(own, text).status == r1.get(others).status == 403


# --- Last use -------------------------------------------------------------------------------------


def test_its_last_use_is_written_down_once_a_minute(db, django_assert_num_queries):
    api = bearer("user:alice")
    api.get(RUNNERS)
    assert AccessToken.objects.get().last_used_at is None  # not by the request
    with django_assert_num_queries(1):
        tokens.note_uses()
    token = AccessToken.objects.get()
    assert token.last_used_at is not None
    assert token.last_used_from == "127.0.0.1"
    tokens.forget()
    api.get(RUNNERS)
    tokens.note_uses()
    assert AccessToken.objects.get().last_used_at == token.last_used_at
    AccessToken.objects.update(last_used_at=Now() - timedelta(minutes=2))
    tokens.forget()
    api.get(RUNNERS)
    tokens.note_uses()
    assert AccessToken.objects.filter(last_used_at__gt=token.last_used_at).exists()


def test_what_nobody_used_is_not_asked_about(db, django_assert_num_queries):
    with django_assert_num_queries(0):
        tokens.note_uses()
        tokens.end_revoked(timedelta(seconds=30))


def test_a_token_that_was_revoked_is_forgotten_with_the_next_round(db):
    token, secret = tokens.issue(Principal.parse("user:alice"))
    credential = tokens.verify(secret)
    assert credential is not None
    tokens.revoke(token)
    assert tokens.verify(secret) == credential
    tokens.end_revoked(timedelta(seconds=30))
    assert tokens.verify(secret) is None
    assert credential.seconds_left() == 0


# --- What it holds open ---------------------------------------------------------------------------


@pytest.fixture
def held(servers):
    """A server that holds polls for long, and how to read r1's wakes there with Alice's token."""
    server: Server = servers.lend(PULLWAKE_LONG_POLL_MS=60_000)
    api = make_idle(server.client())
    made = server.database.manage("create_token", "user:alice")
    bearing: Any = {"Authorization": f"Bearer {made.stdout.strip()}"}
    offset = tail(api)
    poll = Held(server, long_poll(offset), **bearing)
    events = Held(server, f"/runners/r1/wake?offset={offset}&live=sse", **bearing)
    lines = events.lines()
    assert next(lines) == "event: control"
    yield server, poll, lines, bearing
    poll.connection.close()
    events.connection.close()


def test_what_it_holds_open_ends_when_it_is_revoked(held):
    server, poll, lines, bearing = held
    server.database.execute("UPDATE runners_accesstoken SET revoked_at = CURRENT_TIMESTAMP")
    began = time.monotonic()
    status, _, _ = poll.answer()
    list(lines)
    assert status == 204
    assert time.monotonic() - began < 10
    assert server.client(None, **bearing).get(RUNNERS).status == 401


def test_what_it_holds_open_ends_when_it_expires(servers):
    server = servers.lend(PULLWAKE_LONG_POLL_MS=60_000)
    offset = tail(make_idle(server.client()))
    made = server.database.manage("create_token", "user:alice", "--expires", "00:00:04")
    bearing: Any = {"Authorization": f"Bearer {made.stdout.strip()}"}
    poll = Held(server, long_poll(offset), **bearing)
    began = time.monotonic()
    assert poll.answer()[0] == 204
    assert time.monotonic() - began < 10
    poll.connection.close()
