"""GET /metrics."""

import os
import re
import signal
import subprocess
import tomllib
from collections import defaultdict
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Never

import pytest
from django.conf import settings
from django.db import OperationalError
from django.db.models.functions import Now

from claims.models import ConsumerClaim
from claims.reaper import reap
from config.serving import metrics
from core.metrics import OTHER, REGISTRY, Names
from dispatch.models import DispatchState
from runners import tokens
from runners.models import AccessToken
from tests.api.endpoints import bearer
from tests.factories import ConsumerClaimFactory, EntityFactory, RunnerFactory, WakeFactory
from tests.serving.conftest import Held, long_poll, make_idle, tail
from tests.support import ROOT, Api, Servers, age_wakes, end_delay, wait_until

pytestmark = pytest.mark.django_db


def figures(api: Api) -> dict[str, float]:
    text = api.get("/metrics").content.decode()
    lines = re.findall(r"^(pullwake_\S+) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in lines}


def test_it_gives_zeros_on_an_empty_database(alice):
    found = figures(alice)
    assert found['pullwake_claims_active{state="all"}'] == 0
    assert found['pullwake_claims_ended{status="expired"}'] == 0
    assert found["pullwake_wakes_oldest_seconds"] == 0


def test_it_counts_what_an_operator_asks_for(alice):
    runner = RunnerFactory.create(online=True)
    ConsumerClaimFactory.create(lapsed=True, entity__runner=runner)
    ConsumerClaimFactory.create(released=True, entity__runner=runner)
    WakeFactory.create(entity__runner=runner)
    EntityFactory.create(pending=True, runner=None)
    found = figures(alice)
    assert found['pullwake_runners{state="able"}'] == 1
    assert found['pullwake_claims_active{state="all"}'] == 1
    assert found['pullwake_claims_active{state="orphaned"}'] == 1
    assert found['pullwake_claims_active{state="lapsed"}'] == 1
    assert found['pullwake_claims_ended{status="released"}'] == 1
    assert found["pullwake_wakes_outstanding"] == 1
    assert found["pullwake_wakes_oldest_seconds"] > 0
    assert found['pullwake_entities{state="pending"}'] == 2
    assert found['pullwake_entities{state="without_runner"}'] == 1


def test_it_is_not_for_everybody(db, settings):
    settings.DEVELOPMENT = False
    assert Api().get("/metrics").status == 401


def test_it_is_for_metrics_tokens_alone(db, settings):
    settings.DEVELOPMENT = False
    assert bearer("user:alice").get("/metrics").status == 403
    prometheus = bearer("system:prometheus", scope=AccessToken.Scope.METRICS)
    assert prometheus.get("/metrics").status == 200
    tokens.revoke(AccessToken.objects.latest("pk"))
    tokens.forget()
    assert prometheus.get("/metrics").status == 401


def test_a_metrics_token_does_nothing_else_in_development_either(db):
    prometheus = bearer("system:prometheus", scope=AccessToken.Scope.METRICS)
    assert prometheus.get("/_electric/runners").status == 403
    assert prometheus.get("/metrics").status == 200


def test_what_was_counted_is_told_without_the_database_to_who_was_let_in(db, settings, monkeypatch):
    settings.DEVELOPMENT = False
    prometheus = bearer("system:prometheus", scope=AccessToken.Scope.METRICS)
    monkeypatch.setattr(tokens, "REMEMBERED", timedelta())
    assert figures(prometheus)["pullwake_database_up"] == 1
    asked = Away()
    for statement in (tokens, "_VALID"), (metrics, "_figures"):
        monkeypatch.setattr(*statement, asked)
    found = figures(prometheus)
    # The token's statement would take as long again, and Prometheus does not wait for both.
    assert asked.times == 1
    assert found["pullwake_database_up"] == 0
    assert "pullwake_runners" not in str(found)
    assert found['pullwake_http_requests_total{method="GET",route="/metrics",status="200"}'] >= 1
    assert bearer_of("pwm_unknown").get("/metrics").status == 503


class Away:
    """What asks the database while it is away."""

    times = 0

    def __call__(self, *args: object, **values: object) -> Never:
        self.times += 1
        raise OperationalError("the database is away")

    first = __call__


def bearer_of(secret: str) -> Api:
    return Api(Authorization=f"Bearer {secret}")


@contextmanager
def growth(api: Api, committed):
    """By how much counters grow in the block: a mapping that is filled when it is over."""
    grown: defaultdict[str, float] = defaultdict(float)
    before = figures(api)
    with committed(execute=True):
        yield grown
    grown |= {name: value - before.get(name, 0) for name, value in figures(api).items()}


def test_it_counts_what_a_message_comes_to(alice, django_capture_on_commit_callbacks):
    with growth(alice, django_capture_on_commit_callbacks) as grown:
        alice.register()
        alice.make_entity()
        alice.send(key="k")
        alice.send(key="k")
        assert alice.post("/_electric/entities/agent/e1/send", {"payload": 1, "afterMs": 9e6})
        alice.claim().done()
        alice.try_claim()
    assert grown['pullwake_sends_total{outcome="sent",type="agent"}'] == 1
    assert grown['pullwake_sends_total{outcome="repeated",type="agent"}'] == 1
    assert grown['pullwake_sends_total{outcome="delayed",type="agent"}'] == 1
    assert grown['pullwake_wakes_emitted_total{type="agent"}'] == 1
    assert grown['pullwake_claim_requests_total{outcome="claimed"}'] == 1
    assert grown['pullwake_claim_requests_total{outcome="nothing"}'] == 1
    assert grown['pullwake_claim_wait_seconds_count{type="agent"}'] == 1
    assert grown['pullwake_claim_work_seconds_count{outcome="released",type="agent"}'] == 1
    assert grown['pullwake_runner_claim_ends_total{outcome="released",runner="r1"}'] == 1
    route = "/_electric/runners/:runner_id/claim"
    for status, count in (("200", 1), ("204", 1)):
        labels = f'method="POST",route="{route}",status="{status}"'
        assert grown[f"pullwake_http_requests_total{{{labels}}}"] == count
    duration = "pullwake_http_request_duration_seconds_count"
    assert grown[f'{duration}{{method="POST",route="{route}"}}'] == 2


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (lambda claim: claim.fail(), "failed"),
        (lambda claim: claim.call({"failed": True, "give_up": True}), "given_up"),
        (lambda claim: claim.done(claim.offset), "stalled"),
        (lambda claim: claim.api.signal("/agent/e1", "SIGKILL"), "fenced"),
    ],
    ids=["failed", "given up", "stalled", "fenced"],
)
def test_it_counts_how_claims_end(alice, django_capture_on_commit_callbacks, end, outcome):
    alice.register()
    alice.make_entity(initialMessage="hi")
    claim = alice.claim()
    ConsumerClaim.objects.update(claimed_at=Now() - timedelta(seconds=20))
    with growth(alice, django_capture_on_commit_callbacks) as grown:
        end(claim)
    labels = f'outcome="{outcome}",type="agent"'
    assert grown[f"pullwake_claim_work_seconds_count{{{labels}}}"] == 1
    assert grown[f"pullwake_claim_work_seconds_sum{{{labels}}}"] == pytest.approx(20, abs=5)


