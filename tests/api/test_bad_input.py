"""Bad input, on every endpoint: a 4xx in the contract's shape, and nothing is changed."""

import contextlib
import re
import socket

import msgspec
import pytest

from core.bodies import MOST_NAMED
from tests.api.endpoints import (
    CRON,
    ENDPOINTS,
    ENTITIES,
    ENTITY,
    FEEDS,
    INBOX,
    MAIN,
    METHODS,
    OFFSET,
    RUNNER,
    RUNNERS,
    SCHEDULE,
    SHARED,
    TAKING_A_BODY,
    TYPE,
    TYPES,
    WAKE,
    WAKES,
    Endpoint,
    everything,
    routes,
)
from tests.standing import undone
from tests.support import Api, Server

CALLBACK = "_electric/wake-callbacks/<id:consumer_id>"
LIMIT = 8192
BY_NAME = {str(each): each for each in ENDPOINTS}
EMPTY_IS_FINE = {f"POST /{RUNNER}/heartbeat", f"POST /{RUNNER}/claim", f"PUT /{ENTITY}"}


@pytest.fixture
def scene(scene, settings):
    settings.PULLWAKE_MAX_BODY_BYTES = settings.DATA_UPLOAD_MAX_MEMORY_SIZE = LIMIT
    return scene


@pytest.fixture
def refused(scene):
    """Call an endpoint as one who may; it must refuse with this status and change nothing."""

    def call(endpoint, status, code, *, path=None, body=None, **headers):
        before = everything()
        answer = scene.holder(endpoint)(
            endpoint.method, path or endpoint.path(scene.names), body, **headers
        )
        assert (answer.status, answer.error) == (status, code), answer
        assert everything() == before
        return answer

    return call


@pytest.fixture
def refuses(scene):
    """Call an endpoint with each of these bodies; it must refuse all, and change nothing."""

    def call(endpoint, status, code, bodies, **headers):
        before = everything()
        answers = {
            name: scene.holder(endpoint)(
                endpoint.method, endpoint.path(scene.names), body, **headers
            )
            for name, body in bodies.items()
        }
        assert {name: (answer.status, answer.error) for name, answer in answers.items()} == (
            dict.fromkeys(bodies, (status, code))
        )
        assert everything() == before
        return answers.values()

    return call


def paths(answer):
    return [each["path"] for each in answer.body["error"]["details"]]


# --- Methods and addresses --------------------------------------------------------------------


@pytest.mark.parametrize("route", [each for each in routes() if each and "login" not in each])
def test_a_wrong_method_is_405_and_told_the_right_ones(scene, route):
    right = routes()[route]
    right |= {"HEAD"} if "GET" in right else set()
    path = Endpoint("GET", route, "").path(scene.names)
    before = everything()
    assert scene.alice("OPTIONS", path).status == 204
    for method in set(METHODS) - right - {"OPTIONS"}:
        answer = scene.alice(method, path)
        assert answer.status == 405, method
        assert method == "HEAD" or answer.error == "METHOD_NOT_ALLOWED", method
        assert set(answer.headers["Allow"].split(", ")) == right, method
    assert everything() == before


UNKNOWN = (
    "/nothing",
    "/_electric",
    "/_electric/",
    "/_electric/runners/",
    "/_electric/runners/r1/",
    "/_electric/runners/r1/nothing",
    "/_electric/entities/agent",
    "/_electric/entities/agent/e1/main",
    "/_electric/entities/agent/e1/tags/",
    "/_electric/wake-callbacks/",
    "/_electric/shared-state/",
    "/runners/r1/wake/",
    "/agent/e1",
    "/agent/e1/main/",
    "/%00",
    "/%FF",
    "/LIVEZ",
    "/" + "x" * 3000,
)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_address_is_404(alice, method):
    for path in UNKNOWN:
        answer = alice(method, path)
        assert (answer.status, answer.error) == (404, "NOT_FOUND"), path


BAD_IDS = [
    "..",
    ".",
    "%00",
    "a%00b",
    "%2F",
    "..%2F..",
    "%FF",
    "%C3%A4",
    "%20",
    "x" * 129,
    "%0A",
    "e1%0A",
]
WITH_IDS = [
    each for each in ENDPOINTS if re.search(r"<(str|id):", each.route) and each.method != "PUT"
]


@pytest.mark.parametrize("endpoint", WITH_IDS, ids=str)
def test_a_bad_id_in_an_address_is_not_found(scene, endpoint):
    before = everything()
    api = scene.holder(endpoint)
    answered = {}
    for name in set(re.findall(r"<(?:str|id):(\w+)>", endpoint.route)) - {"key"}:
        for bad in BAD_IDS:
            path = Endpoint("", endpoint.route, "").path({**scene.names, name: bad})
            answer = api(endpoint.method, path, endpoint.body)
            assert endpoint.method == "HEAD" or answer.error, path
            answered[path] = answer.status
    # An encoded slash is a slash to WSGI, and so another address.
    allowed = {path: {404, 405} if "%2F" in path else {404} for path in answered}
    assert {path for path in answered if answered[path] not in allowed[path]} == set()
    assert everything() == before


@pytest.mark.parametrize(("name", "named"), [("type_name", "/type"), ("name", "/id")])
def test_nothing_is_made_with_a_bad_id(scene, refused, name, named):
    endpoint = BY_NAME[f"PUT /{ENTITY}"]
    for bad in BAD_IDS:
        if "%2F" not in bad:
            path = Endpoint("PUT", ENTITY, "").path({**scene.names, name: bad})
            answer = refused(endpoint, 400, "INVALID_REQUEST", path=path, body={})
            assert paths(answer) == [named]


