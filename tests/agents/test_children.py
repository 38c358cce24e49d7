"""A parent spawns two children and hears of each exactly once, wherever a runtime dies."""

import pytest

from dispatch import due
from dispatch.models import DispatchState, subscription_key
from tests.agents.runtime import STEPS, Crash, Runtime
from tests.support import Api, end_delay, lapse, wait_until

PARENT, CHILDREN = "/agent/parent", ("/agent/c1", "/agent/c2")
MOST_ROUNDS = 30


def spawns(wake, kind):
    """What the parent's handler does with its message, as the TypeScript runtime does it."""
    api = wake.runtime.api
    if kind != "inbox":
        return
    for url in CHILDREN:
        key = f"child:agent:{url.rpartition('/')[2]}"
        watch = {"subscriberUrl": PARENT, "condition": "runFinished", "manifestKey": key}
        body = {"parent": PARENT, "initialMessage": "go", "wake": watch}
        assert api("PUT", f"/_electric/entities{url}", body).status in (201, 409)
        assert api.post("/_electric/wake", {**watch, "sourceUrl": url}).status == 204
        value = {"kind": "child", "entity_type": "agent", "entity_url": url, "wake": "runFinished"}
        headers = {"operation": "insert"}
        wake.append({"type": "manifest", "key": key, "value": value, "headers": headers})


def crash():
    raise Crash


def event_of(url):
    return {"subscription_id": f"runner:r1:{subscription_key(url)}"}


@pytest.fixture
def runtimes(alice):
    """One for the parent, which has a message, and one for each of its children to come."""
    alice.register()
    alice.make_entity(PARENT, initialMessage="hi")
    return family(alice)


def family(api):
    found = {url: Runtime(api) for url in (PARENT, *CHILDREN)}
    found[PARENT].works = spawns
    return found


def work(runtimes):
    """Let them work until there is nothing left, over delays and crashes."""
    for _ in range(MOST_ROUNDS):
        worked = due.run()
        for url, runtime in runtimes.items():
            if DispatchState.objects.filter(entity__url=url, retry_at__isnull=False).exists():
                end_delay(url)
            try:
                worked += runtime.run(event_of(url))
            except Crash:
                lapse(runtime.claim)
                worked += 1
        if not worked:
            return
    raise AssertionError("it loops")


def heard(api):
    """Of whom the parent's stream says that they finished, and the keys of these wakes."""
    told = [each for each in api.events(PARENT) if each["type"] == "wake"]
    return [each["value"]["finished_child"] for each in told], {each["key"] for each in told}


@pytest.mark.slow
@pytest.mark.parametrize("childs_crash", [None, *STEPS])
@pytest.mark.parametrize("parents_crash", [None, *STEPS])
def test_a_parent_hears_of_each_child_once(runtimes, parents_crash, childs_crash):
    parent, *children = runtimes.values()
    if parents_crash is not None:
        parent.steps = {parents_crash: crash}
    for child in children if childs_crash is not None else ():
        child.steps = {childs_crash: crash}
    work(runtimes)
    finished, keys = heard(parent.api)
    assert sorted(each["url"] for each in finished) == list(CHILDREN)
    assert {each["run_status"] for each in finished} == {"completed"}
    assert keys <= parent.handled
    assert not DispatchState.objects.pending().exists()


def test_a_child_that_is_given_more_is_heard_of_again(runtimes):
    child = runtimes["/agent/c1"]
    api = child.api
    work(runtimes)
    # Work that comes while the child idles after its run, and a crash before its done.
    api.send("/agent/c1", key="m2")
    child.steps = {"returned": lambda: api.send("/agent/c1", key="m3"), "finishing": crash}
    work(runtimes)
    finished, _ = heard(api)
    assert [each["url"] for each in finished].count("/agent/c1") >= 3
    assert {"m2", "m3"} <= child.handled


def test_a_child_killed_while_it_does_its_work_over_again_is_not_heard_of_twice(runtimes):
    child = runtimes["/agent/c1"]
    api = child.api
    child.steps = {"idled": crash}
    runtimes[PARENT].run(event_of(PARENT))
    with pytest.raises(Crash):
        child.run(event_of("/agent/c1"))
    lapse(child.claim)
    child.steps = {"wrote": lambda: (api.signal("/agent/c1", "SIGKILL"), crash())}
    with pytest.raises(Crash):
        child.run(event_of("/agent/c1"))
    due.run()
    finished, _ = heard(api)
    assert [(each["url"], each["run_status"]) for each in finished] == [("/agent/c1", "completed")]


def test_children_that_run_at_once_are_heard_of_on_a_real_server(start_server):
    """It is killed over and over, and so are the runtimes, right after the children's runs."""
    server = start_server(PULLWAKE_REAPER_INTERVAL_MS=100)
    api: Api = server.client()
    api.register(claim_lease_ms=1000)
    api.make_entity(PARENT, initialMessage="hi")
    runtimes = family(api)
    wait_until(lambda: runtimes[PARENT].run(event_of(PARENT)))
    for url in CHILDREN:
        runtimes[url].steps = {"returned": crash}
        with pytest.raises(Crash):
            wait_until(lambda url=url: runtimes[url].run(event_of(url)))
        server.kill()
        server.start()
    for url in CHILDREN:
        wait_until(lambda url=url: runtimes[url].run(event_of(url)))
    wait_until(lambda: len(heard(api)[0]) == 2)
    finished, keys = heard(api)
    assert sorted(each["url"] for each in finished) == list(CHILDREN)
    wait_until(lambda: runtimes[PARENT].run(event_of(PARENT)) or keys <= runtimes[PARENT].handled)
    assert not any(runtime.run(event_of(url)) for url, runtime in runtimes.items())
    assert len(heard(api)[0]) == 2
