"""Requests leave nothing for the garbage collector, which with thousands held takes a second."""

import gc
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.test import RequestFactory
from django.urls import resolve

from config.serving.collector import Collector
from tests.support import Claim, wait_until

RUNNER = "/_electric/runners/r1"
WAKES = "/runners/r1/wake?offset=0000000000000000_0000000000000000&live=long-poll"


class Views:
    """Calls views as Alice, without a test's client, which itself leaves garbage."""

    def get(self, path: str) -> Any:
        return self._call("GET", path, b"")

    def post(self, path: str, body: Any, **headers: str) -> Any:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._call("POST", path, json.dumps(body).encode(), **headers)

    def _call(self, method: str, path: str, body: bytes, **headers: str) -> Any:
        headers = {"Electric-Principal": "user:alice", **headers}
        request = RequestFactory().generic(
            method, path, body, content_type="application/json", headers=headers
        )
        view, args, kwargs = resolve(path.partition("?")[0])
        answer = view(request, *args, **kwargs)
        assert answer.status_code == 200, answer.content
        return json.loads(answer.content)


@contextmanager
def no_garbage() -> Iterator[None]:
    """Fails where the block leaves anything that refers to itself in a circle."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        gc.collect()
        assert Counter(type(each).__name__ for each in gc.garbage) == {}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def live(views: Views) -> None:
    """Claim, and all that follows."""
    claim = Claim(views, views.post(f"{RUNNER}/claim", {}))
    claim.call({"wakeId": claim.body["wakeId"]})
    claim.heartbeat()
    claim.done()


@pytest.mark.parametrize(
    "call",
    [
        lambda views: views.get(WAKES),
        lambda views: views.get(f"{RUNNER}/health"),
        lambda views: views.post(f"{RUNNER}/heartbeat", {"diagnostics": {"status": "streaming"}}),
        lambda views: views.post("/_electric/entities/agent/e1/send", {"payload": "hi"}),
        live,
    ],
    ids=["wakes", "health", "heartbeat", "send", "claim to done"],
)
def test_a_call_leaves_no_garbage(alice, call: Callable[[Views], object]):
    alice.register()
    alice.make_entity()
    for name in ("e2", "e3"):
        alice.make_entity(f"/agent/{name}", initialMessage="hi")
    call(Views())  # what the first one makes, stays
    with no_garbage():
        call(Views())


def test_what_is_held_does_not_stay_young(monkeypatch):
    monkeypatch.setattr(Collector, "EVERY_S", 0.01)
    collector = Collector()
    collecting = threading.Thread(target=collector.run)
    held: list[Any] = [[]]
    collecting.start()
    wait_until(lambda: any(each is held for each in gc.get_objects(generation=2)))
    collector.stop()
    collecting.join()
