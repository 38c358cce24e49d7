"""Who stands out: failures by runner and error, entities that talk, claims that write nothing."""

from datetime import timedelta

import pytest
from django.utils import timezone

from claims import outliers
from claims.models import ConsumerClaim
from claims.outliers import Failures
from dispatch.models import StreamEvent
from runners.models import Runner
from tests.factories import (
    ConsumerClaimFactory,
    EntityFactory,
    RunnerFactory,
    StreamEventFactory,
    ago,
)

pytestmark = pytest.mark.django_db

KEY = "KeyError: 'OPENAI_API_KEY'"


def ended(number, status="failed", **facts):
    for _ in range(number):
        ConsumerClaimFactory.create(**{status: True}, **facts)


@pytest.fixture
def bad_deploy():
    """A runner whose every claim fails for one reason, of two entities."""
    runner = RunnerFactory.create(id="bad-deploy", online=True)
    for number in (1, 2):
        entity = EntityFactory.create(url=f"/agent/e{number}", pending=True, runner=runner)
        ended(2, entity=entity, error=f"{KEY}\n  at line {number}")
    return runner


def test_failures_are_told_by_runner_and_error(bad_deploy):
    fine = RunnerFactory.create(id="fine", online=True)
    ended(5, "released", entity__runner=fine)
    ended(2, entity__runner=fine, error="too few to tell")
    (found,) = outliers.failures(timezone.now(), 5)
    assert found == Failures(
        "bad-deploy",
        "bad-deploy",
        KEY,
        failed=4,
        entities=2,
        ended=4,
        enabled=True,
        serves=True,
    )


def test_what_it_released_counts_and_what_failed_long_ago_does_not(bad_deploy):
    ended(3, "released", entity__runner=bad_deploy)
    ended(6, entity__runner=bad_deploy, error=KEY)
    old = ConsumerClaim.objects.filter(status="failed").order_by("-pk")[:6]
    ConsumerClaim.objects.filter(pk__in=list(old.values_list("pk", flat=True))).update(
        claimed_at=ago(hours=3), ended_at=ago(hours=2)
    )
    (found,) = outliers.failures(timezone.now(), 5)
    assert (found.failed, found.ended) == (4, 7)


def test_failures_of_a_runner_that_is_gone_are_told_by_its_name(bad_deploy):
    ConsumerClaim.objects.update(runner=None)
    (found,) = outliers.failures(timezone.now(), 5)
    assert (found.runner_id, found.runner_name, found.ended) == (None, "bad-deploy", 4)
    assert (found.enabled, found.serves) == (False, False)


def test_who_is_claimed_most_is_told_with_claims_an_hour():
    talker = EntityFactory.create(url="/agent/talker", pending=True)
    ended(40, "released", entity=talker)
    ended(2, "released")
    (found,) = outliers.talkers(timezone.now(), 5)
    assert (found.url, found.claims, found.of, found.an_hour) == ("/agent/talker", 40, 42, 40.0)


def test_a_sample_that_covers_less_than_an_hour_is_extrapolated(monkeypatch):
    monkeypatch.setattr(outliers, "SAMPLE", 10)
    ended(20, "released", entity=EntityFactory.create(pending=True))
    ConsumerClaim.objects.update(claimed_at=ago(minutes=6))
    (found,) = outliers.talkers(timezone.now(), 5)
    assert found.claims == 10
    assert 95 < found.an_hour <= 101


def test_a_claim_that_heartbeats_and_writes_nothing_is_quiet():
    renewed = {"claimed_at": ago(minutes=20), "last_heartbeat_at": ago(seconds=5)}
    quiet = ConsumerClaimFactory.create(**renewed)
    writer = ConsumerClaimFactory.create(**renewed)
    silent = ConsumerClaimFactory.create(**renewed)
    ConsumerClaimFactory.create(last_heartbeat_at=ago(seconds=5))  # not for long yet
    ConsumerClaimFactory.create(claimed_at=ago(minutes=20))  # renewed by nobody
    lapsed = {**renewed, "lease_expires_at": ago(seconds=1)}
    ConsumerClaimFactory.create(**lapsed)
    StreamEventFactory.create(entity=writer.entity, offset=3)
    StreamEventFactory.create(entity=silent.entity, offset=3, created_at=ago(minutes=15))
    StreamEventFactory.create(entity=silent.entity, offset=4, message=True)  # sent to it
    StreamEvent.objects.filter(offset=1).update(created_at=ago(minutes=30))
    found = ConsumerClaim.objects.quiet().order_by("pk")
    assert list(found) == [quiet, silent]


def test_it_looks_at_no_more_than_its_sample(bad_deploy, django_assert_num_queries):
    with django_assert_num_queries(2):
        outliers.failures(timezone.now(), 5)
    with django_assert_num_queries(1):
        outliers.talkers(timezone.now() + timedelta(minutes=1), 5)
    Runner.objects.all().delete()
