"""Requests leave nothing for the garbage collector, which with thousands held takes a second."""

import gc

import pytest
from django.test import RequestFactory
from rest_framework.request import Request

from api.streams import WakeStreamView


@pytest.fixture
def request_for_wakes(alice):
    """A long-poll of Alice's runner, which has a wake to give."""
    alice.register()
    alice.make_entity(initialMessage="hi")
    path = "/runners/r1/wake?offset=0000000000000000_0000000000000000&live=long-poll"
    return RequestFactory().get(path, headers={"Electric-Principal": "user:alice"})


def requests():
    """How many there are, in use or not."""
    return sum(isinstance(each, Request) for each in gc.get_objects())


def test_a_request_is_gone_with_its_last_use(request_for_wakes):
    gc.collect()
    before = requests()
    gc.disable()
    try:
        assert WakeStreamView.as_view()(request_for_wakes, runner_id="r1").status_code == 200
        assert requests() == before
    finally:
        gc.enable()
