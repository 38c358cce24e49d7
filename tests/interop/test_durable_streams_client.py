"""Our streams, read by an unmodified `@durable-streams/client`: what existing runners read with."""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from tests.support import Balancer, HttpApi, Server, wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the client, as npm installs it from the lock file, and our scripts."""
    folder: Path = tmp_path_factory.mktemp("interop")
    for name in ("package.json", "package-lock.json", ".npmrc", "reader.mjs", "producer.mjs"):
        shutil.copy(HERE / name, folder)
    npm = subprocess.run(
        ["npm", "ci", "--ignore-scripts"], cwd=folder, capture_output=True, text=True
    )
    assert npm.returncode == 0, npm.stderr
    return folder


class Reader:
    """The client, reading a stream in a process of its own."""

    def __init__(self, client: Path, url: str, offset: str = "-1") -> None:
        self.process = subprocess.Popen(
            ["node", "reader.mjs", url, offset, "user:alice"],
            cwd=client,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.batches: Queue[Any] = Queue()
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.batches.put(json.loads(line))

    def next(self) -> list[Any]:
        """The next events; batches without any are passed over."""
        while True:
            batch = self.batches.get(timeout=30)
            if batch["items"]:
                items: list[Any] = batch["items"]
                return items

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def read(client: Path) -> Iterator[Callable[..., Reader]]:
    """Start readers: ``read(url, offset)``."""
    readers: list[Reader] = []

    def start(url: str, offset: str = "-1") -> Reader:
        readers.append(Reader(client, url, offset))
        return readers[-1]

    yield start
    for each in readers:
        each.close()


@pytest.fixture
def balance() -> Iterator[Callable[..., Balancer]]:
    """Put an address that counts requests before servers."""
    balancers: list[Balancer] = []

    def start(*servers: Server) -> Balancer:
        balancers.append(Balancer(*servers))
        return balancers[-1]

    yield start
    for each in balancers:
        each.close()


def make_woken(api: HttpApi) -> HttpApi:
    api.register()
    api.make_entity()
    api.send()
    return api


def polls(balancer: Balancer) -> int:
    """How many long-polls have been asked for."""
    return sum("live=long-poll" in path for _, _, path in list(balancer.served))


def test_it_gets_the_wakes_that_there_are_and_those_sent_later(
    server: Server, read: Callable[..., Reader]
):
    api = make_woken(server.client())
    reader = read(f"{server.url}/runners/r1/wake")
    (event,) = reader.next()
    assert (event["type"], event["stream"], event["generation"]) == ("wake", "agent/e1/main", 1)
    for generation in (2, 3):
        api.claim(event=event).done()
        api.send()
        (event,) = reader.next()
        assert event["generation"] == generation


def test_it_begins_at_the_offset_that_it_is_given(server: Server, read: Callable[..., Reader]):
    api = make_woken(server.client())
    offset = api("HEAD", "/runners/r1/wake").headers["Stream-Next-Offset"]
    reader = read(f"{server.url}/runners/r1/wake", offset)
    api.make_entity("/agent/e2")
    api.send("/agent/e2")
    assert [event["stream"] for event in reader.next()] == ["agent/e2/main"]


def test_it_is_healed_of_an_offset_past_the_tail(server: Server, read: Callable[..., Reader]):
    api = make_woken(server.client())
    reader = read(f"{server.url}/runners/r1/wake", "0000000000000000_0000000000009999")
    wait_until(lambda: not reader.batches.empty())
    api.make_entity("/agent/e2")
    api.send("/agent/e2")
    assert [event["stream"] for event in reader.next()] == ["agent/e2/main"]


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_it_survives_a_restart_of_its_server(how: str, mortal: Server, read: Callable[..., Reader]):
    server = mortal
    api = make_woken(server.client())
    reader = read(f"{server.url}/runners/r1/wake")
    (event,) = reader.next()
    if how == "stopped":
        server.stop()
    else:
        server.kill()
    server.start()
    api.claim(event=event).done()
    api.send()
    (event,) = reader.next()
    assert event["generation"] == 2
    assert reader.process.poll() is None


@pytest.mark.parametrize("last_wake", ["unclaimed", "claimed", "never"])
def test_it_asks_once_and_waits_when_nothing_comes(
    last_wake: str,
    server: Server,
    balance: Callable[..., Balancer],
    read: Callable[..., Reader],
):
    api = server.client()
    api.register()
    if last_wake != "never":
        make_woken(api)
    if last_wake == "claimed":
        api.claim()
    balancer = balance(server)
    read(f"{balancer.url}/runners/r1/wake")
    wait_until(lambda: polls(balancer))
    asked = len(balancer.served)
    time.sleep(1)  # the time in which it might have spun
    assert len(balancer.served) == asked


def test_it_asks_again_only_when_a_wait_is_over(
    start_server: Callable[..., Server],
    balance: Callable[..., Balancer],
    read: Callable[..., Reader],
):
    server = start_server(PULLWAKE_LONG_POLL_MS=250)
    make_woken(server.client())
    balancer = balance(server)
    read(f"{balancer.url}/runners/r1/wake")
    wait_until(lambda: polls(balancer))
    before, began = polls(balancer), time.monotonic()
    wait_until(lambda: polls(balancer) >= before + 4)
    assert time.monotonic() - began > 0.7


def test_it_reads_a_main_stream(server: Server, read: Callable[..., Reader]):
    api = make_woken(server.client())
    reader = read(f"{server.url}/agent/e1/main")
    assert [event["type"] for event in reader.next()] == ["entity_created", "inbox"]
    api.send(payload="more")
    assert [event["value"]["payload"] for event in reader.next()] == ["more"]


# --- Its idempotent producer ------------------------------------------------------------------


def test_its_producer_appends_each_event_once(server: Server, client: Path):
    api = make_woken(server.client())
    claim = api.claim()
    token = claim.mint()

    def produce(epoch: int, count: int) -> Any:
        node = subprocess.run(
            ["node", "producer.mjs", f"{server.url}/agent/e1/main", token, str(epoch), str(count)],
            cwd=client,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert node.returncode == 0, node.stderr
        return json.loads(node.stdout)

    def lines() -> list[int]:
        return [event["n"] for event in api.events() if event["type"] == "line"]

    tail = "0000000000000000_0000000000000007"
    assert produce(epoch=0, count=5) == {"errors": [], "offset": tail, "nextSeq": 5}
    assert lines() == [0, 1, 2, 3, 4]
    # Started again it sends the same numbers again, and goes on from there.
    assert produce(epoch=0, count=6)["errors"] == []
    assert lines() == [0, 1, 2, 3, 4, 5]
    assert produce(epoch=1, count=1)["errors"] == []
    assert lines() == [0, 1, 2, 3, 4, 5, 0]
    # One of an older epoch is told that it is stale.
    assert set(produce(epoch=0, count=1)["errors"]) == {"StaleEpochError"}
    assert lines() == [0, 1, 2, 3, 4, 5, 0]
