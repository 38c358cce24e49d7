"""What a handler is given, and what its done acks: nothing lost, nothing acked unseen, no loop.

Each scenario is run as it is, and with a crash of the runtime at each of its steps.
"""

from dataclasses import dataclass, field
from functools import partial

import msgspec
import pytest
from django.db import transaction

from dispatch import wakes
from dispatch.models import DispatchState, Entity, StreamEvent
from dispatch.streams import log
from tests.agents.runtime import STEPS, Crash, Runtime, merged
from tests.support import end_delay, lapse, wait_until

URL = "/agent/e1"
MOST_CLAIMS = 9


# --- What happens -----------------------------------------------------------------------------


def send(api, key, **facts):
    api.send(key=key, **facts)


def signal(api, name):
    api.signal(URL, name)


def tag(api, key):
    assert api.post(f"/_electric/entities{URL}/tags/{key}", {"value": "v"}).status == 200


def say(*events):
    """Append what the server itself says."""
    with transaction.atomic():
        (state,) = wakes.lock(DispatchState.objects.filter(entity__url=URL))
        log.append(state, events)
        wakes.settle(state)


def cancel(key):
    value = {"status": "cancelled", "cancelled_at": "2026-01-01T00:00:00.000Z"}
    say({"type": "inbox", "key": key, "value": value, "headers": {"operation": "update"}})


def child(key):
    value = {"source": f"/agent/{key}", "timeout": False, "changes": []}
    say({"type": "wake", "key": key, "value": value, "headers": {"operation": "insert"}})


@dataclass
class Scenario:
    """What comes before the first claim, during it, and what is to be handled in the end."""

    before: list = field(default_factory=list)
    during: dict = field(default_factory=dict)
    after: list = field(default_factory=list)
    handled: set = field(default_factory=set)
    signals: int = 0
    sleeps: bool = False


m1 = partial(send, key="m1")
m2 = partial(send, key="m2")
m3 = partial(send, key="m3")
queued = [partial(send, key=f"m{n}", mode="queued") for n in (1, 2, 3)]
ALL = {"m1", "m2", "m3"}

SCENARIOS = {
    "one message": Scenario([m1], handled={"m1"}),
    "three messages": Scenario([m1, m2, m3], handled=ALL),
    "message, SIGUSR": Scenario([m1, partial(signal, name="SIGUSR")], handled={"m1"}, signals=1),
    "SIGUSR, message": Scenario([partial(signal, name="SIGUSR"), m1], handled={"m1"}, signals=1),
    "SIGUSR alone": Scenario([partial(signal, name="SIGUSR")], signals=1),
    "message, tag": Scenario([m1, partial(tag, key="t")], handled={"m1"}),
    "tag, message": Scenario([partial(tag, key="t"), m1], handled={"m1"}),
    "message, cancelled one": Scenario([m1, m2, lambda api: cancel("m2")], handled={"m1"}),
    "cancelled one, message": Scenario([m1, m2, lambda api: cancel("m1")], handled={"m2"}),
    "cancelled as it is claimed": Scenario(
        [m1, m2], {"claimed": lambda api: cancel("m2")}, handled={"m1"}
    ),
    "queued x 3": Scenario(queued, handled=ALL),
    "queued x 3, slept": Scenario(queued, handled=ALL, sleeps=True),
    "steered among queued": Scenario(
        [*queued[:2], partial(send, key="m3", mode="steer")], handled=ALL, sleeps=True
    ),
    "delayed": Scenario([m1], after=[m2], handled={"m1", "m2"}),
    "two children": Scenario(
        [lambda api: child("c1"), lambda api: child("c2")], handled={"c1", "c2"}
    ),
    "two children, one late, slept": Scenario(
        [lambda api: child("c1")],
        {"wrote": lambda api: child("c2")},
        handled={"c1", "c2"},
        sleeps=True,
    ),
    "paused before it came": Scenario(
        [partial(signal, name="SIGSTOP"), m1, partial(signal, name="SIGCONT")],
        handled={"m1"},
        signals=1,
    ),
}
for step in STEPS:
    for sleeps in (False, True):
        SCENARIOS[f"second message at {step}{', slept' * sleeps}"] = Scenario(
            [m1], {step: m2}, handled={"m1", "m2"}, sleeps=sleeps
        )
for name in ("SIGSTOP", "SIGHUP", "SIGINT", "SIGUSR"):
    for step in ("claimed", "wrote"):
        SCENARIOS[f"{name} and a message at {step}"] = Scenario(
            [m1],
            {step: lambda api, name=name: (signal(api, name), m2(api))},
            after=[partial(signal, name="SIGCONT")] if name == "SIGSTOP" else [],
            handled={"m1", "m2"},
        )


# --- What must hold ---------------------------------------------------------------------------


def rows():
    return merged([msgspec.json.decode(each.data) for each in StreamEvent.objects.order_by("pk")])


def none_is_acked_unseen(runtime):
    state = DispatchState.objects.get()
    now = rows()
    for event in StreamEvent.objects.filter(offset__lte=state.cursor):
        said = msgspec.json.decode(event.data)
        if said["type"] not in ("inbox", "wake") or said["headers"]["operation"] != "insert":
            continue
        row = now[said["type"], said["key"]]
        taken = state.entity.taken.filter(key=said["key"], epoch=state.active_epoch or 0)
        waits = row.get("status") == "pending" or taken.exists()
        assert waits or row.get("status") == "cancelled" or said["key"] in runtime.handled, said


