"""What the factories make is what the database takes, and what the product reads as it is meant."""

from typing import Any

import pytest
from django.apps import apps
from django.db import connection
from factory.declarations import Trait
from factory.django import DjangoModelFactory

from claims import reaper
from claims.models import ConsumerClaim
from dispatch.models import DispatchState, Wake
from runners.models import AccessToken
from tests import factories
from tests.standing import APPS
from tests.support import Api

pytestmark = pytest.mark.django_db

FACTORIES: list[Any] = [
    each
    for each in vars(factories).values()
    if isinstance(each, type) and issubclass(each, DjangoModelFactory) and not each._meta.abstract
]
TRAITS = [
    pytest.param(each, traits, id=f"{each._meta.model.__name__} {' '.join(traits)}")
    for each in FACTORIES
    for traits in [
        (),
        *((name,) for name, what in each._meta.parameters.items() if isinstance(what, Trait)),
    ]
]


def test_there_is_a_factory_for_every_model():
    ours = {model for app in APPS for model in apps.get_app_config(app).get_models()}
    assert {each._meta.model for each in FACTORIES} == ours


@pytest.mark.parametrize(("made_by", "traits"), TRAITS)
def test_every_trait_makes_a_row(made_by, traits):
    made = made_by.create(**dict.fromkeys(traits, True))
    assert type(made).objects.filter(pk=made.pk).exists()
    connection.check_constraints()


def test_a_claim_is_one_that_the_api_takes(alice: Api):
    claim = factories.handle(alice, entity__url="/agent/e1")
    assert claim.heartbeat().status == 200
    assert claim.append({"type": "line"}, token=claim.mint()).status == 204
    assert claim.done(claim.tail).body == {"ok": True, "next_wake": False, "entity_cleared": True}
    assert alice.status("/agent/e1") == "idle"


def test_a_wake_is_one_that_a_runner_gets(alice: Api):
    wakes = factories.WakeFactory.create_batch(
        2, entity__runner=factories.RunnerFactory.create(id="r1")
    )
    assert [each["generation"] for each in alice.wakes()] == [1, 1]
    claim = alice.claim()
    assert claim.body["consumerId"] == wakes[0].wake_id
    assert [each["type"] for each in alice.events(wakes[0].entity.url)] == [
        "entity_created",
        "inbox",
    ]


def test_a_queued_message_is_work_that_a_handler_may_take(alice: Api):
    queued = factories.EntityFactory.create(url="/agent/e1", queued=True)
    claim = factories.handle(alice, entity=queued)
    assert DispatchState.objects.pending().get().pk == queued.pk
    key = alice.events()[1]["key"]
    taken = {"type": "inbox", "key": key, "value": {"status": "processed"}}
    headers = {"operation": "update"}
    assert claim.append({**taken, "headers": headers}, token=claim.mint()).status == 204
    assert claim.done().body == {"ok": True, "next_wake": False, "entity_cleared": True}


def test_what_lapsed_is_reaped(alice: Api):
    factories.ServerPulseFactory.create()
    factories.ConsumerClaimFactory.create(lapsed=True)
    factories.WakeFactory.create(stale=True)
    assert reaper.reap() == reaper.Round(expired=1, reemitted=1)


@pytest.mark.parametrize("trait", ["lapsed", "orphaned"])
def test_an_orphan_is_an_orphan(trait):
    factories.ConsumerClaimFactory.create()
    orphan = factories.ConsumerClaimFactory.create(**{trait: True})
    assert list(ConsumerClaim.objects.orphaned()) == [orphan]


def test_work_and_state_are_told(alice: Api):
    factories.EntityFactory.create(pending=True, paused=True)
    factories.EntityFactory.create(pending=True, runner=None)
    factories.EntityFactory.create(pending=True, failing=True)
    factories.WakeFactory.create()
    states = DispatchState.objects
    counted = [states.pending(), states.stranded(), states.failing(), Wake.objects.outstanding()]
    assert [each.count() for each in counted] == [4, 1, 1, 1]


def test_a_token_opens_while_it_is_valid():
    valid = factories.AccessTokenFactory.create(secret="pwa_known")
    factories.AccessTokenFactory.create(expired=True)
    factories.AccessTokenFactory.create(revoked=True)
    assert list(AccessToken.objects.valid()) == [valid]
    assert Api(Authorization="Bearer pwa_known").get("/_electric/runners").status == 200
