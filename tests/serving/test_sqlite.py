"""What a server does to a SQLite file."""

from pathlib import Path

import pytest

from tests.support import Server

pytestmark = pytest.mark.sqlite


def test_the_write_ahead_log_outlives_a_request(server: Server):
    """Each request that takes it up anew and removes it at its end syncs the disk four times."""
    server.client().register()
    assert Path(f"{server.database.path}-wal").exists()