def test_it_counts_late_wakes_and_retries(alice, django_capture_on_commit_callbacks):
    alice.register()
    alice.make_entity(initialMessage="hi")
    alice.make_entity("/agent/e2", initialMessage="hi")
    alice.claim().fail()
    end_delay("/agent/e1")
    age_wakes()
    with growth(alice, django_capture_on_commit_callbacks) as grown:
        reap()
    assert grown["pullwake_wakes_late_total"] == 1
    assert grown["pullwake_wakes_emitted_again_total"] == 1
    assert grown["pullwake_entities_retried_total"] == 1


def test_it_says_what_an_autoscaler_goes_by(alice):
    r1 = RunnerFactory.create(id="r1")
    EntityFactory.create_batch(2, pending=True, type="a", runner=r1)
    EntityFactory.create(pending=True, type="b", runner=None)
    late = EntityFactory.create(pending=True, type="a", runner=r1)
    DispatchState.objects.filter(entity=late).update(retry_at=Now() + timedelta(hours=1))
    ConsumerClaimFactory.create(entity__runner=r1, entity__type="a")
    found = figures(alice)
    assert found['pullwake_work_waiting{runner="r1",type="a"}'] == 2
    assert found['pullwake_work_waiting{runner="(none)",type="b"}'] == 1
    assert found['pullwake_work_in_flight{runner="r1",type="a"}'] == 1


def test_what_is_past_the_bound_has_one_name(alice, settings, django_capture_on_commit_callbacks):
    settings.PULLWAKE_METRICS_NAMES = 1
    for number, name in enumerate("aabbbc"):
        EntityFactory.create(pending=True, type=name, runner__id=f"of-{name}-{number}")
    found = {name: value for name, value in figures(alice).items() if "work_waiting" in name}
    assert sum(found.values()) == 6
    assert found['pullwake_work_waiting{runner="(other)",type="(other)"}'] == 5
    names = Names()
    assert [names(each) for each in "abab"] == ["a", OTHER, "a", OTHER]