@pytest.mark.parametrize("reserved", ["_electric", "_cron", "_entities", "_webhooks", "principal"])
def test_no_entity_stands_where_the_api_streams_or_principals_do(refused, reserved):
    # Who ended one at a cron expression's path would end the schedules of all who wait for that.
    path = f"/_electric/entities/{reserved}/e1"
    answer = refused(BY_NAME[f"PUT /{ENTITY}"], 400, "INVALID_REQUEST", path=path, body={})
    assert paths(answer) == ["/type"]
    body = {"name": reserved, "description": ""}
    assert paths(refused(BY_NAME[f"POST /{TYPES}"], 400, "INVALID_REQUEST", body=body)) == ["/name"]


@pytest.mark.parametrize("key", ["%00", "a%0Ab", "x" * 257])
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_bad_tag_is_refused(refused, method, key):
    endpoint = BY_NAME[f"{method} /{ENTITY}/tags/<text:key>"]
    path = f"/_electric/entities/agent/e1/tags/{key}"
    answer = refused(endpoint, 400, "INVALID_REQUEST", path=path, body=endpoint.body)
    assert paths(answer) == ["/key"]


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({}, "/Electric-Owner-Entity"),
        *(
            ({"Electric_Owner_Entity": owner}, "/Electric-Owner-Entity")
            for owner in ("", "e1", "/agent", "/agent/e1/main", "/a b/e1", "agent/e1", "/agent/..")
        ),
        *(
            ({"Electric_Owner_Entity": "/agent/e1", name: value}, f"/{name}".replace("_", "-"))
            for name, value in (
                ("Stream_TTL", "60"),
                ("Stream_Expires_At", "2030-01-01T00:00:00Z"),
                ("Stream_Closed", "true"),
                ("Stream_Forked_From", "/agent/e1/main"),
            )
        ),
    ],
)
def test_no_shared_state_is_made_with_bad_headers(refused, headers, named):
    endpoint = BY_NAME[f"PUT /{SHARED}"]
    assert paths(refused(endpoint, 400, "INVALID_REQUEST", **headers)) == [named]


@pytest.mark.parametrize("shared_id", ["%00", "a%0Ab", "x" * 513, "%E2%80%A8"])
def test_a_bad_id_of_a_shared_state_is_refused_or_not_found(refused, shared_id):
    path = f"/_electric/shared-state/{shared_id}"
    owner = {"Electric_Owner_Entity": "/agent/e1"}
    endpoint = BY_NAME[f"PUT /{SHARED}"]
    answer = refused(endpoint, 400, "INVALID_REQUEST", path=path, **owner)
    assert paths(answer) == ["/id"]
    for method in ("GET", "POST"):
        endpoint = BY_NAME[f"{method} /{SHARED}"]
        refused(endpoint, 404, "NOT_FOUND", path=path, body=endpoint.body)


def test_a_shared_state_is_made_empty(refused):
    endpoint, owner = BY_NAME[f"PUT /{SHARED}"], {"Electric_Owner_Entity": "/agent/e1"}
    refused(endpoint, 400, "INVALID_REQUEST", body=[{"a": 1}], **owner)
    refused(
        endpoint,
        415,
        "UNSUPPORTED_MEDIA_TYPE",
        body=b"text",
        Content_Type="text/plain",
        **owner,
    )


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.method == "GET"], ids=str)
def test_no_accept_header_is_trouble(scene, endpoint):
    for accept in ("text/xml", "application/x-nonsense", "nonsense", "*/*;q=0", ""):
        answer = scene.alice.get(endpoint.path(scene.names), Accept=accept)
        assert answer.status == 200 or (answer.status, answer.error) == (400, "INVALID_REQUEST")


# --- Parameters -------------------------------------------------------------------------------

BAD_OFFSETS = ("", "nonsense", "%00", "-2", "1_1", f"{OFFSET}%0A", f"{OFFSET}_0")
PARAMETERS = [
    (RUNNERS, "owner_principal", ("alice", "%00", ""), "user:alice"),
    (ENTITIES, "type", ("", "a/b", "%00", ".."), "agent"),
    (ENTITIES, "status", ("", "active", "%00", "Idle"), "idle"),
    (ENTITIES, "parent", ("", "e1", "/agent", "/a/b/c", "%00", "/a/b%0A"), "/agent/e1"),
    (ENTITIES, "created_by", ("", "alice", "/principal/alice", "%00"), "user:alice"),
    (ENTITIES, "before", ("nonsense", "%00", "", "/agent/e3"), "/agent/e2"),
    *(
        (stream, name, bad, good)
        for stream in (WAKES, MAIN, SHARED)
        for name, bad, good in (
            ("offset", BAD_OFFSETS, "-1"),
            ("live", ("", "true", "%00"), "long-poll"),
            ("cursor", ("%00",), "7"),
        )
    ),
]


@pytest.mark.parametrize(("route", "name", "bad", "good"), PARAMETERS)
def test_a_parameter_that_is_bad_or_given_twice_is_refused(refused, scene, route, name, bad, good):
    endpoint = BY_NAME[f"GET /{route}"]
    path = endpoint.path(scene.names)
    others = "&offset=-1" if name == "live" else ""
    for query in (*(f"{name}={value}" for value in bad), f"{name}={good}&{name}={good}"):
        answer = refused(endpoint, 400, "INVALID_REQUEST", path=f"{path}?{query}{others}")
        assert paths(answer) == [f"/{name}"], query


