"""How many statements a request costs; BEGIN, COMMIT and savepoints are not counted.

On PostgreSQL a NOTIFY counts, on SQLite nothing is said between processes; so both are pinned.
"""

from contextlib import contextmanager

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from core import quotas
from core.principals import Principal
from dispatch import due, firing
from dispatch.streams import waiters
from runners import tokens
from runners.models import Runner
from tests.factories import EntityFactory, RunnerFactory, WakeFactory
from tests.support import Api, come_due, lapse

UNCOUNTED = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE SAVEPOINT", "ROLLBACK TO SAVEPOINT")


@contextmanager
def counted():
    """The statements of the block, once it is over."""
    statements: list[str] = []
    with CaptureQueriesContext(connection) as captured:
        yield statements
    statements += [
        query["sql"]
        for query in captured.captured_queries
        if not query["sql"].startswith(UNCOUNTED)
    ]


def cost(call, *, status=200):
    """How many statements a call takes, and that it does what it should."""
    with counted() as statements:
        answer = call()
    assert answer.status == status, answer
    return len(statements)


@pytest.fixture(params=[None, 1, 50], ids=lambda limit: f"limit {limit}")
def runner(request, alice):
    """Alice's runner r1 with one entity that waits for it; without a claim limit and with one."""
    r1 = RunnerFactory.create(id="r1", max_concurrent_claims=request.param, online=True)
    WakeFactory.create(entity__url="/agent/e1", entity__runner=r1)
    return alice


def test_authentication_costs_one_statement_and_none_when_remembered(alice):
    _, secret = tokens.issue(Principal.parse("user:alice"))
    alice.register()
    api = Api(Authorization=f"Bearer {secret}")
    unproven = cost(lambda: alice.get("/_electric/runners/r1"))
    assert cost(lambda: api.get("/_electric/runners/r1")) == unproven + 1
    assert cost(lambda: api.get("/_electric/runners/r1")) == unproven


def test_a_refused_token_costs_one_statement(db):
    api = Api(Authorization="Bearer pwa_unknown")
    assert cost(lambda: api.get("/_electric/runners"), status=401) == 1


@pytest.mark.parametrize(
    "body",
    [{}, {"lease_ms": 90_000, "wake_stream_offset": "-1", "diagnostics": {"status": "streaming"}}],
)
def test_a_runners_heartbeat_costs_two(runner, body):
    assert cost(lambda: runner.post("/_electric/runners/r1/heartbeat", body)) == 2


def test_a_runners_health_costs_one_and_two_where_it_holds_a_claim(runner):
    runner.make_entity("/agent/e2", initialMessage="hi")
    assert cost(lambda: runner.get("/_electric/runners/r1/health")) == 1
    runner.claim()
    assert cost(lambda: runner.get("/_electric/runners/r1/health")) == 2


def test_a_claim_of_a_wake_event_costs_six_and_two_for_a_limit(runner):
    event = runner.wakes()[0]
    limited = runner.get("/_electric/runners/r1").body.get("max_concurrent_claims")
    assert cost(lambda: runner.try_claim("r1", event)) == (8 if limited else 6)


def test_a_claim_of_the_oldest_wake_costs_six_and_two_for_a_limit(runner):
    limited = runner.get("/_electric/runners/r1").body.get("max_concurrent_claims")
    assert cost(lambda: runner.try_claim("r1", {})) == (8 if limited else 6)


def test_a_claims_heartbeat_costs_one(runner):
    claim = runner.claim()
    assert cost(claim.heartbeat) == 1


def test_a_claims_heartbeat_with_acks_costs_four_and_two_where_they_are_no_news(runner):
    claim = runner.claim()
    acks = [{"path": "/agent/e1/main", "offset": claim.tail}]
    assert cost(lambda: claim.heartbeat(acks=acks)) == 4
    assert cost(lambda: claim.heartbeat(acks=acks)) == 2


def test_a_mint_costs_at_most_two(runner):
    claim = runner.claim()
    assert cost(lambda: claim.call({"wakeId": claim.body["wakeId"]})) == 1


@pytest.mark.parametrize("acked", [True, False])
def test_a_done_costs_four_and_three_for_a_limit(runner, acked):
    limited = runner.get("/_electric/runners/r1").body.get("max_concurrent_claims")
    claim = runner.claim()
    assert cost(lambda: claim.done(*[claim.tail] * acked)) == (7 if limited else 4)


