"""Wakes between entities: what is waited for, and what the subscriber is told."""

import tracemalloc

import pytest
from django.db import transaction
from django.db.models import Q

from dispatch import deliveries, due, wakes
from dispatch.models import Delivery, DispatchState, Entity, Registration
from dispatch.streams import log, offsets, registrations, scan
from tests.support import PAST, Api, end_delay, lapse

PARENT, CHILD, OTHER = "/agent/parent", "/agent/child", "/agent/other"


def event(kind, key="k", operation="insert", /, **value):
    """An event of a stream."""
    return {"type": kind, "key": key, "value": value, "headers": {"operation": operation}}


def finished(run="run-1", status="completed"):
    return event("run", run, "update", status=status)


def say(url, *events):
    """Append what the server itself says."""
    with transaction.atomic():
        (state,) = wakes.lock(DispatchState.objects.filter(entity__url=url))
        log.append(state, events)
        wakes.settle(state)


def let_due(**which):
    """Let what is due later be due now."""
    rows = Registration.objects.filter(due_at__isnull=False, **which)
    for name in ("deliver_at", "timeout_at"):
        rows.filter(**{f"{name}__isnull": False}).update(**{name: PAST})
    assert rows.update(due_at=PAST)


def told(api, url=PARENT):
    """Do what is due; the values of the wakes in a stream."""
    while due.run():
        pass
    return [each["value"] for each in api.events(url) if each["type"] == "wake"]


def changes(api, url=PARENT):
    """What these wakes say of changes."""
    return [each for wake in told(api, url) for each in wake["changes"]]


def children(api, url=PARENT):
    """What they say of finished children."""
    return [wake["finished_child"] for wake in told(api, url) if "finished_child" in wake]


def watch(api, condition="runFinished", *, subscriber=PARENT, source=CHILD, status=204, **facts):
    body = {"subscriberUrl": subscriber, "sourceUrl": source, "condition": condition, **facts}
    answer = api.post("/_electric/wake", body)
    assert answer.status == status, answer
    return answer


def unwatch(api, *, subscriber=PARENT, **which):
    answer = api.post("/_electric/wake/unregister", {"subscriberUrl": subscriber, **which})
    assert answer.status == 204, answer


def on_change(*collections, ops=()):
    return {"on": "change", "collections": list(collections), "ops": list(ops)}


def handled(api, url, *events, runner_id="r1"):
    """A handler of the entity writes these, and is done."""
    api.send(url)
    claim = api.claim(runner_id, {"subscription_id": f"runner:r1:{key_of(url)}"})
    assert claim.append(*events, token=claim.mint()).status == 204
    assert claim.done().status == 200


def key_of(url):
    return Entity.objects.get(url=url).subscription_key


@pytest.fixture
def api(alice):
    """A parent, its child, and another that is nobody's."""
    alice.register()
    alice.make_entity(PARENT)
    alice.make_entity(CHILD, parent=PARENT)
    alice.make_entity(OTHER)
    return alice


# --- Finished runs ----------------------------------------------------------------------------


def test_a_run_may_have_a_key_of_any_length(api):
    watch(api)
    run = "r" * 60_000
    delta = event("text_delta", run_id=run, delta="Hi!")
    handled(api, CHILD, event("run", run), delta, finished(run))
    assert [child["response"] for child in children(api)] == ["Hi!"]


def test_a_parent_hears_of_its_childs_run_with_the_response(api):
    watch(api)
    deltas = [event("text_delta", f"d{n}", run_id="run-1", delta=t) for n, t in enumerate("Hi!")]
    say(CHILD, event("run", "run-1"), *deltas, event("text_delta", "x", run_id="run-2", delta="no"))
    assert not Delivery.objects.exists()
    say(CHILD, finished())
    assert [each["type"] for each in api.events(PARENT)] == ["entity_created"]
    (wake,) = told(api)
    child = {"url": CHILD, "type": "agent", "run_status": "completed", "response": "Hi!"}
    assert wake["finished_child"] == child
    assert (wake["source"], wake["timeout"]) == (CHILD, False)
    assert wake["changes"] == [{"collection": "runs", "kind": "update", "key": "run-1"}]
    assert api.claim().body["streamPath"] == f"{PARENT}/main"
    assert len(told(api)) == 1
    assert not Delivery.objects.exists()


def test_its_key_says_of_which_registration_and_offset_it_is(api):
    watch(api)
    say(CHILD, event("run", "run-1"), finished())
    told(api)
    row = Registration.objects.get()
    assert api.events(PARENT)[-1]["key"] == f"wake-{row.pk}-{offsets.encode(3)}"


def test_a_failed_run_says_its_errors(api):
    watch(api)
    errors = [event("error", f"e{n}", run_id="run-1", message=t) for n, t in enumerate("ab")]
    say(CHILD, event("run", "run-1"), *errors, finished(status="failed"))
    assert children(api) == [
        {"url": CHILD, "type": "agent", "run_status": "failed", "error": "a\nb"}
    ]


