"""Every setting of Pullwake, read from the environment; the README's table describes each."""

import ipaddress
import os
import secrets
import socket
import tempfile
from contextlib import suppress
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import structlog
from corsheaders.defaults import default_headers, default_methods
from django.core.exceptions import ImproperlyConfigured

from config.environment import Environment, split_url
from config.serving import cooperative, log_lines
from core import log_facts, sqlite
from core.principals import Principal
from core.version import VERSION
from operators import theme
from operators.roles import ROLES

env = Environment()
_number = env.number

BASE_DIR = Path(__file__).resolve().parent.parent
VAR_DIR = BASE_DIR / "var"


def _make_var() -> None:
    """Create var/ where it is needed: for development mode's key, and for SQLite."""
    try:
        VAR_DIR.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=VAR_DIR):
            pass
    except OSError as exc:
        raise ImproperlyConfigured(
            f"{VAR_DIR} cannot be written to ({exc.strerror}); let this user write there, or set "
            "DATABASE_URL, and outside of development mode SECRET_KEY, so that it is not needed."
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _own_secret_key() -> str:
    """This checkout's key for development mode, in var/: random, and readable by its owner only."""
    _make_var()
    path = VAR_DIR / "secret_key"
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=VAR_DIR) as file:  # of mode 600
            file.write(secrets.token_urlsafe(50))
            file.flush()
            # Written whole or not at all: of two processes that start, the first one's key stays.
            with suppress(FileExistsError):
                os.link(file.name, path)
    return path.read_text()


# --- Mode and secrets -------------------------------------------------------------------------

PULLWAKE_MODE = env.choice("PULLWAKE_MODE", "production", ("production", "development"))
DEVELOPMENT = PULLWAKE_MODE == "development"

# Never on: a technical error page would break the error shape that runners are promised.
DEBUG = False

SECRET_KEY = env.str("SECRET_KEY", "")
if not SECRET_KEY:
    if not DEVELOPMENT:
        raise ImproperlyConfigured(
            "SECRET_KEY is not set. Production mode needs one that is long, random and the same on "
            "every server, for instance from: "
            "python3 -c 'import secrets; print(secrets.token_urlsafe(50))'. "
            "For a trial on your own machine set PULLWAKE_MODE=development instead."
        )
    SECRET_KEY = _own_secret_key()
_too_simple = len(SECRET_KEY) < 50 or len(set(SECRET_KEY)) < 10
# Django's `startproject` writes the first, and this repository has others.
_is_published = SECRET_KEY.startswith(("django-insecure-", "only-for-"))
if not DEVELOPMENT and (_too_simple or _is_published):
    _fault = "is one that others know" if _is_published else "is too short or too simple"
    raise ImproperlyConfigured(
        f"SECRET_KEY {_fault}, and production mode takes none such; take 50 characters from: "
        "python3 -c 'import secrets; print(secrets.token_urlsafe(50))'."
    )

PULLWAKE_PUBLIC_URL = env.str("PULLWAKE_PUBLIC_URL", "").rstrip("/")
_public = split_url(PULLWAKE_PUBLIC_URL)
if PULLWAKE_PUBLIC_URL and (
    _public.scheme not in ("http", "https")
    or not _public.hostname
    or _public.query
    or _public.fragment
):
    raise ImproperlyConfigured(
        f"PULLWAKE_PUBLIC_URL is {PULLWAKE_PUBLIC_URL!r}; it must look like https://wake.example.com."
    )
LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]
HOST = env.str("HOST", "127.0.0.1")
PORT = _number("PORT", 8000, 1, 65_535)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=[])
for _host in ALLOWED_HOSTS:
    # An IPv6 address stands in brackets.
    if "/" in _host or ":" in _host.rpartition("]")[2]:
        raise ImproperlyConfigured(
            f"ALLOWED_HOSTS has {_host!r}; it takes names without https:// and without a port, as "
            "wake.example.com."
        )
HOSTS_ARE_NAMED = bool(ALLOWED_HOSTS or PULLWAKE_PUBLIC_URL)
if DEVELOPMENT or not ALLOWED_HOSTS:
    ALLOWED_HOSTS += LOOPBACK
    ALLOWED_HOSTS += [_public.hostname] if _public.hostname else []
