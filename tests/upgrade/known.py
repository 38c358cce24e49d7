"""What the tests of upgrades know of the databases in this folder: secrets, and some of the rows.

Of the project, only `tests.support` is imported here: these tests hold wherever the code is.
"""

import hashlib
from pathlib import Path
from typing import Any

import httpx2

from tests.support import Server

FOLDER = Path(__file__).resolve().parent

PASSWORD = "correct horse battery staple"
"""Of each user."""

ACCESS_TOKEN = f"pwa_{'alice':0<43}"
REVOKED_TOKEN = f"pwa_{'revoked':0<43}"

LEASE_MS = 600_000
"""Of claims that a test holds, however slow the machine is."""


def claim_token(url: str) -> str:
    """The claim token of each of the entity's claims."""
    return f"pwc_{_name(url):0<43}"


def write_token(url: str) -> str:
    """The write token of its active claim, where one was minted."""
    return f"pww_{_name(url):0<43}"


def _name(url: str) -> str:
    return url.rpartition("/")[2]


def wake_of(runner_id: str, url: str) -> dict[str, str]:
    """What a runner claims an entity with."""
    key = hashlib.sha256(url.encode()).hexdigest()[:16]
    return {"subscription_id": f"runner:{runner_id}:{key}"}


def log_in(server: Server, name: str) -> httpx2.Client:
    """A user's session in the admin, by its login form; the caller closes it."""
    browser = httpx2.Client(base_url=server.url, timeout=60)
    assert browser.get("/admin/login/").status_code == 200
    form = {"username": name, "password": PASSWORD, "next": "/admin/"}
    answer = post(browser, "/admin/login/", **form)
    assert answer.headers.get("Location") == "/admin/", answer.text
    return browser


def post(browser: httpx2.Client, path: str, **form: str) -> httpx2.Response:
    """The answer to a form of the admin."""
    return browser.post(path, data={**form, "csrfmiddlewaretoken": browser.cookies["csrftoken"]})


DIAGNOSTICS = {
    "status": "streaming",
    "stream_connected": True,
    "last_heartbeat_ok": True,
    "last_claim_result": "claimed",
    "started_at": "2025-01-01T00:00:00.000Z",
    "stream_connected_since": "2025-01-01T00:00:01.000Z",
    "last_error": "connection reset by peer",
    "last_error_at": "2025-01-01T00:00:01.000Z",
    "last_heartbeat_at": "2025-01-01T00:00:30.000Z",
    "last_claim_at": "2025-01-01T00:00:20.000Z",
    "last_dispatch_at": None,
    "reconnect_count": 1,
    "events_received": 12,
    "claims_succeeded": 9,
    "claims_skipped": 0,
    "claims_failed": 0.0,
}

AGENT = {
    "name": "agent",
    "description": "Answers questions",
    "creation_schema": {
        "type": "object",
        "properties": {"model": {"type": "string"}},
        "required": ["model"],
    },
    "inbox_schemas": {"question": {"type": "object", "required": ["text"]}},
    "state_schemas": {"note": {"type": "object"}},
    "default_dispatch_policy": {"targets": [{"type": "runner", "runnerId": "laptop"}]},
    "permission_grants": [
        {"subject_kind": "principal", "subject_value": "user:bob", "permission": "spawn"},
        {"subject_kind": "principal_kind", "subject_value": "service", "permission": "manage"},
    ],
}

PRODUCER = {"Producer_Id": "handler", "Producer_Epoch": "1"}


def text(number: int) -> dict[str, Any]:
    """An event that a handler writes."""
    return {
        "type": "text",
        "key": f"text-{number}",
        "value": {"text": "Grüße \N{ROCKET}"},
        "headers": {"operation": "insert"},
    }
