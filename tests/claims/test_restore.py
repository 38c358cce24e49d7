"""After a restore no epoch is given that was given before."""

from io import StringIO

import pytest
from django.core.management import call_command
from django.db import transaction

from dispatch.models import DispatchState, Wake
from runners.models import WakeStream


def after_restore():
    said = StringIO()
    call_command("after_restore", stdout=said)
    return said.getvalue().strip()


@pytest.fixture
def backup(alice):
    """Of /agent/e1 with a claim, /agent/e2 with a wake, /agent/e3 without work."""
    alice.register()
    for name in ("e1", "e2", "e3"):
        alice.make_entity(f"/agent/{name}")
    alice.send("/agent/e1")
    return alice, alice.claim()


class HandedOut:
    """Every epoch that was handed out, in whichever course of events."""

    def __init__(self, api):
        self.api = api
        self.epochs = set()

    def claim(self):
        claim = self.api.claim()
        key = (claim.body["entity"]["url"], claim.epoch)
        assert key not in self.epochs
        self.epochs.add(key)
        return claim


def test_no_epoch_is_given_twice_however_often_a_backup_is_restored(backup):
    api, claim = backup
    api.send("/agent/e2")
    handed_out = HandedOut(api)
    for restored in range(3):
        with transaction.atomic():
            if restored:
                assert after_restore() == "fenced 1 claims, woke 2 entities"
                assert claim.heartbeat().error == "FENCED"
                handed_out.claim().done()
            else:
                claim.done()
            handed_out.claim().done()
            for _ in range(3):
                for name in ("e1", "e2", "e3"):
                    api.send(f"/agent/{name}")
                    handed_out.claim().done()
            # What came after the backup is lost.
            transaction.set_rollback(True)


def test_what_a_runner_read_up_to_is_not_past_the_new_wakes(backup):
    before = WakeStream.objects.get().tail
    after_restore()
    (wake,) = Wake.objects.outstanding()
    assert wake.offset > before + 10**12
    assert DispatchState.objects.get(entity__url="/agent/e1").active_epoch is None


def test_it_may_be_repeated(backup):
    assert after_restore() == "fenced 1 claims, woke 1 entities"
    assert after_restore() == "fenced 0 claims, woke 1 entities"