_on_network = env.bool("PULLWAKE_DEVELOPMENT_ON_NETWORK", False)
if DEVELOPMENT and not _is_loopback(HOST):
    if not _on_network:
        raise ImproperlyConfigured(
            f"Development mode lets everybody in who can reach it, and HOST={HOST!r} is not only "
            "this machine. Leave HOST out, or set PULLWAKE_MODE=production; if everybody on that "
            "network may do everything, set PULLWAKE_DEVELOPMENT_ON_NETWORK=yes."
        )
    ALLOWED_HOSTS += [HOST, socket.gethostname()]

PULLWAKE_API_DOCS = env.bool("PULLWAKE_API_DOCS", True)
PULLWAKE_CORS_ORIGINS = env.list("PULLWAKE_CORS_ORIGINS", default=[])
for _origin in PULLWAKE_CORS_ORIGINS:
    _parts = split_url(_origin)
    if _origin != "*" and _origin != f"{_parts.scheme}://{_parts.netloc}":
        raise ImproperlyConfigured(
            f"PULLWAKE_CORS_ORIGINS names {_origin!r}; an origin looks like https://app.example.com."
        )

# --- What Pullwake does -----------------------------------------------------------------------


def _networks(name: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    try:
        return [ipaddress.ip_network(each, strict=False) for each in env.list(name, default=[])]
    except ValueError as exc:
        raise ImproperlyConfigured(f"{name} must be addresses or networks: {exc}.") from None


def _registrars(name: str) -> frozenset[str]:
    """Kinds of principals, and principals by their URL."""
    try:
        return frozenset(
            each if each in Principal.KINDS else Principal.parse(each).url
            for each in env.list(name, default=[])
        )
    except ValueError as exc:
        raise ImproperlyConfigured(f"{name} must be principals or their kinds: {exc}.") from None


PULLWAKE_LISTEN_URL = env.str("PULLWAKE_LISTEN_URL", "")
PULLWAKE_TRUSTED_PROXIES = _networks("PULLWAKE_TRUSTED_PROXIES")
PULLWAKE_TYPE_REGISTRARS = _registrars("PULLWAKE_TYPE_REGISTRARS")
PULLWAKE_LONG_POLL_MS = _number("PULLWAKE_LONG_POLL_MS", 30_000, 100, 600_000)
PULLWAKE_CLAIM_LEASE_MS = _number("PULLWAKE_CLAIM_LEASE_MS", 30_000, 1_000, 600_000)
# None is one claim lease of the wake's runner.
PULLWAKE_WAKE_REEMIT_MS = (
    _number("PULLWAKE_WAKE_REEMIT_MS", 0, 100, 86_400_000)
    if env.str("PULLWAKE_WAKE_REEMIT_MS", "")
    else None
)
PULLWAKE_REAPER_INTERVAL_MS = _number("PULLWAKE_REAPER_INTERVAL_MS", 5_000, 50, 3_600_000)
# Without, a wake is found by the sweep that finds what hints missed: a second later.
PULLWAKE_NOTIFY = env.bool("PULLWAKE_NOTIFY", True)
PULLWAKE_MAX_BODY_BYTES = _number("PULLWAKE_MAX_BODY_BYTES", 1024 * 1024, 1, 2**31 - 1)
# Well under one lease: whoever waits for a lock outlasts a holder that is idle in its transaction.
PULLWAKE_LOCK_TIMEOUT_MS = _number("PULLWAKE_LOCK_TIMEOUT_MS", 4_000, 0, 600_000)
PULLWAKE_STATEMENT_TIMEOUT_MS = _number("PULLWAKE_STATEMENT_TIMEOUT_MS", 8_000, 0, 3_600_000)
PULLWAKE_IDLE_TRANSACTION_TIMEOUT_MS = _number(
    "PULLWAKE_IDLE_TRANSACTION_TIMEOUT_MS", 3_000, 0, 600_000
)
# What a peer has for its request, and for each 64 KiB of its answer.
PULLWAKE_PEER_TIMEOUT_S = _number("PULLWAKE_PEER_TIMEOUT_S", 30, 1, 3_600)
# For how long the database may answer others and not this process, until /livez says 503.
PULLWAKE_STUCK_S = _number("PULLWAKE_STUCK_S", 60, 1, 3_600)
PULLWAKE_DRAIN_S = _number("PULLWAKE_DRAIN_S", 0, 0, 3_600)
# For how long an access token is valid that is issued without a word of it; 0 is until revoked.
PULLWAKE_TOKEN_DAYS = _number("PULLWAKE_TOKEN_DAYS", 0 if DEVELOPMENT else 90, 0, 36_500)
# How many entity types, and how many runners, metrics name; the others are one.
PULLWAKE_METRICS_NAMES = _number("PULLWAKE_METRICS_NAMES", 100, 0, 10_000)
# Whether each request is a line of the log.
PULLWAKE_ACCESS_LOG = env.bool("PULLWAKE_ACCESS_LOG", not DEVELOPMENT)
# Whether what only reports, as heartbeats do, is a line of the audit log, too: the access log's
# says the same of it.
PULLWAKE_AUDIT_REPORTS = env.bool(
    "PULLWAKE_AUDIT_REPORTS", not DEVELOPMENT and not PULLWAKE_ACCESS_LOG
)
PULLWAKE_TRACES = env.bool("PULLWAKE_TRACES", False)
SENTRY_DSN = env.str("SENTRY_DSN", "")
for _name, _wanted, _package in (
    ("PULLWAKE_TRACES", PULLWAKE_TRACES, "opentelemetry"),
    ("SENTRY_DSN", SENTRY_DSN, "sentry_sdk"),
):
    if _wanted and find_spec(_package) is None:
        raise ImproperlyConfigured(
            f"{_name} is set, and {_package} is not installed. Leave {_name} out, or run "
            "pip install --require-hashes -r requirements/observability.txt."
        )
PULLWAKE_RETENTION_DAYS = _number("PULLWAKE_RETENTION_DAYS", 30, 1, 36_500)
# What one principal may: 0 is without a limit. The first two are of each worker process.
PULLWAKE_RATE_PER_S = _number("PULLWAKE_RATE_PER_S", 2_000, 0, 1_000_000)
PULLWAKE_MAX_STREAMS = _number("PULLWAKE_MAX_STREAMS", 15_000, 0, 1_000_000)
PULLWAKE_MAX_RUNNERS = _number("PULLWAKE_MAX_RUNNERS", 100_000, 0, 10**9)
PULLWAKE_MAX_ENTITIES = _number("PULLWAKE_MAX_ENTITIES", 1_000_000, 0, 10**9)
PULLWAKE_MAX_TYPES = _number("PULLWAKE_MAX_TYPES", 1_000, 0, 10**9)
PULLWAKE_MAX_SHARED_STATES = _number("PULLWAKE_MAX_SHARED_STATES", 100_000, 0, 10**9)
PULLWAKE_MAX_TIMERS = _number("PULLWAKE_MAX_TIMERS", 1_000_000, 0, 10**9)
PULLWAKE_MAX_REGISTRATIONS = _number("PULLWAKE_MAX_REGISTRATIONS", 1_000_000, 0, 10**9)
PULLWAKE_MAX_PRODUCERS = _number("PULLWAKE_MAX_PRODUCERS", 10_000, 0, 10**9)

# --- Operators' login --------------------------------------------------------------------------


def _roles(name: str) -> dict[str, str]:
    """Roles of operators by the name of a group elsewhere."""
    found = {}
    for each in env.list(name, default=[]):
        group, _, role = each.rpartition("=")
        if not group.strip() or role.strip() not in ROLES:
            raise ImproperlyConfigured(
                f"{name} has {each!r}; it must look like their-group=operators, with one of "
                f"{' and '.join(sorted(ROLES))}."
            )
        found[group.strip()] = role.strip()
    return found


PULLWAKE_OPERATOR_GROUPS = _roles("PULLWAKE_OPERATOR_GROUPS")
PULLWAKE_OIDC_ISSUER = env.str("PULLWAKE_OIDC_ISSUER", "").rstrip("/")
PULLWAKE_OIDC_CLIENT_ID = env.str("PULLWAKE_OIDC_CLIENT_ID", "")
PULLWAKE_OIDC_CLIENT_SECRET = env.str("PULLWAKE_OIDC_CLIENT_SECRET", "")
PULLWAKE_OIDC_NAME = env.str("PULLWAKE_OIDC_NAME", "single sign-on")
PULLWAKE_OIDC_SCOPES = env.str("PULLWAKE_OIDC_SCOPES", "openid profile email")
PULLWAKE_OIDC_USERNAME_CLAIM = env.str("PULLWAKE_OIDC_USERNAME_CLAIM", "sub")
PULLWAKE_OIDC_GROUPS_CLAIM = env.str("PULLWAKE_OIDC_GROUPS_CLAIM", "groups")
_issuer = split_url(PULLWAKE_OIDC_ISSUER)
if PULLWAKE_OIDC_ISSUER:
    if _issuer.scheme not in ("http", "https") or not _issuer.hostname or _issuer.query:
        raise ImproperlyConfigured(
            f"PULLWAKE_OIDC_ISSUER is {PULLWAKE_OIDC_ISSUER!r}; it must look like "
            "https://login.example.com/realms/ours, as the provider names itself."
        )
    if not PULLWAKE_OIDC_CLIENT_ID:
        raise ImproperlyConfigured(
            "PULLWAKE_OIDC_ISSUER is set, and PULLWAKE_OIDC_CLIENT_ID is not: register Pullwake at "
            "the provider, which gives it an id."
        )
    if "openid" not in PULLWAKE_OIDC_SCOPES.split():
        raise ImproperlyConfigured("PULLWAKE_OIDC_SCOPES must have openid among them.")
    if not all(map(find_spec, ("authlib", "requests"))):
        raise ImproperlyConfigured(
            "PULLWAKE_OIDC_ISSUER needs Authlib, which is not installed: "
            "pip install --require-hashes -r requirements/sso.txt."
        )
PULLWAKE_REMOTE_USER_HEADER = env.str("PULLWAKE_REMOTE_USER_HEADER", "")
PULLWAKE_REMOTE_GROUPS_HEADER = env.str("PULLWAKE_REMOTE_GROUPS_HEADER", "X-Forwarded-Groups")
PULLWAKE_REMOTE_USER_PROXIES = _networks("PULLWAKE_REMOTE_USER_PROXIES")
if PULLWAKE_REMOTE_USER_HEADER and not PULLWAKE_REMOTE_USER_PROXIES:
    raise ImproperlyConfigured(
        "PULLWAKE_REMOTE_USER_HEADER is set, and PULLWAKE_REMOTE_USER_PROXIES is not: name the "
        "addresses of the proxy that sends it, and that lets nobody else send it."
    )

PULLWAKE_TOTP = env.choice("PULLWAKE_TOTP", "off", ("off", "optional", "required"))
if PULLWAKE_TOTP != "off" and not all(map(find_spec, ("django_otp", "segno"))):
    raise ImproperlyConfigured(
        "PULLWAKE_TOTP needs django-otp, which is not installed: "
        "pip install --require-hashes -r requirements/sso.txt."
    )

# --- Database ---------------------------------------------------------------------------------

_pool = _number("PULLWAKE_DB_POOL", 16, 1, 10_000)
if not env.str("DATABASE_URL", ""):
    _make_var()
    DATABASES = {"default": env.db_url_config(f"sqlite:///{VAR_DIR / 'pullwake.sqlite3'}")}
else:
    DATABASES = {"default": env.database("DATABASE_URL", sqlite="sqlite:////path/to/file")}
_database = DATABASES["default"]
SQLITE = _database["ENGINE"].endswith("sqlite3")
# As config/serving/gunicorn.conf.py has it, which reads the environment by itself.
_workers = _number("WEB_CONCURRENCY", 2, 1, 512)
WORKERS = 1 if SQLITE else _workers
if SQLITE:
    _database["OPTIONS"] = {
        # IMMEDIATE takes the write lock at BEGIN: no transaction fails half way for want of it.
        "transaction_mode": "IMMEDIATE",
        # It waits for locks by itself, for PULLWAKE_LOCK_TIMEOUT_MS.
        "factory": sqlite.Connection,
        "timeout": 0,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
    # In memory, two threads would be two databases.
    _database["TEST"] = {
        "NAME": str(Path(tempfile.gettempdir()) / f"pullwake-test-{os.getpid()}.sqlite3")
    }
else:
    _given = _database.get("OPTIONS", {})
    # What a session does not do by itself in time, PostgreSQL ends: a server that is frozen in the
    # middle of a transaction costs its own requests, and not those that wait for its locks.
    _session = {
        "lock_timeout": PULLWAKE_LOCK_TIMEOUT_MS,
        "statement_timeout": PULLWAKE_STATEMENT_TIMEOUT_MS,
        "idle_in_transaction_session_timeout": PULLWAKE_IDLE_TRANSACTION_TIMEOUT_MS,
        # What `core.prepared` has is prepared, and planned once: PostgreSQL would plan a read of a
        # wake stream anew each time, for more than it costs.
        "plan_cache_mode": "force_generic_plan",
    }
    _options = [*(f"-c {name}={value}" for name, value in _session.items())]
    # Not behind a pooling proxy: there the next transaction is another session's, which knows
    # nothing of what was prepared, and the proxy sets what holds for each (docs/running.md).
    _direct = {
        "prepare_threshold": 0,
        "options": " ".join([*_options, _given.get("options", "")]).rstrip(),
    }
    # A peer that vanished without a word is missed within seconds.
    _vigilance = {
        "connect_timeout": 5,
        "tcp_user_timeout": 3_000,
        "keepalives_idle": 3,
        "keepalives_interval": 1,
        "keepalives_count": 3,
    }
    _database["OPTIONS"] = {
        **_vigilance,
        **_given,
        **({} if PULLWAKE_LISTEN_URL else _direct),
        "pool": {
            "connection_class": cooperative.Connection,
            "min_size": 1,
            "max_size": _pool,
            # A pool that is dry for this long is answered with 503 and Retry-After.
            "timeout": 5,
            # Left alone its pauses grow to minutes, which a database that is back would wait for.
            "reconnect_timeout": 2,
        },
    }
    # A cursor of the server's own would outlive its session.
    _database["DISABLE_SERVER_SIDE_CURSORS"] = bool(PULLWAKE_LISTEN_URL)
    # What differs at the database's own address (config/serving/direct.py). Migrations take as long
    # as they need, but requests queue up behind one that waits for a lock, so it waits for less.
    _own = env.database("PULLWAKE_LISTEN_URL") if PULLWAKE_LISTEN_URL else {"OPTIONS": _given}
    _said = _own.get("OPTIONS", {})
    _migrating = {
        "lock_timeout": min(PULLWAKE_LOCK_TIMEOUT_MS or 2_000, 2_000),
        "statement_timeout": 0,
        "idle_in_transaction_session_timeout": 0,
    }
    _options = [*(f"-c {name}={value}" for name, value in _migrating.items())]
    DIRECT_DATABASE = {
        **_own,
        "OPTIONS": {
            **_vigilance,
            **_said,
            "options": " ".join([*_options, _said.get("options", "")]).rstrip(),
        },
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- Django -----------------------------------------------------------------------------------

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "axes",
    "runners",
    "dispatch",
    "claims",
    "operators",
    "moving",
    "config.serving",
]
MIDDLEWARE = [
    # For pages; the API goes through config.serving.application's.
    "django.middleware.security.SecurityMiddleware",
    "config.serving.pages.with_policy",
    "config.serving.pages.with_whole_request",
    "config.serving.passwords.LoginTurns",
    "config.serving.pages.GivesWay",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",
]
_logins = []
if PULLWAKE_REMOTE_USER_HEADER:
    _logins += ["operators.remote_user.with_remote_user"]
if PULLWAKE_TOTP != "off":
    INSTALLED_APPS += [
        "django_otp",
        "django_otp.plugins.otp_totp",
        "django_otp.plugins.otp_static",
    ]
    _logins += [
        "django_otp.middleware.OTPMiddleware",
        "operators.second_factor.with_second_factor",
    ]
_place = MIDDLEWARE.index("django.contrib.messages.middleware.MessageMiddleware")
MIDDLEWARE[_place:_place] = _logins
OTP_TOTP_ISSUER = "Pullwake"
if PULLWAKE_CORS_ORIGINS:
    INSTALLED_APPS += ["corsheaders"]
CORS_ALLOW_ALL_ORIGINS = "*" in PULLWAKE_CORS_ORIGINS
CORS_ALLOWED_ORIGINS = [each for each in PULLWAKE_CORS_ORIGINS if each != "*"]
CORS_URLS_REGEX = r"^/(?!admin/|static/)"
CORS_ALLOW_METHODS = default_methods
CORS_ALLOW_HEADERS = [
    *default_headers,
    *("electric-principal", "electric-claim-token", "electric-owner-entity"),
    *("producer-id", "producer-epoch", "producer-seq", "if-none-match"),
    *("traceparent", "tracestate", "x-request-id"),
]
CORS_EXPOSE_HEADERS = ["*"]
CSRF_FAILURE_VIEW = "config.error_pages.stale_form"
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
APPEND_SLASH = True
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]
PASSWORD_HASHERS = ["config.serving.passwords.Hasher"]
# Where a login leads whose address names no page of ours.
LOGIN_REDIRECT_URL = "admin:index"
# Who tries a name from an address too often is locked out there for a while: a stranger elsewhere
# locks out nobody but themselves.
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_RESET_ON_SUCCESS = True
AXES_CLIENT_IP_CALLABLE = "core.addresses.client_address"
AXES_LOCKOUT_CALLABLE = "config.error_pages.locked_out"
AXES_DISABLE_ACCESS_LOG = True
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False
STATIC_URL = "static/"
# Static files are served straight from the packages that bring them: nothing to collect first.
WHITENOISE_USE_FINDERS = True
DATA_UPLOAD_MAX_MEMORY_SIZE = PULLWAKE_MAX_BODY_BYTES

# Cookies are for TLS only, unless the operator has said that the public address is plain HTTP.
_https = not DEVELOPMENT and _public.scheme != "http"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _https
SECURE_HSTS_SECONDS = 31_536_000 if _https else 0
if _public.scheme == "https":
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    CSRF_TRUSTED_ORIGINS = [PULLWAKE_PUBLIC_URL]
SILENCED_SYSTEM_CHECKS = [
    "security.W005",  # HSTS for subdomains is a promise about the operator's other hosts.
    "security.W008",  # TLS ends at the proxy, and runners inside the network may speak plain HTTP.
    "security.W021",  # HSTS preload is the operator's to ask for.
]

UNFOLD = theme.UNFOLD
if PULLWAKE_TOTP != "off":
    UNFOLD = {**UNFOLD, **theme.WITH_SECOND_FACTOR}
REST_FRAMEWORK = {
    "EXCEPTION_HANDLER": "api.http_errors.exception_handler",
    "DEFAULT_AUTHENTICATION_CLASSES": ["api.authentication.PrincipalAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_SCHEMA_CLASS": "api.openapi.Schema",
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Pullwake",
    "DESCRIPTION": "The control plane for pull-wake agent runners.",
    "VERSION": VERSION,
    "OAS_VERSION": "3.1.0",
    "LICENSE": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    "CONTACT": {"name": "Whoever operates this server"},
    "SERVERS": [
        {"url": PULLWAKE_PUBLIC_URL or f"http://{HOST}:{PORT}", "description": "This server"}
    ],
    "TAGS": [
        {"name": "runners", "description": "Register, report and look after runners."},
        {"name": "claims", "description": "Claim a wake, and call back about it."},
        {"name": "streams", "description": "Read wakes and events, and append to them."},
        {"name": "entities", "description": "What messages are sent to."},
        {"name": "schedules", "description": "Messages that are sent at a time."},
        {"name": "wakes", "description": "Wake one entity for what happens elsewhere."},
        {"name": "shared_state", "description": "Streams that several entities write to."},
        {"name": "feeds", "description": "What changes of runners and entities, as it changes."},
        {"name": "types", "description": "What entities of a type have in common."},
        {"name": "webhook_sources", "description": "There are none."},
        {"name": "probes", "description": "Whether a server lives and serves."},
        {"name": "metrics", "description": "Figures for Prometheus."},
    ],
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": [],
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    # JavaScript: pullwakeDocs is in operators/static/pullwake/docs.js.
    "SWAGGER_UI_SETTINGS": "{deepLinking: true, plugins: [pullwakeDocs]}",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "POSTPROCESSING_HOOKS": ["api.openapi.complete"],
}

_log_level = env.choice(
    "PULLWAKE_LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
)
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "lines": {
            "()": "structlog.stdlib.ProcessorFormatter",
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                log_lines.escape,
                structlog.dev.ConsoleRenderer(),
            ],
            "foreign_pre_chain": [
                # Of the request that is being answered.
                log_facts.add_to,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.stdlib.ExtraAdder(),
                structlog.processors.format_exc_info,
            ],
        },
        "json": {"()": "config.serving.log_lines.JsonLines"},
    },
    "filters": {
        "news": {"()": "django.utils.log.CallbackFilter", "callback": log_lines.is_news},
        "now_and_then": {"()": "config.serving.log_lines.NowAndThen"},
    },
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": "lines" if DEVELOPMENT else "json",
        }
    },
    "loggers": {
        # The caller is told of every 4xx; a log line for each would be the caller's to write.
        "django.request": {"level": "ERROR", "filters": ["news"]},
        # Of a foreign Host an error with a traceback, which any scanner can have written.
        "django.security.DisallowedHost": {"level": "CRITICAL"},
        # It logs each attempt to connect to a database that is away.
        "psycopg.pool": {"filters": ["now_and_then"]},
        # `pullwake.audit` has a line for each login, with who and whence.
        "axes": {"level": "ERROR"},
    },
    "root": {"handlers": ["stderr"], "level": _log_level},
}

env.refuse_misspelt()
