"""The pages that operators log in by, where there is more than a password: they fit and read."""

import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import DESKTOP, PHONE
from tests.serving.provider import CLIENT, SECRET, Provider, provider
from tests.serving.test_second_factor import PASSWORD, Authenticator, person
from tests.support import Server, Servers

pytestmark = pytest.mark.browser

FAINT = Path(__file__).with_name("faint.js").read_text()


@pytest.fixture(scope="module")
def idp() -> Iterator[Provider]:
    """The provider."""
    with provider() as running:
        yield running


@pytest.fixture
def server(servers: Servers, idp: Provider) -> Server:
    """A server with both."""
    idp.begin(sub=f"u-{secrets.token_hex(4)}")
    return servers.lend(
        PULLWAKE_TOTP="required",
        PULLWAKE_OIDC_ISSUER=idp.url,
        PULLWAKE_OIDC_CLIENT_ID=CLIENT,
        PULLWAKE_OIDC_CLIENT_SECRET=SECRET,
        PULLWAKE_OIDC_NAME="the company",
        PULLWAKE_OPERATOR_GROUPS="platform=operators",
    )


@pytest.fixture
def page(chromium: Browser, server: Server, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of a browser without a login."""
    options = {"viewport": DESKTOP, **getattr(request, "param", {})}
    with chromium.new_context(base_url=server.url, **options) as context:
        yield context.new_page()


def fits_and_reads(page: Page) -> None:
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.evaluate("innerWidth")
    assert page.evaluate(FAINT) == []


LOOKS = [
    {"color_scheme": scheme, "viewport": viewport}
    for scheme in ("light", "dark")
    for viewport in (DESKTOP, PHONE)
]


@pytest.mark.once
@pytest.mark.parametrize("page", LOOKS, indirect=True)
def test_each_page_on_the_way_in_fits_and_reads(page: Page, server: Server):
    name = person(server)
    page.goto("/admin/")
    expect(page.get_by_role("link", name="Log in with the company")).to_be_visible()
    fits_and_reads(page)
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Turn it on")).to_be_visible()
    fits_and_reads(page)
    picture = page.get_by_alt_text(re.compile("camera"))
    assert picture.evaluate("image => image.naturalWidth") > 0
    app = Authenticator(page.content())
    page.get_by_label("Code").fill(app.code())
    page.get_by_role("button", name="Turn it on").click()
    expect(page.get_by_role("heading", name="Your recovery codes")).to_be_visible()
    fits_and_reads(page)
    page.goto("/admin/second-factor/")
    expect(page.get_by_role("heading", name="It is on")).to_be_visible()
    fits_and_reads(page)


def test_the_way_over_the_provider_and_out_again(page: Page, idp: Provider):
    page.goto("/admin/runners/runner/")
    page.get_by_role("link", name="Log in with the company").click()
    expect(page).to_have_url(re.compile(r"/admin/runners/runner/$"))
    page.locator("form[action='/admin/logout/']").evaluate("form => form.submit()")
    expect(page).to_have_url(re.compile(re.escape(f"{idp.url}/end")))