@pytest.mark.parametrize("stream", [WAKES, MAIN, SHARED])
def test_a_live_read_needs_an_offset(scene, refused, stream):
    endpoint = BY_NAME[f"GET /{stream}"]
    path = f"{endpoint.path(scene.names)}?live=long-poll"
    assert paths(refused(endpoint, 400, "INVALID_REQUEST", path=path)) == ["/offset"]


@pytest.mark.parametrize(
    ("route", "query", "named"),
    [
        (
            ENTITIES,
            "type=a/b&status=x&parent=e1&created_by=x&limit=0&before=x",
            ["/limit", "/type", "/status", "/parent", "/created_by", "/before"],
        ),
        (ENTITIES, "type=a&type=b&status=%00", ["/type", "/status"]),
        (RUNNERS, "owner_principal=x&limit=x&before=x", ["/limit", "/owner_principal", "/before"]),
        (TYPES, "limit=0&after=%00", ["/limit", "/after"]),
        *((stream, "live=x&offset=x", ["/live", "/offset"]) for stream in (WAKES, MAIN, SHARED)),
        *(
            (stream, "live=x&offset=x&cursor=1&cursor=2", ["/cursor", "/live", "/offset"])
            for stream in (WAKES, MAIN, SHARED)
        ),
        (WAKES, "live=sse&live=sse&offset=%00", ["/live", "/offset"]),
        (f"{FEEDS}/entities", "type=a/b&tag=%00", ["/type", "/tag"]),
    ],
)
def test_every_bad_parameter_is_named(scene, refused, route, query, named):
    endpoint = BY_NAME[f"GET /{route}"]
    path = f"{endpoint.path(scene.names)}?{query}"
    assert paths(refused(endpoint, 400, "INVALID_REQUEST", path=path)) == named


@pytest.mark.parametrize("stream", [MAIN, SHARED])
def test_every_bad_header_of_a_producer_is_named(refused, stream):
    endpoint = BY_NAME[f"POST /{stream}"]
    bad = {"Producer_Id": "", "Producer_Epoch": "x", "Producer_Seq": "-1"}
    for headers, named in (
        (bad, ["/Producer-Id", "/Producer-Epoch", "/Producer-Seq"]),
        ({"Producer_Id": "p"}, ["/Producer-Epoch", "/Producer-Seq"]),
    ):
        answer = refused(endpoint, 400, "INVALID_REQUEST", body=endpoint.body, **headers)
        assert paths(answer) == named


# --- Bodies -----------------------------------------------------------------------------------

NOT_JSON = {
    "nonsense": b"nonsense",
    "cut short": b'{"a": ',
    "trailing text": b"{} {}",
    "trailing comma": b'{"a": 1,}',
    "single quotes": b"{'a': 1}",
    "a comment": b"{} // x",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "not UTF-8": b'{"nobody": "\xff"}',
    "NaN": b'{"payload": NaN}',
    "a control character": b'{"payload": "a\nb"}',
    "a NUL byte": b'{"payload": "\0"}',
    "NUL bytes": b"\0\0\0",
    "arrays without end": b"[" * 2000,
    "nested arrays": b'{"payload": ' + b"[" * 1500 + b"]" * 1500 + b"}",
    "nested objects": b'{"payload":' * 300 + b"1" + b"}" * 300,
}


@pytest.mark.parametrize("endpoint", TAKING_A_BODY, ids=str)
def test_what_is_not_json_is_refused(refuses, endpoint):
    refuses(endpoint, 400, "INVALID_REQUEST", NOT_JSON)


@pytest.mark.parametrize(
    "endpoint", [e for e in TAKING_A_BODY if e.route not in (MAIN, SHARED)], ids=str
)
def test_what_is_not_an_object_is_refused(refuses, endpoint):
    bodies = {text: text.encode() for text in ("null", "7", '"x"', "true", "[]", "[{}]")}
    for answer in refuses(endpoint, 400, "INVALID_REQUEST", bodies):
        assert paths(answer) == [""]


@pytest.mark.parametrize("endpoint", TAKING_A_BODY, ids=str)
def test_no_body_is_refused_where_one_is_needed(scene, refused, endpoint):
    if str(endpoint) in EMPTY_IS_FINE:
        answer = scene.holder(endpoint)(endpoint.method, endpoint.path(scene.names))
        assert answer.status == endpoint.status
    else:
        refused(endpoint, 400, "INVALID_REQUEST", body=b"")


MEDIA_TYPES = (
    "text/plain",
    "application/xml",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/jsonp",
    "nonsense",
)


@pytest.mark.parametrize("endpoint", TAKING_A_BODY, ids=str)
def test_another_media_type_is_415(refused, endpoint):
    for media_type in MEDIA_TYPES:
        refused(
            endpoint, 415, "UNSUPPORTED_MEDIA_TYPE", body=endpoint.body, Content_Type=media_type
        )


NEEDING_NO_BODY = [
    each
    for each in ENDPOINTS
    if each.method == "DELETE" or each.route in (f"{RUNNER}/enable", f"{RUNNER}/disable")
]


