from __future__ import annotations

import asyncio
import gc
import json
import ssl
import warnings
from email.utils import formatdate
from time import monotonic, time
from types import SimpleNamespace

import httpx2
import pytest

from pullwake.clock import Clock
from pullwake.errors import ServerUnreachable
from pullwake.testing import FakeServer, hang
from pullwake.timing import Timing
from pullwake.transport import Transport, _refusal, _retry_after, _ssl_context


async def test_once_closed_it_says_so() -> None:
    async with FakeServer() as server:
        transport = Transport(server.url, None, Clock())
        await transport.aclose()
        with pytest.raises(ServerUnreachable, match="stopped"):
            await transport.call("GET", transport.url("/x"), deadline=1.0)
        assert server.requests == []


async def test_a_callback_elsewhere_gets_the_claims_token_and_nothing_of_the_runners() -> None:
    """Its URL is the server's word; the runner's credentials are for the server alone."""
    headers = {"Authorization": "Bearer own", "X-Gateway": "own"}
    async with FakeServer() as server, FakeServer() as elsewhere:
        transport = Transport(server.url, headers, Clock())
        url = f"{elsewhere.url}/_electric/wake-callbacks/w_1"
        with pytest.raises(Exception, match="404"):
            await transport.call("POST", url, json_body={"epoch": 1}, token="ct", deadline=1.0)
        sent = elsewhere.requests[0].headers
        assert sent["electric-claim-token"] == "ct"
        assert "authorization" not in sent
        assert "x-gateway" not in sent
        await transport.aclose()


async def test_an_error_names_the_call_and_the_host_only_where_that_is_news() -> None:
    async with FakeServer() as server, FakeServer() as elsewhere:
        transport = Transport(server.url, None, Clock())
        url = elsewhere.url
        await server.close()
        await elsewhere.close()
        with pytest.raises(ServerUnreachable, match=r"^GET /x: "):
            await transport.call("GET", transport.url("/x?secret=1"), deadline=1.0)
        with pytest.raises(ServerUnreachable, match=f"^POST {url}/y: "):
            await transport.call("POST", f"{url}/y", deadline=1.0)
        await transport.aclose()


@pytest.mark.parametrize(
    ("details", "says"),
    [
        (
            [{"path": "/id", "message": "too long"}, {"path": "/x", "message": "is needed"}],
            "400 INVALID_REQUEST: /id: too long; /x: is needed",
        ),
        ([], "400 INVALID_REQUEST: Not valid."),
        ({"entity": {}}, "400 INVALID_REQUEST: Not valid."),
    ],
)
def test_a_refusal_says_what_is_wrong_with_which_field(details: object, says: str) -> None:
    error = {"code": "INVALID_REQUEST", "message": "Not valid.", "details": details}
    body = json.dumps({"error": error}).encode()
    assert str(_refusal(httpx2.Response(400), body)) == says


async def test_a_deadline_is_told_in_tenths_of_a_second() -> None:
    async with FakeServer() as server:
        server.standing("get", hang)
        transport = Transport(server.url, None, Clock())
        with pytest.raises(ServerUnreachable, match=r"no answer within 0\.1 s$"):
            await transport.call("GET", transport.url("/_electric/runners/r"), deadline=0.0123456)
        await transport.aclose()


async def test_a_call_that_is_cancelled_at_any_step_leaves_no_connection() -> None:
    async with FakeServer() as server:
        step, answered = 0, False
        while not answered:
            step += 1
            transport = Transport(server.url, None, Clock())
            url = transport.url("/runners/r/wake?offset=-1")
            call = asyncio.create_task(transport.call("GET", url, deadline=10.0))
            for _ in range(step):
                await asyncio.sleep(0)
            answered = call.done()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await transport.aclose()
        assert step > 10  # resolving, connecting, sending, receiving
        await server.until(lambda: server.connections == 0, "closed connections")
        del transport, call
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            gc.collect()
        assert [str(each.message) for each in told] == []


def test_tls_is_verified() -> None:
    context = _ssl_context()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("7", 7.0), ("-1", 0.0), ("nan", 0.0), ("soon", None), ("", None)],
)
def test_retry_after_in_seconds(value: str | None, seconds: float | None) -> None:
    assert _retry_after(value) == seconds


def test_retry_after_as_a_date() -> None:
    in_a_minute = _retry_after(formatdate(time() + 60, usegmt=True))
    assert in_a_minute is not None
    assert 55 < in_a_minute <= 60
    assert _retry_after(formatdate(time() - 60, usegmt=True)) == 0.0


async def test_a_connection_is_kept_from_one_heartbeat_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or each would connect anew, and begin TLS anew."""
    passed = 0.0
    clock = SimpleNamespace(monotonic=lambda: monotonic() + passed)
    monkeypatch.setattr("httpcore2._async.http11.time", clock)
    async with FakeServer() as server:
        transport = Transport(server.url, None, Clock())
        for _ in range(2):
            await transport.call(
                "POST", transport.url("/_electric/runners"), json_body={"id": "r"}, deadline=1.0
            )
            passed += Timing().heartbeat_interval
        assert len({request.connection for request in server.requests}) == 1
        await transport.aclose()
