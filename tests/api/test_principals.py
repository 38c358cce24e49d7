"""Who is calling, on every endpoint: the contract's section Principals."""

import ipaddress
import time
from datetime import timedelta
from urllib.parse import quote

import hypothesis
import pytest
from django.db.models import F
from django.db.models.functions import Now
from hypothesis import given
from hypothesis import strategies as st

from core.principals import MAX_URL_LENGTH, Principal
from runners import tokens
from runners.models import AccessToken
from tests.api.endpoints import ENDPOINTS, bearer, everything, routes
from tests.standing import undone
from tests.support import Api

RUNNERS = "/_electric/runners"

# --- Names ------------------------------------------------------------------------------------

patiently = hypothesis.settings(deadline=None)
kinds = st.sampled_from(Principal.KINDS)
ids = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=40
).filter(lambda text: "%" not in text)


@patiently
@given(kinds, ids)
def test_every_form_of_a_name_is_one_principal(kind, name):
    key = f"{kind}:{name}"
    principal = Principal.parse(key)

    assert (principal.kind, principal.id, principal.key) == (kind, name, key)
    assert Principal.parse(f"/principal/{key}") == principal
    assert Principal.parse(principal.url) == principal
    assert Principal.parse(f"/principal/{quote(key, safe='')}") == principal
    assert Principal.parse(f"/principal/{quote(key, safe='').lower()}").kind == kind


@patiently
@given(kinds, ids)
def test_the_url_is_canonical(kind, name):
    url = Principal.parse(f"{kind}:{name}").url
    assert url.isascii()
    assert url.startswith(f"/principal/{kind}%3A")
    assert url.count("/") == 2
    assert Principal.parse(url).url == url


@patiently
@given(st.text(max_size=60))
def test_anything_else_is_refused_or_has_a_canonical_form(text):
    try:
        principal = Principal.parse(text)
    except ValueError:
        return
    assert principal.kind in Principal.KINDS
    assert principal.id
    assert "/" not in principal.id
    assert Principal.parse(principal.url) == principal


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("user:alice", "/principal/user%3Aalice"),
        ("/principal/user%3Aalice", "/principal/user%3Aalice"),
        ("/principal/user%3aalice", "/principal/user%3Aalice"),
        ("/principal/user:alice", "/principal/user%3Aalice"),
        ("service:a:b:c", "/principal/service%3Aa%3Ab%3Ac"),
        ("agent:Ünï", "/principal/agent%3A%C3%9Cn%C3%AF"),
        ("system:a b", "/principal/system%3Aa%20b"),
        ("user:a%2Fb", "/principal/user%3Aa%252Fb"),
        ("user:!'()*", "/principal/user%3A!'()*"),
    ],
)
def test_it_canonicalises(text, url):
    assert Principal.parse(text).url == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alice",
        ":alice",
        "user:",
        "robot:alice",
        "User:alice",
        " user:alice",
        "user :alice",
        "user:a/b",
        "user:a\x00",
        "user:a\nb",
        "/principal/",
        "/principal/local-desktop",
        "/principal/user%3A",
        "/principal/user%3Aa%2Fb",
        "/principal/user%3Aa/b",
        "/principal/user%3A%00",
        "/principal/user%3A%FF",
        "principal/user%3Aalice",
        "/principals/user%3Aalice",
        "user:" + "x" * MAX_URL_LENGTH,
    ],
)
def test_it_refuses_what_is_no_principal(text):
    with pytest.raises(ValueError):
        Principal.parse(text)


# --- Every endpoint, and every credential, in production mode ---------------------------------

OK = "ok"
LETS_IN: dict[str, dict[str, object]] = {
    "anyone": {},
    "scraper": {"metrics": OK, "owner": 403, "stranger": 403},
    "caller": {"owner": OK, "stranger": OK, "metrics": 403},
    "owner": {"owner": OK, "stranger": 403, "metrics": 403},
    "actor": {
        "owner": OK,
        "stranger": 403,
        "metrics": 403,
        **{f"own write token in {header}": OK for header in ("Bearer", "Claim-Token")},
        **{f"another's write token in {header}": 403 for header in ("Bearer", "Claim-Token")},
    },
    "reader": {
        "owner": OK,
        "stranger": 403,
        "metrics": 403,
        **{f"own write token in {header}": OK for header in ("Bearer", "Claim-Token")},
        **{f"own claim token in {header}": OK for header in ("Bearer", "Claim-Token")},
    },
    "handler": {f"own write token in {header}": OK for header in ("Bearer", "Claim-Token")},
    "holder": {f"own claim token in {header}": OK for header in ("Bearer", "Claim-Token")},
}
"""Whom a kind of endpoint answers how; everybody else is 401."""


@pytest.fixture
def production(settings):
    """Production mode, in this process."""
    settings.DEVELOPMENT = False


@pytest.fixture
def scene(scene, production):
    return scene


def expired(principal):
    api = bearer(principal)
    AccessToken.objects.filter(pk=AccessToken.objects.latest("pk").pk).update(
        created_at=Now() - timedelta(hours=2), expires_at=Now() - timedelta(hours=1)
    )
    return api


