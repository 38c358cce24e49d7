"""GET /metrics."""

import re

import pytest

from tests.factories import ConsumerClaimFactory, EntityFactory, RunnerFactory, WakeFactory
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


def test_it_is_for_principals_alone(db, settings):
    settings.DEVELOPMENT = False
    assert Api().get("/metrics").status == 401