def test_it_names_the_version_that_pyproject_and_the_schema_do(alice):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    schema = alice.get("/_electric/openapi.json").body
    (build,) = [name for name in figures(alice) if name.startswith("pullwake_build_info")]
    assert f'version="{project["version"]}"' in build
    assert schema["info"]["version"] == project["version"]


# --- Of a server's workers ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def scraped(servers: Servers) -> str:
    """What a server tells of whose workers have answered twenty requests, once it holds a read."""
    server = servers.lend(WEB_CONCURRENCY=2)
    api = make_idle(server.client())
    for _ in range(19):
        # Each over a connection of its own, which either worker takes.
        assert Api.get(server.client(), "/_electric/runners/r1").status == 200
    assert api.get("/_electric/runners/r1").status == 200
    with closing(Held(server, long_poll(tail(api))).connection):

        def seen() -> str:
            text: str = server.client().get("/metrics").content.decode()
            pool = settings.SQLITE or "pullwake_db_pool_max_connections 32.0" in text
            held = 'pullwake_held_reads{mode="long-poll"} 1.0' in text
            return text if held and pool and "pullwake_worker_open_fds" in text else ""

        found: str = wait_until(seen)
    return found


def test_workers_are_counted_together(scraped):
    labels = 'method="GET",route="/_electric/runners/:runner_id",status="200"'
    assert f"pullwake_http_requests_total{{{labels}}} 20.0" in scraped
    workers = re.findall(
        r'^pullwake_worker_resident_memory_bytes{pid="(\d+)"}', scraped, re.MULTILINE
    )
    assert len(workers) == (1 if settings.SQLITE else 2)
    assert re.search(r"^pullwake_worker_cpu_seconds_total [\d.]+$", scraped, re.MULTILINE)
    assert re.search(r'^pullwake_reaper_rounds_total{outcome="done"} [1-9]', scraped, re.MULTILINE)
    assert "pullwake_listener_up 1.0" in scraped


@pytest.mark.promtool
def test_promtool_finds_nothing_to_say(scraped):
    command = ["promtool", "check", "metrics"]
    linted = subprocess.run(command, input=scraped, capture_output=True, text=True)
    assert (linted.returncode, linted.stdout, linted.stderr) == (0, "", "")


def test_each_metric_is_in_the_docs_and_each_of_the_docs_is_there(scraped):
    told = set(re.findall(r"^# HELP (\S+) ", scraped, re.MULTILINE))
    counted = {metric.name for metric in REGISTRY.collect()}
    page = (ROOT / "docs" / "metrics.md").read_text()
    listed = set(re.findall(r"^\| `(pullwake_\w+)`", page, re.MULTILINE))
    # A counter's family has its name without the suffix here, and with it in the text.
    whole = {f"{name}_total" if f"{name}_total" in listed else name for name in counted}
    assert listed == told | whole


@pytest.mark.anew
def test_a_worker_that_is_gone_tells_nothing_of_its_present_and_leaves_what_it_counted(
    start_server,
):
    server = start_server()
    api = server.client()
    api.register()
    labels = 'method="POST",route="/_electric/runners",status="201"'

    def scrape() -> str:
        text: str = server.client().get("/metrics").content.decode()
        return text

    worker = re.compile(r'^pullwake_worker_open_fds{pid="(\d+)"}', re.MULTILINE)
    (pid,) = wait_until(lambda: worker.findall(scrape()))
    os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: server._ready() and worker.findall(scrape()) not in ([], [pid]))
    (pid,) = worker.findall(scrape())
    assert f"pullwake_http_requests_total{{{labels}}} 1.0" in scrape()
    os.kill(server.process.pid, signal.SIGHUP)
    wait_until(lambda: server._ready() and worker.findall(scrape()) not in ([], [pid]))
    assert f"pullwake_http_requests_total{{{labels}}} 1.0" in scrape()


@pytest.mark.anew
def test_a_server_that_stops_leaves_no_file(start_server, tmp_path):
    server = start_server(TMPDIR=tmp_path)
    assert len(list(tmp_path.glob("pullwake-metrics-*"))) == 1
    server.stop()
    assert not list(tmp_path.glob("pullwake-metrics-*"))
