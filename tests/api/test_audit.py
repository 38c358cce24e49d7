"""Who did what: a line for each refusal and each change, and entries for deletions and kills."""

import pytest
from django.contrib.admin.models import CHANGE, DELETION, LogEntry

from core.principals import Principal
from runners import tokens
from tests.api.endpoints import bearer
from tests.support import Api

RUNNERS = "/_electric/runners"
FACTS = ("principal", "verb", "target", "answer", "address", "request_id")


@pytest.fixture
def lines(caplog, settings):
    """The audit log's lines since they were last asked for: the facts of each."""
    caplog.set_level("INFO", "pullwake.audit")
    settings.PULLWAKE_AUDIT_REPORTS = True

    def since():
        found = [record for record in caplog.records if record.name == "pullwake.audit"]
        caplog.clear()
        return [
            {name: getattr(record, name) for name in FACTS} | {"event": record.getMessage()}
            for record in found
        ]

    return since


def test_a_change_is_a_line(alice, lines):
    answer = alice.post(RUNNERS, {"id": "r1", "label": "r1"}, X_Request_Id="proxy-7")
    assert lines() == [
        {
            "event": "done",
            "principal": "user:alice",
            "verb": "Register a runner",
            "target": RUNNERS,
            "answer": 201,
            "address": "127.0.0.1",
            "request_id": "proxy-7",
        }
    ]
    assert answer.headers["X-Request-Id"] == "proxy-7"


@pytest.mark.parametrize("named", ["", "a b", "x" * 129, "{}"])
def test_it_is_named_here_where_a_proxy_names_it_badly(alice, lines, named):
    answer = alice.post(RUNNERS, {"id": "r1", "label": "r1"}, X_Request_Id=named)
    (line,) = lines()
    assert line["request_id"] == answer.headers["X-Request-Id"]
    assert len(line["request_id"]) == 16


def test_what_changes_nothing_is_none(alice, lines):
    alice.register()
    lines()
    alice.get(f"{RUNNERS}/r1")
    alice.get("/runners/r1/wake")
    alice.post(RUNNERS, {"id": "r1"})  # 400
    alice.get(f"{RUNNERS}/r9")  # 404
    assert lines() == []


@pytest.mark.parametrize(
    ("headers", "principal", "answer"),
    [
        ({"Authorization": "Bearer pwa_nobody"}, "unknown", 401),
        ({"Electric-Principal": "nobody"}, "unknown", 401),
        ({"Electric-Principal": "user:bob"}, "user:bob", 403),
    ],
)
def test_a_refusal_is_a_line(alice, lines, headers, principal, answer):
    alice.register()
    lines()
    assert Api(**headers).get(f"{RUNNERS}/r1").status == answer
    (line,) = lines()
    assert (line["event"], line["principal"], line["answer"]) == ("refused", principal, answer)
    assert (line["verb"], line["target"]) == ("Get a runner", f"{RUNNERS}/r1")


def test_a_refusal_of_a_stream_is_a_line(alice, bob, lines):
    alice.register()
    alice.make_entity()
    lines()
    bob.get("/agent/e1/main")
    bob.post("/agent/e1/main", [{}])
    bob.get("/agent/e1/main", Electric_Claim_Token="pww_x")
    assert [(each["principal"], each["answer"]) for each in lines()] == [
        ("user:bob", 403),
        ("unknown", 401),
        ("unknown", 401),
    ]


def test_each_callback_says_what_it_did_and_no_secret(alice, lines):
    alice.register()
    alice.make_entity(initialMessage="hi")
    claim = alice.claim()
    token = claim.mint()
    claim.heartbeat()
    claim.append({"type": "line"}, token=token)
    alice.post("/_electric/entities/agent/e1/send", {"payload": 1}, Electric_Claim_Token=token)
    claim.done()
    found = lines()
    assert [(each["principal"], each["verb"]) for each in found[2:]] == [
        ("user:alice", "Claim a wake"),
        ("handler", "Mint a write token"),
        ("handler", "Renew a claim's lease"),
        ("handler", "Append to an entity's stream"),
        ("handler of /agent/e1 for user:alice", "Send a message"),
        ("handler", "Release a claim"),
    ]
    assert token not in str(found)
    assert claim.body["claimToken"] not in str(found)


def test_who_acts_for_another_is_named_with_it(alice, lines):
    alice.register()
    alice.make_entity(initialMessage="hi")
    alice.claim()
    lines()
    _, secret = tokens.issue(Principal.parse("user:alice"), runner_id="r1")
    handler = Api(Authorization=f"Bearer {secret}")
    handler("PUT", "/_electric/entities/agent/child", {"parent": "/agent/e1"})
    (line,) = lines()
    assert line["principal"] == "user:alice for user:alice"
    assert secret not in str(line)


def test_what_only_reports_can_be_left_out(alice, lines, settings):
    alice.register()
    alice.make_entity(initialMessage="hi")
    claim = alice.claim()
    token = claim.mint()
    lines()
    settings.PULLWAKE_AUDIT_REPORTS = False
    alice.post(f"{RUNNERS}/r1/heartbeat")
    claim.heartbeat()
    claim.append({"type": "line"}, token=token)
    assert lines() == []
    bearer("user:bob").post(f"{RUNNERS}/r1/heartbeat")
    claim.done()
    assert [each["answer"] for each in lines()] == [403, 200]


def test_deletions_and_kills_are_in_the_operators_audit_log(alice):
    alice.register()
    for name in ("e1", "e2"):
        alice.make_entity(f"/agent/{name}")
    alice.post("/_electric/entity-types", {"name": "doc", "description": ""})
    alice.signal("/agent/e1", "SIGSTOP")
    alice.signal("/agent/e1", "SIGKILL")
    for path in ("entities/agent/e2", "entity-types/doc", "runners/r1"):
        assert alice("DELETE", f"/_electric/{path}").status == 204
    assert [
        (entry.object_repr, entry.change_message, entry.action_flag)
        for entry in LogEntry.objects.order_by("pk").select_related("user")
    ] == [
        ("/agent/e1", "Paused by user:alice, through the API.", CHANGE),
        ("/agent/e1", "Killed by user:alice, through the API.", CHANGE),
        ("/agent/e2", "Deleted by user:alice, through the API.", DELETION),
        ("doc", "Deleted by user:alice, through the API.", DELETION),
        ("r1", "Deleted by user:alice, through the API.", DELETION),
    ]


def test_what_is_refused_is_not_in_it(alice, bob):
    alice.register()
    alice.make_entity()
    alice.signal("/agent/e1", "SIGTERM")
    assert alice.post("/_electric/entities/agent/e1/signal", {"signal": "SIGKILL"}).status == 409
    assert alice("DELETE", "/_electric/entity-types/doc").status == 404
    assert bob("DELETE", "/_electric/runners/r1").status == 403
    said = [entry.change_message for entry in LogEntry.objects.all()]
    assert said == ["Stopped by user:alice, through the API."]
