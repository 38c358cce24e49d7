"""The OpenAPI schema tells the truth: no answer comes that it does not document."""

import re
import tomllib

import msgspec
import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.db import close_old_connections
from drf_spectacular.generators import SchemaGenerator
from hypothesis import HealthCheck, Phase, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks

from api import described, openapi, streams
from api.http_errors import STATUSES
from config.wsgi import application
from tests.api.endpoints import routes
from tests.standing import undone
from tests.support import ROOT, Database

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
def scene(scene, settings, monkeypatch):
    """In a transaction that requests do not close; reads that would wait are answered at once."""
    settings.PULLWAKE_LONG_POLL_MS = 0
    monkeypatch.setattr(streams, "SSE_LENGTH_S", 0.0)
    ends = (request_started, request_finished)
    for end in ends:
        end.disconnect(close_old_connections)
    yield scene
    for end in ends:
        end.connect(close_old_connections)


@pytest.mark.once
@pytest.mark.slow
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


def test_it_is_made_once(alice, monkeypatch):
    first = alice.get(SCHEMA)
    monkeypatch.delattr(SchemaGenerator, "get_schema")
    assert alice.get(SCHEMA).content == first.content


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
    calls = ("claimWake", "callBack", "makeEntity", "sendMessage", "signalEntity")
    streams = ("appendToEntityStream", "appendToSharedState", "editMessage", "deleteMessage")
    others = ("setSchedule", "cancelSchedule", "addSchemasToEntityType")
    assert found == {*calls, *streams, *others}


def test_every_answer_with_a_body_has_its_schema():
    for path, operations in schema.raw_schema["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                kinds = answer.get("content", {})
                named = f"{method} {path} {status}"
                assert all(kind["schema"] for kind in kinds.values()), named
                of_a_stream = {"streams", "shared_state"}.intersection(operation["tags"])
                assert kinds or status in ("204", "304") or of_a_stream, named


def test_everything_is_described():
    components = schema.raw_schema["components"]["schemas"]
    silent = [
        f"{name}.{field}"
        for name, component in components.items()
        for field, property_ in component.get("properties", {}).items()
        if not property_.get("description")
    ]
    for path, operations in schema.raw_schema["paths"].items():
        for method, operation in operations.items():
            named = f"{method} {path}"
            silent += [
                f"{named}: {each['name']}"
                for each in operation.get("parameters", ())
                if not each.get("description") or "example" not in each
            ]
            for status, answer in operation["responses"].items():
                headers = answer.get("headers", {}).items()
                silent += [
                    f"{named} {status}: {n}" for n, each in headers if not each["description"]
                ]
    assert silent == []


def test_each_body_has_an_example_that_the_server_takes_and_gives():
    """Named by their Structs, of which no two have one name."""
    kinds = dict(openapi._bodies())
    components = schema.raw_schema["components"]["schemas"]
    components = {name: each for name, each in components.items() if "enum" not in each}
    assert set(described.EXAMPLES) == set(components)
    for name, component in components.items():
        (example,) = component["examples"]
        assert msgspec.to_builtins(msgspec.convert(example, kinds[name])) == example
        assert set(component.get("required", ())) <= set(example) <= set(component["properties"])


def test_each_body_that_is_no_struct_has_an_example_too():
    for path, operations in schema.raw_schema["paths"].items():
        for method, operation in operations.items():
            bodies = [*operation["responses"].items(), ("sent", operation.get("requestBody", {}))]
            for status, body in bodies:
                for media_type, content in body.get("content", {}).items():
                    named = f"{method} {path} {status} {media_type}"
                    assert "$ref" in str(content["schema"]) or "example" in content, named


def test_no_two_names_become_one_in_a_client():
    """As Python and Go write names: wakeId and wake_id are one there."""
    for name, component in schema.raw_schema["components"]["schemas"].items():
        plain = [field.replace("_", "").lower() for field in component.get("properties", {})]
        assert len(plain) == len(set(plain)), name
    # Go's clients make a Runner with NewRunner.
    names = set(schema.raw_schema["components"]["schemas"])
    assert not names.intersection(f"New{name}" for name in names)
    operations = [
        operation["operationId"]
        for each in schema.raw_schema["paths"].values()
        for operation in each.values()
    ]
    assert len(operations) == len({each.lower() for each in operations})


def test_existing_runners_names_are_still_taken(scene):
    for name, alias in openapi.ALIASES:
        assert alias not in schema.raw_schema["components"]["schemas"][name]["properties"]
    heartbeat = f"/_electric/runners/{scene.names['runner_id']}/heartbeat"
    offset = "0000000000000000_0000000000000001"
    answer = scene.alice.post(heartbeat, {"wakeStreamOffset": offset})
    assert answer.body["wake_stream_offset"] == offset
    minted = scene.claim.call({"wake_id": scene.claim.body["wakeId"]})
    assert minted.body["writeToken"]


def test_every_answer_names_its_request():
    for path, operations in schema.raw_schema["paths"].items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                assert "X-Request-Id" in answer["headers"], (path, status)


def test_the_codes_of_errors_are_all_there_are():
    facts = schema.raw_schema["components"]["schemas"]["ErrorFacts"]
    assert facts["properties"]["code"]["enum"] == sorted({each.code for each in STATUSES})


def test_the_version_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert schema.raw_schema["info"]["version"] == project["version"]


@pytest.mark.server
@pytest.mark.once
def test_spectacular_has_nothing_to_say(tmp_path):
    done = Database("sqlite:///:memory:").manage(
        "spectacular", "--validate", "--fail-on-warn", "--file", str(tmp_path / "schema.yaml")
    )
    assert (done.returncode, done.stderr) == (0, "")
