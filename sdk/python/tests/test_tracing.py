"""A wake goes on in the trace of what it was woken for, and so does what is done in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from harness import make
from pullwake import RetryAfter, SyncWake, Wake, tracing
from pullwake.command import environment
from pullwake.testing import Entity, FakeServer, Request

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Of this process's provider, of which there is one for good."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    exporter.clear()
    yield exporter
    exporter.clear()


def named(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def place(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return (
        f"00-{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}-01"
    )


def ended(entity: Entity) -> bool:
    return bool(entity.claims) and entity.claims[0].status != "active"


async def work(
    handler: Any, traceparent: str | None = TRACEPARENT
) -> tuple[FakeServer, Mapping[str, Request]]:
    """One wake by this handler: the last request of each route."""
    async with FakeServer() as server:
        server.traceparent = traceparent
        entity = server.entity("chat/1")
        async with make(server, handler):
            await server.send("chat/1", "hi")
            await server.until(lambda: ended(entity), "its end")
        return server, {request.route: request for request in server.requests}


async def says(wake: Wake) -> None:
    await wake.append({"type": "note", "key": "n", "value": {}}, {"type": "note", "key": "o"})
    await wake.send("/chat/2", "hello")


async def test_a_wake_and_what_is_done_in_it_are_spans(spans: InMemorySpanExporter) -> None:
    _, requests = await work(says)
    found = named(spans)
    wake = found.pop("wake chat")
    assert wake.parent is not None
    assert trace.format_trace_id(wake.parent.trace_id) == TRACE
    assert trace.format_span_id(wake.parent.span_id) == PARENT
    assert wake.kind is trace.SpanKind.CONSUMER
    assert dict(wake.attributes or {}) == {
        "pullwake.entity": "/chat/1",
        "pullwake.epoch": 1,
        "pullwake.runner": "r",
        "pullwake.attempt": 1,
    }
    assert set(found) == {"append", "send", "done"}
    for name, span in found.items():
        assert span.parent == wake.get_span_context()
        assert requests[name].headers["traceparent"] == place(span)
    assert dict(found["append"].attributes or {}) == {"pullwake.events": 2}


async def test_a_users_span_stands_between(spans: InMemorySpanExporter) -> None:
    def handler(wake: SyncWake) -> None:  # in a thread
        with trace.get_tracer("user").start_as_current_span("think"):
            wake.append({"type": "note", "key": "n", "value": {}})

    await work(handler)
    found = named(spans)
    assert found["append"].parent == found["think"].get_span_context()
    assert found["think"].parent == found["wake chat"].get_span_context()


async def test_a_failed_wake_is_a_failed_span(spans: InMemorySpanExporter) -> None:
    async def handler(wake: Wake) -> None:
        raise RetryAfter(60, "later")

    _, requests = await work(handler)
    found = named(spans)
    assert found["wake chat"].status.status_code is trace.StatusCode.ERROR
    assert found["wake chat"].status.description == "later"
    assert requests["failed"].headers["traceparent"] == place(found["failed"])


@pytest.mark.parametrize("given", [None, "nonsense", f"00-{'0' * 32}-{PARENT}-01"])
async def test_a_wake_without_a_trace_begins_one(
    spans: InMemorySpanExporter, given: str | None
) -> None:
    with trace.get_tracer("user").start_as_current_span("main"):
        await work(says, given)
    found = named(spans)
    assert found["wake chat"].parent is None
    assert found["done"].parent == found["wake chat"].get_span_context()


async def test_only_what_is_done_for_a_wake_says_its_trace(spans: InMemorySpanExporter) -> None:
    with trace.get_tracer("user").start_as_current_span("main"):
        server, _ = await work(says)
    said = {request.route for request in server.requests if "traceparent" in request.headers}
    assert {"append", "send", "done"} <= said
    assert said.isdisjoint({"register", "heartbeat", "wake", "claim"})


async def test_without_opentelemetry_the_trace_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, spans: InMemorySpanExporter
) -> None:
    monkeypatch.setattr(tracing, "INSTALLED", False)
    _, requests = await work(says)
    assert {requests[name].headers["traceparent"] for name in ("append", "send", "done")} == {
        TRACEPARENT
    }
    _, requests = await work(says, None)
    assert "traceparent" not in requests["done"].headers
    assert not spans.get_finished_spans()


def test_it_does_without_opentelemetry() -> None:
    hidden = "import sys; sys.modules['opentelemetry'] = None\n"
    program = f"{hidden}from pullwake import tracing; print(tracing.INSTALLED)"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ
    )
    assert ran.stdout.strip() == "False"


async def test_a_handler_and_its_command_are_told_it() -> None:
    told: list[Any] = []

    async def handler(wake: Wake) -> None:
        told.extend([wake.traceparent, environment(wake, "http://x").get("TRACEPARENT")])

    await work(handler)
    await work(handler, None)
    assert told == [TRACEPARENT, TRACEPARENT, None, None]
