"""The one-time login of development mode: once, for a day, and nobody makes it up."""

from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from django.contrib.auth.models import User
from django.contrib.auth.tokens import default_token_generator
from django.contrib.sessions.models import Session
from django.core.management import CommandError, call_command
from django.db.models.functions import Now
from django.test import Client

from operators.login import one_time_path


@pytest.fixture
def path(db):
    """The address that a server prints."""
    return one_time_path()


def test_it_logs_the_developer_in_once(path, caplog):
    caplog.set_level("INFO", "pullwake.audit")
    browser = Client()
    assert browser.get(path).headers["Location"] == "/admin/"
    assert browser.get("/admin/").status_code == 200
    assert Client().get(path).status_code == 404
    (line,) = (each for each in caplog.records if each.name == "pullwake.audit")
    assert (line.target, line.answer) == ("/admin/login-once/<str:token>/", "ok")


def test_nobody_makes_it_up_who_knows_the_secret_key(path):
    developer = User.objects.get(username="developer")
    made_up = default_token_generator.make_token(developer)
    assert Client().get(f"/admin/login-once/{made_up}/").status_code == 404


def test_its_secret_is_kept_nowhere_and_its_hash_opens_nothing(path):
    secret = path.split("/")[-2]
    (kept,) = Session.objects.values_list("session_key", flat=True)
    assert secret not in str(Session.objects.values())
    assert Client().get(f"/admin/login-once/{kept}/").status_code == 404
    browser = Client()
    browser.cookies["sessionid"] = kept
    assert browser.get("/admin/").status_code == 302


def test_it_is_for_a_day(path):
    Session.objects.update(expire_date=Now() - timedelta(seconds=1))
    assert Client().get(path).status_code == 404


def test_it_is_not_there_in_production(path, settings):
    settings.DEVELOPMENT = False
    assert Client().get(path).status_code == 404


def test_each_server_has_its_own(path):
    another = one_time_path()
    assert Client().get(another).status_code == 302
    assert Client().get(path).status_code == 302


def test_a_developer_who_was_retired_is_back(path):
    User.objects.update(is_active=False)
    browser = Client()
    browser.get(one_time_path())
    assert browser.get("/admin/").status_code == 200


def test_who_only_looks_does_not_spend_it(path):
    assert Client().head(path).status_code == 405
    assert Client().get(path).status_code == 302


def test_a_command_gives_another(path, capsys):
    call_command("login_once")
    printed = capsys.readouterr().out.strip()
    assert printed.startswith("http://127.0.0.1:8000/admin/login-once/")
    assert Client().get(urlsplit(printed).path).status_code == 302


def test_the_command_is_for_development_alone(db, settings):
    settings.DEVELOPMENT = False
    with pytest.raises(CommandError):
        call_command("login_once")