def test_what_a_run_said_under_an_earlier_claim_is_told_too(api):
    watch(api)
    handled(api, CHILD, event("run", "run-1"), event("text_delta", "a", run_id="run-1", delta="A"))
    handled(api, CHILD, event("text_delta", "b", run_id="run-1", delta="B"), finished())
    assert children(api)[0]["response"] == "AB"


def test_what_the_claim_that_ends_it_wrote_is_all_that_is_looked_at(api):
    """A run of an entity that has lived for long took as long as reading its whole stream."""
    watch(api)
    handled(api, CHILD, event("text_delta", "a", run_id="run-1", delta="of another time"))
    handled(
        api,
        CHILD,
        event("run", "run-1"),
        event("text_delta", "b", run_id="run-1", delta="B"),
        finished(),
    )
    assert children(api)[0]["response"] == "B"


def test_a_long_response_is_cut_and_never_held_whole(api):
    watch(api)
    part = "x" * (registrations.MAX_RESPONSE // 4)
    say(CHILD, event("run", "run-1"))
    for n in range(60):
        say(CHILD, event("text_delta", f"d{n}", run_id="run-1", delta=part))
    tracemalloc.start()
    say(CHILD, finished())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert children(api)[0]["response"] == 4 * part
    assert peak < 10 * registrations.MAX_RESPONSE


def test_it_may_do_without_the_response(api):
    watch(api, includeResponse=False)
    say(CHILD, event("text_delta", "d", run_id="run-1", delta="Hi"), finished())
    assert children(api) == [{"url": CHILD, "type": "agent", "run_status": "completed"}]


@pytest.mark.parametrize(
    "not_finished",
    [
        event("run", "run-1", "insert", status="completed"),
        event("run", "run-1", "update", status="started"),
        event("run", "run-1", "update"),
        event("step", "run-1", "update", status="completed"),
        {"type": "run", "key": "run-1", "headers": {"operation": "update"}},
        {"type": "run"},
        7,
    ],
)
def test_nothing_else_is_a_finished_run(api, not_finished):
    watch(api)
    say(CHILD, not_finished)
    assert told(api) == []


def test_who_is_not_the_parent_hears_of_the_run_alone(api):
    watch(api, subscriber=OTHER)
    say(CHILD, finished())
    (wake,) = told(api, OTHER)
    assert "finished_child" not in wake
    assert [each["key"] for each in wake["changes"]] == ["run-1"]


def test_what_was_made_anew_in_its_parents_place_is_no_parent(api):
    api("DELETE", f"/_electric/entities{PARENT}")
    api.make_entity(PARENT)
    watch(api)
    say(CHILD, finished())
    (wake,) = told(api)
    assert "finished_child" not in wake


@pytest.mark.parametrize("crashes", [(1,), (2,), (1, 0), (1, 1), (2, 1), (1, 2), (0, 1, 2)])
def test_each_run_of_work_that_is_done_over_is_told_once(api, crashes):
    """Its handler makes three runs for a message, and dies after so many of them."""
    watch(api)
    api.send(CHILD)
    for number, runs in enumerate([*crashes, 3]):
        claim = api.claim("r1", {"subscription_id": f"runner:r1:{key_of(CHILD)}"})
        token = claim.mint()
        for run in range(runs):
            key = f"{number}-{run}"
            assert claim.append(event("run", key), finished(key), token=token).status == 204
        if runs < 3:
            lapse(claim)
    claim.done()
    assert len(children(api)) == 3


def test_each_child_and_each_run_is_told_by_itself(api):
    api.make_entity("/agent/child2", parent=PARENT)
    watch(api)
    watch(api, source="/agent/child2")
    say(CHILD, finished("run-1"), finished("run-2"))
    say("/agent/child2", finished("run-1"))
    assert [each["url"] for each in children(api)] == [CHILD, CHILD, "/agent/child2"]


# --- Changes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("collections", "ops", "heard"),
    [
        ((), (), ["run", "tool_call", "state:todo", "text"]),
        (("run",), (), ["run"]),
        (("runs",), (), ["run"]),
        (("toolCalls", "texts"), (), ["tool_call", "text"]),
        (("todo",), (), ["state:todo"]),
        (("state:todo",), (), ["state:todo"]),
        (("other",), (), []),
        ((), ("insert",), ["run", "text"]),
        ((), ("update", "delete"), ["tool_call", "state:todo"]),
        (("runs", "tool_call"), ("update",), ["tool_call"]),
    ],
)
def test_a_change_is_told_by_collection_and_operation(api, collections, ops, heard):
    watch(api, on_change(*collections, ops=ops))
    say(
        CHILD,
        event("run"),
        event("tool_call", "k", "update"),
        event("state:todo", "k", "delete"),
        event("text", "k", "upsert"),
    )
    assert [each["collection"] for each in changes(api)] == heard


def test_a_change_says_what_it_was(api):
    watch(api, on_change())
    say(CHILD, event("state:todo", "k", "update", value=2, oldValue=1, more=3))
    assert changes(api) == [
        {"collection": "state:todo", "kind": "update", "key": "k", "value": 2, "oldValue": 1}
    ]


