"""Rates, quotas and pages: nobody has or asks so much that the rest go without."""

import re
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from urllib.parse import quote, urlsplit

import pytest

from api import lists, throttles
from dispatch.models import Entity, EntityType, Producer, Registration, SharedState, Timer
from runners.models import Runner
from tests.api.endpoints import bearer
from tests.factories import RunnerFactory
from tests.support import Api

RUNNERS = "/_electric/runners"
ENTITIES = "/_electric/entities"
TYPES = "/_electric/entity-types"
WAKE = "/_electric/wake"


@pytest.fixture(autouse=True)
def _fresh():
    throttles._buckets.clear()
    yield
    throttles._buckets.clear()
    assert not throttles._held


def refused(answer):
    assert (answer.status, answer.error) == (429, "RATE_LIMITED"), answer
    assert int(answer.headers["Retry-After"]) >= 1
    return True


# --- Rates ------------------------------------------------------------------------------------


def test_who_calls_too_often_is_told_when_to_come_back(alice, bob, settings, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(throttles, "monotonic", lambda: clock[0])
    settings.PULLWAKE_RATE_PER_S = 2
    for _ in range(2 * throttles.BURST_S):
        assert alice.get(RUNNERS).status == 200
    assert refused(alice.get(RUNNERS))
    assert bob.get(RUNNERS).status == 200
    clock[0] += 0.5
    assert alice.get(RUNNERS).status == 200
    assert refused(alice.get(RUNNERS))


def test_a_handler_is_limited_by_its_token(alice, settings):
    alice.register()
    alice.make_entity(initialMessage="hi")
    claim = alice.claim()
    token = claim.mint()
    settings.PULLWAKE_RATE_PER_S = 1
    throttles._buckets.clear()
    for _ in range(throttles.BURST_S):
        assert claim.append({"a": 1}, token=token).status == 204
    assert refused(claim.append({"a": 1}, token=token))
    assert claim.heartbeat().status == 200  # which has a token of its own


def test_a_handler_that_sends_takes_nothing_of_its_creators(alice, bob, settings):
    alice.register()
    alice.make_entity(initialMessage="hi")
    token = alice.claim().mint()
    settings.PULLWAKE_RATE_PER_S = 1
    throttles._buckets.clear()
    handler = Api(Electric_Claim_Token=token)
    for _ in range(throttles.BURST_S):
        handler.send()
    assert refused(handler.post(f"{ENTITIES}/agent/e1/send", {"payload": 1}))
    alice.send()


def test_who_says_anothers_name_takes_nothing_of_theirs(db, settings):
    settings.DEVELOPMENT = False
    alice, bob = bearer("user:alice"), bearer("user:bob")
    settings.PULLWAKE_RATE_PER_S = 1
    in_bobs_name = {"Electric_Principal": "user:bob"}
    for _ in range(throttles.BURST_S):
        assert alice("PUT", f"{ENTITIES}/agent/e1", {}, **in_bobs_name).status == 403
    assert refused(alice("PUT", f"{ENTITIES}/agent/e1", {}, **in_bobs_name))
    assert bob.get(RUNNERS).status == 200


def test_who_reads_a_main_stream_is_limited_whatever_its_credential(alice, settings):
    settings.DEVELOPMENT = False
    settings.PULLWAKE_TRUSTED_PROXIES = [ip_network("127.0.0.1")]
    first, second = bearer("user:alice"), bearer("user:alice")
    first.make_entity("/agent/e1", None)
    secret = second.headers["Authorization"].removeprefix("Bearer ")
    settings.PULLWAKE_RATE_PER_S = 1
    throttles._buckets.clear()
    for _ in range(throttles.BURST_S):
        assert first.get("/agent/e1/main").status == 200
    for api in (first, second, Api(Authorization=f"bearer   {secret}"), alice):
        assert refused(api.get("/agent/e1/main"))


def test_zero_is_no_limit(alice, settings):
    settings.PULLWAKE_RATE_PER_S = 0
    for _ in range(50):
        assert alice.get(RUNNERS).status == 200
    assert not throttles._buckets


# --- Quotas -----------------------------------------------------------------------------------


def test_runners(alice, bob, settings):
    settings.PULLWAKE_MAX_RUNNERS = 2
    alice.register("r1")
    alice.register("r2")
    assert refused(alice.post(RUNNERS, {"id": "r3", "label": "r3"}))
    assert Runner.objects.count() == 2
    alice.register("r2")  # it is there, and may come back
    bob.register("r3")
    alice("DELETE", f"{RUNNERS}/r1")
    alice.register("r4")


def test_entities(alice, bob, settings):
    settings.PULLWAKE_MAX_ENTITIES = 1
    alice.make_entity("/agent/e1", None)
    assert refused(alice("PUT", f"{ENTITIES}/agent/e2", {}))
    assert Entity.objects.count() == 1
    assert alice("PUT", f"{ENTITIES}/agent/e1", {}).error == "DUPLICATE_URL"
    bob.make_entity("/agent/e2", None)


def test_types(alice, bob, settings):
    settings.PULLWAKE_MAX_TYPES = 1
    for _ in range(2):
        assert alice.post(TYPES, {"name": "one", "description": ""}).status == 201
    assert refused(alice.post(TYPES, {"name": "two", "description": ""}))
    assert EntityType.objects.count() == 1
    assert bob.post(TYPES, {"name": "two", "description": ""}).status == 201


def test_shared_states(alice, bob, settings):
    settings.PULLWAKE_MAX_SHARED_STATES = 1
    alice.make_entity("/agent/e1", None)
    bob.make_entity("/agent/e2", None)
    for _ in range(2):
        alice.share("s1")
    owner = {"Electric_Owner_Entity": "/agent/e1"}
    assert refused(alice("PUT", "/_electric/shared-state/s2", **owner))
    assert SharedState.objects.count() == 1
    bob.share("s2", "/agent/e2")


def test_timers(alice, bob, settings):
    settings.PULLWAKE_MAX_TIMERS = 2
    alice.register()
    alice.make_entity(initialMessage="hi")
    bob.make_entity("/agent/e2", None)
    schedule = f"{ENTITIES}/agent/e1/schedules"
    later = {"scheduleType": "future_send", "payload": 1, "fireAt": "2100-01-01T00:00:00Z"}
    assert alice("PUT", f"{schedule}/s1", later).status == 200
    alice.send(afterMs=1_000_000)
    assert refused(alice("PUT", f"{schedule}/s2", later))
    assert refused(alice.post(f"{ENTITIES}/agent/e1/send", {"payload": 1, "afterMs": 1_000_000}))
    claim = alice.claim()
    headers = {"operation": "insert"}
    entry = {"type": "manifest", "key": "schedule:s3", "value": later, "headers": headers}
    assert refused(claim.append(entry, token=claim.mint()))
    assert Timer.objects.count() == 2
    assert alice("PUT", f"{schedule}/s1", later).status == 200  # in its own place
    alice.send()
    bob.send("/agent/e2", afterMs=1_000_000)
    assert alice("DELETE", f"{schedule}/s1").status == 200
    assert alice("PUT", f"{schedule}/s2", later).status == 200


def test_registrations(alice, bob, settings):
    settings.PULLWAKE_MAX_REGISTRATIONS = 2
    alice.register()
    alice.make_entity(initialMessage="hi")
    alice.make_entity("/agent/e2")
    bob.make_entity("/agent/e3", None)
    wish = {"sourceUrl": "/agent/e2", "condition": "runFinished"}
    cron = {"scheduleType": "cron", "payload": 1, "expression": "0 0 * * *"}
    schedule = f"{ENTITIES}/agent/e1/schedules"
    for _ in range(2):
        assert alice.post(WAKE, {"subscriberUrl": "/agent/e1", **wish}).status == 204
        assert alice("PUT", f"{schedule}/s1", cron).status == 200
    assert refused(alice("PUT", f"{schedule}/s2", cron))
    other = {**wish, "condition": {"on": "change"}}
    assert refused(alice.post(WAKE, {"subscriberUrl": "/agent/e1", **other}))
    watched = {"wake": {"subscriberUrl": "/agent/e1", "condition": "runFinished"}}
    assert refused(alice("PUT", f"{ENTITIES}/agent/e4", watched))
    assert not Entity.objects.filter(url="/agent/e4").exists()
    assert Registration.objects.count() == 2
    assert bob.post(WAKE, {"subscriberUrl": "/agent/e3", **wish}).status == 204
    assert alice("DELETE", f"{schedule}/s1").status == 200
    assert alice.post(WAKE, {"subscriberUrl": "/agent/e1", **other}).status == 204


def test_producers(alice, settings):
    settings.PULLWAKE_MAX_PRODUCERS = 1
    alice.register()
    alice.make_entity(initialMessage="hi")
    claim = alice.claim()
    token = claim.mint()

    def append(name, seq):
        headers = {"Producer-Id": name, "Producer-Epoch": "1", "Producer-Seq": seq}
        return claim.append({"a": 1}, token=token, **headers)

    assert append("p1", "0").status == 200
    assert append("p1", "1").status == 200
    assert refused(append("p2", "0"))
    assert Producer.objects.count() == 1


@pytest.mark.parametrize("live", ["long-poll", "sse"])
@pytest.mark.parametrize("stream", ["/runners/r1/wake", "/agent/e1/main"])
def test_streams_held(alice, settings, stream, live):
    settings.PULLWAKE_MAX_STREAMS = 1
    settings.PULLWAKE_LONG_POLL_MS = 0
    alice.register()
    alice.make_entity()
    path = f"{stream}?offset=now&live={live}"
    key = "/principal/user%3Aalice"
    with throttles.held(key, live):
        assert refused(alice.get(path))
        assert alice.get(stream).status == 200  # which is held by nobody
    if live == "long-poll":
        assert alice.get(path).status == 204
    assert key not in throttles._held


def test_a_stream_that_nobody_read_is_held_no_longer():
    never_begun = (text for text in ("a", "b"))
    said = throttles.Released(never_begun, throttles.Hold("someone", "sse"))
    assert throttles._held == {"someone": 1}
    said.close()
    said.close()
    assert not throttles._held


def test_a_row_of_tags_is_at_most_64_kib(alice):
    tags = {f"t{n}": "x" * 4000 for n in range(16)}
    alice.make_entity(runner_id=None, tags=tags)
    for answer in (
        alice.post(f"{ENTITIES}/agent/e1/tags/more", {"value": "x" * 4000}),
        alice("PATCH", f"{ENTITIES}/agent/e1", {"tags": {**tags, "more": "x" * 4000}}),
        alice("PUT", f"{ENTITIES}/agent/e2", {"tags": {**tags, "more": "x" * 4000}}),
    ):
        assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
        assert [each["path"] for each in answer.body["error"]["details"]] == ["/tags"]
    assert set(alice.get(f"{ENTITIES}/agent/e1").body["tags"]) == set(tags)
    assert Entity.objects.count() == 1


# --- Pages ------------------------------------------------------------------------------------


def following(answer):
    """The address of the next page, None on the last."""
    if "Link" not in answer.headers:
        return None
    found = re.fullmatch(r'<(http://testserver/[^>]+)>; rel="next"', answer.headers["Link"])
    assert found is not None, answer.headers["Link"]
    parts = urlsplit(found[1])
    return f"{parts.path}?{parts.query}"


def pages(api: Api, path: str | None):
    for _ in range(10):
        if path is None:
            return
        answer = api.get(path)
        assert answer.status == 200, answer
        yield [each.get("url") or each.get("id") or each.get("name") for each in answer.body]
        path = following(answer)
    pytest.fail(f"there is always a next page: {path}")


def fill(api, number):
    for n in range(number):
        api.register(f"r{n}")
        api.make_entity(f"/agent/e{n}", None)
        api.post(TYPES, {"name": f"t{n}", "description": ""})


@pytest.mark.parametrize("path", [RUNNERS, ENTITIES, TYPES])
@pytest.mark.parametrize("limit", [1, 2, 4, 5, 1000])
def test_pages_give_all_rows_once_in_their_order(alice, path, limit):
    fill(alice, 5)
    (whole,) = pages(alice, path)
    assert len(whole) == 5
    found = list(pages(alice, f"{path}?limit={limit}"))
    assert [name for page in found for name in page] == whole
    assert max(map(len, found)) == min(limit, 5)
    assert all(found)


def test_what_else_was_asked_for_is_asked_of_the_next_page(alice):
    fill(alice, 3)
    answer = alice.get(f"{RUNNERS}?owner_principal=user:alice&limit=1")
    before = following(answer).removeprefix(
        f"{RUNNERS}?owner_principal=user%3Aalice&limit=1&before="
    )
    assert re.fullmatch(r"\d{16}%2Fr2", before)


@pytest.mark.parametrize("path", [RUNNERS, ENTITIES, TYPES])
def test_the_next_page_begins_where_the_last_row_was_that_is_gone(alice, path):
    fill(alice, 4)
    first = alice.get(f"{path}?limit=2")
    for name in ("r2", "r1"):
        assert alice("DELETE", f"{RUNNERS}/{name}").status == 204
    for name in ("e2", "e1"):
        assert alice("DELETE", f"/_electric/entities/agent/{name}").status == 204
    assert alice("DELETE", f"{TYPES}/t1").status == 204
    (left,) = pages(alice, following(first))
    assert len(left) == (2 if path == TYPES else 1)
    assert left[-1] == {RUNNERS: "r0", ENTITIES: "/agent/e0", TYPES: "t3"}[path]


@pytest.mark.parametrize(
    "before", ["r9", "/agent/e9", "x/r1", "-1/r1", f"{10**16}/r1", f"{10**18}", "²", "1" * 400]
)
def test_a_page_before_what_is_no_place_is_refused(alice, before):
    fill(alice, 1)
    for path in (RUNNERS, ENTITIES):
        answer = alice.get(f"{path}?before={quote(before, safe='')}")
        assert (answer.status, answer.error) == (400, "INVALID_REQUEST"), (path, before)
        assert [each["path"] for each in answer.body["error"]["details"]] == ["/before"]


def test_pages_of_runners_that_were_made_at_one_time_give_each_once(alice):
    made = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    for n in range(6):
        RunnerFactory.create(id=f"r{n}", created_at=made + timedelta(milliseconds=n // 2))
    found = [name for page in pages(alice, f"{RUNNERS}?limit=1") for name in page]
    assert found == ["r5", "r4", "r3", "r2", "r1", "r0"]
    older = alice.get(f"{RUNNERS}?before=r3").body
    assert [each["id"] for each in older] == ["r2", "r1", "r0"]


@pytest.mark.parametrize("path", [RUNNERS, ENTITIES, TYPES])
@pytest.mark.parametrize("limit", ["0", "1001", "-1", "1.5", "x", "", "1&limit=2", "²", "00001"])
def test_a_limit_is_1_to_1000(alice, path, limit):
    answer = alice.get(f"{path}?limit={limit}")
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert [each["path"] for each in answer.body["error"]["details"]] == ["/limit"]


def test_no_answer_is_larger_than_8_mib(alice, monkeypatch):
    monkeypatch.setattr(lists, "MAX_BYTES", 8192)
    for n in range(5):
        alice.make_entity(f"/agent/e{n}", None, args={"text": "x" * 3000})
    alice.make_entity("/agent/large", None, args={"text": "x" * 20_000})
    found = list(pages(alice, ENTITIES))
    assert [len(page) for page in found] == [1, 2, 2, 1]  # the large one whole, and alone
    assert sum(map(len, found)) == 6