def revoked(principal):
    api = bearer(principal)
    tokens.revoke(AccessToken.objects.latest("pk"))
    return api


def credentials(scene):
    found = {
        "nobody": Api(),
        "stranger": bearer("user:carol"),
        "owner": scene.alice,
        "metrics": bearer("user:alice", scope=AccessToken.Scope.METRICS),
        "revoked": revoked("user:alice"),
        "expired": expired("user:alice"),
        "never issued": Api(Authorization="Bearer pwa_nonsense"),
        "no token": Api(Authorization="Bearer "),
        "not a bearer": Api(Authorization="Basic YWxpY2U6"),
        "development header": Api("user:alice"),
    }
    for whose, claim, write_token in (
        ("own", scene.claim, scene.write_token),
        ("another's", scene.others_claim, scene.others_write_token),
    ):
        for kind, secret in (("claim", claim.body["claimToken"]), ("write", write_token)):
            found[f"{whose} {kind} token in Bearer"] = Api(Authorization=f"Bearer {secret}")
            found[f"{whose} {kind} token in Claim-Token"] = Api(Electric_Claim_Token=secret)
    return found


def test_the_matrix_covers_every_address_and_method():
    pages = {"admin/login-once/<str:token>/", ""}  # they are the browser's: tests/commands
    covered: dict[str, set[str]] = {}
    for each in ENDPOINTS:
        covered.setdefault(each.route, set()).add(each.method)
    assert covered == {route: verbs for route, verbs in routes().items() if route not in pages}


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
def test_the_matrix(scene, endpoint):
    path = endpoint.path(scene.names)
    lets_in = LETS_IN[endpoint.who]
    otherwise = OK if endpoint.who == "anyone" else 401
    callers = credentials(scene)
    before = everything()
    answered, expected = {}, {}
    for name, api in callers.items():
        expected[name] = lets_in.get(name, otherwise)
        with undone():
            answer = api(endpoint.method, path, endpoint.body, **endpoint.headers)
            answered[name] = OK if answer.status == endpoint.status else answer.status
            if answer.status != endpoint.status:
                assert everything() == before, name
                assert endpoint.method == "HEAD" or answer.error == "UNAUTHORIZED", name
                if answer.status == 401:
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answered == expected


# --- A header beside a token ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("user:alice", 200),
        ("/principal/user%3Aalice", 200),
        ("/principal/user:alice", 200),
        ("user:bob", 403),
        ("system:dev-local", 403),
        ("alice", 401),
        ("", 401),
        ("/principal/local-desktop", 401),
    ],
)
@pytest.mark.parametrize("development", [True, False])
def test_a_header_beside_a_token(db, settings, development, header, status):
    settings.DEVELOPMENT = development
    answer = bearer("user:alice").get(RUNNERS, Electric_Principal=header)
    assert answer.status == status
    assert status == 200 or answer.error == "UNAUTHORIZED"


@pytest.mark.parametrize("development", [True, False])
@pytest.mark.parametrize(
    "authorization", ["Bearer nonsense", "Bearer", "Basic YWxpY2U6", "", "nonsense"]
)
def test_a_bad_bearer_is_refused_whatever_else_is_sent(db, settings, development, authorization):
    settings.DEVELOPMENT = development
    settings.PULLWAKE_TRUSTED_PROXIES = [ipaddress.ip_network("127.0.0.0/8")]
    answer = Api("user:alice").get(RUNNERS, Authorization=authorization)
    assert (answer.status, answer.error) == (401, "UNAUTHORIZED")


def test_a_bad_bearer_beside_a_good_claim_token_is_refused(scene):
    answer = scene.claim.api.post(
        "/_electric/entities/agent/e1/send",
        {"payload": 1},
        Authorization="Bearer nonsense",
        Electric_Claim_Token=scene.write_token,
    )
    assert (answer.status, answer.error) == (401, "UNAUTHORIZED")


def test_two_claim_tokens_are_one_too_many(scene):
    answer = Api(Authorization=f"Bearer {scene.write_token}").post(
        "/_electric/entities/agent/e1/send",
        {"payload": 1},
        Electric_Claim_Token=scene.others_write_token,
    )
    assert (answer.status, answer.error) == (401, "UNAUTHORIZED")


# --- Without a token --------------------------------------------------------------------------


def registered_by(api, **environ):
    answer = api.post(RUNNERS, {"id": "r1", "label": "r1"}, **environ)
    return answer.body["owner_principal"] if answer.status == 201 else answer.status


@pytest.mark.parametrize("header", ["user:alice", "/principal/user%3Aalice"])
def test_development_mode_believes_the_header(db, header):
    assert registered_by(Api(header)) == "/principal/user%3Aalice"


def test_development_mode_alone_needs_no_credential(db, settings):
    assert registered_by(Api()) == "/principal/system%3Adev-local"
    settings.DEVELOPMENT = False
    assert registered_by(Api()) == 401


