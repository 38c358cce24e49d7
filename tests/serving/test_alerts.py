"""The alerts of deploy/prometheus, each on a fault that was made, by Prometheus's own promtool.

What a server tells before and after the fault is given to promtool as if it had gone on so: gauges
as they were after it, counters growing by as much each minute.
"""

import json
import re
import subprocess
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from django.db.models.functions import Now
from prometheus_client.parser import text_string_to_metric_families

from api.runners import RunnerView
from claims.metrics import CLAIM_WORK
from claims.models import ServerPulse
from claims.reaper import reap
from config.serving import requests
from dispatch.metrics import LISTENER_UP
from dispatch.models import Wake
from dispatch.streams import waiters
from tests.factories import (
    ConsumerClaimFactory,
    EntityFactory,
    ServerPulseFactory,
    TimerFactory,
    WakeFactory,
)
from tests.serving.test_database_away import away
from tests.support import ROOT, Api, lapse, wait_until

pytestmark = pytest.mark.promtool

RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "pullwake.json"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], tuple[float, bool]]
"""By name and labels a value, and whether it only grows."""


@pytest.fixture(scope="module", autouse=True)
def _nothing_counted() -> None:
    """Other tests of this process have left thousands of series, for promtool to read through."""
    for metric, children in (
        (requests.REQUESTS, requests._requests),
        (requests.DURATION, requests._duration),
    ):
        metric.clear()
        children.cache_clear()


def scrape(api: Api) -> str:
    answer = api.get("/metrics")
    assert answer.status == 200, answer
    text: str = answer.content.decode()
    return text


def samples(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        grows = family.type in ("counter", "histogram")
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = (sample.value, grows)
    return found


def firing(folder: Path, before: str, after: str, *, up: bool = True) -> set[str]:
    """The alerts that fire 30 minutes into this; the job and the instance are Prometheus's own."""
    old, new = samples(before), samples(after)
    target = {"job": "pullwake", "instance": "a:8000"}
    series = [{"series": _series("up", target), "values": f"{int(up)}x60"}]
    for (name, labels), (value, grows) in new.items():
        step = value - old.get((name, labels), (0.0, grows))[0] if grows else 0.0
        values = f"{value:f}+{step:f}x60" if step else f"{value:f}x60"
        series.append({"series": _series(name, {**dict(labels), **target}), "values": values})
    expr = 'count by (alertname) (ALERTS{alertstate="firing"})'
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                # What is expected is nobody: promtool says what there is instead.
                "promql_expr_test": [
                    {"expr": expr, "eval_time": "30m", "exp_samples": [{"labels": "{a='b'}"}]}
                ],
            }
        ],
    }
    path = folder / "test.yml"
    path.write_text(json.dumps(test))
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True)
    assert "got:" in done.stderr + done.stdout, done
    _, _, got = (done.stderr + done.stdout).partition("got:")
    return set(re.findall(r'alertname=\\?"(\w+)', got))


def _series(name: str, labels: dict[str, str]) -> str:
    quoted = ", ".join(f"{key}={json.dumps(value)}" for key, value in labels.items())
    return f"{name}{{{quoted}}}"


# --- Faults in the rows ------------------------------------------------------------------------


def orphan() -> None:
    ConsumerClaimFactory.create(entity__runner__online=False)


def leave_a_wake() -> None:
    wake = WakeFactory.create()
    Wake.objects.filter(pk=wake.pk).update(created_at=Now() - timedelta(minutes=4))


def fail_twice() -> None:
    EntityFactory.create(failing=True)


def stop_the_reaper() -> None:
    ServerPulseFactory.create()
    ServerPulse.objects.update(reaped_at=Now() - timedelta(minutes=2))


FAULTS: dict[str, Callable[[], Any]] = {
    "PullwakeClaimsOrphaned": orphan,
    "PullwakeWakesUnclaimed": leave_a_wake,
    "PullwakeEntitiesFailing": fail_twice,
    "PullwakeReaperStopped": stop_the_reaper,
    "PullwakeWorkWithoutRunner": lambda: EntityFactory.create(pending=True, runner=None),
    "PullwakeTimersLate": lambda: TimerFactory.create(due_at=Now() - timedelta(minutes=1)),
}
IN_SERVERS = {
    "PullwakeDown",
    "PullwakeDatabaseDown",
    "PullwakeErrors",
    "PullwakeSlow",
    "PullwakePoolBusy",
    "PullwakeListenerDown",
    "PullwakeClaimsExpire",
}
"""Alerts with a test of their own below."""


