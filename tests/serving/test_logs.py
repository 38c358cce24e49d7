"""The access log, request ids, and errors as Sentry gets them."""

import gzip
import io
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.conf import settings
from django.db import OperationalError, connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import Client, RequestFactory
from structlog.stdlib import ProcessorFormatter

from config.serving.application import Application
from config.serving.error_reports import _without_secrets
from config.serving.log_lines import JsonLines, NowAndThen
from core import database, log_facts
from core.principals import Principal
from runners import tokens
from tests.support import Api, wait_until


@pytest.fixture
def lines(settings: Any) -> Iterator[Any]:
    """The access log's lines as they are written in production mode."""
    settings.PULLWAKE_ACCESS_LOG = True
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("pullwake.access")
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    logger.removeHandler(handler)


def told(line: Any, *names: str) -> tuple[Any, ...]:
    return tuple(line.get(name) for name in names)


def test_each_request_is_a_line(alice, lines):
    alice.register()
    alice.make_entity()
    alice.post("/_electric/entities/agent/e1/send", {"payload": 1}, X_Request_Id="app-1")
    claim = alice.claim()
    token = claim.mint()
    claim.heartbeat()
    claim.append({"a": 1}, token=token)
    claim.done()
    alice.get("/agent/e1/main")
    asked = ("route", "status", "principal", "entity", "epoch")
    entity, send = (
        "/_electric/entities/:type_name/:name",
        "/_electric/entities/:type_name/:name/send",
    )
    callback, main = "/_electric/wake-callbacks/:consumer_id", "/:type_name/:name/main"
    assert [told(line, *asked) for line in lines()] == [
        ("/_electric/runners", 201, "user:alice", None, None),
        (entity, 201, "user:alice", "/agent/e1", None),
        (send, 200, "user:alice", "/agent/e1", None),
        ("/_electric/runners/:runner_id/claim", 200, "user:alice", "/agent/e1", 1),
        (callback, 200, "handler", "/agent/e1", 1),
        (callback, 200, "handler", "/agent/e1", 1),
        (main, 204, "handler", "/agent/e1", 1),
        (callback, 200, "handler", "/agent/e1", 1),
        (main, 200, "user:alice", "/agent/e1", None),
    ]
    assert lines()[2]["request_id"] == "app-1"
    assert lines()[3]["runner"] == "r1"
    assert all(line["duration_ms"] >= 0 for line in lines())


def test_of_what_only_reports_it_says_what_the_audit_log_would(alice, settings, lines):
    settings.PULLWAKE_AUDIT_REPORTS = False
    alice.register()
    path = "/_electric/runners/r1/heartbeat"
    answer = alice.post(path)
    line = lines()[-1]
    asked = ("principal", "verb", "path", "status", "address", "request_id")
    assert told(line, *asked) == (
        "user:alice",
        "Report that a runner lives",
        path,
        200,
        "127.0.0.1",
        answer.headers["X-Request-Id"],
    )


def test_each_answer_names_its_request(alice):
    assert alice.get("/livez", X_Request_Id="mine").headers["X-Request-Id"] == "mine"
    assert alice.get("/no/such/address").headers["X-Request-Id"]


def test_probes_and_refusals_ask_nothing_of_the_database_for_their_line(
    db, settings, lines, django_assert_num_queries
):
    settings.DEVELOPMENT = False
    _, secret = tokens.issue(Principal.parse("user:alice"))
    with django_assert_num_queries(0):
        Api(Authorization=f"Bearer {secret}").get("/livez")
        Api().get("/_electric/runners")
    assert [told(line, "status", "principal") for line in lines()] == [
        (200, None),
        (401, "unknown"),
    ]


def test_a_path_does_not_control_the_terminal_of_a_developer():
    logging_: Any = settings.LOGGING
    own = logging_["formatters"]["lines"]
    lines = ProcessorFormatter(**{name: own[name] for name in own if name != "()"})
    path = "/a\x1b]52;c;eA\x07\u2028/main"
    line = lines.format(logging.makeLogRecord({"msg": "an\nevent", "target": path}))
    assert r"/a\x1b]52;c;eA\x07\u2028/main" in line
    assert r"an\nevent" in line


def test_a_line_is_json_whatever_it_says(settings):
    assert settings.LOGGING["formatters"]["json"]["()"] == f"{JsonLines.__module__}.JsonLines"
    record = logging.makeLogRecord(
        {
            "name": "pullwake.audit",
            "levelname": "INFO",
            "msg": "done %s",
            "args": ("\ud800",),
            "created": 1.5,
            "target": "/a\nb",
            "request": settings,
        }
    )
    error = OSError("away")
    record.exc_info = (OSError, error, None)
    log_facts.begin(principal="user:alice")
    line = json.loads(JsonLines().format(record))
    exception = line.pop("exception")
    assert exception == "OSError: away"
    assert line == {
        "event": "done \ud800",
        "principal": "user:alice",
        "level": "info",
        "logger": "pullwake.audit",
        "timestamp": "1970-01-01T00:00:01.500000Z",
        "target": "/a\nb",
        "request": repr(settings),
    }


# --- Sentry ------------------------------------------------------------------------------------