@pytest.mark.parametrize("development", [True, False])
@pytest.mark.parametrize("header", ["", "alice", "/principal/local-desktop", "user:", "user:a/b"])
def test_an_unparsable_header_never_falls_back(db, settings, development, header):
    settings.DEVELOPMENT = development
    settings.PULLWAKE_TRUSTED_PROXIES = [ipaddress.ip_network("127.0.0.0/8")]
    assert registered_by(Api(header)) == 401


@pytest.mark.parametrize(
    ("proxy", "address", "believed"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("10.1.0.0/16", "10.1.2.3", True),
        ("10.1.0.0/16", "10.2.2.3", False),
        ("fd00::/8", "fd12::1", True),
        ("10.1.0.0/16", "fd12::1", False),
        ("0.0.0.0/0", "", False),
    ],
)
def test_production_mode_believes_it_from_trusted_proxies(
    db, production, settings, proxy, address, believed
):
    settings.PULLWAKE_TRUSTED_PROXIES = [ipaddress.ip_network(proxy)]
    api = Api("user:alice")
    api.client.defaults["REMOTE_ADDR"] = address
    assert registered_by(api) == ("/principal/user%3Aalice" if believed else 401)


def test_a_forwarded_address_makes_no_trusted_proxy(db, production, settings):
    settings.PULLWAKE_TRUSTED_PROXIES = [ipaddress.ip_network("10.1.0.0/16")]
    assert registered_by(Api("user:alice", X_Forwarded_For="10.1.2.3")) == 401


def test_a_trusted_proxy_that_names_nobody_is_nobody(db, production, settings):
    settings.PULLWAKE_TRUSTED_PROXIES = [ipaddress.ip_network("127.0.0.1")]
    assert registered_by(Api()) == 401


# --- Access tokens ----------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock of this process; ``clock.pass_s(5)``."""

    class Clock:
        now = time.monotonic()

        def pass_s(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


def test_only_the_hash_of_a_token_is_stored(db):
    token, secret = tokens.issue(Principal("user", "alice"))
    row = AccessToken.objects.values().get(pk=token.pk)
    assert secret not in str(row)
    assert len(row["token_hash"]) == 64


def test_a_revoked_token_is_refused_after_10_s_at_the_latest(db, production, clock):
    alice = bearer("user:alice")
    assert alice.get(RUNNERS).status == 200
    token = AccessToken.objects.get()
    assert tokens.revoke(token) is True
    assert tokens.revoke(token) is False

    clock.pass_s(10)
    answer = alice.get(RUNNERS)
    assert (answer.status, answer.error) == (401, "UNAUTHORIZED")


def test_use_does_not_keep_a_revoked_token_alive(db, production, clock):
    alice = bearer("user:alice")
    alice.get(RUNNERS)
    tokens.revoke(AccessToken.objects.get())
    for _ in range(10):
        clock.pass_s(1)
        answer = alice.get(RUNNERS)
    assert answer.status == 401


def test_a_token_that_expires_is_refused_after_10_s_at_the_latest(db, production, clock):
    alice = bearer("user:alice")
    assert alice.get(RUNNERS).status == 200
    AccessToken.objects.update(
        created_at=F("created_at") - timedelta(hours=1), expires_at=Now() - timedelta(seconds=1)
    )
    clock.pass_s(10)
    assert alice.get(RUNNERS).status == 401


def test_a_token_is_asked_for_once_a_moment(db, production, clock, django_assert_num_queries):
    _, secret = tokens.issue(Principal("user", "alice"))
    with django_assert_num_queries(1):
        for _ in range(3):
            assert whose(secret) == Principal("user", "alice")
    clock.pass_s(10)
    with django_assert_num_queries(1):
        tokens.verify(secret)


def test_a_refused_token_is_not_remembered(db, production):
    token, secret = tokens.issue(Principal("user", "alice"))
    AccessToken.objects.filter(pk=token.pk).update(revoked_at=Now())
    assert tokens.verify(secret) is None
    AccessToken.objects.filter(pk=token.pk).update(revoked_at=None)
    assert whose(secret) == Principal("user", "alice")


def whose(secret):
    token = tokens.verify(secret)
    return token and token.principal


# --- A server in production mode --------------------------------------------------------------


def test_a_production_server_believes_tokens_alone(database, start_server):
    made = database.manage("create_token", "user:alice")
    assert made.returncode == 0, made.stderr
    server = start_server(PULLWAKE_MODE="production", ALLOWED_HOSTS="127.0.0.1")
    bearing = {"Authorization": f"Bearer {made.stdout.strip()}"}

    for credentials, status in (
        ({}, 401),
        ({"Electric_Principal": "user:alice"}, 401),
        ({"Electric_Principal": "user:alice", "X_Forwarded_For": "127.0.0.1"}, 401),
        ({"Authorization": "Bearer nonsense"}, 401),
        (bearing, 200),
        ({**bearing, "Electric_Principal": "user:alice"}, 200),
        ({**bearing, "Electric_Principal": "user:bob"}, 403),
    ):
        answer = server.client(None, **credentials).get(RUNNERS)
        assert answer.status == status, (credentials, answer)
        assert status == 200 or answer.error == "UNAUTHORIZED"
