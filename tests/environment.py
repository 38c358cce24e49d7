"""The environment tests run in, whatever the shell's is.

pytest loads this with `-p tests.environment`, because pytest-django reads the settings before any
conftest.py. Server processes that tests start inherit it. DATABASE_URL alone is the caller's: none
means SQLite, and `python -m tests.postgres` sets it.
"""

import os
import secrets
import sys

for name in list(os.environ):
    if name.startswith("PULLWAKE_"):
        del os.environ[name]
for name in (
    "HOST",
    "PORT",
    "WEB_CONCURRENCY",
    "ALLOWED_HOSTS",
    "DJANGO_SETTINGS_MODULE",
    "PROMETHEUS_MULTIPROC_DIR",
    "SENTRY_DSN",
    "GUNICORN_CMD_ARGS",
):
    os.environ.pop(name, None)
# Else each of the hundreds of processes that tests start compiles everything, and pytest rewrites
# every test in each of its own.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["PULLWAKE_MODE"] = "development"
os.environ["SECRET_KEY"] = secrets.token_urlsafe(50)
# Tests hold locks until the order is theirs, on machines as slow as may be.
for name in ("LOCK", "STATEMENT", "IDLE_TRANSACTION"):
    os.environ[f"PULLWAKE_{name}_TIMEOUT_MS"] = "60000"