class Receiver:
    """What is sent to Sentry."""

    def __init__(self) -> None:
        self.envelopes: list[str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.envelopes.append(body.decode())
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def sentry() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def test_sentry_gets_an_unhandled_error_and_no_secret(start_server, sentry, database):
    dsn = f"http://key@127.0.0.1:{sentry.server.server_port}/1"
    server = start_server(SENTRY_DSN=dsn)
    api = server.client()
    api.register()
    api.make_entity()
    api.send(key="k")
    secret = "pwa_0123456789abcdefghijklmnopqrstuvwxyz"
    # What is broken here is the database's content: nothing that a caller could do.
    database.execute("UPDATE dispatch_streamevent SET data = '{' WHERE message_key = 'k'")
    body = {"payload": "the payload", "key": "k"}
    claimed = {"Electric-Claim-Token": "", "Cookie": "sessionid=the-cookie"}
    path = f"/_electric/entities/agent/e1/send?token={secret}"
    answer = api.post(path, body, X_Request_Id="req-1", **claimed)
    assert answer.status == 500
    (sent,) = wait_until(lambda: [each for each in sentry.envelopes if "exception" in each])
    event = json.loads(sent.splitlines()[-1])
    assert event["exception"]["values"][-1]["type"] == "DecodeError"
    assert event["tags"]["request_id"] == "req-1"
    assert event["tags"]["entity"] == "/agent/e1"
    whole = "".join(sentry.envelopes)
    for secret_of_it in (secret, "the payload", "the-cookie", settings.SECRET_KEY):
        assert secret_of_it not in whole


def test_what_looks_like_a_secret_is_taken_out_of_what_sentry_gets():
    token, digest = "pww_" + "x" * 43, "0a" * 32
    event = {
        "exception": {"values": [{"value": f"Key (token_hash)=({digest}) for {token}."}]},
        "extra": {"request": "<WSGIRequest: GET '/admin/login-once/abc/'>", "n": 1},
        "logentry": {"params": [f"postgres://pullwake:hunter2@db/{token}"]},
    }
    sent = str(_without_secrets(event, {}))
    for secret in (token, digest, "hunter2", "login-once"):
        assert secret not in sent
    assert "Key (token_hash)" in sent


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a process that just began logs of the API's trouble with the database."""
    monkeypatch.setattr(database, "_noted", {})
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(JsonLines().format(record))  # type: ignore[method-assign]
    for name in ("api.http_errors", "django.request"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [handler])
    return seen


@pytest.fixture
def full(db: None) -> Iterator[None]:
    """The database's disk is full."""

    def refuse(*_: object, **__: object) -> None:
        raise OperationalError("could not extend file: No space left on device\nHINT: Check it.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseDatabaseWrapper, "cursor", refuse)
        yield


@pytest.mark.usefixtures("full")
def test_a_database_that_is_away_is_a_line_and_not_one_for_each_request(
    passed: list[str], monkeypatch: pytest.MonkeyPatch
):
    api = Api("user:alice")
    assert {api.get("/_electric/runners").status for _ in range(5)} == {503}
    assert {api.get("/readyz").status for _ in range(5)} == {503}
    (line,) = map(json.loads, passed)
    assert "exception" not in line
    reason = "could not extend file: No space left on device HINT: Check it."
    assert told(line, "level", "event") == ("warning", f"database unavailable: {reason}")
    monkeypatch.setattr(database, "REPEATED_S", 0.0)
    api.get("/readyz")
    assert "9 more since" in passed[-1]


@pytest.mark.parametrize(
    "missing",
    [
        "ALTER TABLE runners_runner RENAME TO elsewhere",
        "ALTER TABLE runners_runner RENAME COLUMN label TO title",
    ],
)
def test_where_migrations_are_missing_answer_and_log_say_so(
    alice: Api, passed: list[str], missing: str
):
    with connection.cursor() as cursor:
        cursor.execute(missing)
    answer = alice.get("/_electric/runners")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert "run manage.py migrate" in answer.body["error"]["message"]
    (line,) = map(json.loads, passed)
    assert "run manage.py migrate" in line["event"]
    assert "exception" not in line


def test_of_attempts_to_connect_some_are_logged():
    lines = NowAndThen()
    attempts = [
        logging.LogRecord("psycopg.pool", 30, "", 0, text, (number,), None)
        for number, text in enumerate(["error connecting: %s", "discarding: %s"] * 3)
    ]
    assert [lines.filter(each) for each in attempts] == [True, True, False, False, False, False]


@pytest.mark.usefixtures("full")
def test_a_page_says_503_while_the_database_is_away(passed: list[str]):
    client = Client(raise_request_exception=False)
    client.cookies[settings.SESSION_COOKIE_NAME] = "x" * 32
    answer = client.get("/admin/runners/runner/", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert b"The database cannot serve this now" in answer.content
    assert len(passed) == 1


def test_a_foreign_host_is_told_so_and_writes_no_error(caplog: pytest.LogCaptureFixture):
    """What a scanner sends is no error of ours, with a traceback, in the log and at Sentry."""
    answer = Client().get("/admin/login/", headers={"Host": "evil.example"})
    assert answer.status_code == 400
    assert "ALLOWED_HOSTS" in answer.json()["error"]["message"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.usefixtures("db")
def test_an_error_that_answers_head_has_no_body():
    """gunicorn would log that it drops it."""
    started: list[Any] = []
    environ = RequestFactory().head("/nowhere").environ
    body = Application()(environ, lambda *head: started.append(head))
    assert (started[0][0], b"".join(body)) == ("404 Not Found", b"")