def test_a_change_may_be_of_any_origin(api):
    watch(api, on_change())
    api.send(CHILD, "hi", key="m", type="greeting")
    api.post(f"/_electric/entities{CHILD}/tags/color", {"value": "red"})
    api.signal(CHILD, "SIGSTOP")
    message, tag, signal = changes(api)
    assert message.pop("timestamp")
    assert message == {
        "collection": "inbox",
        "kind": "insert",
        "key": "m",
        "payload": "hi",
        "from": "/principal/user%3Aalice",
        "from_principal": "/principal/user%3Aalice",
        "message_type": "greeting",
    }
    assert (tag["collection"], tag["key"], tag["value"]) == ("tags", "color", "red")
    assert signal["collection"] == "signal"


def test_each_change_of_one_row_is_told(api):
    watch(api, on_change())
    for _ in range(3):
        say(CHILD, event("state:todo", "k", "update"))
        told(api)
    assert len(changes(api)) == 3


def test_changes_that_wait_together_are_told_together(api):
    watch(api, on_change())
    say(CHILD, *(event("text", f"t{n}") for n in range(3)))
    (wake,) = told(api)
    assert [each["key"] for each in wake["changes"]] == ["t0", "t1", "t2"]


def test_a_wake_holds_so_many_changes_and_no_more(api, monkeypatch):
    watch(api, on_change("text"), debounceMs=1000)
    say(CHILD, *(event("text", f"t{n}") for n in range(2 * scan.PAGE_EVENTS + 1)))
    let_due()
    assert [len(each["changes"]) for each in told(api)] == [1000, 1000, 1]
    with monkeypatch.context() as smaller:
        smaller.setattr(scan, "PAGE_BYTES", 500)
        say(CHILD, *(event("text", f"u{n}", value="x" * 200) for n in range(5)))
        let_due()
        told(api)
    assert [len(each["changes"]) for each in told(api)[3:]] == [2, 2, 1]


def test_a_handler_appends_less_where_too_much_would_have_to_be_told(api, monkeypatch):
    """A hundred who wait, times 5 000 events, ended the worker, which said nothing for so long."""
    monkeypatch.setattr(registrations, "MOST_DELIVERIES", 20)
    for subscriber in (PARENT, OTHER):
        watch(api, on_change("text"), subscriber=subscriber)
    api.send(CHILD)
    claim = api.claim()
    token, before = claim.mint(), api.events(CHILD)
    refused = claim.append(*[event("text")] * 11, token=token)
    assert (refused.status, refused.error) == (413, "PAYLOAD_TOO_LARGE")
    assert api.events(CHILD) == before
    assert claim.append(*[event("text")] * 10, token=token).status == 204
    assert len(changes(api)) == 10


def test_of_what_the_server_itself_appends_the_first_changes_are_told(api, monkeypatch):
    for subscriber in (PARENT, OTHER):
        watch(api, on_change("tags"), subscriber=subscriber)
    monkeypatch.setattr(registrations, "MOST_DELIVERIES", 4)
    body = {"tags": {str(n): "" for n in range(5)}}
    assert api("PATCH", f"/_electric/entities{CHILD}", body).status == 200
    assert [len(changes(api, url)) for url in (PARENT, OTHER)] == [2, 2]


def test_what_makes_too_much_for_many_is_told_in_outline(api, monkeypatch):
    """One message of a megabyte, to whom a thousand wait, was a gigabyte."""
    for subscriber in (PARENT, OTHER):
        watch(api, on_change("inbox"), subscriber=subscriber)
    monkeypatch.setattr(registrations, "MOST_TOLD", 10_000)
    long = "x" * 20_000
    api.send(CHILD, payload=long, key="long")
    (whole,), (outline,) = changes(api, PARENT), changes(api, OTHER)
    assert whole["payload"] == long
    assert outline == {name: each for name, each in whole.items() if name != "payload"}


def test_two_that_watch_each_other_come_to_rest(api):
    watch(api, on_change(), subscriber=PARENT, source=OTHER)
    watch(api, on_change(), subscriber=OTHER, source=PARENT)
    say(PARENT, event("text"))
    assert [each["collection"] for each in changes(api, OTHER)] == ["text"]
    assert changes(api, PARENT) == []
    watch(api, on_change(), subscriber=PARENT, source=PARENT)
    say(PARENT, event("text"))
    assert [each["collection"] for each in changes(api, PARENT)] == ["text"]


def test_an_entity_that_is_yet_to_come_is_watched_from_its_first_event_on(api):
    watch(api, on_change(), source="/agent/new")
    api.make_entity("/agent/new", initialMessage="hi")
    assert [each["collection"] for each in changes(api)] == ["entity_created", "inbox"]


# --- In time ----------------------------------------------------------------------------------


def times():
    return Registration.objects.values_list("first_at", "deliver_at", "timeout_at", "due_at").get()