@pytest.mark.parametrize("endpoint", NEEDING_NO_BODY, ids=str)
def test_where_none_is_needed_a_body_is_json_all_the_same(scene, refused, endpoint):
    for media_type in MEDIA_TYPES:
        refused(endpoint, 415, "UNSUPPORTED_MEDIA_TYPE", body=b"x", Content_Type=media_type)
    refused(endpoint, 413, "PAYLOAD_TOO_LARGE", body=b" " * LIMIT + b"{}")
    path = endpoint.path(scene.names)
    answer = scene.holder(endpoint)(endpoint.method, path, {"any": "thing"})
    assert answer.status == endpoint.status


@pytest.mark.parametrize("endpoint", TAKING_A_BODY, ids=str)
def test_a_body_over_the_limit_is_413(refused, endpoint):
    refused(endpoint, 413, "PAYLOAD_TOO_LARGE", body=b" " * LIMIT + b"{}")


@pytest.mark.parametrize("endpoint", TAKING_A_BODY, ids=str)
def test_a_body_at_the_limit_is_taken(scene, endpoint):
    body = msgspec.json.encode(endpoint.body)
    body += b" " * (LIMIT - len(body))
    answer = scene.holder(endpoint)(endpoint.method, endpoint.path(scene.names), body)
    assert answer.status == endpoint.status, answer


DEEP = 200


@pytest.mark.parametrize(
    ("endpoint", "template"),
    [
        (f"POST /{ENTITY}/send", b'{"payload": %s}'),
        (f"PATCH /{INBOX}", b'{"payload": %s}'),
        (f"POST /{ENTITY}/signal", b'{"signal": "SIGHUP", "payload": %s}'),
        (f"PUT /{ENTITY}", b'{"args": {"a": %s}}'),
        (f"PUT /{ENTITY}", b'{"initialMessage": %s}'),
        (
            f"POST /{TYPES}",
            b'{"name": "x", "description": "", "state_schemas": {"a": {"const": %s}}}',
        ),
        (f"POST /{MAIN}", b"[%s]"),
        (f"POST /{SHARED}", b"[%s]"),
    ],
)
def test_however_deep_it_is_nested_it_is_no_error_of_ours(scene, endpoint, template):
    endpoint = BY_NAME[endpoint]
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        for depth in (10, 150, DEEP - 5, DEEP + 1, 300, 400, 600, 900):
            body = template % (opening * depth + b'"\\u0001"' + closing * depth)
            with undone():
                answer = scene.holder(endpoint)(endpoint.method, endpoint.path(scene.names), body)
                if depth < DEEP:
                    assert answer.status == endpoint.status, answer
                    assert scene.alice.get("/agent/e1/main").status == 200
                    assert scene.alice.get("/_electric/entities").status == 200
                else:
                    assert (answer.status, answer.error) == (400, "INVALID_REQUEST"), depth


WATCH = '"subscriberUrl": "/agent/e1", "sourceUrl": "/agent/e2"'
FINISHED = '"condition": "runFinished"'

