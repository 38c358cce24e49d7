"""What a server does to a SQLite file, and what others may do to it."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving.conftest import Held, long_poll, make_idle, tail
from tests.support import Server, Servers

pytestmark = pytest.mark.sqlite


def test_the_write_ahead_log_outlives_a_request(server: Server):
    """Each request that takes it up anew and removes it at its end syncs the disk four times."""
    server.client().register()
    assert Path(f"{server.database.path}-wal").exists()


def test_a_lock_that_another_process_holds_stops_only_what_writes(
    servers: Servers, hold: Callable[..., Held]
):
    server = servers.lend(PULLWAKE_LOCK_TIMEOUT_MS=1_500)
    alice = make_idle(server.client())
    held = hold(server, long_poll(tail(alice)))
    with server.database.locked("any"):
        began = time.monotonic()
        sending = hold(server, "/_electric/entities/agent/e1/send", b'{"payload": "lost"}')
        for path in ("/livez", "/readyz", "/_electric/runners/r1", "/agent/e1/main", "/livez"):
            assert alice.get(path).status == 200
        assert time.monotonic() - began < 1
        status, headers, body = sending.answer()
        assert (status, headers["Retry-After"]) == (503, "1"), body
        waits = hold(server, "/_electric/entities/agent/e1/send", b'{"payload": "kept"}')
        assert alice.get("/livez").status == 200
    assert waits.answer()[0] == 200
    assert len(held.answer()[2]) == 1
