"""A thousand long-polls on one worker: they cost the others nothing, and hold no connection."""

import statistics
import time
from collections.abc import Callable

import pytest

from tests.serving.conftest import Held, long_poll, make_idle, tail
from tests.support import Database, HttpApi, Server

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

READERS = 1000


def readers(server: Server, hold: Callable[..., Held], count: int) -> list[Held]:
    """Long-polls that wait by now; they come 50 at a time, as no two runners start as one."""
    api = server.client()
    offset = tail(api)
    polls = []
    for number in range(count):
        polls.append(hold(server, long_poll(offset)))
        if number % 50 == 49:
            tail(api)
    return polls


def heartbeats(api: HttpApi, count: int = 100) -> float:
    """The median of what a heartbeat takes, in seconds."""
    found = []
    for _ in range(count):
        began = time.monotonic()
        assert api.post("/_electric/runners/r1/heartbeat", {"lease_ms": 90_000}).status == 200
        found.append(time.monotonic() - began)
    return statistics.median(found)


def test_it_holds_a_thousand_long_polls_beside_its_other_work(
    start_server: Callable[..., Server], database: Database, hold: Callable[..., Held]
):
    server = start_server(PULLWAKE_DB_POOL=4)
    api = make_idle(server.client())
    alone = heartbeats(api)
    polls = readers(server, hold, READERS)
    beside = min(heartbeats(api) for _ in range(3))
    assert beside < 2 * alone + 0.002
    # A pool of four, the listener, the announcer, and this look at it.
    ((connections,),) = database.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    )
    assert connections <= 7
    ((in_use,),) = database.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND xact_start < now()"
    )
    assert in_use == 0
    assert server.stop() < 2
    assert {poll.answer()[0] for poll in polls} == {204}


def test_it_wakes_two_hundred_readers_at_once(server: Server, hold: Callable[..., Held]):
    api = make_idle(server.client())
    polls = readers(server, hold, 200)
    api.send()
    assert {(status, len(body)) for status, _, body in (poll.answer() for poll in polls)} == {
        (200, 1)
    }
