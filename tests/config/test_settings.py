"""config/settings.py: what each variable does, and the sentence for one that is wrong."""

import ipaddress
import os
import re
import runpy
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from config.serving import checks
from tests.support import ROOT

CONTRACT = (
    "DATABASE_URL",
    "HOST",
    "PORT",
    "WEB_CONCURRENCY",
    "PULLWAKE_MODE",
    "SECRET_KEY",
    "ALLOWED_HOSTS",
    "PULLWAKE_PUBLIC_URL",
    "PULLWAKE_LISTEN_URL",
    "PULLWAKE_TRUSTED_PROXIES",
    "PULLWAKE_TYPE_REGISTRARS",
    "PULLWAKE_LONG_POLL_MS",
    "PULLWAKE_CLAIM_LEASE_MS",
    "PULLWAKE_WAKE_REEMIT_MS",
    "PULLWAKE_REAPER_INTERVAL_MS",
    "PULLWAKE_LOCK_TIMEOUT_MS",
    "PULLWAKE_STATEMENT_TIMEOUT_MS",
    "PULLWAKE_IDLE_TRANSACTION_TIMEOUT_MS",
    "PULLWAKE_DRAIN_S",
    "PULLWAKE_NOTIFY",
    "PULLWAKE_MAX_BODY_BYTES",
    "PULLWAKE_RETENTION_DAYS",
)
OURS = (
    "PULLWAKE_API_DOCS",
    "PULLWAKE_TOKEN_DAYS",
    "PULLWAKE_AUDIT_REPORTS",
    "PULLWAKE_PEER_TIMEOUT_S",
    "PULLWAKE_ACCESS_LOG",
    "PULLWAKE_METRICS_NAMES",
    "PULLWAKE_TRACES",
    "SENTRY_DSN",
    "PULLWAKE_CORS_ORIGINS",
    "PULLWAKE_DEVELOPMENT_ON_NETWORK",
    "PULLWAKE_OPERATOR_GROUPS",
    "PULLWAKE_OIDC_ISSUER",
    "PULLWAKE_OIDC_CLIENT_ID",
    "PULLWAKE_OIDC_SCOPES",
    "PULLWAKE_REMOTE_USER_HEADER",
    "PULLWAKE_REMOTE_USER_PROXIES",
)
PRODUCTION = {"PULLWAKE_MODE": "production", "SECRET_KEY": "0123456789abcdef" * 4}


@pytest.fixture
def read(monkeypatch):
    """The settings as they are in this environment, with nothing of ours set but what is given."""
    for name in (*CONTRACT, *OURS):
        monkeypatch.delenv(name, raising=False)

    def settings(**env):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        return runpy.run_path(str(ROOT / "config" / "settings.py"))

    return settings


def test_every_variable_of_the_contract_is_read():
    read = "".join(
        Path(ROOT, "config", name).read_text()
        for name in ("settings.py", "serving/gunicorn.conf.py")
    )
    named = set(re.findall(r'"([A-Z][A-Z_]+)"', read))
    assert set(CONTRACT) <= named


@pytest.mark.parametrize("name", ["PULLWAKE_TRACES", "SENTRY_DSN"])
def test_what_is_not_installed_is_said_in_a_sentence(read, monkeypatch, name):
    on = {name: "http://key@sentry.example/1" if name == "SENTRY_DSN" else "yes"}
    read(PULLWAKE_MODE="development", **on)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(ImproperlyConfigured, match=f"{name} is set, and .+ is not installed"):
        read(PULLWAKE_MODE="development", **on)


def test_the_defaults(read):
    found = read(PULLWAKE_MODE="development")
    defaults = {
        "HOST": "127.0.0.1",
        "PORT": 8000,
        "PULLWAKE_PUBLIC_URL": "",
        "PULLWAKE_LISTEN_URL": "",
        "PULLWAKE_TRUSTED_PROXIES": [],
        "PULLWAKE_TYPE_REGISTRARS": frozenset(),
        "PULLWAKE_LONG_POLL_MS": 30_000,
        "PULLWAKE_CLAIM_LEASE_MS": 30_000,
        "PULLWAKE_WAKE_REEMIT_MS": None,
        "PULLWAKE_REAPER_INTERVAL_MS": 5_000,
        "PULLWAKE_LOCK_TIMEOUT_MS": 4_000,
        "PULLWAKE_STATEMENT_TIMEOUT_MS": 8_000,
        "PULLWAKE_IDLE_TRANSACTION_TIMEOUT_MS": 3_000,
        "PULLWAKE_DRAIN_S": 0,
        "PULLWAKE_PEER_TIMEOUT_S": 30,
        "PULLWAKE_TOKEN_DAYS": 0,
        "PULLWAKE_API_DOCS": True,
        "PULLWAKE_AUDIT_REPORTS": False,
        "PULLWAKE_ACCESS_LOG": False,
        "PULLWAKE_METRICS_NAMES": 100,
        "PULLWAKE_TRACES": False,
        "SENTRY_DSN": "",
        "PULLWAKE_MAX_BODY_BYTES": 1024 * 1024,
        "TIME_ZONE": "UTC",
        "DEBUG": False,
    }
    assert {name: found[name] for name in defaults} == defaults
    assert found["DATABASES"]["default"]["NAME"] == str(ROOT / "var" / "pullwake.sqlite3")


