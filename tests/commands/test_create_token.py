"""manage.py create_token."""

from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from core.identifiers import hash_secret
from core.principals import Principal
from runners import tokens
from runners.models import AccessToken


@pytest.fixture
def create(db):
    """Run the command in process: the token it prints."""

    def run(*args):
        out = StringIO()
        call_command("create_token", *args, stdout=out, stderr=StringIO())
        return out.getvalue().strip()

    return run


def test_it_shows_the_token_once_and_keeps_its_hash(database):
    done = database.manage("create_token", "user:alice", "--label", "laptop")

    assert done.returncode == 0
    secret = done.stdout.removesuffix("\n")
    assert secret.startswith("pwa_")
    assert secret not in done.stderr
    assert "user:alice, valid until it is revoked; it is not shown again" in done.stderr
    (row,) = database.execute(
        "SELECT principal, token_hash, label, expires_at FROM runners_accesstoken"
    )
    assert row == ("/principal/user%3Aalice", hash_secret(secret), "laptop", None)
    assert secret not in str(database.execute("SELECT * FROM runners_accesstoken"))


@pytest.mark.parametrize("name", ["user:alice", "/principal/user%3Aalice", "/principal/user:alice"])
def test_it_takes_a_principal_in_every_form(create, name):
    token = tokens.verify(create(name))
    assert token is not None
    assert token.principal == Principal("user", "alice")


def test_each_is_another(create):
    assert create("user:alice") != create("user:alice")
    assert AccessToken.objects.count() == 2


@pytest.mark.parametrize("name", ["alice", "", "robot:alice", "/principal/local-desktop", "user:"])
def test_it_refuses_what_is_no_principal(create, name):
    with pytest.raises(CommandError, match="is not a principal"):
        create(name)
    assert not AccessToken.objects.exists()


@pytest.mark.parametrize(
    ("expires", "days"),
    [
        ("30", 30),
        ("P30D", 30),
        ("12:00:00", 0.5),
        ("PT12H", 0.5),
        ("1 00:00:00", 1),
        ("3650", 3650),
    ],
)
def test_it_takes_a_duration(create, expires, days):
    create("user:alice", "--expires", expires)
    token = AccessToken.objects.get()
    assert token.expires_at is not None
    length = token.expires_at - token.created_at
    assert abs(length - timedelta(days=days)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("expires", "at"),
    [
        ("2099-01-31T00:00Z", datetime(2099, 1, 31, tzinfo=UTC)),
        ("2099-01-31T00:00", datetime(2099, 1, 31, tzinfo=UTC)),
        ("2099-01-31 02:00+02:00", datetime(2099, 1, 31, tzinfo=UTC)),
    ],
)
def test_it_takes_a_time(create, expires, at):
    create("user:alice", "--expires", expires)
    assert AccessToken.objects.get().expires_at == at


@pytest.mark.parametrize(
    "expires",
    [
        "0",
        "-1",
        "-P1D",
        "2020-01-01T00:00Z",
        "tomorrow",
        "2099-02-30T00:00Z",
        "9" * 30,
        "P99999999D",
    ],
)
def test_it_refuses_what_is_no_time_to_come(create, expires):
    with pytest.raises(CommandError, match="is not a time to come"):
        create("user:alice", f"--expires={expires}")
    assert not AccessToken.objects.exists()


def test_in_production_it_expires_unless_told_otherwise(create, settings):
    settings.PULLWAKE_TOKEN_DAYS = 90
    create("user:alice")
    create("user:bob", "--expires", "never")
    token, never = AccessToken.objects.order_by("pk")
    assert token.expires_at is not None
    assert abs(token.expires_at - token.created_at - timedelta(days=90)) < timedelta(minutes=1)
    assert never.expires_at is None


def test_it_is_for_one_runner(create):
    create("user:alice", "--runner", "r1")
    assert AccessToken.objects.get().runner_id == "r1"
    with pytest.raises(CommandError, match="is not the id of a runner"):
        create("user:alice", "--runner", "no id")


def test_a_token_opens_nothing_past_its_expiry(create):
    secret = create("user:alice", "--expires", "1")
    assert tokens.verify(secret) is not None
    tokens.forget()
    AccessToken.objects.update(
        created_at=datetime(2020, 1, 1, tzinfo=UTC), expires_at=datetime(2020, 1, 2, tzinfo=UTC)
    )
    assert tokens.verify(secret) is None


def test_a_label_that_is_too_long_is_an_error_in_a_sentence(create):
    with pytest.raises(CommandError, match="256"):
        create("user:alice", "--label", "x" * 257)


def test_it_issues_one_for_metrics(create):
    assert create("system:prometheus", "--metrics").startswith("pwm_")
    assert AccessToken.objects.get().scope == AccessToken.Scope.METRICS
    with pytest.raises(CommandError, match="or for metrics"):
        create("user:alice", "--metrics", "--runner", "r1")