def test_a_debounced_wake_comes_once_with_all_changes(api):
    watch(api, {"on": "change", "debounceMs": 1000})
    for n in range(3):
        say(CHILD, event("text", f"t{n}"))
        assert due.run() == 0
    let_due()
    (wake,) = told(api)
    assert [each["key"] for each in wake["changes"]] == ["t0", "t1", "t2"]
    assert times() == (None, None, None, None)


def test_a_busy_source_puts_it_off_ten_times_at_the_most(api):
    watch(api, "runFinished", debounceMs=1000)
    say(CHILD, finished("run-1"))
    first, deliver_at, *_ = times()
    assert (deliver_at - first).total_seconds() == 1
    long_ago = first.replace(year=first.year - 1)
    Registration.objects.update(first_at=long_ago)
    say(CHILD, finished("run-2"))
    first, deliver_at, *_ = times()
    assert (deliver_at - first).total_seconds() == 10
    (wake,) = told(api)
    assert [each["key"] for each in wake["changes"]] == ["run-1", "run-2"]


def test_a_wait_is_over_once(api):
    watch(api, timeoutMs=60_000)
    assert due.run() == 0
    let_due()
    (wake,) = told(api)
    assert (wake["timeout"], wake["changes"], wake["source"]) == (True, [], CHILD)
    assert times() == (None, None, None, None)
    say(CHILD, finished())
    assert len(children(api)) == 1


@pytest.mark.parametrize("debounce_ms", [0, 1000])
def test_what_matches_ends_the_wait(api, debounce_ms):
    watch(api, timeoutMs=60_000, debounceMs=debounce_ms)
    say(CHILD, finished())
    assert times()[2] is None
    let_due()
    assert [each["timeout"] for each in told(api)] == [False]


def test_bounds_may_stand_in_the_condition_or_beside_it(api):
    watch(api, {"on": "change", "debounceMs": 1, "timeoutMs": 2, "includeResponse": False})
    row = Registration.objects.get()
    assert (row.debounce_ms, row.timeout_ms, row.include_response) == (1, 2, False)
    watch(api, {"on": "change", "debounceMs": 1}, debounceMs=3, manifestKey="k")
    assert Registration.objects.get(manifest_key="k").debounce_ms == 3


# --- Registered once --------------------------------------------------------------------------


def test_a_second_call_changes_the_first_and_keeps_what_is_undelivered(api):
    watch(api, debounceMs=1000, manifestKey="k")
    say(CHILD, finished())
    watch(api, debounceMs=2000, manifestKey="k", includeResponse=False)
    row = Registration.objects.get()
    assert (row.debounce_ms, row.include_response, row.deliveries.count()) == (2000, False, 1)
    let_due()
    assert len(children(api)) == 1


def test_without_a_key_it_is_one_for_each_source_and_condition(api):
    for _ in range(2):
        watch(api)
        watch(api, source=OTHER)
        watch(api, on_change("run"))
        watch(api, on_change("text"))
    assert Registration.objects.count() == 4


def test_what_is_said_twice_neither_ends_nor_begins_a_wait(api):
    watch(api, timeoutMs=60_000, manifestKey="k")
    before = times()
    watch(api, timeoutMs=60_000, manifestKey="k")
    assert times() == before
    say(CHILD, finished())
    watch(api, timeoutMs=60_000, manifestKey="k")
    assert times()[2] is None


def test_a_wait_that_is_over_begins_again_when_it_is_asked_for_again(api):
    watch(api, timeoutMs=60_000)
    let_due()
    told(api)
    watch(api, timeoutMs=60_000)
    let_due()
    assert [each["timeout"] for each in told(api)] == [True, True]


def test_another_source_takes_the_place_of_the_first(api):
    watch(api, debounceMs=1000, manifestKey="k")
    say(CHILD, finished())
    watch(api, source=OTHER, manifestKey="k")
    assert Registration.objects.get().source_url == OTHER
    say(CHILD, finished())
    assert told(api) == []


@pytest.mark.parametrize(
    ("which", "left"),
    [
        ({"sourceUrl": CHILD}, {"b"}),
        ({"manifestKey": "a"}, {"", "b"}),
        ({"sourceUrl": CHILD, "manifestKey": "b"}, {"", "a", "b"}),
        ({"sourceUrl": "/_entities/x"}, {"", "a", "b"}),
        ({"manifestKey": "c"}, {"", "a", "b"}),
    ],
)
def test_it_is_unregistered_by_source_or_key(api, which, left):
    watch(api)
    watch(api, manifestKey="a")
    watch(api, source=OTHER, manifestKey="b")
    watch(api, subscriber=OTHER, manifestKey="a")
    unwatch(api, **which)
    kept = Registration.objects.filter(subscriber__url=PARENT)
    assert set(kept.values_list("manifest_key", flat=True)) == left
    assert Registration.objects.filter(subscriber__url=OTHER).exists()


# --- With the entity --------------------------------------------------------------------------


def spawn(api, url="/agent/new", status=201, **facts):
    body = {"wake": {"subscriberUrl": PARENT, "condition": "runFinished", **facts}}
    answer = api("PUT", f"/_electric/entities{url}", {"parent": PARENT, **body})
    assert answer.status == status, answer
    return answer