# Each text that is kept or looked up, as {TEXT}.
TEXTS = [
    (f"POST /{RUNNERS}", '{"id": {TEXT}, "label": "x"}'),
    (f"POST /{RUNNERS}", '{"id": "new", "label": {TEXT}}'),
    (f"POST /{RUNNERS}", '{"id": "new", "label": "x", "owner_principal": {TEXT}}'),
    (f"POST /{RUNNERS}", '{"id": "new", "label": "x", "wake_stream": {TEXT}}'),
    (
        f"POST /{RUNNERS}",
        '{"id": "new", "label": "x", "sandbox_profiles": [{"name": {TEXT}, "label": "x"}]}',
    ),
    (f"POST /{RUNNER}/heartbeat", '{"wake_stream_offset": {TEXT}}'),
    (f"POST /{RUNNER}/claim", '{"subscription_id": {TEXT}}'),
    (f"POST /{CALLBACK}", '{"epoch": 1, "wakeId": {TEXT}}'),
    (f"POST /{CALLBACK}", '{"epoch": 1, "acks": [{"path": {TEXT}, "offset": "-1"}]}'),
    (f"POST /{CALLBACK}", '{"epoch": 1, "acks": [{"path": "/agent/e1/main", "offset": {TEXT}}]}'),
    (f"PUT /{ENTITY}", '{"args": {"a": {TEXT}}}'),
    (f"PUT /{ENTITY}", '{"args": {{TEXT}: 1}}'),
    (f"PUT /{ENTITY}", '{"tags": {"a": {TEXT}}}'),
    (f"PUT /{ENTITY}", '{"tags": {{TEXT}: "a"}}'),
    (f"PUT /{ENTITY}", '{"initialMessage": [{TEXT}]}'),
    (f"PUT /{ENTITY}", '{"initialMessage": 1, "initialMessageType": {TEXT}}'),
    (f"PUT /{ENTITY}", '{"parent": {TEXT}}'),
    (f"PUT /{ENTITY}", '{"sandbox": {"profile": {TEXT}}}'),
    (f"POST /{TYPES}", '{"name": "new", "description": "", "slash_commands": [{"name": {TEXT}}]}'),
    (f"POST /{TYPES}", '{"name": "new", "description": "", "serve_endpoint": {TEXT}}'),
    (
        f"POST /{TYPES}",
        (
            '{"name": "new", "description": "",'
            ' "externally_writable_collections": {{TEXT}: {"type": "x"}}}'
        ),
    ),
    (f"PATCH /{TYPE}/schemas", '{"inbox_schemas": {{TEXT}: {}}}'),
    (
        f"PUT /{ENTITY}",
        '{"dispatch_policy": {"targets": [{"type": "runner", "runnerId": {TEXT}}]}}',
    ),
    (
        f"PATCH /{ENTITY}",
        '{"dispatch_policy": {"targets": [{"type": "runner", "runnerId": {TEXT}}]}}',
    ),
    (f"PATCH /{ENTITY}", '{"tags": {"a": {TEXT}}}'),
    (f"POST /{ENTITY}/send", '{"payload": {TEXT}}'),
    (f"POST /{ENTITY}/send", '{"payload": 1, "key": {TEXT}}'),
    (f"POST /{ENTITY}/send", '{"payload": 1, "type": {TEXT}}'),
    (f"POST /{ENTITY}/send", '{"payload": 1, "mode": {TEXT}}'),
    (f"POST /{ENTITY}/send", '{"payload": 1, "position": {TEXT}}'),
    (f"PATCH /{INBOX}", '{"payload": {TEXT}}'),
    (f"PATCH /{INBOX}", '{"mode": {TEXT}}'),
    (f"PATCH /{INBOX}", '{"position": {TEXT}}'),
    (f"PATCH /{INBOX}", '{"status": {TEXT}}'),
    (f"POST /{ENTITY}/signal", '{"signal": {TEXT}}'),
    (f"POST /{ENTITY}/signal", '{"signal": "SIGHUP", "reason": {TEXT}}'),
    (f"POST /{ENTITY}/signal", '{"signal": "SIGHUP", "payload": {TEXT}}'),
    (f"POST /{ENTITY}/tags/<text:key>", '{"value": {TEXT}}'),
    (f"POST /{TYPES}", '{"name": {TEXT}, "description": ""}'),
    (f"POST /{TYPES}", '{"name": "new", "description": {TEXT}}'),
    (f"POST /{TYPES}", '{"name": "new", "description": "", "creation_schema": {"const": {TEXT}}}'),
    (f"POST /{TYPES}", '{"name": "new", "description": "", "inbox_schemas": {{TEXT}: {}}}'),
    (
        f"POST /{TYPES}",
        (
            '{"name": "new", "description": "", "permission_grants": '
            '[{"subject_kind": "principal", "subject_value": {TEXT}, "permission": "spawn"}]}'
        ),
    ),
    (f"POST /{WAKE}", f'{{"subscriberUrl": "/agent/e1", "sourceUrl": {{TEXT}}, {FINISHED}}}'),
    (f"POST /{WAKE}", f'{{"sourceUrl": "/agent/e2", "subscriberUrl": {{TEXT}}, {FINISHED}}}'),
    (f"POST /{WAKE}", f'{{{WATCH}, {FINISHED}, "manifestKey": {{TEXT}}}}'),
    (f"POST /{WAKE}", f'{{{WATCH}, "condition": {{TEXT}}}}'),
    (f"POST /{WAKE}", f'{{{WATCH}, "condition": {{"on": "change", "collections": [{{TEXT}}]}}}}'),
    (f"POST /{WAKE}", f'{{{WATCH}, "condition": {{"on": "change", "ops": [{{TEXT}}]}}}}'),
    (f"POST /{WAKE}/unregister", '{"subscriberUrl": "/agent/e1", "sourceUrl": {TEXT}}'),
    (f"POST /{WAKE}/unregister", '{"subscriberUrl": "/agent/e1", "manifestKey": {TEXT}}'),
    (f"PUT /{ENTITY}", f'{{"wake": {{"subscriberUrl": {{TEXT}}, {FINISHED}}}}}'),
    (f"POST /{MAIN}", '{"a": {TEXT}}'),
    (f"POST /{MAIN}", "[1, {TEXT}]"),
    (f"POST /{SHARED}", "[1, {TEXT}]"),
]


BAD_TEXTS = ('"a\\u0000b"', '"a\\ud800b"', '"a\\udc00"', '"\\ud800\\ud800"', '"a\\xb"', '"a')


@pytest.mark.parametrize(("endpoint", "template"), TEXTS)
def test_a_text_that_no_database_takes_is_refused(refuses, endpoint, template):
    bodies = {text: template.replace("{TEXT}", text).encode() for text in BAD_TEXTS}
    refuses(BY_NAME[endpoint], 400, "INVALID_REQUEST", bodies)


NUMBERS = [
    (f"POST /{CALLBACK}", '{"epoch": {NUMBER}}'),
    (f"POST /{CALLBACK}", '{"generation": {NUMBER}, "done": true}'),
    (f"POST /{CALLBACK}", '{"epoch": {NUMBER}, "failed": true}'),
    (f"POST /{CALLBACK}", '{"epoch": {NUMBER}, "wakeId": "w_1"}'),
    (f"POST /{RUNNER}/heartbeat", '{"lease_ms": {NUMBER}}'),
    (f"POST /{RUNNERS}", '{"id": "new", "label": "x", "claim_lease_ms": {NUMBER}}'),
    (f"POST /{RUNNERS}", '{"id": "new", "label": "x", "max_concurrent_claims": {NUMBER}}'),
    (f"POST /{WAKE}", f'{{{WATCH}, {FINISHED}, "debounceMs": {{NUMBER}}}}'),
    (f"POST /{WAKE}", f'{{{WATCH}, {FINISHED}, "timeoutMs": {{NUMBER}}}}'),
    (f"POST /{WAKE}", f'{{{WATCH}, "condition": {{"on": "change", "timeoutMs": {{NUMBER}}}}}}'),
    (
        f"PUT /{ENTITY}",
        f'{{"wake": {{"subscriberUrl": "/agent/e1", {FINISHED}, "debounceMs": {{NUMBER}}}}}}',
    ),
]


