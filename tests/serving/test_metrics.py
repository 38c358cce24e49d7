"""GET /metrics."""

import re

import pytest
from django.db.models import F

from claims.models import ConsumerClaim
from tests.support import Api

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
    alice.register()
    alice.post("/_electric/runners/r1/heartbeat")
    for name in ("held", "done", "woken"):
        alice.make_entity(f"/agent/{name}")
        alice.send(f"/agent/{name}")
        if name == "held":
            alice.claim()
            ConsumerClaim.objects.update(lease_expires_at=F("claimed_at"))
        if name == "done":
            alice.claim().done()
    alice.make_entity("/agent/stranded", runner_id=None)
    alice.send("/agent/stranded")
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


def test_it_is_for_principals_alone(db, settings):
    settings.DEVELOPMENT = False
    assert Api().get("/metrics").status == 401
