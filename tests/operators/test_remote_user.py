"""Operators whom a proxy has authenticated: PULLWAKE_REMOTE_USER_HEADER."""

import ipaddress
import logging

import pytest
from django.contrib.auth.models import User
from django.test import Client

PROXY, ELSEWHERE = "10.0.0.7", "10.0.0.8"


@pytest.fixture
def browser(db, settings):
    """A browser behind the proxy: ``browser("alice", "platform")``."""
    settings.PULLWAKE_REMOTE_USER_HEADER = "X-Forwarded-User"
    settings.PULLWAKE_REMOTE_USER_PROXIES = [ipaddress.ip_network(PROXY)]
    settings.PULLWAKE_OPERATOR_GROUPS = {"platform": "operators", "support": "viewers"}
    middleware = list(settings.MIDDLEWARE)
    place = middleware.index("django.contrib.auth.middleware.AuthenticationMiddleware") + 1
    settings.MIDDLEWARE = [
        *middleware[:place],
        "operators.remote_user.with_remote_user",
        *middleware[place:],
    ]
    client = Client()

    def get(name=None, groups="", path="/admin/", address=PROXY):
        said = {} if name is None else {"X-Forwarded-User": name, "X-Forwarded-Groups": groups}
        return client.get(path, headers=said, REMOTE_ADDR=address)

    return get


def roles(name):
    return set(User.objects.get(username=name).groups.values_list("name", flat=True))


def test_who_is_in_a_mapped_group_is_in(browser):
    assert browser("alice", "all, platform").status_code == 200
    assert roles("alice") == {"operators"}
    alice = User.objects.get(username="alice")
    assert alice.is_staff
    assert not alice.is_superuser
    assert not alice.has_usable_password()


def test_who_is_in_none_stays_out_and_leaves_no_account(browser):
    answer = browser("mallory", "all")
    assert answer.status_code == 403
    assert b"None of the groups" in answer.content
    assert not User.objects.filter(username="mallory").exists()


@pytest.mark.parametrize("address", [ELSEWHERE, ""])
def test_from_any_other_address_the_header_says_nothing(browser, address):
    assert browser("alice", "platform", address=address).status_code == 302
    assert not User.objects.exists()


def test_a_login_ends_with_the_header(browser):
    browser("alice", "platform")
    assert browser().status_code == 302
    assert browser("alice", "platform").status_code == 200
    assert browser("alice", "platform", address=ELSEWHERE).status_code == 302


def test_roles_follow_the_groups(browser):
    browser("alice", "platform")
    assert browser("alice", "support").status_code == 200
    assert roles("alice") == {"viewers"}
    assert browser("alice", "").status_code == 403
    assert browser("alice", "").status_code == 403
    assert roles("alice") == set()
    assert not User.objects.get(username="alice").is_staff


def test_another_name_is_another_login(browser):
    browser("alice", "platform")
    answer = browser("bob", "support")
    assert answer.wsgi_request.user.username == "bob"


@pytest.mark.parametrize("facts", [{"is_superuser": True}, {"password": "a local secret"}])
def test_a_local_account_is_not_to_be_had_this_way(browser, facts):
    User.objects.create_user("root", is_staff=True, **facts)
    answer = browser("root", "platform")
    assert answer.status_code == 403
    assert b"local account" in answer.content
    assert roles("root") == set()


def test_an_account_that_was_shut_stays_shut(browser):
    browser("alice", "platform")
    User.objects.update(is_active=False)
    browser()
    assert browser("alice", "platform").status_code == 403


@pytest.mark.parametrize("name", ["a/b", "two words", "ali\u202ece", "ali\ud800"])
def test_a_name_that_cannot_be_kept_is_refused(browser, name):
    assert browser(name, "platform").status_code == 403


def test_nobody_is_logged_in_outside_the_admin(browser):
    browser("alice", "platform", path="/")
    assert not User.objects.exists()


def test_each_login_is_a_line_of_the_audit_log(browser, caplog):
    caplog.set_level(logging.INFO, "pullwake.audit")
    browser("alice", "platform")
    browser("alice", "platform")
    browser("mallory", "")
    said = [
        (line.principal, line.answer) for line in caplog.records if line.name == "pullwake.audit"
    ]
    assert said == [("system:operator:alice", "ok"), ("system:operator:mallory", "refused")]
