"""Races whose order the test decides: calls that queue up behind a row that the test holds.

PostgreSQL serves the waiters of a row in the order they came, so whoever was first in line is
first at the row. All calls are real ones, in threads, on connections of their own.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import connection, connections

from core import audit
from dispatch.models import DispatchState
from tests.support import Api, ApiClient, wait_until

Calls = Callable[[], Any]

HOLD = {
    "runner": "SELECT FROM runners_runner FOR UPDATE",
    "liveness of r1": "SELECT FROM runners_runnerliveness WHERE runner_id = 'r1' FOR UPDATE",
    "state": "SELECT FROM dispatch_dispatchstate FOR UPDATE",
    "claim": "SELECT FROM claims_consumerclaim FOR UPDATE",
    "claim of e1": "SELECT FROM claims_consumerclaim WHERE entity_url = '/agent/e1' FOR UPDATE",
    "tail": "SELECT FROM runners_wakestream FOR UPDATE",
    "tail of r1": "SELECT FROM runners_wakestream WHERE runner_id = 'r1' FOR UPDATE",
    "shared state": "SELECT FROM dispatch_sharedstate FOR UPDATE",
    # Not the row itself, which is yet to be made, but its name.
    "shared name": "INSERT INTO dispatch_sharedstate (name, tail, created_by)"
    " VALUES ('s1', 0, '/principal/user%3Anobody')",
    "registrations": "SELECT FROM dispatch_registration FOR UPDATE",
    "registrations of e1": "SELECT FROM dispatch_registration JOIN dispatch_entity AS subscriber"
    " ON subscriber_id = subscriber.id WHERE url = '/agent/e1' FOR UPDATE OF dispatch_registration",
    "registrations of e2": "SELECT FROM dispatch_registration JOIN dispatch_entity AS subscriber"
    " ON subscriber_id = subscriber.id WHERE url = '/agent/e2' FOR UPDATE OF dispatch_registration",
    "deliveries": "SELECT FROM dispatch_delivery FOR UPDATE",
    "timers": "SELECT FROM dispatch_timer FOR UPDATE",
    "timers of e1": "SELECT FROM dispatch_timer JOIN dispatch_entity AS owner"
    " ON owner_id = owner.id WHERE url = '/agent/e1' FOR UPDATE OF dispatch_timer",
    "entity e1": "SELECT FROM dispatch_entity WHERE url = '/agent/e1' FOR UPDATE",
    "state of e1": "SELECT FROM dispatch_dispatchstate JOIN dispatch_entity ON entity_id = id"
    " WHERE url = '/agent/e1' FOR UPDATE OF dispatch_dispatchstate",
    "state of e2": "SELECT FROM dispatch_dispatchstate JOIN dispatch_entity ON entity_id = id"
    " WHERE url = '/agent/e2' FOR UPDATE OF dispatch_dispatchstate",
    # Not the row itself, which two first registrations do not have, but its key.
    "runner id": "INSERT INTO runners_runner (id, owner_principal, label, kind, admin_status,"
    " sandbox_profiles, claim_lease_ms) VALUES ('r1', '/principal/user%3Anobody', '', 'local',"
    " 'enabled', '[]', 1000)",
}


class Line:
    """Rows that the test holds, and the calls that wait for them, in the order they came."""

    def __init__(self, connect: "Callable[[], psycopg.Connection[Any]]") -> None:
        self.connect = connect
        self.watcher = connect()
        self.watcher.autocommit = True
        self.held: dict[str, psycopg.Connection[Any]] = {}
        self.threads = ThreadPoolExecutor(thread_name_prefix="racer")
        self.calls: list[Future[Any]] = []

    def hold(self, what: str) -> None:
        """Lock it, or every row of that kind."""
        self.held[what] = self.connect()
        self.held[what].execute(HOLD[what])

    def join(self, call: Calls) -> "Future[Any]":
        """Start a call, and return once it waits for a lock, or is over."""
        future = self.threads.submit(_alone, call)
        self.calls.append(future)
        self.settle()
        return future

    def settle(self) -> None:
        """Return once every call waits for a lock, or is over."""
        wait_until(lambda: self.waiting() == sum(not each.done() for each in self.calls))

    def waiting(self) -> int:
        """How many transactions of this database wait for a lock."""
        found = self.watcher.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ).fetchone()
        assert found is not None
        return int(found[0])

    def let_go(self, what: str) -> None:
        """Let the first in line have it."""
        self.held.pop(what).close()

    def meet(self, what: str, order: tuple[str, ...], **calls: Calls) -> dict[str, Any]:
        """What the calls answer that meet at what the test holds, in this order, by name."""
        self.hold(what)
        started = {name: self.join(calls[name]) for name in order}
        assert self.waiting(), "nobody met anybody"
        self.let_go(what)
        return {name: future.result(timeout=30) for name, future in started.items()}

    def close(self) -> None:
        """Let everything go, and wait for all that were in line."""
        for each in (*self.held.values(), self.watcher):
            each.close()
        self.threads.shutdown()


def _alone(call: Calls) -> Any:
    try:
        return call()
    finally:
        connections.close_all()


@pytest.fixture
def line(transactional_db: None) -> Iterator[Line]:
    """Holds rows of the test's database."""
    params = connection.get_connection_params()
    # And what a test holds is held until it lets go.
    for not_libpq in ("pool", "cursor_factory", "context", "prepare_threshold", "options"):
        params.pop(not_libpq, None)
    # The first entry of the audit log makes its author: two deletions would meet there.
    User.objects.create(username=audit.NO_OPERATOR, is_active=False)
    line = Line(lambda: psycopg.connect(**params))
    yield line
    line.close()


@pytest.fixture
def alice(transactional_db: None) -> Api:
    """The API as user:alice calls it, in process, with transactions that commit."""
    api = Api("user:alice")
    api.client = ApiClient(raise_request_exception=True)
    return api


def both_orders(*names: str) -> "pytest.MarkDecorator":
    """Parametrise ``order`` with both orders of two calls."""
    return pytest.mark.parametrize("order", [names, names[::-1]], ids=" before ".join)


def assert_every_wake_is_right() -> None:
    """An entity with work has one wake or one claim, and no entity has more."""
    for state in DispatchState.objects.select_related("entity"):
        held = state.entity.claims.active().count()
        emitted = list(state.entity.wakes.outstanding())
        named = [] if state.outstanding_wake is None else [state.outstanding_wake]
        due = state.pending and state.awake and state.runner_id is not None
        assert emitted == named
        assert held + len(emitted) == int(due or held), state.entity
