"""Spans, as a collector gets them: one trace from a send to what is done for it."""

import gzip
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.conf import settings
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support import ROOT, Claim, wait_until

TRACE = "0af7651916cd43dd8448eb211c80319c"
APP, WORK = "b7ad6b7169203331", "00f067aa0ba902b7"
"""Spans of the app that sends, and of the runner."""


class Collector:
    """An OTLP collector over HTTP: the spans that it was sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                sent = ExportTraceServiceRequest.FromString(body)
                for resource in sent.resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def named(self, name: str) -> Any:
        """The span of this name, once it has come."""
        return wait_until(
            lambda: next((span for span in self.spans if span.name == name), None),
            what=f"a span {name} among {[span.name for span in self.spans]}",
        )

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def test_one_trace_shows_send_wake_claim_work_and_done(start_server, collector):
    env = {
        "PULLWAKE_TRACES": "yes",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    first = start_server(**env)
    # Of two servers the one does not know what the other has seen; SQLite has one.
    second = first if settings.SQLITE else start_server(**env)
    sender, runner = first.client(), second.client()
    sender.register()
    sender.make_entity()
    path = "/_electric/entities/agent/e1/send"
    app = f"00-{TRACE}-{APP}-01"
    assert sender.post(path, {"payload": 1}, traceparent=app, tracestate="rojo=1").status == 200
    claimed = runner.post("/_electric/runners/r1/claim", {})
    claim = Claim(runner, claimed.body, claimed.headers["Pullwake-Tail"])
    _, trace_id, claim_span, _ = claim.body["traceparent"].split("-")
    assert (trace_id, claim.body["tracestate"]) == (TRACE, "rojo=1")
    # The runner works in a span of its own, and says so on each of its calls.
    runner.headers["traceparent"] = f"00-{TRACE}-{WORK}-01"
    token = claim.mint()
    assert claim.append({"type": "text"}, token=token).status == 204
    assert claim.done().status == 200

    sent = collector.named("POST /_electric/entities/:type_name/:name/send")
    wake, made = collector.named("wake"), collector.named("claim")
    appended = collector.named("POST /:type_name/:name/main")
    wait_until(lambda: sum("wake-callbacks" in span.name for span in collector.spans) == 2)
    callbacks = [span for span in collector.spans if "wake-callbacks" in span.name]
    whole = [sent, wake, made, appended, *callbacks]
    assert {span.trace_id.hex() for span in whole} == {TRACE}
    assert sent.parent_span_id.hex() == APP
    assert wake.parent_span_id == sent.span_id
    assert made.parent_span_id == wake.span_id
    assert made.span_id.hex() == claim_span
    assert {span.parent_span_id.hex() for span in [appended, *callbacks]} == {WORK}
    assert sent.start_time_unix_nano <= made.end_time_unix_nano
    asked = collector.named("POST /_electric/runners/:runner_id/claim")
    assert asked.trace_id.hex() != TRACE
    assert [link.span_id for link in made.links] == [asked.span_id]
    facts = {each.key: each.value for each in callbacks[-1].attributes}
    assert facts["pullwake.entity"].string_value == "/agent/e1"
    assert facts["pullwake.epoch"].int_value == claim.epoch
    # What a server has left to send, it sends as it stops.
    named = {span.name for span in collector.spans}
    assert second.client().get("/_electric/entity-types").status == 200
    second.stop()
    assert "GET /_electric/entity-types" in {span.name for span in collector.spans} - named


WITHOUT = """
import sys
import django
django.setup()
from config.serving import process, application
assert not any(name.startswith(("opentelemetry", "sentry_sdk")) for name in sys.modules)
"""


@pytest.mark.server
def test_nothing_of_it_is_imported_where_it_is_off():
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings"}
    subprocess.run([sys.executable, "-c", WITHOUT], env=env, cwd=ROOT, check=True)