def test_a_done_that_makes_the_next_wake_costs_two_more(runner):
    limited = runner.get("/_electric/runners/r1").body.get("max_concurrent_claims")
    claim = runner.claim()
    runner.send()
    with counted() as statements:
        assert claim.done().body["next_wake"] is True
    assert len(statements) == (7 if limited else 4) + 2


def test_a_done_that_emits_a_refused_wake_again_costs_three_more(alice):
    alice.register(max_concurrent_claims=1)
    alice.make_entity(initialMessage="hi")
    alice.make_entity("/agent/e2", initialMessage="hi")
    claim = alice.claim()
    seen = alice("HEAD", "/runners/r1/wake").headers["Stream-Next-Offset"]
    with counted() as statements:
        claim.done()
    assert len(alice.wakes(offset=seen)) == 1
    assert len(statements) == 10


def test_a_done_that_comes_again_costs_one(runner):
    claim = runner.claim()
    claim.done()
    assert cost(claim.done) == 1


def test_a_send_costs(runner):
    send = "/_electric/entities/agent/e1/send"
    runner.claim().done()
    waking = cost(lambda: runner.post(send, {"payload": 1}))
    woken = cost(lambda: runner.post(send, {"payload": 1}))
    keyed = cost(lambda: runner.post(send, {"payload": 1, "key": "k"}))
    again = cost(lambda: runner.post(send, {"payload": 1, "key": "k"}))
    assert (waking, woken, keyed, again) == (7, 4, 5, 3)


def test_an_append_costs(runner):
    claim = runner.claim()
    token = claim.mint()
    one = cost(lambda: claim.append({"n": 1}, token=token), status=204)
    many = cost(lambda: claim.append(*[{"n": 1}] * 100, token=token), status=204)
    assert one == many == 5


def test_who_is_watched_for_its_runs_pays_for_a_finished_run_alone(runner, monkeypatch):
    monkeypatch.setattr(quotas, "_room", {})
    claim = runner.claim()
    token = claim.mint()
    delta = {"type": "text_delta", "key": "t", "value": {}, "headers": {"operation": "insert"}}
    run = {"type": "run", "key": "r", "value": {"status": "completed"}}
    finished = {**run, "headers": {"operation": "update"}}
    unwatched = [
        cost(lambda event=event: claim.append(event, token=token), status=204)
        for event in (delta, finished)
    ]
    condition = {"on": "runFinished"}
    body = {"subscriberUrl": "/agent/e1", "sourceUrl": "/agent/e1", "condition": condition}
    # The first of a principal counts its registrations, and the first at a source those there.
    runner.post("/_electric/wake", {**body, "sourceUrl": "/agent/e3"})
    assert cost(lambda: runner.post("/_electric/wake", body), status=204) == 6
    watched = [
        cost(lambda event=event: claim.append(event, token=token), status=204)
        for event in (delta, finished)
    ]
    assert [after - before for before, after in zip(unwatched, watched, strict=True)] == [0, 3]
    assert cost(claim.done) == cost_of_a_done(runner) + 1


def cost_of_a_done(runner):
    limited = runner.get("/_electric/runners/r1").body.get("max_concurrent_claims")
    return 7 if limited else 4


def test_a_manifest_event_that_asks_for_nothing_costs_nothing(runner):
    claim = runner.claim()
    token = claim.mint()
    goal = {"type": "manifest", "key": "goal:1", "value": {"kind": "goal"}}
    event = {**goal, "headers": {"operation": "insert"}}
    assert cost(lambda: claim.append(event, token=token), status=204) == 5


def test_a_delivery_costs_the_same_however_many_changes_it_tells(alice):
    alice.register()
    for name in ("e1", "e2"):
        alice.make_entity(f"/agent/{name}")
    body = {"subscriberUrl": "/agent/e1", "sourceUrl": "/agent/e2", "condition": {"on": "change"}}
    assert alice.post("/_electric/wake", body).status == 204
    costs = []
    for count in (1, 5):
        for _ in range(count):
            alice.send("/agent/e2")
        with counted() as statements:
            assert due.run() == 1
        alice.claim("r1", alice.wakes()[-1]).done()
        costs.append(len(statements))
    # One of them looks for timers that are due.
    assert costs == [13] * 2


