"""Which hosts the API answers to, and which pages may call it: the contract's [2] on bodies."""

import pytest
from django.test import RequestFactory

from api import lists, origins
from core.errors import InvalidRequest
from runners.models import Runner
from tests.api.endpoints import TAKING_A_BODY, Scene
from tests.standing import undone
from tests.support import JSON, Api

RUNNERS = "/_electric/runners"
NEW = {"id": "r9", "label": "r9"}
OWN = "http://testserver"


@pytest.fixture
def api(db) -> Api:
    """Whoever calls without a credential, in development mode."""
    return Api()


def register(api, **headers):
    answer = api.post(RUNNERS, NEW, **headers)
    assert Runner.objects.filter(pk="r9").exists() == (answer.status == 201)
    return answer.status


@pytest.mark.parametrize("development", [True, False])
def test_a_body_must_say_that_it_is_json(db, settings, development):
    scene = Scene.set()
    settings.DEVELOPMENT = development
    for endpoint in TAKING_A_BODY:
        for kind in ("", "text/plain", "application/x-www-form-urlencoded", "text/json"):
            with undone():
                answer = scene.holder(endpoint)(
                    endpoint.method, endpoint.path(scene.names), endpoint.body, Content_Type=kind
                )
                assert (answer.status, answer.error) == (415, "UNSUPPORTED_MEDIA_TYPE"), endpoint


def test_parameters_of_the_media_type_are_allowed_and_none_is_needed_without_a_body(api):
    assert register(api, Content_Type=f"{JSON}; charset=utf-8") == 201
    assert api.post(f"{RUNNERS}/r9/heartbeat", Content_Type="").status == 200
    assert api.post(f"{RUNNERS}/r9/disable", Content_Type="text/plain").status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"Origin": OWN}, 201),
        ({"Origin": OWN, "Sec-Fetch-Site": "same-origin"}, 201),
        ({"Origin": "http://testserver:3000"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "https://testserver"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 201),
        # The handler, which the runner starts, asks as curl does.
        ({"Sec-Fetch-Mode": "cors"}, 201),
    ],
)
def test_a_foreign_page_changes_nothing_in_development(api, headers, status):
    assert register(api, **headers) == status


def test_a_foreign_page_disables_no_runner_without_a_body(api):
    api.register("r1")
    answer = api.post(f"{RUNNERS}/r1/disable", Origin="http://evil.example", Content_Type="")
    assert (answer.status, answer.error) == (403, "UNAUTHORIZED")
    assert api.get(f"{RUNNERS}/r1", Origin="http://evil.example").body["admin_status"] == "enabled"


@pytest.mark.parametrize("named", ["http://app.example", "*"])
def test_what_cors_names_may_call(api, settings, named):
    settings.PULLWAKE_CORS_ORIGINS = [named]
    headers = {"Origin": "http://app.example", "Sec-Fetch-Site": "cross-site"}
    assert register(api, **headers) == 201


def test_in_production_a_credential_decides_not_the_origin(db, settings):
    settings.DEVELOPMENT = False
    assert Api().post(RUNNERS, NEW, Origin="http://evil.example").status == 401


# --- Host -------------------------------------------------------------------------------------

CALLS = [
    ("GET", RUNNERS),
    ("POST", RUNNERS),
    ("POST", f"{RUNNERS}/r1/claim"),
    ("GET", "/runners/r1/wake"),
    ("GET", "/agent/e1/main"),
    ("GET", "/metrics"),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "["])
def test_a_foreign_host_is_refused_in_development(api, method, path, host):
    answer = api(method, path, NEW if method == "POST" else None, Host=host)
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert not Runner.objects.exists()


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000"])
def test_this_machine_is_none(api, host):
    assert register(api, Host=host) == 201


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_without_a_public_url_production_has_the_same_rule_for_every_call(
    db, settings, method, path
):
    """So it shows with the first call, and not with the first claim."""
    settings.DEVELOPMENT = False
    answer = Api()(method, path, NEW if method == "POST" else None, Host="wake.example")
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")


# The in-process client goes through the pages' middleware, which looks at every Host.


def test_with_a_public_url_production_needs_no_host(settings):
    settings.DEVELOPMENT = False
    request = RequestFactory().post(f"{RUNNERS}/r1/claim", headers={"Host": "pod-7:8000"})
    with pytest.raises(InvalidRequest, match="ALLOWED_HOSTS"):
        origins.require_own(request)
    settings.PULLWAKE_PUBLIC_URL = "https://wake.example"
    origins.require_own(request)
    assert lists.base_url(request) == "https://wake.example"


def test_a_probe_may_call_the_server_as_it_likes(server):
    description = "/_electric/openapi.json"
    for path, status in (("/livez", 200), ("/readyz", 200), (RUNNERS, 400), (description, 400)):
        assert server.client().get(path, Host="10.1.2.3").status == status