def drain(runtime, event):
    """Let the runtime work until there is nothing left, over delays and crashes: its claims."""
    for claims in range(MOST_CLAIMS):
        if DispatchState.objects.filter(retry_at__isnull=False).exists():
            end_delay()
        try:
            if not runtime.run(event):
                return claims
        except Crash:
            lapse(runtime.claim)
        none_is_acked_unseen(runtime)
    raise AssertionError(f"it loops: {runtime.calls}")


def crash():
    raise Crash


@pytest.fixture
def runtime(alice):
    """A runtime on r1, and /agent/e1 dispatched to it."""
    alice.register()
    alice.make_entity()
    return Runtime(alice)


def event_of_e1():
    key = Entity.objects.get().subscription_key
    return {"subscription_id": f"runner:r1:{key}"}


@pytest.mark.parametrize("crash_at", [None, *STEPS])
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_every_message_is_handled_and_none_is_acked_unseen(runtime, scenario, crash_at):
    api = runtime.api
    runtime.sleeps = scenario.sleeps
    for happens in scenario.before:
        happens(api)
    runtime.steps = {step: partial(happens, api) for step, happens in scenario.during.items()}
    if crash_at is not None:
        meant = runtime.steps.get(crash_at, lambda: None)
        runtime.steps[crash_at] = lambda: (meant(), crash())
    drain(runtime, event_of_e1())
    for happens in scenario.after:
        happens(api)
        drain(runtime, event_of_e1())
    assert scenario.handled <= runtime.handled
    if scenario.signals:
        left = [r for (kind, _), r in rows().items() if kind == "signal"]
        assert [r["status"] for r in left if r["signal"] != "SIGSTOP"] == ["handled"]
    state = DispatchState.objects.get()
    assert (api.status(), state.pending, api.wakes()) == ("idle", False, [])


@pytest.mark.parametrize("step", STEPS)
def test_a_stop_leaves_what_came_unacked(runtime, step):
    m1(runtime.api)
    runtime.steps = {step: lambda: (m2(runtime.api), signal(runtime.api, "SIGTERM"))}
    assert runtime.run()
    assert runtime.api.status() == "stopped"
    none_is_acked_unseen(runtime)


@pytest.mark.parametrize("cancelled", ["before", "at claimed"])
def test_a_cancelled_message_alone_is_no_work(runtime, cancelled):
    m1(runtime.api)
    if cancelled == "before":
        cancel("m1")
        assert runtime.api.wakes() == []
        assert runtime.api.try_claim("r1", event_of_e1()).error == "NO_PENDING_WORK"
    else:
        runtime.steps = {"claimed": lambda: cancel("m1")}
        assert drain(runtime, event_of_e1()) == 1
    assert not DispatchState.objects.get().pending


def test_a_wake_that_fails_before_its_handler_waits_longer_and_longer(runtime):
    m1(runtime.api)
    runtime.broken = True
    for failures in (1, 2, 3):
        assert runtime.run(event_of_e1())
        state = DispatchState.objects.get()
        assert (state.failures, state.retry_at is None, state.pending) == (failures, False, True)
        assert runtime.api.wakes() == []
        end_delay()
    runtime.broken = False
    drain(runtime, event_of_e1())
    assert runtime.handled == {"m1"}
    assert DispatchState.objects.get().failures == 0


def test_queued_messages_are_taken_one_a_pass_in_their_order(runtime):
    api = runtime.api
    taken: list[str] = []
    for key, position in (("b", "2"), ("c", "3"), ("a", "1")):
        send(api, key, mode="queued", position=position)
    runtime.sleeps = True
    while runtime.run(event_of_e1()):
        (new,) = runtime.handled - set(taken)
        taken.append(new)
    assert taken == ["a", "b", "c"]


@pytest.mark.parametrize("sleeps", [True, False], ids=["slept", "idled"])
@pytest.mark.parametrize("crash_at", STEPS)
def test_one_that_was_acked_while_it_waited_outlives_the_crash_of_who_took_it(
    runtime, crash_at, sleeps
):
    """The first claim's done acks all three, and the second one dies."""
    api = runtime.api
    for happens in queued:
        happens(api)
    runtime.sleeps = True
    assert runtime.run(event_of_e1())
    assert runtime.handled == {"m1"}
    runtime.sleeps = sleeps
    runtime.steps = {crash_at: crash}
    drain(runtime, event_of_e1())
    assert runtime.handled == ALL
    state = DispatchState.objects.get()
    assert (api.status(), state.pending, api.wakes()) == ("idle", False, [])


def test_a_held_message_stops_the_queue_behind_it(runtime):
    api = runtime.api
    send(api, "held", mode="paused", position="1")
    assert api.wakes() == []
    send(api, "behind", mode="queued", position="2")
    runtime.sleeps = True
    drain(runtime, event_of_e1())
    assert runtime.handled == set()
    mode = {"type": "inbox", "key": "held", "value": {"mode": "queued"}}
    say({**mode, "headers": {"operation": "update"}})
    drain(runtime, event_of_e1())
    assert runtime.handled == {"held", "behind"}


def test_against_a_real_server(start_server):
    """Two runtimes die, one before and one after its first write; the third comes to its end."""
    server = start_server(PULLWAKE_REAPER_INTERVAL_MS=100)
    api = server.client()
    api.register(claim_lease_ms=1000)
    api.make_entity()
    for key in ("m1", "m2"):
        send(api, key)
    runtime = Runtime(api)
    for step in ("called", "wrote"):
        runtime.steps = {step: crash}
        with pytest.raises(Crash):
            wait_until(runtime.run)
    wait_until(runtime.run)
    assert runtime.handled == {"m1", "m2"}
    assert (api.status(), api.wakes()) == ("idle", [])
