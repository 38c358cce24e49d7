"""A real Chromium on a real server. No ORM here: Playwright's loop runs in the test's thread."""

import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Page,
    StorageState,
    expect,
    sync_playwright,
)

from tests.support import Server, Servers

DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}

expect.set_options(timeout=20_000)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, once; until these tests end, as no asyncio runs beside Playwright's."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def quiet_server(servers: Servers) -> Server:
    """A server that reaps nothing while the test runs: what is orphaned is left to the operator."""
    return servers.lend(PULLWAKE_REAPER_INTERVAL_MS=3_600_000)


def one_time_login(server: Server) -> str:
    """The address that the server printed."""
    found = re.search(r"http://\S+/login-once/\S+", server.log.read_text())
    assert found is not None
    return found[0]


@pytest.fixture(scope="package")
def login(chromium: Browser) -> Callable[[Server], StorageState]:
    """The cookies of somebody who is logged in there: once, for the printed address opens once."""

    @cache
    def log_in(url: str) -> StorageState:
        with chromium.new_context() as context:
            context.new_page().goto(url)
            return context.storage_state()

    return lambda server: log_in(one_time_login(server))


@pytest.fixture
def context(
    chromium: Browser,
    quiet_server: Server,
    login: Callable[[Server], StorageState],
    request: pytest.FixtureRequest,
) -> Iterator[BrowserContext]:
    """A logged-in browser; ``context`` may be parametrised with its options."""
    options = {"viewport": DESKTOP, **getattr(request, "param", {})}
    context = chromium.new_context(
        base_url=quiet_server.url, storage_state=login(quiet_server), **options
    )
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