def alerts() -> dict[str, Any]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def test_each_alert_has_a_fault_and_a_page_in_the_runbook():
    assert set(alerts()) == {*FAULTS, *IN_SERVERS}
    page = (ROOT / "docs" / "alerts.md").read_text()
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == list(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"


@pytest.mark.parametrize("alert", FAULTS)
def test_it_fires_on_its_fault_alone_and_not_before(alice, tmp_path, alert):
    before = scrape(alice)
    assert firing(tmp_path, before, before) == set()
    FAULTS[alert]()
    assert firing(tmp_path, before, scrape(alice)) == {alert}


def test_expiring_claims_are_told(alice, tmp_path, django_capture_on_commit_callbacks):
    CLAIM_WORK.labels("agent", "released")
    alice.register()
    alice.make_entity(initialMessage="hi")
    claim = alice.claim()
    before = scrape(alice)
    lapse(claim)
    with django_capture_on_commit_callbacks(execute=True):
        assert reap().expired == 1
    assert firing(tmp_path, before, scrape(alice)) == {"PullwakeClaimsExpire"}


def test_a_listener_without_a_connection_is_told(alice, tmp_path, monkeypatch):
    hub = waiters.Hub()

    def refuse() -> Any:
        hub.closing = True
        raise psycopg.OperationalError("connection refused")

    before = scrape(alice)
    monkeypatch.setattr(waiters, "connect", refuse)
    waiters._PostgresListener(hub).run()
    assert hub.is_deaf  # which the overview says
    try:
        assert firing(tmp_path, before, scrape(alice)) == {"PullwakeListenerDown"}
    finally:
        LISTENER_UP.set(1)


def test_errors_are_told(alice, tmp_path, monkeypatch):
    before = scrape(alice)
    monkeypatch.setattr(RunnerView, "find", None)
    assert alice.get("/_electric/runners/r1").status == 500
    assert firing(tmp_path, before, scrape(alice)) == {"PullwakeErrors"}


# --- Faults of servers -------------------------------------------------------------------------


def test_a_server_that_is_gone_is_told(mortal, tmp_path):
    before = scrape(mortal.client())
    assert firing(tmp_path, before, before) == set()
    mortal.kill()
    assert firing(tmp_path, "", "", up=False) == {"PullwakeDown"}


@pytest.mark.postgres
def test_a_database_that_is_gone_is_told(start_server, tmp_path):
    server = start_server(PULLWAKE_MODE="production", ALLOWED_HOSTS="127.0.0.1")
    issued = server.database.manage("create_token", "system:prometheus", "--metrics")
    (secret,) = re.findall(r"pwm_[\w-]+", issued.stdout)
    api = server.client(None, Authorization=f"Bearer {secret}")
    # As long as Prometheus waits, unless it is told otherwise.
    api.http.timeout = 10
    before = scrape(api)
    with away(server.database):
        assert api.get("/readyz").status == 503
        after = scrape(api)
    assert firing(tmp_path, before, after) >= {"PullwakeDatabaseDown"}


@pytest.mark.postgres
def test_a_lock_that_is_held_and_a_pool_that_is_dry_are_told(start_server, tmp_path):
    server = start_server(PULLWAKE_LOCK_TIMEOUT_MS=1500, PULLWAKE_DB_POOL=2)
    api = server.client()
    api.register()
    api.make_entity()
    before = scrape(api)
    statuses: list[int] = []

    def send() -> None:
        answer = server.client().post("/_electric/entities/agent/e1/send", {"payload": 1})
        statuses.append(answer.status)

    sending = [threading.Thread(target=send) for _ in range(6)]
    with server.database.hold("SELECT FROM dispatch_dispatchstate FOR UPDATE"):
        for thread in sending:
            thread.start()
        for thread in sending:
            thread.join()
    assert set(statuses) == {503}

    def told() -> set[str]:
        return firing(tmp_path, before, scrape(api))

    # Once its sampler has looked again.
    wait_until(lambda: told() >= {"PullwakeErrors", "PullwakeSlow", "PullwakePoolBusy"})


# --- The dashboard -----------------------------------------------------------------------------


def expressions() -> list[str]:
    board = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    assert len(found) > 30
    return [each.replace("$job", "pullwake").replace("$__rate_interval", "5m") for each in found]


def test_the_dashboard_asks_for_metrics_that_there_are_and_leaves_out_few(tmp_path):
    rules = [
        {"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(expressions())
    ]
    path = tmp_path / "panels.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    checked = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked
    page = (ROOT / "docs" / "metrics.md").read_text()
    listed = set(re.findall(r"^\| `(pullwake_\w+)` \| (\w+)", page, re.MULTILINE))
    names = {name if kind != "histogram" else f"{name}_bucket" for name, kind in listed}
    counts = {f"{name}_count" for name, kind in listed if kind == "histogram"}
    asked = set(re.findall(r"pullwake_\w+", " ".join(expressions())))
    assert asked <= names | counts
    rest = {"pullwake_claims_ended", "pullwake_runners", "pullwake_wakes_outstanding"}
    assert names - asked == rest
