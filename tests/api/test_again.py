"""A call whose transaction was lost before its commit is carried out once more."""

import select
from io import BytesIO
from typing import Any

import pytest
from django.db import InternalError, connection, transaction
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from psycopg.errors import IdleInTransactionSessionTimeout
from rest_framework.permissions import BasePermission

from api.views import ApiView
from core.bodies import raw_body
from core.database import cut
from dispatch import wakes
from dispatch.models import DispatchState
from tests.api.endpoints import ENDPOINTS, Endpoint, Scene

pytestmark = pytest.mark.django_db


def ended() -> InternalError:
    """What Django makes of the database's error."""
    error = InternalError()
    error.__cause__ = IdleInTransactionSessionTimeout()
    return error


class Counting(ApiView):
    """A view that meets this error each time, and counts."""

    authentication_classes = ()
    permission_classes: Any = ()
    calls = 0

    def get(self, request: Any) -> Any:
        """Count, and fail."""
        type(self).calls += 1
        raise ended()


class Closed(BasePermission):
    """A permission that meets this error."""

    def has_permission(self, request: Any, view: Any) -> bool:
        """Fail."""
        raise ended()


def answered(view: type[Counting]) -> tuple[int, int]:
    """The status of its answer, and how often it was called."""
    view.calls = 0
    return view.as_view()(RequestFactory().get("/")).status_code, view.calls


def test_it_is_so_once():
    assert answered(Counting) == (503, 2)


def test_a_body_in_chunks_is_there_again():
    told = []

    class Reading(Counting):
        def post(self, request: Any) -> Any:
            told.append(raw_body(request))
            raise ended()

    sent: Any = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": BytesIO(b'{"id": 7}')}
    request = RequestFactory().post("/", content_type="application/json", **sent)
    Reading.as_view()(request)
    assert told == [b'{"id": 7}'] * 2


def test_not_where_its_caller_may_have_left(settings):
    settings.PULLWAKE_IDLE_TRANSACTION_TIMEOUT_MS = 0
    assert answered(Counting) == (503, 1)


def test_not_what_was_not_let_in():
    class Refusing(Counting):
        permission_classes = (Closed,)

    assert answered(Refusing) == (503, 0)


def lose_the_connection() -> None:
    """As where a network does: nobody says why."""
    cut(connection.connection)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_send_whose_connection_is_lost_is_done_once(alice, monkeypatch):
    alice.register()
    alice.make_entity()
    advance = wakes._advance
    lost: list[Any] = []

    def lose(*args: Any) -> int:
        tail = advance(*args)
        if not lost:
            lost.append(connection.connection)
            lose_the_connection()
        return tail

    monkeypatch.setattr(wakes, "_advance", lose)
    alice.send()
    assert lost[0].closed
    assert len(alice.wakes()) == 1
    assert [each["type"] for each in alice.events()].count("inbox") == 1


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_not_where_it_may_have_been_committed(alice, monkeypatch):
    alice.register()
    alice.make_entity()
    save, saved = wakes.save, []

    def lose_at_the_commit(state: Any) -> None:
        save(state)
        saved.append(state)
        lose_the_connection()

    monkeypatch.setattr(wakes, "save", lose_at_the_commit)
    answer = alice.post("/_electric/entities/agent/e1/send", {"payload": "hi"})
    assert (answer.error, len(saved)) == ("SERVICE_UNAVAILABLE", 1)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_not_where_another_was_committed_before():
    class Twice(Counting):
        def get(self, request: Any) -> Any:
            with transaction.atomic():
                DispatchState.objects.exists()
            type(self).calls += 1
            with transaction.atomic():
                DispatchState.objects.exists()
                lose_the_connection()
                DispatchState.objects.exists()

    assert answered(Twice) == (503, 1)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_not_what_is_a_transaction_of_its_own():
    class Single(Counting):
        def get(self, request: Any) -> Any:
            type(self).calls += 1
            DispatchState.objects.exists()
            lose_the_connection()
            DispatchState.objects.exists()

    assert answered(Single) == (503, 1)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_send_that_stood_still_is_done_once(alice, monkeypatch):
    alice.register()
    alice.make_entity()
    advance = wakes._advance
    stood: list[Any] = []

    def stand_still(*args: Any) -> int:
        """Hold the runner's tail until the database has ended this session."""
        tail = advance(*args)
        if not stood:
            stood.append(connection.connection)
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 1")
            assert select.select([connection.connection.fileno()], [], [], 15)[0]
        return tail

    monkeypatch.setattr(wakes, "_advance", stand_still)
    alice.send()
    assert stood[0].closed
    assert len(alice.wakes()) == 1
    assert [each["type"] for each in alice.events()].count("inbox") == 1


# --- What a call writes outside of its transaction, which nobody undoes ----------------------


def written_before_a_transaction(captured: CaptureQueriesContext) -> list[str]:
    """The writes outside of transactions that a transaction follows, which may be lost."""
    depth = 0
    outside: list[str] = []
    found: list[str] = []
    for query in captured.captured_queries:
        sql = query["sql"] or ""
        if sql.startswith("SAVEPOINT"):  # the test itself is a transaction
            depth += 1
            found = list(outside)
        elif sql.startswith("RELEASE"):
            depth -= 1
        elif not depth and sql.startswith(("INSERT", "UPDATE", "DELETE")):
            outside.append(sql)
    return found


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
def test_it_writes_nothing_before(endpoint: Endpoint, scene: Scene):
    with CaptureQueriesContext(connection) as captured:
        answer = scene.holder(endpoint)(
            endpoint.method, endpoint.path(scene.names), endpoint.body, **endpoint.headers
        )
    assert answer.status == endpoint.status
    assert written_before_a_transaction(captured) == []


def test_but_that_a_source_is_watched_which_it_may_say_twice(scene: Scene):
    wait = {"kind": "child", "entity_url": "/agent/e2", "wake": {"on": "change"}}
    event = {"type": "manifest", "key": "k", "value": wait, "headers": {"operation": "insert"}}
    with CaptureQueriesContext(connection) as captured:
        assert scene.claim.append(event, token=scene.write_token).status == 204
    (written,) = written_before_a_transaction(captured)
    assert written.startswith('UPDATE "dispatch_dispatchstate" SET "watched" = ')