def test_production_mode_is_what_it_is_without_a_word(read):
    assert read(SECRET_KEY="0123456789abcdef" * 4)["DEVELOPMENT"] is False


@pytest.mark.parametrize("key", [{}, {"SECRET_KEY": ""}])
@pytest.mark.parametrize("mode", [{}, {"PULLWAKE_MODE": "production"}])
def test_production_mode_needs_a_secret_key(read, mode, key):
    with pytest.raises(ImproperlyConfigured, match=r"token_urlsafe.*PULLWAKE_MODE=development"):
        read(**mode, **key)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PULLWAKE_MODE", "debug"),
        ("PULLWAKE_MODE", ""),
        *(("PULLWAKE_PUBLIC_URL", value) for value in ("wake.example.com", "ftp://x", "https://")),
        *(("PULLWAKE_PUBLIC_URL", value) for value in ("http://[::1", "http://x:y", "http://x?y")),
        ("PULLWAKE_OIDC_ISSUER", "http://["),
        ("PULLWAKE_LONG_POLL_MS", "99"),
        ("PULLWAKE_LONG_POLL_MS", "600001"),
        ("PULLWAKE_CLAIM_LEASE_MS", "999"),
        ("PULLWAKE_CLAIM_LEASE_MS", "600001"),
        ("PULLWAKE_WAKE_REEMIT_MS", "0"),
        ("PULLWAKE_REAPER_INTERVAL_MS", "0"),
        ("PULLWAKE_MAX_BODY_BYTES", "0"),
        ("PULLWAKE_RETENTION_DAYS", "0"),
        ("PULLWAKE_RETENTION_DAYS", "-1"),
        ("PULLWAKE_RETENTION_DAYS", "999999999"),
        ("PORT", "0"),
        ("PORT", "65536"),
    ],
)
def test_a_value_out_of_bounds_is_an_error_that_names_it(read, name, value):
    with pytest.raises(ImproperlyConfigured, match=rf"{name} is .*{re.escape(value)}"):
        read(**{**PRODUCTION, name: value})


@pytest.mark.parametrize(
    "name",
    [each for each in CONTRACT if each.endswith(("_MS", "_BYTES", "_DAYS", "PORT", "CONCURRENCY"))],
)
def test_what_is_no_number_is_an_error_that_names_it(read, name):
    with pytest.raises(ImproperlyConfigured, match=name):
        read(**PRODUCTION, **{name: "soon"})


@pytest.mark.parametrize("proxies", ["nonsense", "10.0.0.0/99", "10.0.0.1,x"])
def test_what_is_no_network_is_an_error_that_names_it(read, proxies):
    with pytest.raises(ImproperlyConfigured, match="PULLWAKE_TRUSTED_PROXIES"):
        read(**PRODUCTION, PULLWAKE_TRUSTED_PROXIES=proxies)


def test_type_registrars_are_principals_and_kinds(read):
    found = read(**PRODUCTION, PULLWAKE_TYPE_REGISTRARS="service,user:alice,/principal/user%3abob")
    urls = {"/principal/user%3Aalice", "/principal/user%3Abob"}
    assert found["PULLWAKE_TYPE_REGISTRARS"] == {"service", *urls}


@pytest.mark.parametrize("registrars", ["team", "user:", "service,robot", "alice"])
def test_it_refuses_what_is_neither_principal_nor_kind(read, registrars):
    with pytest.raises(ImproperlyConfigured, match="PULLWAKE_TYPE_REGISTRARS"):
        read(**PRODUCTION, PULLWAKE_TYPE_REGISTRARS=registrars)


