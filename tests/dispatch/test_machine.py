"""Whatever happens, in whatever order: what holds of every entity after each step."""

from contextlib import ExitStack
from datetime import timedelta

import hypothesis.strategies as st
import msgspec
import pytest
from django.db import transaction
from django.db.models import Count, F, Max, Q
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from claims import dead_letters, endings, reaper
from claims.models import ConsumerClaim, DeadLetter
from dispatch.models import DispatchState, Wake, subscription_key
from tests.agents.runtime import merged
from tests.support import PAST, Api

ENTITIES = "/_electric/entities"
URLS = ("/agent/e1", "/agent/e2")
RUNNERS = {"r1": None, "r2": 1}  # and their max_concurrent_claims
HANDLERS = ("SIGINT", "SIGHUP", "SIGUSR")

urls = st.sampled_from(URLS)
runners = st.sampled_from(sorted(RUNNERS))
# Which of the claims made so far, counted from the newest; late callbacks are of older ones.
nth = st.sampled_from([0, 0, 0, 1, 2, 3])
# How each claim of a row of turns ends: see `Pullwake.row_of_turns`.
ENDS = (
    *("done", "done", "done in part", "failed", "failed till later", "given up", "redriven"),
    *("lapsed", "lapsed and renewed", "taken back", "moved", "paused", "limited", "left"),
)
ends = st.lists(st.sampled_from(ENDS), min_size=60, max_size=70)


class Facts:
    """What the test itself knows of an entity."""

    def __init__(self):
        self.paused = self.stop = self.killed = False
        self.generation = self.cursor = 0

    def status(self, claimed):
        if self.killed:
            return "killed"
        if self.stop:
            return "stopping" if claimed else "stopped"
        return "running" if claimed else "paused" if self.paused else "idle"