BAD_NUMBERS = ("-1", "9223372036854775808", "1" + "0" * 25, "1" + "0" * 3000, "1e300", "1.5", "NaN")


@pytest.mark.parametrize(("endpoint", "template"), NUMBERS)
def test_a_number_out_of_bounds_is_refused(scene, endpoint, template):
    endpoint = BY_NAME[endpoint]
    before = everything()
    for number in BAD_NUMBERS:
        body = template.replace("{NUMBER}", number).encode()
        answer = scene.holder(endpoint)(endpoint.method, endpoint.path(scene.names), body)
        # An epoch that no wake can have is another epoch.
        refusals = [(400, "INVALID_REQUEST"), (409, "FENCED")][: 1 + (endpoint.who == "holder")]
        assert (answer.status, answer.error) in refusals, number
    assert everything() == before


@pytest.mark.parametrize(
    ("endpoint", "template", "number"),
    [
        (f"POST /{RUNNERS}", '{"id": "new", "label": "x", "claim_lease_ms": {NUMBER}}', "30000.0"),
        (f"POST /{RUNNERS}", '{"id": "new", "label": "x", "claim_lease_ms": {NUMBER}}', "3e4"),
        (f"POST /{RUNNERS}", '{"id": "x", "label": "x", "max_concurrent_claims": {NUMBER}}', "1E1"),
        (f"POST /{RUNNER}/heartbeat", '{"lease_ms": {NUMBER}}', "9e4"),
        (f"POST /{CALLBACK}", '{"epoch": {NUMBER}}', "1.0"),
        (f"POST /{CALLBACK}", '{"generation": {NUMBER}, "done": true}', "0.1e1"),
    ],
)
def test_an_integer_may_be_written_as_any_json_number(scene, endpoint, template, number):
    endpoint = BY_NAME[endpoint]
    body = template.replace("{NUMBER}", number).encode()
    answer = scene.holder(endpoint)(endpoint.method, endpoint.path(scene.names), body)
    assert answer.status == endpoint.status, answer


OWN_NUMBERS = ("123456789012345678901234567890", "1" + "0" * 3000, "-0", "1e308")


@pytest.mark.parametrize(
    ("endpoint", "template"),
    [
        (f"POST /{ENTITY}/send", '{"payload": {NUMBER}}'),
        (f"PUT /{ENTITY}", '{"args": {"a": {NUMBER}}}'),
        (f"PUT /{ENTITY}", '{"sandbox": {"a": {NUMBER}}}'),
        (f"POST /{MAIN}", "[{NUMBER}]"),
    ],
)
def test_a_number_that_is_the_callers_own_may_be_any(scene, endpoint, template):
    endpoint = BY_NAME[endpoint]
    for number in OWN_NUMBERS:
        body = template.replace("{NUMBER}", number).encode()
        with undone():
            answer = scene.holder(endpoint)(endpoint.method, endpoint.path(scene.names), body)
            assert answer.status == endpoint.status, number
            assert scene.alice.get("/agent/e1/main").status == 200


