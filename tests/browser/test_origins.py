"""What a page of another origin can do to a server on the same machine, in Chromium."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.support import free_port

pytestmark = pytest.mark.browser

SEND = "/_electric/entities/agent/e1/send"


class _Empty(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>elsewhere</title>")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def elsewhere(chromium: Browser) -> Iterator[Page]:
    """A page that another program on this machine serves, on another port."""
    with ThreadingHTTPServer(("127.0.0.1", free_port()), _Empty) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        page = chromium.new_page()
        page.goto(f"http://127.0.0.1:{listening.server_address[1]}/")
        yield page
        page.close()
        listening.shutdown()
        thread.join()


def origin(page: Page) -> str:
    found: str = page.evaluate("location.origin")
    return found


def fetch(page: Page, url: str, **options: Any) -> Any:
    """What a page sees of an answer; the error's name when it is not let see it."""
    return page.evaluate(
        # A body of no type is sent without a Content-Type.
        """([url, {body, ...options}]) => fetch(url, body && !options.headers?.["Content-Type"]
            ? {...options, body: new Blob([body])} : {...options, body}).then(
            async (answer) => [answer.type, answer.status, answer.headers.get("Stream-Next-Offset"),
                               await answer.text()],
            (error) => error.name)""",
        [url, options],
    )


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_page_of_another_origin_sends_no_message(elsewhere, server, kind):
    api = server.client(None)
    api.make_entity(runner_id=None)
    sent = fetch(
        elsewhere,
        server.url + SEND,
        method="POST",
        mode="no-cors",
        body='{"payload": "rm -rf"}',
        headers={"Content-Type": kind} if kind else {},
    )
    assert sent[:2] == ["opaque", 0]  # it was sent, and the page sees nothing of the answer
    assert [event["type"] for event in api.events()] == ["entity_created"]


def test_nor_does_it_change_anything_without_a_body(elsewhere, server):
    api = server.client(None)
    api.register()
    fetch(elsewhere, f"{server.url}/_electric/runners/r1/disable", method="POST", mode="no-cors")
    assert api.get("/_electric/runners/r1").body["admin_status"] == "enabled"


def test_nor_does_it_read_or_write_as_json(elsewhere, server):
    api = server.client(None)
    api.make_entity(runner_id=None)
    json = {"Content-Type": "application/json"}
    assert fetch(elsewhere, f"{server.url}/agent/e1/main") == "TypeError"
    refused = fetch(elsewhere, server.url + SEND, method="POST", body="{}", headers=json)
    assert refused == "TypeError"
    assert len(api.events()) == 1


def test_a_page_whose_origin_is_named_does_both(elsewhere, start_server):
    server = start_server(PULLWAKE_CORS_ORIGINS=origin(elsewhere))
    api = server.client(None)
    api.make_entity(runner_id=None)
    headers = {"Content-Type": "application/json", "Electric-Principal": "system:dev-local"}
    body = '{"payload": "hi"}'
    sent = fetch(elsewhere, server.url + SEND, method="POST", body=body, headers=headers)
    assert sent[:2] == ["cors", 200]
    read = fetch(elsewhere, f"{server.url}/agent/e1/main")
    assert read[1] == 200
    assert read[2] is not None  # the offset, which a page needs to go on reading
