"""Many real callers at once, through one server and through two, and what must hold after them."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle
from typing import Any

import pytest

from tests.support import Claim, HttpApi, Server, Servers

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

CLAIMERS = 32
WAKES = 40


@pytest.fixture(params=[1, 2], ids=["one server", "two servers"])
def serving(request: Any, servers: Servers) -> list[Server]:
    """One server process, or two."""
    return servers.lend_some(request.param, PULLWAKE_DB_POOL=40)


@pytest.fixture
def clients(serving: list[Server]) -> list[HttpApi]:
    """A client for each claimer, of one server after the other."""
    return [server.client() for server, _ in zip(cycle(serving), range(CLAIMERS), strict=False)]


def all_at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """What these calls answer that are made in a thread each."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [each.result() for each in [threads.submit(call) for call in calls]]


def urls(count: int) -> list[str]:
    return [f"/agent/e{number}" for number in range(count)]


def make(client: HttpApi, count: int, **facts: Any) -> None:
    client.register(**facts)
    for url in urls(count):
        client.make_entity(url)
        client.send(url)


def test_it_gives_each_of_40_wakes_to_exactly_one_of_32_claimers(clients: list[HttpApi]):
    make(clients[0], WAKES)

    def claim_all(client: HttpApi) -> list[str]:
        """Claim the oldest until there is none."""
        won = []
        while (answer := client.try_claim()).status == 200:
            won.append(answer.body["entity"]["url"])
        assert answer.status == 204
        return won

    won = all_at_once([partial(claim_all, each) for each in clients])
    assert Counter(url for each in won for url in each) == Counter(urls(WAKES))


def test_it_has_exactly_one_winner_each_time_32_claim_the_same_wake(clients: list[HttpApi]):
    make(clients[0], WAKES)
    for event in clients[0].wakes():
        answers = all_at_once([partial(each.try_claim, event=event) for each in clients])
        codes = Counter(each.status if each.status == 200 else each.error for each in answers)
        assert codes == {200: 1, "ALREADY_CLAIMED": CLAIMERS - 1}


def test_it_never_holds_more_claims_than_its_limit(clients: list[HttpApi]):
    make(clients[0], WAKES, max_concurrent_claims=5)
    answers = all_at_once([each.try_claim for each in clients])
    codes = Counter(each.status if each.status == 200 else each.error for each in answers)
    assert codes == {200: 5, "CLAIM_LIMIT_REACHED": CLAIMERS - 5}


def test_it_carries_out_every_message_once_while_senders_and_dones_race(
    clients: list[HttpApi], serving: list[Server]
):
    """16 send to four entities, 16 claim and finish what they get; no wake is lost or doubled."""
    entities, sends = 4, 10
    clients[0].register()
    for url in urls(entities):
        clients[0].make_entity(url)
    sending = set(clients[:16])

    def send_all(client: HttpApi) -> None:
        try:
            for number in range(sends):
                client.send(urls(entities)[number % entities])
        finally:
            sending.discard(client)

    def work(client: HttpApi) -> list[tuple[str, int]]:
        """Claim and finish until nothing is left, and nothing more comes."""
        finished = []
        while True:
            more_comes = bool(sending)
            answer = client.try_claim()
            if answer.status == 200:
                claim = Claim(client, answer.body)
                assert claim.done().body["entity_cleared"] is True
                finished.append((claim.body["entity"]["url"], claim.epoch))
            else:
                assert answer.status == 204
                if not more_comes:
                    return finished

    worked = all_at_once(
        [
            *(partial(send_all, each) for each in clients[:16]),
            *(partial(work, each) for each in clients[16:]),
        ]
    )
    finished = [claim for each in worked[16:] for claim in each]
    assert len(finished) == len(set(finished))
    counts = "SELECT sum(generation), sum(last_work_offset - cursor) FROM dispatch_dispatchstate"
    assert serving[0].database.execute(counts) == [(len(finished), 0)]
    statuses = "SELECT DISTINCT status FROM dispatch_wake"
    assert serving[0].database.execute(statuses) == [("claimed",)]


def test_each_of_32_that_report_at_once_is_answered_for_itself(clients: list[HttpApi]):
    """What they ask is asked of the database together."""
    owner = clients[0]
    for number, url in enumerate(urls(CLAIMERS)):
        owner.register(f"r{number}")
        owner.make_entity(url, f"r{number}", initialMessage="hi")
    claims = [owner.claim(f"r{number}") for number in range(CLAIMERS)]

    def report(client: HttpApi, number: int) -> list[Any]:
        claim = claims[number]
        told = {"diagnostics": {"events_received": number, "last_error": f"that of {number}"}}
        beat = client.post(f"/_electric/runners/r{number}/heartbeat", told)
        health = client.get(f"/_electric/runners/r{number}/health")
        nobody = client.post(f"/_electric/runners/nobody{number}/heartbeat", told)
        renewed, fenced = claim.heartbeat(), claim.heartbeat(epoch=claim.epoch + 1)
        minted = claim.call({"wakeId": claim.body["wakeId"]})
        stranger = claim.call({"epoch": claim.epoch}, token="pwc_nobody's")
        return [
            (beat.status, beat.body["id"], beat.body["diagnostics"]),
            (health.status, health.body["client"], health.body["claims"]["active_count"]),
            (renewed.status, fenced.error, nobody.error),
            (minted.status, stranger.error),
            minted.body["writeToken"],
        ]

    for _ in range(5):
        answers = all_at_once([partial(report, each, n) for n, each in enumerate(clients)])
        for number, answer in enumerate(answers):
            told = {"events_received": number, "last_error": f"that of {number}"}
            assert answer[:-1] == [
                (200, f"r{number}", told),
                (200, told, 1),
                (200, "FENCED", "NOT_FOUND"),
                (200, "UNAUTHORIZED"),
            ]
        for number, (*_, token) in enumerate(answers):
            event = {"type": "note", "key": "k", "value": {"of": number}}
            assert claims[number].append(event, token=token).status == 204
