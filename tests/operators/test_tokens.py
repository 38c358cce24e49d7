"""Access tokens: issued once, shown once, revoked."""

import re
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.utils import timezone

from claims.models import ConsumerClaim
from runners import tokens
from runners.models import AccessToken
from tests.factories import AccessTokenFactory
from tests.operators.test_verbs import do, text
from tests.support import Api

TOKENS = "/admin/runners/accesstoken/"


@pytest.fixture
def superuser(people):
    """A superuser's browser."""
    return people["superuser"]


def issue(browser, **form):
    return browser.post(
        f"{TOKENS}issue/", {"principal": "user:carol", "label": "laptop", "days": "30", **form}
    )


def secret_in(response):
    return next(word for word in text(response).split() if word.startswith(("pwa_", "pwm_")))


def test_it_issues_a_token_that_opens_the_api(superuser, settings):
    settings.DEVELOPMENT = False
    secret = secret_in(issue(superuser))
    carol = Api(Authorization=f"Bearer {secret}")
    assert carol.register("carols")["owner_principal"] == "/principal/user%3Acarol"


def test_it_shows_the_secret_once_and_keeps_it_nowhere(superuser):
    issued = issue(superuser)
    secret = secret_in(issued)
    assert "no-store" in issued.headers["Cache-Control"]
    token = AccessToken.objects.get()
    for page in (
        TOKENS,
        f"{TOKENS}{token.pk}/change/",
        f"{TOKENS}issue/",
        "/admin/admin/logentry/",
    ):
        assert secret not in superuser.get(page).content.decode()
    assert secret not in str(LogEntry.objects.values())


def test_from_where_a_token_was_not_used_is_no_value(superuser):
    AccessTokenFactory.create()
    page = superuser.get(TOKENS).content.decode()
    said = re.search(r'<td class="field-from[^>]*>(.*?)</td>', page, re.DOTALL)
    assert said is not None
    assert "pw-none" in said[1]


@pytest.mark.parametrize(("days", "lasts"), [("30", timedelta(days=30)), ("0", None)])
def test_it_lasts_as_long_as_was_asked(superuser, days, lasts):
    issue(superuser, days=days)
    expires_at = AccessToken.objects.get().expires_at
    if lasts is None:
        assert expires_at is None
    else:
        assert expires_at is not None
        assert abs(expires_at - timezone.now() - lasts) < timedelta(minutes=1)


@pytest.mark.parametrize("principal", ["carol", "robot:carol", "", "user:"])
def test_it_issues_none_to_what_is_no_principal(superuser, principal):
    assert issue(superuser, principal=principal).status_code == 200
    assert not AccessToken.objects.exists()


def test_it_revokes(superuser):
    secret = secret_in(issue(superuser))
    token = AccessToken.objects.get()
    assert "1 done (revoked)" in do(superuser, TOKENS, "revoke", token.pk)
    assert "It has already been revoked." in do(superuser, TOKENS, "revoke", token.pk)
    assert Api(Authorization=f"Bearer {secret}").get("/_electric/runners").error == "UNAUTHORIZED"


def test_it_shows_the_last_use(superuser):
    secret = secret_in(issue(superuser))
    assert AccessToken.objects.get().last_used_at is None
    Api(Authorization=f"Bearer {secret}").get("/_electric/runners")
    tokens.note_uses()
    token = AccessToken.objects.get()
    page = superuser.get(f"{TOKENS}{token.pk}/change/").content.decode()
    assert token.last_used_at is not None
    assert token.last_used_at.isoformat(timespec="milliseconds") in page
    assert "from 127.0.0.1" in page


def test_it_is_for_one_runner(superuser):
    issue(superuser, runner="r1")
    token = AccessToken.objects.get()
    assert token.runner_id == "r1"
    assert re.search("runner.+r1.+alone", text(superuser.get(f"{TOKENS}{token.pk}/change/")))
    assert "not the id of a runner" in text(issue(superuser, runner="no id"))


@pytest.mark.parametrize(("days", "offered"), [(0, "until it is revoked"), (7, "7 days")])
def test_the_setting_is_what_is_offered_first(superuser, settings, days, offered):
    settings.PULLWAKE_TOKEN_DAYS = days
    page = superuser.get(f"{TOKENS}issue/").content.decode()
    assert re.search(rf"<option value=\"{days}\" selected>{offered}<", page)


@pytest.mark.parametrize(("runner", "left"), [("r1", ["r2"]), (None, [])])
def test_it_revokes_and_takes_back_what_the_token_may_hold(
    superuser, alice, monkeypatch, runner, left
):
    monkeypatch.setattr(tokens, "REMEMBERED", timedelta(0))
    token = AccessTokenFactory.create(runner_id=runner)
    for runner_id in ("r1", "r2"):
        alice.register(runner_id)
        alice.make_entity(f"/agent/{runner_id}", runner_id, initialMessage="hi")
        alice.claim(runner_id)
    whose = "runner r1" if runner else "all 2 runners of user:alice"
    verb = f"{TOKENS}do/revoke-and-fence/"
    asked = text(superuser.get(verb, {"pk": token.pk}))
    assert f"{2 - len(left)} active claim" in asked
    assert f"of {whose} will be taken back" in asked
    assert AccessToken.objects.valid().exists()
    do(superuser, TOKENS, "revoke-and-fence", token.pk)
    assert not AccessToken.objects.valid().exists()
    held = ConsumerClaim.objects.active().values_list("runner", flat=True)
    assert list(held) == left
    assert [each["stream"] for each in alice.wakes("r1")] == ["agent/r1/main"]
    assert LogEntry.objects.get().user.username == "superuser"


def test_it_is_for_metrics(superuser):
    secret = secret_in(issue(superuser, scope="metrics"))
    token = AccessToken.objects.get()
    assert secret.startswith("pwm_")
    assert "/metrics alone" in text(superuser.get(f"{TOKENS}{token.pk}/change/"))
    assert "metrics" in text(superuser.get(TOKENS))
    assert "for one runner, or for metrics" in text(issue(superuser, scope="metrics", runner="r1"))
    assert "1 done (revoked, and 0 claims" in do(superuser, TOKENS, "revoke-and-fence", token.pk)