def test_a_child_may_be_made_watched(api):
    spawn(api, debounceMs=5, manifestKey="child:agent:new")
    row = Registration.objects.get()
    assert (row.source_url, row.debounce_ms, row.subscriber.url) == ("/agent/new", 5, PARENT)
    say("/agent/new", finished())
    let_due()
    assert [each["url"] for each in children(api)] == ["/agent/new"]


def test_a_types_name_may_begin_as_other_streams_do(api):
    child = "/_agent/new"
    spawn(api, child)
    handled(api, PARENT, manifest(kind="child", entity_url=child, wake="runFinished"))
    watch(api, source=child)
    say(child, finished())
    assert {each["url"] for each in children(api)} == {child}


def test_how_a_child_began_is_no_news_to_who_had_it_made(api):
    body = {"wake": {"subscriberUrl": PARENT, "condition": on_change()}, "initialMessage": "hi"}
    assert api("PUT", "/_electric/entities/agent/new", body).status == 201
    assert told(api) == []


def test_it_is_all_or_nothing(api, bob):
    spawn(api, subscriberUrl="/agent/nobody", status=404)
    bob.make_entity("/agent/bobs", None)
    spawn(api, subscriberUrl="/agent/bobs", status=403)
    api.signal(OTHER, "SIGKILL")
    assert spawn(api, subscriberUrl=OTHER, status=409).error == "NOT_RUNNING"
    assert not Entity.objects.filter(url="/agent/new").exists()
    assert not Registration.objects.exists()


# --- By manifest ------------------------------------------------------------------------------


def manifest(key="child:agent:child", operation="insert", /, **value):
    return event("manifest", key, operation, **value)


CHILDS = {"kind": "child", "entity_type": "agent", "entity_url": CHILD}


@pytest.mark.parametrize(
    ("value", "source", "condition"),
    [
        ({**CHILDS, "wake": "runFinished"}, CHILD, "run_finished"),
        (
            {**CHILDS, "wake": {"on": "runFinished", "includeResponse": False}},
            CHILD,
            "run_finished",
        ),
        (
            {
                "kind": "source",
                "sourceType": "entity",
                "sourceRef": CHILD,
                "config": {"entityUrl": OTHER},
                "wake": {"on": "change", "debounceMs": 5},
            },
            OTHER,
            "change",
        ),
        (
            {"kind": "source", "sourceType": "entity", "sourceRef": CHILD, "wake": on_change()},
            CHILD,
            "change",
        ),
    ],
)
def test_a_manifest_event_registers(api, value, source, condition):
    handled(api, PARENT, manifest("key", **value))
    row = Registration.objects.get()
    assert (row.source_url, row.condition, row.manifest_key) == (source, condition, "key")
    say(source, finished())
    let_due()
    assert len(told(api)) == 1


def test_the_call_and_the_manifest_event_are_one_registration(api):
    watch(api, manifestKey="k")
    handled(api, PARENT, manifest("k", **CHILDS, wake="runFinished"))
    say(CHILD, finished())
    assert len(told(api)) == 1


@pytest.mark.parametrize(
    ("then", "left"),
    [
        (manifest("k", "delete"), False),
        (manifest("k", "insert", **CHILDS), False),
        (manifest("k", "upsert", **CHILDS), False),
        (manifest("k", "upsert", **CHILDS, wake=None), False),
        (manifest("k", "update", **CHILDS, wake=None), False),
        (manifest("k", "update", **CHILDS), True),
        (manifest("k", "update", note="x"), True),
        (manifest("other", "delete"), True),
        (manifest("k", "insert", kind="goal"), True),
        (event("text", "k", "delete"), True),
    ],
)
def test_a_manifest_event_without_a_wake_removes(api, then, left):
    handled(api, PARENT, manifest("k", **CHILDS, wake="runFinished"))
    handled(api, PARENT, then)
    assert Registration.objects.exists() == left


def test_the_last_of_a_key_counts(api):
    wake = manifest("k", **CHILDS, wake="runFinished")
    handled(api, PARENT, wake, manifest("k", "delete"))
    assert not Registration.objects.exists()
    handled(api, PARENT, manifest("k", "delete"), wake)
    assert Registration.objects.exists()


def test_collections_may_be_called_as_the_manifest_says(api):
    source = {"kind": "source", "sourceType": "entity", "sourceRef": CHILD}
    called = {"notes": {"type": "note-row"}, "plain": "plain-row"}
    wake = on_change("notes", "plain")
    handled(api, PARENT, manifest("k", **source, collections=called, wake=wake))
    say(CHILD, event("note-row"), event("plain-row"), event("text"))
    assert [each["collection"] for each in changes(api)] == ["note-row", "plain-row"]
    # The runtime says it again by a call, which has no map.
    watch(api, wake, manifestKey="k")
    say(CHILD, event("note-row"))
    assert [each["collection"] for each in changes(api)][2:] == ["note-row"]