class Pullwake(RuleBasedStateMachine):
    """The API and the reaper, called at random."""

    claims_made = 0
    """In all examples of a run."""

    def __init__(self):
        super().__init__()
        self.undone = ExitStack()
        self.undone.enter_context(transaction.atomic())
        self.api = Api("user:alice")
        self.claims = []
        self.facts = {}
        for runner_id, limit in RUNNERS.items():
            self.api.register(runner_id, max_concurrent_claims=limit)
        for url, runner_id in zip(URLS, ("r1", "r2"), strict=True):
            self.spawn(url, runner_id)

    def teardown(self):
        Pullwake.claims_made += ConsumerClaim.objects.count()
        transaction.set_rollback(True)
        self.undone.close()

    def spawn(self, url, runner_id):
        self.api.make_entity(url, runner_id, initialMessage="hi")
        self.facts[url] = Facts()

    def call(self, method, path, body=None):
        """Nothing that is well-formed may be a 400 or a 5xx."""
        answer = self.api(method, path, body)
        assert answer.status in (200, 201, 204, 404, 409), answer
        return answer

    # --- What may happen ----------------------------------------------------------------------

    @rule(
        url=urls,
        key=st.sampled_from(["k1", "k2", None]),
        mode=st.sampled_from(["immediate", "immediate", "queued", "paused"]),
    )
    def send(self, url, key, mode="immediate"):
        facts = self.facts[url]
        body = {"payload": "hi", "mode": mode} | ({} if key is None else {"key": key})
        answer = self.call("POST", f"{ENTITIES}{url}/send", body)
        if not (facts.stop or facts.killed):
            assert answer.status == 200

    @rule(url=st.none() | urls, runner_id=runners)
    def claim(self, url, runner_id):
        event = {}
        if url is not None:
            event = {"subscription_id": f"runner:{runner_id}:{subscription_key(url)}"}
        answer = self.call("POST", f"/_electric/runners/{runner_id}/claim", event)
        if answer.status == 200 and "consumerId" in answer.body:
            tail = answer.headers["Pullwake-Tail"]
            self.claims.insert(0, {**answer.body, "tail": tail})

    def turn(self, url, late, end):
        """A whole turn of the runner that is told: most claims are made so, and end well."""
        runner_id = DispatchState.objects.get(entity__url=url).runner_id
        if runner_id is None:
            return
        self.send(url, None)
        self.claim(url, runner_id)
        for _ in range(late):
            self.send(url, None)
        self.it_holds()
        end(0)

    @rule(url=urls, late=st.integers(0, 2), acked=st.booleans())
    def turn_and_done(self, url, late, acked):
        self.turn(url, late, lambda newest: self.done(newest, acked))

    @rule(url=urls, late=st.integers(0, 2))
    def turn_and_done_with_all(self, url, late):
        self.turn(url, late, self.done_with_all_that_there_is)

    @rule(url=urls, late=st.integers(0, 2))
    def turn_and_fail(self, url, late):
        self.turn(url, late, self.fail)

    @rule(url=urls, late=st.integers(0, 2), acked=st.booleans())
    def turn_and_lapse(self, url, late, acked):
        def end(newest):
            self.heartbeat(newest, acked)
            self.lapse(newest)
            reaper.reap()

        self.turn(url, late, end)

    @initialize(rows=st.tuples(ends, ends))
    def row_of_turns(self, rows):
        """Claim after claim, as in the life of a busy entity, each with all that a runner does.

        What happens at random comes after that, to entities with a past.
        """
        for url, row in zip(URLS, rows, strict=True):
            for end in row:
                self.one_turn(url, end)
                the_database_holds()
                self.only_ever_rises()

    def one_turn(self, url, end):
        state = DispatchState.objects.get(entity__url=url)
        if state.runner_id is None or state.ended or state.stop_requested:
            return
        if state.paused:
            self.signal(url, "SIGCONT")
        DispatchState.objects.filter(pk=state.pk, retry_at__isnull=False).update(retry_at=PAST)
        reaper.reap()
        self.send(url, None)
        held, made = state.claimed, len(self.claims)
        self.claim(url, state.runner_id)
        if len(self.claims) == made:
            # Another turn's claim is still held, or the runner has as many as it may.
            assert held or RUNNERS[state.runner_id]
            if end != "left":
                self.end_what_is_held()
            return
        assert not held
        claim = self.claims[0]
        token = self.minted(claim)
        self.append(claim, token, 204)
        self.send(url, None)
        self.end(url, claim, end)
        active = ConsumerClaim.objects.active().filter(consumer_id=claim["consumerId"]).exists()
        assert active == (end == "left")
        self.append(claim, token, 204 if active else 401)

    def end(self, url, claim, how):
        self.heartbeat(0, acked=False)
        match how:
            case "done" | "limited":
                if how == "limited":  # whatever else waits for a runner that may hold but one
                    self.claim(None, "r2")
                    self.end_what_is_held(but=claim)
                self.call_back_of(claim, {"done": True, "acks": acks(claim)})
            case "done in part":
                self.call_back_of(claim, {"acks": acks(claim)})
                self.call_back_of(claim, {"done": True, "acks": self.all_of(claim)})
            case "failed":
                self.call_back_of(claim, {"failed": True, "error": "boom"})
            case "failed till later":
                self.call_back_of(claim, {"failed": True, "retry_after_ms": 60_000})
            case "given up" | "redriven":
                self.call_back_of(claim, {"failed": True, "give_up": True})
                if how == "redriven":
                    letter = DeadLetter.objects.filter(entity__url=url, redriven_at=None).last()
                    assert letter is not None
                    dead_letters.redrive(letter)
            case _:
                self.end_otherwise(url, claim, how)

    def end_otherwise(self, url, claim, how):
        """By what befalls a claim; one that is left goes on."""
        match how:
            case "lapsed":
                self.lapse_of(claim)
                reaper.reap()
            case "lapsed and renewed":
                self.lapse_of(claim)
                self.call_back_of(claim, {})
                reaper.reap()
                self.call_back_of(claim, {"done": True})
            case "taken back":
                endings.take_back(ConsumerClaim.objects.get(consumer_id=claim["consumerId"]))
            case "moved":
                self.move(url, "r1")
                self.call_back_of(claim, {"done": True})
            case "paused":
                self.signal(url, "SIGSTOP")
                self.call_back_of(claim, {"done": True})

    def end_what_is_held(self, but=None):
        """Let go of claims that earlier steps left."""
        kept = None if but is None else but["consumerId"]
        for claim in ConsumerClaim.objects.active().exclude(consumer_id=kept or ""):
            endings.take_back(claim)

    def lapse_of(self, claim):
        held = ConsumerClaim.objects.filter(consumer_id=claim["consumerId"])
        assert held.update(lease_expires_at=PAST)

    def minted(self, claim):
        answer = self.call_back_of(claim, {"wakeId": claim["wakeId"]})
        return answer.body["writeToken"]

    def append(self, claim, token, status):
        event = {"type": "text", "key": "t", "headers": {"operation": "upsert"}}
        headers = {"Electric_Claim_Token": token}
        assert self.api.post(claim["streamPath"], event, **headers).status == status

    def call_back_of(self, claim, body):
        answer = self.api.post(
            f"/_electric/wake-callbacks/{claim['consumerId']}",
            {"epoch": claim["epoch"], **body},
            Electric_Claim_Token=claim["claimToken"],
        )
        assert answer.status == 200, answer
        return answer

    def only_ever_rises(self):
        """The cursor and the generation of each entity; and each epoch is of one claim."""
        states = DispatchState.objects.values_list("entity__url", "generation", "cursor")
        for url, generation, cursor in states:
            facts = self.facts[url]
            assert generation >= facts.generation
            assert cursor >= facts.cursor
            facts.generation, facts.cursor = generation, cursor
        claims = ConsumerClaim.objects.exclude(entity=None)
        epochs = claims.values("entity").annotate(
            last=Max("epoch"), count=Count("pk"), different=Count("epoch", distinct=True)
        )
        assert all(each["count"] == each["different"] <= each["last"] for each in epochs)

    def call_back(self, which, body):
        if not self.claims:
            return
        claim = self.claims[which % len(self.claims)]
        answer = self.api.post(
            f"/_electric/wake-callbacks/{claim['consumerId']}",
            {"epoch": claim["epoch"], **body(claim)},
            Electric_Claim_Token=claim["claimToken"],
        )
        assert answer.status in (200, 409), answer

    @rule(which=nth, acked=st.booleans())
    def heartbeat(self, which, acked):
        self.call_back(which, lambda claim: {"acks": self.all_of(claim)} if acked else {})

    @rule(which=nth, acked=st.booleans())
    def done(self, which, acked):
        self.call_back(
            which, lambda claim: {"done": True, **({"acks": acks(claim)} if acked else {})}
        )

    @rule(which=nth)
    def done_with_nothing(self, which):
        """It acks the claim's own offset, and so none of its work."""
        self.call_back(which, lambda claim: {"done": True, "acks": claim["streams"]})

    @rule(url=urls, late=st.integers(0, 2))
    def turn_and_done_with_nothing(self, url, late):
        self.turn(url, late, self.done_with_nothing)

    @rule(which=nth, status=st.sampled_from(["processed", "cancelled"]))
    def take(self, which, status):
        """The handler takes the next message of the queue."""
        if not self.claims:
            return
        claim = self.claims[which % len(self.claims)]
        minted = self.api.post(
            f"/_electric/wake-callbacks/{claim['consumerId']}",
            {"epoch": claim["epoch"], "wakeId": claim["wakeId"]},
            Electric_Claim_Token=claim["claimToken"],
        )
        if minted.status != 200:
            return
        token = {"Electric_Claim_Token": minted.body["writeToken"]}
        rows = merged(self.api.get(claim["streamPath"], **token).body)
        for (kind, key), row in rows.items():
            if kind == "inbox" and row["status"] == "pending":
                event = {"type": "inbox", "key": key, "value": {"status": status}}
                event["headers"] = {"operation": "update"}
                assert self.api.post(claim["streamPath"], event, **token).status == 204
                return

    @rule(which=nth)
    def done_with_all_that_there_is(self, which):
        self.call_back(which, lambda claim: {"done": True, "acks": self.all_of(claim)})

    def all_of(self, claim):
        """All that there is by now, with what came after the claim."""
        head = self.api("HEAD", claim["streamPath"])
        return [
            {
                "path": claim["streamPath"],
                "offset": head.headers.get("Stream-Next-Offset", "-1"),
            }
        ]

    @rule(which=nth)
    def fail(self, which):
        self.call_back(which, lambda claim: {"failed": True, "error": "boom"})

    @rule(which=nth)
    def lapse(self, which):
        if self.claims:
            consumer_id = self.claims[which % len(self.claims)]["consumerId"]
            ConsumerClaim.objects.filter(consumer_id=consumer_id).update(lease_expires_at=PAST)

    @rule(delays=st.booleans(), stale=st.booleans())
    def reap(self, delays, stale):
        if delays:
            DispatchState.objects.filter(retry_at__isnull=False).update(retry_at=PAST)
        if stale:
            aged = F("emitted_at") - timedelta(minutes=2)
            Wake.objects.outstanding().update(emitted_at=aged)
        reaper.reap()

    @rule(url=urls, name=st.sampled_from(["SIGSTOP", "SIGCONT", *HANDLERS]))
    def signal(self, url, name):
        facts = self.facts[url]
        answer = self.call("POST", f"{ENTITIES}{url}/signal", {"signal": name})
        if answer.status == 200 and not facts.stop and name not in HANDLERS:
            facts.paused = name == "SIGSTOP"

    @rule(url=urls, name=st.sampled_from(["SIGTERM", "SIGKILL"]), runner_id=runners)
    def end_and_spawn_again(self, url, name, runner_id):
        facts = self.facts[url]
        ended = facts.killed or self.api.status(url) == "stopped"
        if ended:
            assert self.call("DELETE", f"{ENTITIES}{url}").status == 204
            self.spawn(url, runner_id)
            return
        assert self.call("POST", f"{ENTITIES}{url}/signal", {"signal": name}).status == 200
        facts.killed, facts.stop = name == "SIGKILL", facts.stop or name == "SIGTERM"

    @rule(url=urls, runner_id=runners)
    def move(self, url, runner_id):
        target = {"targets": [{"type": "runner", "runnerId": runner_id}]}
        self.call("PATCH", f"{ENTITIES}{url}", {"dispatch_policy": target})

    @rule(runner_id=runners, action=st.sampled_from(["enable", "disable", "register", "delete"]))
    def administer(self, runner_id, action):
        if action == "delete":
            self.call("DELETE", f"/_electric/runners/{runner_id}")
        if action in ("register", "delete"):
            self.api.register(runner_id, max_concurrent_claims=RUNNERS[runner_id])
        else:
            self.call("POST", f"/_electric/runners/{runner_id}/{action}")
        if action == "disable":
            self.call("POST", f"/_electric/runners/{runner_id}/claim", {})
            self.call("POST", f"/_electric/runners/{runner_id}/enable")

    # --- What always holds --------------------------------------------------------------------

    @invariant()
    def it_holds(self):
        the_database_holds()
        wakes = [
            (runner_id, "/" + wake["stream"].removesuffix("/main"), wake["generation"])
            for runner_id in RUNNERS
            for wake in self.api.wakes(runner_id)
        ]
        statuses = {each["url"]: each["status"] for each in self.api.get(ENTITIES).body}
        for state in DispatchState.objects.select_related("entity"):
            url = state.entity.url
            shown = [(runner_id, number) for runner_id, each, number in wakes if each == url]
            self.it_holds_of(state, statuses[url], shown)

    def it_holds_of(self, state, status, shown):
        facts = self.facts[state.entity.url]
        active = state.entity.claims.active().count()
        assert not state.entity.claims.active().filter(runner=None).exists()
        texts = state.entity.events.order_by("offset").values_list("data", flat=True)
        events = list(map(msgspec.json.decode, texts))
        rows = merged(events)
        work = [
            number
            for number, event in enumerate(events, start=1)
            if event["headers"]["operation"] == "insert" and is_work(rows, event)
        ]
        queue = [row for (kind, _), row in rows.items() if kind == "inbox" and waits(row)]
        head = min(queue, key=lambda row: row["position"], default={"mode": None})
        pending = any(offset > state.cursor for offset in work) or head["mode"] == "queued"
        awake = not (facts.paused or facts.stop or facts.killed)
        due = pending and awake and state.runner_id is not None and state.retry_at is None

        assert active <= 1
        assert status == facts.status(bool(active))
        # A wake exactly when one is due and nobody is at it; on its runner's stream, the newest.
        expected = [(state.runner_id, state.generation)] if due and not active else []
        assert shown == expected
        # Generations and the cursor only rise; every wake has a generation of its own.
        assert state.generation >= facts.generation
        assert state.cursor >= facts.cursor
        facts.generation, facts.cursor = state.generation, state.cursor
        generations = list(state.entity.wakes.order_by("pk").values_list("generation", flat=True))
        assert generations == list(range(1, state.generation + 1))
        epochs = list(state.entity.claims.order_by("pk").values_list("epoch", flat=True))
        assert epochs == sorted(set(epochs))