def test_trusted_proxies_are_addresses_and_networks(read):
    found = read(**PRODUCTION, PULLWAKE_TRUSTED_PROXIES="10.0.0.7,10.1.2.3/16,fd00::/8")
    assert found["PULLWAKE_TRUSTED_PROXIES"] == [
        ipaddress.ip_network(each) for each in ("10.0.0.7/32", "10.1.0.0/16", "fd00::/8")
    ]


def test_the_public_address_is_an_allowed_host_and_its_scheme_decides_on_cookies(read):
    found = read(**PRODUCTION, PULLWAKE_PUBLIC_URL="https://wake.example.com/")
    assert found["PULLWAKE_PUBLIC_URL"] == "https://wake.example.com"
    assert "wake.example.com" in found["ALLOWED_HOSTS"]
    assert found["SESSION_COOKIE_SECURE"] is found["CSRF_COOKIE_SECURE"] is True
    assert found["CSRF_TRUSTED_ORIGINS"] == ["https://wake.example.com"]

    plain = read(**PRODUCTION, PULLWAKE_PUBLIC_URL="http://wake.example.com")
    assert plain["SESSION_COOKIE_SECURE"] is plain["CSRF_COOKIE_SECURE"] is False
    assert plain["SECURE_HSTS_SECONDS"] == 0


def test_a_database_url_is_taken(read):
    found = read(**PRODUCTION, DATABASE_URL="postgres://me:secret@db.example:5433/wakes")
    database = found["DATABASES"]["default"]
    assert (database["HOST"], database["PORT"], database["NAME"]) == ("db.example", 5433, "wakes")
    assert found["SQLITE"] is False
    assert database["OPTIONS"]["pool"]["min_size"] >= 1


def test_sqlite_takes_its_write_lock_at_begin(read):
    options = read(**PRODUCTION, DATABASE_URL="sqlite:////tmp/x.sqlite3")["DATABASES"]["default"][
        "OPTIONS"
    ]
    assert options["transaction_mode"] == "IMMEDIATE"
    assert "journal_mode=WAL" in options["init_command"]


def test_the_tests_run_in_no_other_environment():
    """`tests.environment` has taken away what a shell may have set."""
    assert {name for name in os.environ if name.startswith("PULLWAKE_")} == {
        "PULLWAKE_MODE",
        "PULLWAKE_LOCK_TIMEOUT_MS",
        "PULLWAKE_STATEMENT_TIMEOUT_MS",
        "PULLWAKE_IDLE_TRANSACTION_TIMEOUT_MS",
    }


SESSION = (
    "-c lock_timeout=4000 -c statement_timeout=8000 -c idle_in_transaction_session_timeout=3000"
    " -c plan_cache_mode=force_generic_plan"
)


@pytest.mark.parametrize(
    ("listen_url", "threshold", "options"),
    [
        (
            "",
            0,
            f"{SESSION} -c jit=off",
        ),
        ("postgres://db.example/p", None, "-c jit=off"),
    ],
)
def test_nothing_is_prepared_behind_a_pooling_proxy(read, listen_url, threshold, options):
    """And what the URL says of the connection is kept."""
    postgres = "postgres://db.example/p?options=-c%20jit%3Doff"
    found = read(**PRODUCTION, DATABASE_URL=postgres, PULLWAKE_LISTEN_URL=listen_url)
    said = found["DATABASES"]["default"]["OPTIONS"]
    assert (said.get("prepare_threshold"), said["options"]) == (threshold, options)
    assert found["DATABASES"]["default"]["DISABLE_SERVER_SIDE_CURSORS"] is bool(listen_url)


@pytest.mark.parametrize(
    ("listen_url", "host"), [("", "pool.example"), ("postgres://db.example/p", "db.example")]
)
def test_migrations_go_to_the_databases_own_address_and_wait_little(read, listen_url, host):
    url = "postgres://pool.example/p"
    found = read(
        **PRODUCTION,
        DATABASE_URL=url,
        PULLWAKE_LISTEN_URL=listen_url,
        PULLWAKE_LOCK_TIMEOUT_MS="1500",
    )
    direct = {**found["DATABASES"]["default"], **found["DIRECT_DATABASE"]}
    assert direct["HOST"] == host
    assert direct["OPTIONS"]["options"] == (
        "-c lock_timeout=1500 -c statement_timeout=0 -c idle_in_transaction_session_timeout=0"
    )
    assert "pool" not in direct["OPTIONS"]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "", "laptop.example"])  # noqa: S104