CRON = {"kind": "source", "sourceType": "cron", "wake": {"on": "change"}}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({**CHILDS, "wake": "finished"}, "/value/wake"),
        ({**CHILDS, "wake": {"on": "change", "debounceMs": -1}}, "/value/wake"),
        ({"kind": "child", "wake": "runFinished"}, "/value"),
        ({"kind": "source", "sourceType": "webhook", "wake": "runFinished"}, "/value"),
        ({**CRON, "config": {"expression": 5}}, "/value/config"),
        ({**CRON, "config": {"expression": "* * * * *", "timezone": 5}}, "/value/config"),
        ({**CRON, "config": {"expression": "* * * * *", "timezone": "../x"}}, "/value/config"),
    ],
)
def test_a_manifest_event_that_asks_for_what_is_not_done_is_refused(api, value, path):
    api.send(PARENT)
    claim = api.claim()
    token = claim.mint()
    bad = manifest("k", **value)
    answer = claim.append(event("text"), bad, token=token)
    assert answer.error == "INVALID_REQUEST"
    assert [each["path"] for each in answer.body["error"]["details"]] == [path]
    assert [each["type"] for each in api.events(PARENT)] == ["entity_created", "inbox"]
    assert claim.append(bad, token="pww_unknown").status == 401


# --- The end of it ----------------------------------------------------------------------------