def the_database_holds():
    """What each row says of the others, whatever was done; the constraints hold the rest."""
    claims = list(ConsumerClaim.objects.active().values_list("entity_id", "epoch"))
    outstanding = list(Wake.objects.outstanding().values_list("entity_id", "pk"))
    held, wakes = dict(claims), dict(outstanding)
    assert len(held) == len(claims)
    assert len(wakes) == len(outstanding)
    states = DispatchState.objects.annotate(
        events=Count("entity__events"), last=Max("entity__events__offset")
    )
    for pk, epoch, wake, events, last, tail, cursor, work in states.values_list(
        *("pk", "active_epoch", "outstanding_wake"),
        *("events", "last", "tail", "cursor", "last_work_offset"),
    ):
        # The state knows its claim and its wake, and there is never both.
        assert epoch == held.pop(pk, None)
        assert wake == wakes.pop(pk, None)
        assert epoch is None or wake is None
        # No offset is left out, and none is acked that was not given.
        assert events == last == tail
        assert cursor <= tail
        assert work <= tail
    assert not held
    assert not wakes
    # A token opens nothing past its claim; a lease is had exactly while it is held.
    active = Q(status=ConsumerClaim.Status.ACTIVE)
    ended_well = Q(write_token_hash="", ended_at__isnull=False)
    assert not ConsumerClaim.objects.exclude(
        (active & Q(lease_expires_at__isnull=False)) | (~active & ended_well)
    ).exists()


def is_work(rows, event):
    row = rows[event["type"], event["key"]]
    if event["type"] == "inbox":
        return row["status"] != "cancelled" and row["mode"] != "paused"
    closing = ("SIGSTOP", "SIGTERM")
    return row.get("status") == "unhandled" and row["signal"] not in closing


def waits(row):
    return row["status"] == "pending"


def acks(claim):
    """All that the claim delivered."""
    return [{"path": claim["streamPath"], "offset": claim["tail"]}]


@pytest.mark.slow
def test_it_holds_whatever_happens(db):
    Pullwake.claims_made = 0
    run_state_machine_as_test(
        Pullwake,
        settings=settings(
            max_examples=20,
            stateful_step_count=20,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Pullwake.claims_made > 2_000