def test_a_timer_among_others_costs_its_event_and_its_state(alice):
    alice.register()
    costs = []
    for number, count in enumerate((1, 5)):
        for name in range(count):
            alice.make_entity(f"/agent/{number}-{name}")
            alice.send(f"/agent/{number}-{name}", afterMs=60_000)
        come_due()
        with counted() as statements:
            assert firing.fire_due() == count
        costs.append(len(statements))
    assert costs[1] - costs[0] == 4 * 2


def test_registering_costs_the_same_however_many_wakes_wait(alice):
    facts = {"id": "r1", "label": "r1"}
    alice.register()
    costs = set()
    for name in ("e1", "e2", "e3"):
        alice.make_entity(f"/agent/{name}", initialMessage="hi")
        costs.add(cost(lambda: alice.post("/_electric/runners", facts), status=201))
    assert len(costs) == 1
    assert [wake["stream"][:8] for wake in alice.wakes()] == ["agent/e1", "agent/e2", "agent/e3"]


def test_a_read_of_the_wake_stream_costs_three_however_many_there_are(runner):
    WakeFactory.create_batch(3, entity__runner=Runner.objects.get())
    assert cost(lambda: runner.get("/runners/r1/wake?offset=-1")) == 3
    assert cost(lambda: runner.get("/runners/r1/wake?offset=now")) == 3
    assert cost(lambda: runner("HEAD", "/runners/r1/wake")) == 2


def test_a_read_of_the_main_stream_costs(runner):
    assert cost(lambda: runner.get("/agent/e1/main")) == 3
    assert cost(lambda: runner.get("/agent/e1/main?offset=now")) == 3


def test_what_a_held_read_delivers_costs_one_for_the_right_to_it(runner):
    held = "?offset=-1&live=long-poll"
    assert cost(lambda: runner.get(f"/agent/e1/main{held}")) == 3 + 1
    path = runner.share()
    runner.post(path, {"n": 1})
    assert cost(lambda: runner.get(f"{path}{held}")) == cost(lambda: runner.get(path)) + 1
    assert cost(lambda: runner.get(f"/runners/r1/wake{held}")) == 3
    token = runner.claim().body["claimToken"]
    assert cost(lambda: runner.get(f"/agent/e1/main{held}", Electric_Claim_Token=token)) == 3 + 1


@pytest.mark.parametrize("stream", ["/runners/r1/wake", "/agent/e1/main"])
def test_a_wait_in_vain_costs_one_look_at_the_tail(runner, settings, stream, monkeypatch):
    deaf = waiters.Hub()  # a listener that begins has all that wait look once more
    monkeypatch.setattr(deaf, "_start", lambda: None)
    monkeypatch.setattr(waiters, "hub", deaf)
    settings.PULLWAKE_LONG_POLL_MS = 10
    tail = runner("HEAD", stream).headers["Stream-Next-Offset"]
    wait = f"{stream}?offset={tail}&live=long-poll"
    assert cost(lambda: runner.get(wait), status=204) == 2


def test_a_shared_state_costs(runner):
    path = runner.share()
    owner = {"Electric_Owner_Entity": "/agent/e1"}
    producer = {"Producer_Id": "p", "Producer_Epoch": "0"}
    again = cost(lambda: runner("PUT", path, **owner))
    read = cost(lambda: runner.get(path))
    one = cost(lambda: runner.post(path, {"n": 1}), status=204)
    many = cost(lambda: runner.post(path, [{"n": 1}] * 100), status=204)
    filled = cost(lambda: runner.get(path))
    runner.post(path, {"n": 1}, **producer, Producer_Seq="0")
    numbered = cost(lambda: runner.post(path, {"n": 1}, **producer, Producer_Seq="1"))
    assert (again, read, filled) == (3, 3, 4)
    assert (one, many, numbered) == (6, 6, 8)


def test_an_entity_costs_two(runner):
    """One of them for why it stands."""
    assert cost(lambda: runner.get("/_electric/entities/agent/e1")) == 2


def test_a_list_of_entities_costs_one_however_many_there_are(runner):
    EntityFactory.create_batch(3)
    assert cost(lambda: runner.get("/_electric/entities")) == 1


def test_a_claim_over_a_lapsed_one_costs(claim_that_lapsed):
    """A claim over a lapsed one is not on the hot path, and pinned all the same."""
    api, event = claim_that_lapsed
    assert cost(lambda: api.try_claim("r1", event)) == 13


@pytest.fixture
def claim_that_lapsed(alice):
    alice.register()
    alice.make_entity(initialMessage="hi")
    event = alice.wakes()[0]
    lapse(alice.claim())
    return alice, event