ENDS = {
    "killed": lambda api: api.signal(CHILD, "SIGKILL"),
    "stopped": lambda api: api.signal(CHILD, "SIGTERM"),
    "deleted": lambda api: api("DELETE", f"/_electric/entities{CHILD}"),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_child_that_ends_without_a_run_tells_its_parent(api, how):
    watch(api, timeoutMs=60_000)
    ENDS[how](api)
    assert children(api) == [
        {
            "url": CHILD,
            "type": "agent",
            "run_status": "failed",
            "error": f"The entity was {how}.",
        }
    ]
    assert not Registration.objects.exists()
    assert len(children(api)) == 1


NO_RUN = {"collection": "runs", "kind": "update", "key": ""}
"""What an observer's wake says of a source that will finish no run; its value says why."""


@pytest.mark.parametrize("how", ENDS)
def test_who_only_observes_hears_that_its_source_ended_without_a_run(api, how):
    watch(api, subscriber=OTHER, timeoutMs=60_000)
    ENDS[how](api)
    (wake,) = told(api, OTHER)
    assert "finished_child" not in wake
    assert (wake["source"], wake["timeout"]) == (CHILD, False)
    value = {"status": "failed", "error": f"The entity was {how}."}
    assert wake["changes"] == [{**NO_RUN, "value": value}]
    assert not Registration.objects.exists()
    assert len(told(api, OTHER)) == 1


def test_who_only_observes_hears_of_a_claim_that_left_an_error_and_no_run(api):
    watch(api, subscriber=OTHER)
    handled(api, CHILD, event("error", "e", message="no key"))
    assert changes(api, OTHER) == [{**NO_RUN, "value": {"status": "failed", "error": "no key"}}]
    handled(api, CHILD, finished("run-2"))
    assert [each["key"] for each in changes(api, OTHER)] == ["", "run-2"]


def test_who_observes_but_may_not_read_hears_nothing_of_an_end(api, bob):
    bob.register("r2")
    bob.make_entity("/agent/bobs", "r2")
    watch(bob, subscriber="/agent/bobs")
    api.signal(CHILD, "SIGKILL")
    assert told(bob, "/agent/bobs") == []


@pytest.mark.parametrize("how", ENDS)
def test_a_child_that_had_finished_its_run_tells_it_once(api, how):
    watch(api)
    say(CHILD, event("run", "run-1"), finished(), event("run", "run-1", "update", note="x"))
    ENDS[how](api)
    assert [each["run_status"] for each in children(api)] == ["completed"]
    assert not Registration.objects.exists()


@pytest.mark.parametrize("how", ENDS)
def test_a_child_that_ends_in_its_second_run_tells_of_both(api, how):
    watch(api)
    say(CHILD, event("run", "run-1"), finished(), event("run", "run-2"))
    ENDS[how](api)
    assert [each["run_status"] for each in children(api)] == ["completed", "failed"]


@pytest.mark.parametrize("how", ENDS)
def test_what_is_debounced_comes_at_once_when_the_source_ends(api, how):
    watch(api, on_change("text"), debounceMs=1000)
    say(CHILD, event("text"))
    ENDS[how](api)
    assert [each["collection"] for each in changes(api)] == ["text"]
    assert not Registration.objects.exists()


def spawns_again(api):
    spawn(api, CHILD, manifestKey="k")


def makes_again(api):
    api.make_entity(CHILD, parent=PARENT)
    watch(api, manifestKey="k")


def makes_again_by_manifest(api):
    api.make_entity(CHILD, parent=PARENT)
    handled(api, PARENT, manifest("k", **CHILDS, wake="runFinished"))


def waits_before_it_makes_again(api):
    watch(api, manifestKey="k")
    api.make_entity(CHILD, parent=PARENT)


@pytest.mark.parametrize(
    "again", [spawns_again, makes_again, makes_again_by_manifest, waits_before_it_makes_again]
)
def test_a_child_made_anew_before_the_end_of_the_former_was_told_is_waited_for(api, again):
    watch(api, manifestKey="k")
    api("DELETE", f"/_electric/entities{CHILD}")
    again(api)
    say(CHILD, finished())
    assert [each["run_status"] for each in children(api)] == ["failed", "completed"]
    (left,) = Registration.objects.all()
    assert not left.closed


def test_a_child_at_its_end_is_told_of_once_though_it_is_waited_for_again(api):
    watch(api, manifestKey="k")
    api.signal(CHILD, "SIGKILL")
    watch(api, manifestKey="k", timeoutMs=1000)
    assert [each["run_status"] for each in children(api)] == ["failed"]
    assert not Registration.objects.exists()


def test_a_child_that_stops_at_the_end_of_its_claim_tells_it_then(api):
    watch(api)
    api.send(CHILD)
    claim = api.claim()
    api.signal(CHILD, "SIGTERM")
    assert told(api) == []
    claim.done()
    assert [each["run_status"] for each in children(api)] == ["failed"]


@pytest.mark.parametrize(
    ("events", "told_of"),
    [
        ([event("error", "e", message="no key")], ["failed"]),
        ([event("run", "run-1"), event("error", "e", message="no key")], ["failed"]),
        ([event("run", "run-1"), event("error", "e", message="no"), finished()], ["completed"]),
        ([event("text")], []),
    ],
)
def test_a_claim_that_leaves_an_error_and_no_run_tells_the_parent(api, events, told_of):
    watch(api)
    handled(api, CHILD, *events)
    assert [each["run_status"] for each in children(api)] == told_of
    assert [each["error"] for each in children(api) if "error" in each] == [
        "no key" for each in told_of if each == "failed"
    ]
    handled(api, CHILD, finished("run-2"))
    assert [each["run_status"] for each in children(api)] == [*told_of, "completed"]


ODD = [
    "error",
    ["run"],
    7,
    {"type": "error", "value": ["x"]},
    {"type": "error", "value": {"message": None}},
    {"type": ["run", "error"]},
    {"type": "run", "key": "k", "value": {"status": ["completed"]}, "headers": "error"},
]
"""Events that a handler may append, though nobody reads anything of them."""


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize("condition", ["runFinished", {"on": "change"}], ids=str)
def test_a_claim_is_released_whatever_its_handler_wrote(api, odd, condition):
    watch(api, condition)
    handled(api, CHILD, [odd])
    assert api.get(f"/_electric/entities{CHILD}").body["status"] == "idle"
    told(api)


def test_a_claim_that_failed_is_tried_again_and_tells_nobody(api):
    watch(api)
    api.send(CHILD)
    claim = api.claim()
    claim.append(event("error", "e", message="no key"), token=claim.mint())
    claim.fail()
    assert told(api) == []
    end_delay(CHILD)


@pytest.mark.parametrize("mode", ["immediate", "queued"])
def test_work_that_is_given_up_is_never_tried_again_and_tells_the_parent(api, mode):
    watch(api)
    api.send(CHILD, mode=mode)
    claim = api.claim()
    claim.append(event("error", "e", message="no key"), token=claim.mint())
    assert claim.call({"failed": True, "error": "no such tool", "give_up": True}).status == 200
    (told_of,) = children(api)
    assert (told_of["run_status"], told_of["error"]) == ("failed", "no key\nno such tool")
    handled(api, CHILD, finished("run-2"))
    assert [each["run_status"] for each in children(api)] == ["failed", "completed"]


def test_work_that_is_given_up_without_a_word_is_told_of_beside_the_run_before_it(api):
    watch(api)
    api.send(CHILD)
    claim = api.claim()
    api.send(CHILD)
    claim.append(event("run", "run-1"), finished(), token=claim.mint())
    claim.done()
    claim = api.claim()
    assert claim.call({"failed": True, "give_up": True}).status == 200
    assert sorted(each["run_status"] for each in children(api)) == ["completed", "failed"]


def test_work_that_is_given_up_after_its_run_was_told_of_tells_nothing_more(api):
    watch(api)
    api.send(CHILD)
    claim = api.claim()
    claim.append(event("run", "run-1"), finished(), token=claim.mint())
    lapse(claim)
    claim = api.claim("r1", {"subscription_id": f"runner:r1:{key_of(CHILD)}"})
    assert claim.call({"failed": True, "give_up": True}).status == 200
    assert [each["run_status"] for each in children(api)] == ["completed"]


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_a_subscriber_at_its_end_is_told_nothing(api, signal, django_capture_on_commit_callbacks):
    watch(api)
    say(CHILD, finished())
    with django_capture_on_commit_callbacks(execute=True):
        api.signal(PARENT, signal)
    assert not Registration.objects.exists()
    assert told(api) == []


def test_a_server_that_died_before_it_dropped_them_leaves_it_to_the_next(api):
    watch(api)
    say(CHILD, finished())
    api.signal(PARENT, "SIGKILL")
    assert told(api) == []
    assert not Registration.objects.exists()


def test_a_deleted_subscribers_registrations_go_with_it(api):
    watch(api)
    say(CHILD, finished())
    api("DELETE", f"/_electric/entities{PARENT}")
    assert not Registration.objects.exists()
    say(CHILD, finished())


def test_a_subscriber_at_its_end_registers_nothing(api):
    api.signal(PARENT, "SIGKILL")
    assert watch(api, status=409).error == "NOT_RUNNING"
    assert watch(api, subscriber="/agent/nobody", status=404).error == "NOT_FOUND"


def test_a_paused_subscriber_is_told_and_woken_when_it_is_resumed(api):
    watch(api)
    api.signal(PARENT, "SIGSTOP")
    say(CHILD, finished())
    assert len(told(api)) == 1
    assert api.wakes() == []
    api.signal(PARENT, "SIGCONT")
    assert len(api.wakes()) == 1


# --- Whose it is ------------------------------------------------------------------------------


def test_another_may_not_register_for_a_subscriber(api, bob):
    watch(bob, status=403)
    answer = bob.post("/_electric/wake/unregister", {"subscriberUrl": PARENT, "sourceUrl": CHILD})
    assert answer.status == 403


def test_who_may_not_read_the_source_is_told_nothing_of_it(api, bob):
    bob.make_entity("/agent/bobs", None)
    watch(api, on_change(), source="/agent/bobs")
    say("/agent/bobs", event("text"))
    assert told(api) == []
    assert not Delivery.objects.exists()
    DispatchState.objects.filter(entity__url="/agent/bobs").update(runner="r1")
    say("/agent/bobs", event("text"))
    assert len(told(api)) == 1
    DispatchState.objects.filter(entity__url="/agent/bobs").update(runner=None)
    say("/agent/bobs", event("text"))
    bob("DELETE", "/_electric/entities/agent/bobs")
    assert len(told(api)) == 1
    assert not Registration.objects.exists()


def test_who_may_not_read_the_source_costs_it_no_row(api, bob):
    """However many they are who wait there: else a stranger stops whoever writes."""
    bob.make_entity("/agent/bobs", None)
    for number in range(3):
        watch(api, on_change(), source="/agent/bobs", manifestKey=str(number), timeoutMs=1000)
    watch(api, source="/agent/bobs", manifestKey="run")
    say("/agent/bobs", event("text"), finished())
    say("/agent/bobs", event("error", message="lost"))
    with transaction.atomic():
        (state,) = wakes.lock(DispatchState.objects.filter(entity__url="/agent/bobs"))
        registrations.tell_of_errors(state, state.tail - 1)
    assert not Delivery.objects.exists()
    assert not Registration.objects.filter(last_offset__isnull=False).exists()
    # Nor do they find out, by a wait that ends, that something happened.
    assert Registration.objects.filter(timeout_at__isnull=False).count() == 3
    bob.signal("/agent/bobs", "SIGKILL")
    assert not Delivery.objects.exists()


def test_a_creator_has_so_many_at_one_source(api, bob, monkeypatch):
    monkeypatch.setattr(registrations, "MOST_AT_A_SOURCE", 2)
    watch(api, manifestKey="1")
    watch(api, manifestKey="2")
    watch(api, manifestKey="2")
    assert watch(api, manifestKey="3", status=429).error == "RATE_LIMITED"
    watch(api, manifestKey="3", source=OTHER)
    bob.make_entity("/agent/bobs", None)
    watch(bob, subscriber="/agent/bobs")


def test_one_that_cannot_be_told_does_not_keep_the_others_from_it(api, monkeypatch):
    watch(api)
    watch(api, subscriber=OTHER)
    say(CHILD, finished())
    whole = deliveries.deliver
    parent = Entity.objects.get(url=PARENT).pk

    def poisoned(subscriber_id):
        if subscriber_id == parent:
            raise ValueError
        return whole(subscriber_id)

    monkeypatch.setattr(deliveries, "deliver", poisoned)
    assert len(told(api, OTHER)) == 1
    monkeypatch.setattr(deliveries, "deliver", whole)
    assert len(told(api, PARENT)) == 1


def test_rounds_are_of_so_many(api):
    for number in range(3):
        api.make_entity(f"/agent/s{number}")
        watch(api, subscriber=f"/agent/s{number}")
    say(CHILD, finished())
    assert due.run(limit=2) == 2
    assert due.run(limit=2) == 1
    assert not Registration.objects.filter(~Q(due_at=None)).exists()


def test_a_runner_that_is_another_principals_reads_for_nobody(api):
    """The subscriber's creator counts, not whoever registered."""
    manager = Api("service:manager")
    grants = [{"subject_kind": "principal_kind", "subject_value": "user", "permission": "spawn"}]
    facts = {"name": "managed", "description": "", "permission_grants": grants}
    assert manager.post("/_electric/entity-types", facts).status == 201
    api.make_entity("/managed/m", None)
    manager.make_entity("/managed/secret", None)
    watch(manager, on_change(), subscriber="/managed/m", source="/managed/secret")
    say("/managed/secret", event("text"))
    assert told(api, "/managed/m") == []
