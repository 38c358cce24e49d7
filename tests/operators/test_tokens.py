"""Access tokens: issued once, shown once, revoked."""

from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.utils import timezone

from runners.models import AccessToken
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
    return next(word for word in text(response).split() if word.startswith("pwa_"))


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
    token = AccessToken.objects.get()
    page = superuser.get(f"{TOKENS}{token.pk}/change/").content.decode()
    assert token.last_used_at is not None
    assert token.last_used_at.isoformat(timespec="milliseconds") in page