def test_development_mode_on_a_network_needs_a_yes(read, host):
    with pytest.raises(ImproperlyConfigured, match="PULLWAKE_DEVELOPMENT_ON_NETWORK=yes"):
        read(PULLWAKE_MODE="development", HOST=host)
    found = read(PULLWAKE_MODE="development", HOST=host, PULLWAKE_DEVELOPMENT_ON_NETWORK="yes")
    assert found["HOST"] in found["ALLOWED_HOSTS"]
    assert read(**PRODUCTION, HOST=host)["HOST"] == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost"])
def test_development_mode_on_this_machine_needs_none(read, host):
    assert read(PULLWAKE_MODE="development", HOST=host)["HOST"] == host


def test_in_development_this_machine_is_allowed_besides_what_is_named(read):
    found = read(PULLWAKE_MODE="development", ALLOWED_HOSTS="wake.test")
    assert found["ALLOWED_HOSTS"] == ["wake.test", "localhost", "127.0.0.1", "[::1]"]
    assert read(**PRODUCTION, ALLOWED_HOSTS="wake.test")["ALLOWED_HOSTS"] == ["wake.test"]


def test_cors_is_off_unless_origins_are_named(read):
    assert read(**PRODUCTION)["PULLWAKE_CORS_ORIGINS"] == []
    found = read(**PRODUCTION, PULLWAKE_CORS_ORIGINS="https://a.example,http://b.example:3000")
    assert found["CORS_ALLOWED_ORIGINS"] == ["https://a.example", "http://b.example:3000"]
    assert found["CORS_ALLOW_ALL_ORIGINS"] is False
    assert read(**PRODUCTION, PULLWAKE_CORS_ORIGINS="*")["CORS_ALLOW_ALL_ORIGINS"] is True


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "null", "http://["])
def test_what_is_no_origin_is_an_error_that_names_it(read, origin):
    with pytest.raises(ImproperlyConfigured, match="PULLWAKE_CORS_ORIGINS names ") as refused:
        read(**PRODUCTION, PULLWAKE_CORS_ORIGINS=origin)
    assert repr(origin) in str(refused.value)


@pytest.mark.parametrize("host", ["https://wake.example", "wake.example:8000", "::1"])
def test_a_host_that_no_request_could_name_is_an_error(read, host):
    assert "[::1]" in read(**PRODUCTION, ALLOWED_HOSTS="[::1],.wake.example,*")["ALLOWED_HOSTS"]
    with pytest.raises(ImproperlyConfigured, match=f"ALLOWED_HOSTS has '{host}'; it takes names"):
        read(**PRODUCTION, ALLOWED_HOSTS=host)


@pytest.mark.parametrize(
    ("named", "ids"),
    [(True, []), (False, ["pullwake.W001"])],
)
def test_a_production_server_that_has_no_name_says_so(settings, named, ids):
    settings.DEVELOPMENT = False
    settings.HOSTS_ARE_NAMED = named
    assert [each.id for each in checks.check_hosts()] == ids
    settings.DEVELOPMENT = True
    assert checks.check_hosts() == []


@pytest.mark.parametrize("key", ["short", "x" * 60, "development"])
def test_production_mode_refuses_a_key_that_can_be_guessed(read, key):
    with pytest.raises(ImproperlyConfigured, match="too short or too simple"):
        read(SECRET_KEY=key)


@pytest.mark.parametrize("prefix", ["django-insecure-", "only-for-benchmarks-"])
def test_production_mode_refuses_a_key_that_is_published(read, prefix):
    key = prefix + "0123456789" * 5
    with pytest.raises(ImproperlyConfigured, match="one that others know"):
        read(SECRET_KEY=key)
    assert read(PULLWAKE_MODE="development", SECRET_KEY=key)["SECRET_KEY"] == key


@pytest.mark.parametrize("value", ["maybe", "2", "nope"])
def test_what_says_neither_yes_nor_no_is_an_error_that_names_it(read, value):
    with pytest.raises(ImproperlyConfigured, match=f"PULLWAKE_NOTIFY is '{value}'"):
        read(**PRODUCTION, PULLWAKE_NOTIFY=value)


def test_a_runners_own_variables_may_stand_in_the_same_shell(read, monkeypatch):
    """As `pullwake` reads them, or sets them for its commands."""
    source = "".join(path.read_text() for path in (ROOT / "sdk/python/src").rglob("*.py"))
    named = set(re.findall(r"PULLWAKE_[A-Z_]*[A-Z]", source))
    assert len(named) > 10
    assert read(**PRODUCTION, **dict.fromkeys(named, "x"))["DEVELOPMENT"] is False


