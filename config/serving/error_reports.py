"""Error reports to Sentry, where SENTRY_DSN is set: what the log calls errors, and no secret.

Of a request only its id, its principal and its target are sent. Whatever looks like a token is
removed wherever it stands, since an error's own text may contain one.
"""

import re
from typing import Any

import sentry_sdk
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from sentry_sdk.integrations.atexit import AtexitIntegration
from sentry_sdk.integrations.dedupe import DedupeIntegration
from sentry_sdk.integrations.excepthook import ExcepthookIntegration
from sentry_sdk.integrations.logging import LoggingIntegration

from core import log_facts
from core.version import VERSION

_SECRET = re.compile(r"pw[a-z]_[A-Za-z0-9_-]{8,}|[0-9a-f]{64}|(?<=://)[^/\s@]+@")
"""Tokens, their hashes, and credentials in an address."""


def start() -> None:
    """Start reporting; raises ImproperlyConfigured for a DSN that is none."""
    try:
        _start()
    except ValueError as exc:  # BadDsn is one
        raise ImproperlyConfigured(
            f"SENTRY_DSN is no DSN: {exc}; copy it from the settings of the project at Sentry."
        ) from None


def _start() -> None:
    sentry_sdk.init(
        dsn=settings.SENTRY_DSN,
        release=f"pullwake@{VERSION}",
        # Its other integrations look at requests, and at the values of variables.
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[
            LoggingIntegration(),
            ExcepthookIntegration(),
            DedupeIntegration(),
            AtexitIntegration(callback=lambda pending, timeout: None),
        ],
        include_local_variables=False,
        send_default_pii=False,
        before_send=_without_secrets,
        before_breadcrumb=lambda crumb, hint: _scrubbed(crumb),
    )


def flush() -> None:
    """Send what is still queued."""
    sentry_sdk.flush(timeout=1)


def _without_secrets(event: Any, hint: Any) -> Any:
    # Django's line for a 500 carries the request, whose address may contain a login.
    event.get("extra", {}).pop("request", None)
    event["tags"] = {**event.get("tags", {}), **log_facts.known()}
    return _scrubbed(event)


def _scrubbed(value: Any) -> Any:
    match value:
        case str():
            return _SECRET.sub("[removed]", value)
        case dict():
            return {name: _scrubbed(each) for name, each in value.items()}
        case list() | tuple():
            return [_scrubbed(each) for each in value]
    return value