@pytest.mark.parametrize(
    ("endpoint", "body", "named"),
    [
        (
            f"POST /{RUNNERS}",
            {"id": "a/b", "label": 7, "kind": "x", "max_concurrent_claims": 0, "claim_lease_ms": 1},
            ["/id", "/label", "/kind", "/max_concurrent_claims", "/claim_lease_ms"],
        ),
        (f"POST /{RUNNERS}", {}, ["/id", "/label"]),
        (
            f"POST /{RUNNERS}",
            {"id": "new", "label": "x", "owner_principal": "alice", "wake_stream": "/else"},
            ["/owner_principal", "/wake_stream"],
        ),
        (
            f"POST /{RUNNERS}",
            {"id": "new", "label": 5, "owner_principal": "alice"},
            ["/label", "/owner_principal"],
        ),
        (
            f"POST /{RUNNER}/heartbeat",
            {"lease_ms": "x", "wakeStreamOffset": "x"},
            ["/lease_ms", "/wakeStreamOffset"],
        ),
        (
            f"POST /{WAKE}",
            {"subscriberUrl": "x", "debounceMs": 3_600_001, "timeoutMs": -1, "manifestKey": ""},
            [
                "/subscriberUrl",
                "/sourceUrl",
                "/condition",
                "/debounceMs",
                "/timeoutMs",
                "/manifestKey",
            ],
        ),
        *(
            (
                f"POST /{WAKE}",
                {"subscriberUrl": "/agent/e1", "sourceUrl": "/agent/e2", "condition": condition},
                [path],
            )
            for condition, path in (
                ("finished", "/condition"),
                ({"on": "finished"}, "/condition"),
                ({}, "/condition"),
                ({"on": "change", "ops": ["upsert"]}, "/condition/ops/0"),
                ({"on": "change", "collections": [""]}, "/condition/collections/0"),
                ({"on": "change", "collections": ["x"] * 65}, "/condition/collections"),
                ({"on": "change", "timeoutMs": 30 * 24 * 3_600_000 + 1}, "/condition/timeoutMs"),
            )
        ),
        *(
            (
                f"POST /{WAKE}",
                {"subscriberUrl": "/agent/e1", "sourceUrl": url, "condition": "runFinished"},
                ["/sourceUrl"],
            )
            for url in ("agent/e2", "/agent", "/agent/e2/main", "/_entities/x", "/_webhooks/x/y")
        ),
        (f"POST /{WAKE}/unregister", {"subscriberUrl": "/agent/e1"}, ["/sourceUrl"]),
        (f"POST /{RUNNER}/claim", {"subscription_id": 7}, ["/subscription_id"]),
        (f"POST /{RUNNER}/claim", {"subscription_id": "runner:r2:x"}, ["/subscription_id"]),
        (f"POST /{RUNNER}/claim", {"subscription_id": ""}, ["/subscription_id"]),
        (
            f"POST /{CALLBACK}",
            {"epoch": "1", "done": "yes", "acks": [{"path": 7}, {"offset": "-1"}, 3]},
            ["/epoch", "/acks/0/offset", "/acks/0/path", "/acks/2", "/done"],
        ),
        (f"POST /{CALLBACK}", {"done": True}, ["/epoch"]),
        (f"POST /{CALLBACK}", {"epoch": 1, "done": True, "failed": True}, ["/failed"]),
        (f"POST /{CALLBACK}", {"epoch": 1, "acks": [{"offset": "-1"}]}, ["/acks/0/path"]),
        (
            f"POST /{CALLBACK}",
            {"epoch": 1, "acks": [{"path": "/agent/e1/main", "offset": "x"}]},
            ["/acks/0/offset"],
        ),
        (
            f"POST /{CALLBACK}",
            {"acks": [{"offset": "x"}, {"path": "/agent/e1/main", "offset": "now"}]},
            ["/epoch", "/acks/0/path", "/acks/0/offset", "/acks/1/offset"],
        ),
        (
            f"POST /{CALLBACK}",
            {"epoch": "x", "acks": [{"path": "/agent/e1/main", "offset": "x"}]},
            ["/epoch", "/acks/0/offset"],
        ),
        (
            f"PUT /{ENTITY}",
            {"args": [], "tags": {"a": 1}, "dispatch_policy": {"targets": []}, "parent": "x"},
            ["/args", "/tags/a", "/dispatch_policy/targets", "/parent"],
        ),
        (
            f"PATCH /{ENTITY}",
            {"dispatch_policy": {"targets": [{"type": "queue"}]}, "tags": []},
            ["/dispatch_policy/targets/0/type", "/dispatch_policy/targets/0/runnerId", "/tags"],
        ),
        (f"POST /{ENTITY}/send", {"key": "", "mode": 7}, ["/payload", "/key", "/mode"]),
        (f"POST /{ENTITY}/send", {"payload": 1, "afterMs": 3e10 + 2e9}, ["/afterMs"]),
        (
            f"PUT /{SCHEDULE}",
            {"scheduleType": "future_send", "fireAt": 5, "targetUrl": "e1", "messageType": ""},
            ["/payload", "/fireAt", "/targetUrl", "/messageType"],
        ),
        (
            f"PUT /{SCHEDULE}",
            {"scheduleType": "cron", "payload": 1, "debounceMs": 3_600_001, "timeoutMs": -1},
            ["/debounceMs", "/timeoutMs"],
        ),
        (
            f"PUT /{SCHEDULE}",
            {"scheduleType": "future_send", "payload": 1, "fireAt": "soon", "from": "bob"},
            ["/fireAt", "/from"],
        ),
        (
            f"PUT /{SCHEDULE}",
            {"scheduleType": "future_send", "fireAt": "soon", "targetUrl": "e1"},
            ["/payload", "/fireAt", "/targetUrl"],
        ),
        (
            f"PUT /{SCHEDULE}",
            {"scheduleType": "cron", "expression": "x", "timezone": "Mars", "timeoutMs": -1},
            ["/payload", "/expression", "/timezone", "/timeoutMs"],
        ),
        (
            f"PUT /{SCHEDULE}",
            {"scheduleType": "cron", "payload": 1, "timezone": "Mars"},
            ["/timezone", "/expression"],
        ),
        (f"POST /{CRON}", {"timezone": 5}, ["/expression", "/timezone"]),
        (f"POST /{CRON}", {"expression": "x", "timezone": "Mars"}, ["/timezone", "/expression"]),
        (f"POST /{ENTITY}/send", {"payload": [{"a\0": "\0"}]}, ["/payload/0/a\0"] * 2),
        (f"POST /{ENTITY}/signal", {"signal": "SIGNAL", "reason": 1}, ["/signal", "/reason"]),
        (f"POST /{ENTITY}/signal", {}, ["/signal"]),
        (f"POST /{ENTITY}/tags/<text:key>", {"value": 7}, ["/value"]),
        (
            f"POST /{TYPES}",
            {"description": 7, "permission_grants": [{"subject_kind": "x"}]},
            [
                "/name",
                "/description",
                "/permission_grants/0/subject_kind",
                "/permission_grants/0/subject_value",
                "/permission_grants/0/permission",
            ],
        ),
        (
            f"POST /{TYPES}",
            {"name": "new", "description": "", "creation_schema": {"type": "nonsense"}},
            ["/creation_schema"],
        ),
        (
            f"POST /{TYPES}",
            {"name": "new", "description": "", "inbox_schemas": {"a/b~c": {"type": 7}}},
            ["/inbox_schemas/a~1b~0c"],
        ),
        (
            f"POST /{TYPES}",
            {
                "name": "new",
                "description": "",
                "creation_schema": {"type": "nonsense"},
                "default_dispatch_policy": {"targets": [{"type": "runner", "runnerId": "a/b"}]},
                "retention": {},
                "permission_grants": [
                    {"subject_kind": kind, "subject_value": "x", "permission": "spawn"}
                    for kind in ("principal", "principal_kind")
                ],
            },
            [
                "/creation_schema",
                "/default_dispatch_policy/targets/0/runnerId",
                "/retention",
                "/permission_grants/0/subject_value",
                "/permission_grants/1/subject_value",
            ],
        ),
    ],
)
def test_every_bad_field_is_named(refused, endpoint, body, named):
    assert paths(refused(BY_NAME[endpoint], 400, "INVALID_REQUEST", body=body)) == named