def test_development_mode_has_a_key_of_this_checkouts_own(read):
    key = read(PULLWAKE_MODE="development")["SECRET_KEY"]
    assert len(key) >= 50
    assert read(PULLWAKE_MODE="development")["SECRET_KEY"] == key
    kept = ROOT / "var" / "secret_key"
    assert kept.read_text() == key
    assert kept.stat().st_mode & 0o777 == 0o600


# --- Operators' login -----------------------------------------------------------------------------

OIDC = {"PULLWAKE_OIDC_ISSUER": "https://login.example/ours/", "PULLWAKE_OIDC_CLIENT_ID": "us"}


def test_operators_log_in_elsewhere_only_if_that_is_asked_for(read):
    found = read(**PRODUCTION)
    assert found["PULLWAKE_OIDC_ISSUER"] == found["PULLWAKE_REMOTE_USER_HEADER"] == ""
    assert "operators.remote_user.with_remote_user" not in found["MIDDLEWARE"]


def test_groups_elsewhere_are_roles_here(read):
    found = read(**PRODUCTION, PULLWAKE_OPERATOR_GROUPS="platform=operators,cn=a=viewers")
    assert found["PULLWAKE_OPERATOR_GROUPS"] == {"platform": "operators", "cn=a": "viewers"}


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"PULLWAKE_OPERATOR_GROUPS": "platform=root"}, "operators and viewers"),
        ({"PULLWAKE_OIDC_ISSUER": "login.example"}, "must look like"),
        ({"PULLWAKE_OIDC_ISSUER": "https://login.example"}, "PULLWAKE_OIDC_CLIENT_ID is not"),
        ({**OIDC, "PULLWAKE_OIDC_SCOPES": "email"}, "openid"),
        ({"PULLWAKE_REMOTE_USER_HEADER": "X-User"}, "PULLWAKE_REMOTE_USER_PROXIES is not"),
        (
            {"PULLWAKE_REMOTE_USER_HEADER": "X-User", "PULLWAKE_REMOTE_USER_PROXIES": "proxy"},
            "addresses or networks",
        ),
    ],
)
def test_a_login_that_cannot_work_is_one_sentence(read, env, said):
    with pytest.raises(ImproperlyConfigured, match=said):
        read(**PRODUCTION, **env)


def test_without_authlib_the_sentence_says_how_to_get_it(read, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImproperlyConfigured, match=r"requirements/sso\.txt"):
        read(**PRODUCTION, **OIDC)


@pytest.mark.parametrize(
    ("facts", "ids"),
    [
        ({"PULLWAKE_OIDC_ISSUER": "http://login.example"}, ["W003", "W004", "W005"]),
        (
            {
                "PULLWAKE_REMOTE_USER_HEADER": "X-User",
                "PULLWAKE_REMOTE_USER_PROXIES": [ipaddress.ip_network("0.0.0.0/0")],
                "PULLWAKE_OPERATOR_GROUPS": {"platform": "operators"},
            },
            ["E002"],
        ),
        ({}, []),
    ],
)
def test_a_login_that_lets_in_nobody_or_everybody_is_said(settings, facts, ids):
    settings.DEVELOPMENT = False
    for name, value in facts.items():
        setattr(settings, name, value)
    assert [each.id for each in checks.check_logins()] == [f"pullwake.{each}" for each in ids]


@pytest.mark.parametrize(
    ("network", "ids"),
    [("::/0", ["pullwake.W006"]), ("0.0.0.0/0", ["pullwake.W006"]), ("10.0.0.0/8", [])],
)
def test_proxies_that_are_everybody_are_said(settings, network, ids):
    settings.DEVELOPMENT = False
    settings.PULLWAKE_TRUSTED_PROXIES = [ipaddress.ip_network(network)]
    assert [each.id for each in checks.check_proxies()] == ids


@pytest.mark.parametrize(
    "name", ["PULLWAKE_SERVICE_HOST", "PULLWAKE_PORT", "PULLWAKE_PORT_8000_TCP", "PULLWAKE_TOKEN"]
)
def test_what_others_name_so_is_let_be(read, name):
    """Kubernetes tells each container of a service of that name; runners have variables, too."""
    read(**PRODUCTION, **{name: "tcp://10.0.0.1:8000"})


def test_a_misspelt_name_is_refused(read):
    with pytest.raises(ImproperlyConfigured, match="did you mean PULLWAKE_LONG_POLL_MS"):
        read(**PRODUCTION, PULLWAKE_LONG_POL_MS="1")
