"""What a handler has sent or ticked later is handled, however the handler that it meets ends."""

import pytest

from dispatch import due
from dispatch.cron import Cron
from dispatch.models import DispatchState, Registration, Timer
from tests.agents.runtime import STEPS, Runtime
from tests.agents.test_handler import crash, drain, event_of_e1, rows
from tests.support import PAST

HOURLY = Cron.parse("0 * * * *", "Asia/Kolkata")
PAYLOAD = "look at the news"


def entry(kind, **facts):
    value = {"key": "schedule:s1", "kind": "schedule", "id": "s1", "scheduleType": kind, **facts}
    headers = {"operation": "upsert"}
    return {"type": "manifest", "key": "schedule:s1", "value": value, "headers": headers}


ENTRIES = {
    "future_send": entry(
        "future_send",
        fireAt="2100-01-01T00:00:00.000Z",
        targetUrl="/agent/e1",
        senderUrl="/agent/e1",
        payload=PAYLOAD,
        producerId="p1",
        status="pending",
    ),
    "cron": entry(
        "cron",
        expression=HOURLY.expression,
        timezone=HOURLY.timezone,
        payload=PAYLOAD,
        wake={"on": "change"},
    ),
}


def let_time_come():
    """Whatever is set comes now, once."""
    Timer.objects.pending().update(due_at=PAST)
    Registration.objects.filter(tick_at__isnull=False).update(tick_at=PAST, due_at=PAST)
    while due.run():
        pass


@pytest.fixture
def runtime(alice):
    """A runtime on r1 whose handler of /agent/e1 has something to do later."""
    alice.register()
    alice.make_entity()
    return Runtime(alice)


@pytest.mark.parametrize("crash_at", [None, *STEPS])
@pytest.mark.parametrize("comes_at", [None, "wrote", "idled"])
@pytest.mark.parametrize("sleeps", [False, True])
@pytest.mark.parametrize("kind", ENTRIES)
def test_what_comes_later_is_handled(runtime, kind, sleeps, comes_at, crash_at):
    """It comes while the handler is at rest, or at a step of it, and that crashes or not."""
    api = runtime.api
    runtime.sleeps = sleeps
    runtime.works = lambda wake, _: wake.append(ENTRIES[kind])
    api.send(key="m1")
    drain(runtime, event_of_e1())
    runtime.works = lambda wake, _: None
    if comes_at is None:
        let_time_come()
    else:
        api.send(key="m2")
        runtime.steps[comes_at] = let_time_come
    if crash_at is not None:
        meant = runtime.steps.get(crash_at, lambda: None)
        runtime.steps[crash_at] = lambda: (meant(), crash())
    drain(runtime, event_of_e1())
    now = rows()
    if kind == "cron":
        ((key, wake),) = [(key, row) for (type_, key), row in now.items() if type_ == "wake"]
        assert wake["changes"][0]["payload"] == PAYLOAD
        # The runtime looks for the schedule whose path the source is, its zone as its ICU has it.
        schedule = now["manifest", "schedule:s1"]
        assert wake["source"] == Cron(schedule["expression"], "Asia/Calcutta").path
    else:
        key = "scheduled-p1"
        assert now["inbox", key]["payload"] == PAYLOAD
        assert now["manifest", "schedule:s1"]["status"] == "sent"
    assert key in runtime.handled
    state = DispatchState.objects.get()
    assert (api.status(), state.pending, api.wakes()) == ("idle", False, [])


@pytest.mark.parametrize("step", STEPS)
def test_a_delayed_send_that_comes_during_a_claim_is_not_acked_unseen(runtime, step):
    api = runtime.api
    api.send(key="m1")
    api.send(key="later", afterMs=60_000)
    runtime.steps[step] = let_time_come
    drain(runtime, event_of_e1())
    assert runtime.handled == {"m1", "later"}