MANY = 600
"""More bad fields than an error names, in a body that is taken."""


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (f"POST /{CALLBACK}", {"acks": [1] * MANY}),
        (f"POST /{RUNNERS}", {"id": "new", "label": "x", "sandbox_profiles": [{}] * MANY}),
        (f"PUT /{ENTITY}", {"tags": dict.fromkeys(map(str, range(MANY)), 1)}),
        (f"POST /{ENTITY}/send", {"payload": ["\0"] * MANY}),
        (f"POST /{MAIN}", ["\0"] * MANY),
    ],
    ids=["acks", "profiles", "tags", "NULs in a payload", "NULs in events"],
)
def test_of_very_many_bad_fields_the_first_are_named(refused, endpoint, body):
    answer = refused(BY_NAME[endpoint], 400, "INVALID_REQUEST", body=body)
    assert len(paths(answer)) == MOST_NAMED


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.who != "anyone"], ids=str)
def test_a_nonsense_credential_is_401(scene, settings, endpoint):
    settings.DEVELOPMENT = False
    before = everything()
    for header in ("Authorization", "Electric-Claim-Token", "Electric-Principal"):
        for value in ("Bearer ä", "ä", "x" * 5000, "a\x01b", " "):
            answer = Api(**{header: value})(
                endpoint.method, endpoint.path(scene.names), endpoint.body
            )
            assert answer.status == 401, (header, value)
            assert endpoint.method == "HEAD" or answer.error == "UNAUTHORIZED"
    assert everything() == before


# --- What is no HTTP --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw_server(tmp_path_factory, template):
    """One server for what only a socket can send."""
    folder = tmp_path_factory.mktemp("raw")
    with template.copy(folder) as database:
        small = {"PULLWAKE_MAX_BODY_BYTES": "100000"}
        server = Server(database.url, folder / "server.log", small, forked=True)
        server.start()
        yield server
        server.close()


def sent(server, *parts):
    """What the server answers to these bytes: status and decoded body."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        for part in parts:
            with contextlib.suppress(ConnectionError):
                connection.sendall(part)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while b"\r\n\r\n" not in answer or b"}" not in answer.partition(b"\r\n\r\n")[2]:
                more = connection.recv(65536)
                if not more:
                    break
                answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower(), answer
    return int(head.split()[1]), msgspec.json.decode(body)["error"]["code"]


HEAD = b"POST /_electric/runners HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"get\x00 /livez HTTP/1.1\r\n\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X: x\r\n" * 200 + b"\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nbad name: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
        HEAD + b"Content-Length: nonsense\r\n\r\n{}",
        HEAD + b"Content-Length: -1\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: nonsense\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n{}\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}nonsense\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_in_the_one_shape(raw_server, request_bytes):
    assert sent(raw_server, request_bytes) == (400, "INVALID_REQUEST")


def test_a_huge_body_is_413(raw_server):
    assert sent(raw_server, HEAD + b"Content-Length: 100001\r\n\r\n", b" " * 100_001) == (
        413,
        "PAYLOAD_TOO_LARGE",
    )


def test_a_huge_chunked_body_is_413(raw_server):
    chunk = b"c350\r\n" + b" " * 50_000 + b"\r\n"
    parts = [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk, chunk, chunk, b"0\r\n\r\n"]
    assert sent(raw_server, *parts) == (413, "PAYLOAD_TOO_LARGE")


def test_an_endless_body_is_refused_before_its_end(raw_server):
    assert sent(raw_server, HEAD + b"Content-Length: 999999999999\r\n\r\n", b" " * 10_000) == (
        413,
        "PAYLOAD_TOO_LARGE",
    )


@pytest.mark.parametrize("key", ["%FF", "a%C3", "%ED%A0%BD"])
def test_a_key_of_a_tag_that_is_no_text_is_refused(raw_server, key):
    api = raw_server.client()
    if api.get("/_electric/entities/agent/tagged").status == 404:
        api.make_entity("/agent/tagged", None)
    for method in ("POST", "DELETE"):
        answer = api(method, f"/_electric/entities/agent/tagged/tags/{key}", {"value": "x"})
        assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
        assert paths(answer) == ["/key"]
    assert api.get("/_electric/entities/agent/tagged").body["tags"] == {}


def test_a_nonsense_cursor_does_no_harm(raw_server):
    api = raw_server.client()
    api.register()
    api.make_entity()
    api.send()
    for path in ("/runners/r1/wake", "/agent/e1/main"):
        for cursor in ("", "nonsense", "-7", "9" * 400, "%D9%A7", "1e9"):
            answer = api.get(f"{path}?offset=-1&live=long-poll&cursor={cursor}")
            assert answer.status == 200, cursor
            assert answer.headers["Stream-Cursor"].isdecimal(), cursor


def test_it_serves_after_all_that(raw_server):
    assert raw_server.client().register("after")["id"] == "after"
    assert "Traceback" not in raw_server.log.read_text()
