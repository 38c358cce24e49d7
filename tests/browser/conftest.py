"""A real Chromium on a real server. No ORM here: Playwright's loop runs in the test's thread."""

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.support import Server

DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}

expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium; for one module, as asyncio tests cannot run beside Playwright's loop."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def quiet_server(start_server: Any) -> Server:
    """A server that reaps nothing while the test runs: what is orphaned is left to the operator."""
    started: Server = start_server(PULLWAKE_REAPER_INTERVAL_MS=3_600_000)
    return started


def one_time_login(server: Server) -> str:
    """The address that the server printed."""
    found = re.search(r"http://\S+/login-once/\S+", server.log.read_text())
    assert found is not None
    return found[0]


@pytest.fixture
def context(
    chromium: Browser, quiet_server: Server, request: pytest.FixtureRequest
) -> Iterator[BrowserContext]:
    """A logged-in browser; ``context`` may be parametrised with its options."""
    options = {"viewport": DESKTOP, **getattr(request, "param", {})}
    context = chromium.new_context(base_url=quiet_server.url, **options)
    page = context.new_page()
    page.goto(one_time_login(quiet_server))
    page.close()
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page; the test fails if a script of ours failed on it."""
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(f"{page.url}: {error}"))
    page.on(
        "console",
        lambda said: (
            complaints.append(f"{page.url}: {said.text}") if said.type == "error" else None
        ),
    )
    yield page
    assert not complaints
