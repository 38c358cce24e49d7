"""manage.py revoke_token."""

from datetime import timedelta
from io import StringIO

import pytest
from django.contrib.admin.models import LogEntry
from django.core.management import CommandError, call_command

from claims.models import ConsumerClaim
from runners import tokens
from runners.models import AccessToken
from tests.factories import AccessTokenFactory, ConsumerClaimFactory, RunnerFactory


@pytest.fixture
def revoke(db, monkeypatch):
    """Run the command in process: what it says."""
    monkeypatch.setattr(tokens, "REMEMBERED", timedelta(0))

    def run(*args):
        out = StringIO()
        call_command("revoke_token", *map(str, args), stdout=out)
        return out.getvalue().strip()

    return run


def test_it_revokes_by_number_once_and_leaves_an_entry(revoke):
    token = AccessTokenFactory.create(label="laptop")
    said = f"The token {token.pk} of user:alice (laptop) is revoked."
    assert revoke(token.pk) == said
    assert not AccessToken.objects.valid().exists()
    assert LogEntry.objects.get().change_message == "Revoked by manage.py revoke_token."
    with pytest.raises(CommandError, match="was revoked before"):
        revoke(token.pk)


def test_it_revokes_by_the_token_itself(revoke, monkeypatch):
    AccessTokenFactory.create(secret="pwa_leaked")
    monkeypatch.setattr("sys.stdin", StringIO("pwa_leaked\n"))
    assert "is revoked" in revoke("-")


@pytest.mark.parametrize("said", ["12345", "pwa_leaked", "", "9" * 30])
def test_it_says_what_is_no_token(revoke, said):
    with pytest.raises(CommandError, match=r"no such token|Name it"):
        revoke(said)


@pytest.mark.parametrize(("runner", "left"), [("r1", ["r2", "bobs"]), (None, ["bobs"])])
def test_it_fences_what_the_token_may_hold(revoke, runner, left):
    token = AccessTokenFactory.create(runner_id=runner)
    for runner_id in ("r1", "r2"):
        ConsumerClaimFactory.create(entity__runner=RunnerFactory.create(id=runner_id))
    bobs = RunnerFactory.create(id="bobs", owner_principal="/principal/user%3Abob")
    ConsumerClaimFactory.create(entity__runner=bobs)
    taken = "1 claim" if runner else "2 claims"
    assert f"would be revoked, and {taken} taken back" in revoke(token.pk, "--fence", "--dry-run")
    assert AccessToken.objects.valid().exists()
    assert f"is revoked, and {taken} taken back." in revoke(token.pk, "--fence")
    held = ConsumerClaim.objects.active().order_by("pk").values_list("runner", flat=True)
    assert list(held) == left
    assert f"and {taken} taken back" in LogEntry.objects.get().change_message
