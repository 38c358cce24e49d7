"""The OpenAPI schema tells the truth: no answer comes that it does not document."""

import re

import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.db import close_old_connections
from hypothesis import HealthCheck, Phase, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks

from api import streams
from config.wsgi import application
from tests.api.endpoints import Scene, routes, undone
from tests.support import Database

SCHEMA = "/_electric/openapi.json"
PAGES = {"", "_electric/docs", "_electric/openapi.json", "admin/login-once/<str:token>/"}

schema = schemathesis.openapi.from_wsgi(SCHEMA, application)

CHECKS = (
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.response_headers_conformance,
)


@pytest.fixture
def scene(db, settings, monkeypatch):
    """In a transaction that requests do not close; reads that would wait are answered at once."""
    settings.PULLWAKE_LONG_POLL_MS = 0
    monkeypatch.setattr(streams, "SSE_LENGTH_S", 0.0)
    scene = Scene.set()
    ends = (request_started, request_finished)
    for end in ends:
        end.disconnect(close_old_connections)
    yield scene
    for end in ends:
        end.connect(close_old_connections)


@schema.parametrize()
@settings(
    max_examples=20,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_documented(case, scene):
    """As it was generated, and again at an address that there is, by one who may."""
    given = dict(case.path_parameters or {})
    for names in (given, {name: scene.names[name] for name in given}):
        case.path_parameters = names
        for headers in (
            scene.alice.headers,
            {"Electric-Claim-Token": scene.claim.body["claimToken"]},
            {"Electric-Claim-Token": scene.write_token},
        ):
            with undone():
                response = case.call(headers=headers)
                case.validate_response(response, checks=CHECKS)


def test_it_documents_every_endpoint():
    paths = schema.raw_schema["paths"]
    documented = {
        path.lstrip("/"): {method.upper() for method in operations}
        for path, operations in paths.items()
    }
    plain = {
        re.sub(r"<\w+:(\w+)>", r"{\1}", route): methods - {"HEAD"}
        for route, methods in routes().items()
        if route not in PAGES
    }
    assert documented == plain


def test_it_documents_the_conflicts_that_chance_does_not_find():
    found = {
        operation["operationId"]
        for operations in schema.raw_schema["paths"].values()
        for operation in operations.values()
        if "409" in operation["responses"]
    }
    calls = ("Claim_post", "Callback_post", "Entity_put", "Send_post", "Signal_post")
    streams = ("MainStream_post", "SharedState_post", "Inbox_patch", "Inbox_delete")
    others = ("Schedule_put", "Schedule_delete", "Schemas_patch")
    assert found == {*calls, *streams, *others}


def test_every_answer_with_a_body_has_its_schema():
    for path, operations in schema.raw_schema["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                kinds = answer.get("content", {})
                named = f"{method} {path} {status}"
                assert all(kind["schema"] for kind in kinds.values()), named
                assert kinds or status in ("204", "304") or "Stream" in operation["operationId"], (
                    named
                )


def test_spectacular_has_nothing_to_say(tmp_path):
    done = Database("sqlite:///:memory:").manage(
        "spectacular", "--validate", "--fail-on-warn", "--file", str(tmp_path / "schema.yaml")
    )
    assert (done.returncode, done.stderr) == (0, "")
