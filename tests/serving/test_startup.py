"""How a server's workers begin."""

import tempfile
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import psutil
import pytest

from tests.support import Database, Server, wait_until

pytestmark = [pytest.mark.anew, pytest.mark.postgres]


def test_no_worker_lets_callers_in_before_the_others_do(database: Database, tmp_path: Path):
    """The first would have all the runners that come back, and keep them."""
    server = Server(database.url, tmp_path / "server.log", {"WEB_CONCURRENCY": "3"})

    def counting() -> set[int]:
        """The workers that have counters: those that have imported what they need."""
        assert server.process is not None
        files = Path(tempfile.gettempdir()).glob(f"pullwake-metrics-{server.process.pid}-*/*.db")
        return {int(each.stem.rpartition("_")[2]) for each in files}

    with ThreadPoolExecutor(1) as threads:
        ready = threads.submit(server.start)
        try:
            wait_until(lambda: server.process is not None)
            assert server.process is not None
            master = psutil.Process(server.process.pid)
            slow = wait_until(lambda: len(found := master.children()) == 3 and found[0])
            slow.suspend()
            try:
                wait_until(lambda: len(counting() - {slow.pid}) == 2, timeout=30)
                wait([ready], timeout=1)  # they are ready, and one of them would answer
                assert not ready.done()
            finally:
                slow.resume()
            ready.result(30)
        finally:
            server.close()
    assert "Traceback" not in server.log.read_text()
