"""Operators who log in at an OpenID Connect provider: a real one, beside a real server."""

import secrets
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from tests.serving.provider import CLIENT, SECRET, Provider, provider
from tests.support import Server, Servers


@pytest.fixture(scope="module")
def idp() -> Iterator[Provider]:
    """The provider."""
    with provider() as running:
        yield running


@pytest.fixture
def server(servers: Servers, idp: Provider) -> Server:
    """A server whose operators log in there; as ``sub`` of its own somebody new."""
    idp.begin(sub=f"u-{secrets.token_hex(4)}")
    return servers.lend(
        PULLWAKE_OIDC_ISSUER=idp.url,
        PULLWAKE_OIDC_CLIENT_ID=CLIENT,
        PULLWAKE_OIDC_CLIENT_SECRET=SECRET,
        PULLWAKE_OIDC_NAME="the company",
        PULLWAKE_OPERATOR_GROUPS="platform=operators,support=viewers",
    )


@pytest.fixture
def browser(server: Server) -> Iterator[httpx2.Client]:
    """A browser without a login."""
    headers = {"Accept": "text/html"}
    with httpx2.Client(base_url=server.url, headers=headers, follow_redirects=True) as client:
        yield client


def test_the_login_page_leads_there_and_back_to_what_was_asked_for(browser, idp):
    page = browser.get("/admin/runners/runner/")
    assert "Log in with the company" in page.text
    assert "/admin/oidc/?next=%2Fadmin%2Frunners%2Frunner%2F" in page.text
    page = browser.get("/admin/oidc/?next=%2Fadmin%2Frunners%2Frunner%2F")
    assert page.status_code == 200
    assert page.url.path == "/admin/runners/runner/"
    assert "Alice Ames" in page.text or idp.claims["sub"] in page.text


def test_an_operator_acts_and_a_viewer_does_not(browser, idp):
    assert browser.get("/admin/oidc/").status_code == 200
    assert browser.get("/admin/runners/accesstoken/issue/").status_code == 403
    browser.cookies.clear()
    idp.begin(groups=["support"], sub=idp.claims["sub"])
    assert browser.get("/admin/oidc/").status_code == 200
    assert browser.get("/admin/auth/user/").status_code == 403


def test_groups_may_come_with_the_userinfo(browser, idp):
    del idp.claims["groups"]
    idp.userinfo = {"groups": ["platform"]}
    assert browser.get("/admin/oidc/").url.path == "/admin/"


def test_userinfo_of_another_is_not_believed(browser, idp):
    del idp.claims["groups"]
    idp.userinfo = {"groups": ["platform"], "sub": "another"}
    assert browser.get("/admin/oidc/").status_code == 401


def test_what_somebody_is_called_there_is_kept_as_far_as_it_is_text(browser, idp):
    idp.claims.update(name="Ali\0ce Ames", email="alice@x.example\0")
    assert browser.get("/admin/oidc/").status_code == 200


def test_who_is_in_no_mapped_group_stays_out(browser, idp, server):
    idp.begin(groups=["all"], sub="u-outside")
    page = browser.get("/admin/oidc/")
    assert page.status_code == 403
    assert "None of the groups" in page.text
    assert browser.get("/admin/").url.path == "/admin/login/"
    assert "operator:u-outside" in server.log.read_text()


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": "another's"},
        {"nonce": "another"},
        {"aud": "another"},
        {"iss": "https://another.example"},
        {"exp": 1_000_000},
        {"sub": None},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_token_that_is_not_for_this_login_is_not_believed(browser, idp, wrong):
    idp.wrong = wrong
    assert browser.get("/admin/oidc/").status_code in (401, 403)
    assert browser.get("/admin/").url.path == "/admin/login/"


def test_an_answer_that_nobody_asked_for_is_not_believed(browser, idp):
    begun = browser.get("/admin/oidc/", follow_redirects=False).headers["Location"]
    asked = {name: values[0] for name, values in parse_qs(urlsplit(begun).query).items()}
    back = idp.authorize(asked)
    stranger = httpx2.get(back, headers={"Accept": "text/html"})
    assert stranger.status_code == 401, "another's browser has no such state"
    code = parse_qs(urlsplit(back).query)["code"][0]
    made_up = browser.get("/admin/oidc/callback/", params={"code": code, "state": "made-up"})
    assert made_up.status_code == 401
    assert browser.get(back).status_code == 200
    assert browser.get(back).status_code == 401, "a code is good once"


def test_what_the_provider_refuses_is_refused(browser):
    page = browser.get("/admin/oidc/callback/", params={"error": "access_denied"})
    assert page.status_code == 401
    assert "did not confirm" in page.text


def test_it_leads_nowhere_else(browser):
    page = browser.get("/admin/oidc/?next=https%3A%2F%2Fevil.example%2F")
    assert page.url.path == "/admin/"


def test_a_logout_is_one_there_too(browser, idp):
    page = browser.get("/admin/oidc/")
    policy = page.headers["Content-Security-Policy"]
    assert f"form-action 'self' {idp.url};" in policy
    token = browser.cookies["csrftoken"]
    ended = browser.post("/admin/logout/", data={"csrfmiddlewaretoken": token})
    assert str(ended.url).startswith(f"{idp.url}/end")
    assert idp.ended[-1]["client_id"] == CLIENT
    assert idp.ended[-1]["id_token_hint"].count(".") == 2
    assert browser.get("/admin/").url.path == "/admin/login/"
