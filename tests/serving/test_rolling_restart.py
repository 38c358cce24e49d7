"""Three servers behind a proxy are restarted one after the other, and no request notices."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.proxies import haproxy, nginx
from tests.support import HttpApi, Server, wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.proxy, pytest.mark.slow, pytest.mark.anew]

DRAIN_S = 3
"""Longer than the proxies need to notice, by their recipes."""

RUNNERS = 4


class Load:
    """Runners, each with an entity that is sent a message, woken, claimed and done all the time."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.over = threading.Event()
        self.done = 0
        self.failed: list[Any] = []
        self._threads = [
            threading.Thread(target=self._run, args=(f"r{number}",)) for number in range(RUNNERS)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, runner_id: str) -> None:
        api = HttpApi(self.url, "user:alice")
        try:
            api.register(runner_id)
            api.make_entity(f"/agent/{runner_id}", runner_id)
            offset = "-1"
            while not self.over.is_set():
                api.send(f"/agent/{runner_id}")
                wake = None
                while wake is None:
                    held = api.get(f"/runners/{runner_id}/wake?offset={offset}&live=long-poll")
                    # 204 is what a server that stops answers to what it holds.
                    assert held.status in (200, 204), held
                    offset = held.headers["Stream-Next-Offset"]
                    wake = held.body[-1] if held.status == 200 else None
                claim = api.claim(runner_id, wake)
                assert claim.heartbeat().status == 200
                assert claim.done().body["entity_cleared"] is True
                self.done += 1
        except (AssertionError, ValueError, httpx2.TransportError) as exc:
            self.failed.append(exc)
        finally:
            api.http.close()

    def go_on(self) -> None:
        """Wait until more is done."""
        before = self.done
        wait_until(lambda: self.failed or self.done > before + RUNNERS)


@pytest.mark.parametrize("proxy", [haproxy, nginx])
def test_no_request_fails_while_servers_are_restarted(
    proxy: Callable[..., AbstractContextManager[str]],
    start_server: Callable[..., Server],
    tmp_path: Path,
):
    servers = [start_server(PULLWAKE_DRAIN_S=DRAIN_S) for _ in range(3)]
    with proxy(servers, tmp_path) as url:
        wait_until(lambda: httpx2.get(f"{url}/readyz").status_code == 200)
        with Load(url) as load:
            for server in servers:
                load.go_on()
                server.stop()
                load.go_on()
                server.start()
            load.go_on()
        assert load.failed == []
