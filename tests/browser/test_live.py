"""Pages that follow what happens, in a real browser, while other processes act."""

import re
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from tests.support import Server

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def alice(quiet_server: Server) -> Any:
    """The API of the server, as user:alice calls it."""
    api = quiet_server.client()
    api.register("r1")
    api.post("/_electric/runners/r1/heartbeat", {"lease_ms": 3_600_000})
    return api


@pytest.fixture
def talk(page: Page, alice: Any) -> Locator:
    """The conversation of /agent/e1, on its page."""
    alice.make_entity()
    open_entity(page, "/agent/e1")
    return page.get_by_role("log")


def open_entity(page: Page, url: str) -> None:
    page.goto(f"/admin/dispatch/entity/?q={url}")
    page.get_by_role("link", name=url, exact=True).click()


def look(page: Page) -> None:
    """Let the page look now, and not when it is time."""
    page.evaluate("pullwakeLook()")


def says(page: Page) -> Locator:
    return page.locator(".pw-live")


def event(kind: str, key: str, operation: str = "insert", **value: Any) -> dict[str, Any]:
    return {"type": kind, "key": key, "value": value, "headers": {"operation": operation}}


def test_a_message_of_another_process_appears_in_the_open_conversation(
    page: Page, talk: Locator, alice: Any
):
    alice.send(payload="Good morning")
    message = talk.locator("article", has_text="Good morning")
    expect(message).to_contain_text("user:alice")
    claim = alice.claim()
    rule = talk.locator(".pw-told-claim")
    expect(rule).to_contain_text("epoch 1")
    expect(rule).to_contain_text("active")
    token = claim.mint()
    claim.append(event("run", "r", status="started"), token=token)
    claim.append(event("text_delta", "d1", run_id="r", delta="Hello"), token=token)
    said = talk.locator(".pw-told-text .pw-text")
    expect(said).to_have_text("Hello")
    # What follows is the same text, and is not a second one.
    claim.append(event("text_delta", "d2", run_id="r", delta=", Alice"), token=token)
    expect(said).to_have_text("Hello, Alice")
    claim.append(
        event("tool_call", "t", tool_name="search", args={"q": "tea"}, status="started"),
        event("error", "x", message="no such kettle"),
        event("state:mood", "m", value="calm"),
        token=token,
    )
    expect(talk.locator(".pw-told-tool")).to_contain_text("search started")
    expect(talk.locator(".pw-told-error")).to_contain_text("no such kettle")
    expect(talk.locator(".pw-told-state").last).to_contain_text("state:mood m insert")
    claim.done(alice("HEAD", "/agent/e1/main").headers["Stream-Next-Offset"])
    expect(rule).to_contain_text("released")
    expect(rule).to_contain_text("held for")
    # All is acked but what nobody has worked off yet.
    alice.send(payload="And tea?")
    below = talk.locator(".pw-told-cursor ~ article")
    expect(below).to_have_count(1)
    expect(below).to_contain_text("And tea?")


def test_it_stays_at_the_end_unless_somebody_reads_above(page: Page, talk: Locator, alice: Any):
    for number in range(40):
        alice.send(payload=f"line {number}")
    last = talk.get_by_text("line 39", exact=True)
    expect(last).to_have_count(1)
    talk.evaluate("element => element.scrollIntoView({block: 'end'})")
    expect(last).to_be_in_viewport()
    talk.evaluate("element => element.scrollTop = 100")
    alice.send(payload="news")
    button = page.get_by_role("button", name="New below")
    expect(button).to_be_visible()
    assert talk.evaluate("element => element.scrollTop") == 100
    button.click()
    expect(talk.get_by_text("news", exact=True)).to_be_in_viewport()
    expect(button).to_be_hidden()


def test_it_keeps_its_place_when_the_page_moves_it(page: Page, talk: Locator, alice: Any):
    looks: list[Route] = []
    page.route(re.compile(r"/change/$"), lambda route: looks.append(route))  # noqa: PLW0108  Playwright marks it
    with page.expect_request(re.compile(r"/change/$")):
        for number in range(40):
            alice.send(payload=f"line {number}")
    expect(talk.get_by_text("line 39", exact=True)).to_have_count(1)
    talk.evaluate("element => element.scrollTop = 100")
    stands = page.locator("#content-main .pw-standing")
    expect(stands).to_have_count(0)
    for each in looks:
        each.continue_()
    expect(stands).to_be_visible()
    assert talk.evaluate("element => element.scrollTop") == 100


def test_it_is_read_backwards_to_the_first_event(page: Page, alice: Any):
    alice.make_entity()
    token = None
    alice.send(payload="the very first")
    claim = alice.claim()
    token = claim.mint()
    for start in range(0, 250, 50):
        events = [event("note", f"n{n}", n=n) for n in range(start, start + 50)]
        assert claim.append(*events, token=token).status == 204
    open_entity(page, "/agent/e1")
    talk = page.get_by_role("log")
    talk.evaluate("element => element.scrollIntoView({block: 'end'})")
    expect(talk.get_by_text("note n249 insert")).to_be_in_viewport()
    expect(talk.get_by_text("the very first")).to_have_count(0)
    earlier = page.get_by_role("link", name="Earlier events")
    for _ in range(2):
        before = talk.locator("article").count()
        earlier.click()
        expect(talk.locator("article")).not_to_have_count(before)
    expect(talk.get_by_text("the very first")).to_have_count(1)
    expect(talk.locator("article")).to_have_count(252)
    expect(talk.locator(".pw-told-claim")).to_have_count(1)
    expect(earlier).to_be_hidden()


@pytest.mark.once
def test_the_json_of_what_is_told_is_one_click_away(page: Page, talk: Locator, alice: Any):
    alice.send(payload={"deep": [1, 2]}, key="m1")
    link = talk.locator("article", has_text="deep").locator(".pw-raw")
    link.click()
    expect(talk.locator(".pw-json")).to_contain_text('"key": "m1"')
    link.click()
    expect(talk.locator(".pw-json")).to_have_count(0)


HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "{{ 7*7 }}${7*7}<b x-data x-init=\"document.title = 'owned'\">bold</b>",
    "</div></section></body><h1>Free beer</h1>",
    "javascript:document.title='owned'",
]


@pytest.mark.once
@pytest.mark.parametrize("live", [True, False])
def test_hostile_text_is_text(page: Page, alice: Any, live: bool):
    alice.make_entity()
    alice.send(payload="begin")
    claim = alice.claim()
    token = claim.mint()
    if live:
        open_entity(page, "/agent/e1")
        expect(page.get_by_role("log")).to_contain_text("begin")
    for n, text in enumerate(HOSTILE):
        alice.send(payload=text)
        claim.append(
            event("text_delta", f"d{n}", run_id=text, delta=text),
            event(text, text, text, **{text: text}),
            event("tool_call", text, tool_name=text, args=text, status=text),
            event("error", f"x{n}", message=text, error_code=text),
            token=token,
        )
    if not live:
        open_entity(page, "/agent/e1")
    talk = page.get_by_role("log")
    expect(talk.locator(".pw-told-error")).to_have_count(len(HOSTILE))
    for text in HOSTILE:
        expect(talk.locator(".pw-told-message").get_by_text(text, exact=True)).to_have_count(1)
        expect(talk.locator(".pw-told-text").get_by_text(text, exact=True)).to_have_count(1)
    assert talk.locator("script, img, h1, [onerror], [x-data], [x-init]").count() == 0
    assert "owned" not in page.title()


@pytest.mark.once
def test_text_of_another_direction_and_of_any_length_stays_in_its_place(
    page: Page, talk: Locator, alice: Any
):
    alice.send(payload="\u202eevil\u2066 שלום ‎" + "w" * 9_000)
    alice.send(payload="a\u0301\u0489" * 500)
    message = talk.locator("article", has_text="שלום")
    expect(message).to_contain_text("�evil�")
    expect(message).to_contain_text(re.compile(r"\d+ more characters"))
    sizes = "e => [document.documentElement.scrollWidth, innerWidth, e.scrollWidth, e.clientWidth]"
    whole, window, inner, outer = talk.evaluate(sizes)
    assert whole <= window
    assert inner <= outer


def test_a_killed_runner_turns_up_as_orphaned_without_a_reload(page: Page, alice: Any):
    alice.register("doomed", claim_lease_ms=5000)
    alice.make_entity("/agent/e1", "doomed")
    alice.send()
    alice.post("/_electric/runners/doomed/heartbeat", {"lease_ms": 60_000})
    open_entity(page, "/agent/e1")
    page.evaluate("window.mark = 1")
    alice.claim("doomed")
    rule = page.get_by_role("log").locator(".pw-told-claim")
    expect(rule).to_contain_text("active")
    expect(rule).to_contain_text("orphaned")
    expect(page.locator(".pw-head")).to_contain_text("running")
    page.goto("/admin/claims/consumerclaim/?status=active")
    expect(page.get_by_role("row").filter(has_text="/agent/e1")).to_contain_text("orphaned")


def test_a_page_follows_and_leaves_alone_what_is_in_use(page: Page, alice: Any):
    page.goto("/admin/")
    page.evaluate("window.mark = 1")
    expect(says(page)).to_have_text("Live")
    runners = page.locator("section", has=page.get_by_role("heading", name="Runners", exact=True))
    figure = runners.locator("li", has_text="degraded")
    expect(figure.locator("b")).to_have_text("1")
    alice.register("r2")
    look(page)
    expect(figure.locator("b")).to_have_text("2")
    # What is marked stays as it is, and the page says so.
    page.evaluate(
        "e => getSelection().selectAllChildren(e)",
        runners.element_handle(),
    )
    alice.register("r3")
    look(page)
    expect(says(page)).to_have_text("Paused while text is marked")
    expect(figure.locator("b")).to_have_text("2")
    page.evaluate("getSelection().removeAllRanges()")
    look(page)
    expect(figure.locator("b")).to_have_text("3")
    # The keyboard's focus stays where it is, and stops nothing.
    figure.get_by_role("link").focus()
    alice.register("r4")
    look(page)
    expect(figure.locator("b")).to_have_text("4")
    expect(figure.get_by_role("link")).to_be_focused()
    assert page.evaluate("window.mark") == 1


@pytest.mark.parametrize(
    "path", ["/admin/", "/admin/runners/runner/", "/admin/runners/runner/r1/change/"]
)
def test_a_page_is_told_at_once(page: Page, alice: Any, path: str):
    """Sooner than it would look by itself, which is five seconds after it was opened."""
    page.goto(path)
    page.wait_for_function("window.pullwakeIsTold")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(urlsplit(request.url).path))
    with page.expect_request(lambda request: urlsplit(request.url).path == path, timeout=3_500):
        alice.post("/_electric/runners/r1/disable")
    page.wait_for_load_state()
    expect(page.locator("main")).to_contain_text("disabled" if path != "/admin/" else "degraded")
    # And once a second at the most, not once for each of many.
    began = time.monotonic()
    for _ in range(10):
        alice.post("/_electric/runners/r1/enable")
        alice.post("/_electric/runners/r1/disable")
    page.wait_for_event("requestfinished", lambda request: urlsplit(request.url).path == path)
    assert asked.count(path) <= 3 + (time.monotonic() - began)


def test_a_list_does_not_move_under_the_pointer(page: Page, alice: Any):
    page.goto("/admin/runners/runner/")
    row = page.get_by_role("row").filter(has_text="r1")
    row.get_by_role("checkbox").check()
    alice.register("r0")
    alice.post("/_electric/runners/r1/disable")
    look(page)
    expect(says(page)).to_contain_text("1 new")
    expect(row).to_contain_text("disabled")
    expect(row.get_by_role("checkbox")).to_be_checked()
    expect(page.get_by_role("row").filter(has_text="r0")).to_have_count(0)
    says(page).get_by_role("button", name="Show").click()
    expect(page.get_by_role("row").filter(has_text="r0")).to_have_count(1)
    expect(row.get_by_role("checkbox")).to_be_checked()
    # With nothing ticked, rows come by themselves.
    row.get_by_role("checkbox").uncheck()
    page.mouse.move(0, 0)
    alice("DELETE", "/_electric/runners/r0")
    page.wait_for_function("pullwakeLook() || !document.body.innerText.includes('r0')")
    expect(page.get_by_role("row").filter(has_text="r0")).to_have_count(0)


def test_it_says_live_only_of_what_it_is_told(context: BrowserContext, alice: Any):
    page = context.new_page()  # where scripts may complain
    page.goto("/admin/runners/runner/")
    expect(says(page)).to_have_text("Live")
    expect(page.locator(".pw-live")).to_have_attribute("title", re.compile("heartbeats .* 15 s"))
    page.goto("/admin/dispatch/timer/")
    expect(says(page)).to_have_text("Looks every 15 s")
    page.route("**/admin/live/**", lambda route: route.fulfill(status=403))
    page.goto("/admin/runners/runner/")
    expect(says(page)).to_have_text("Looks every 5 s")


COVERED = """() => {
    const boxOf = (each) => each.getBoundingClientRect();
    const said = boxOf(document.querySelector(".pw-live"));
    const meets = (box) =>
        box.left < said.right && box.right > said.left &&
        box.top < said.bottom && box.bottom > said.top;
    const units = ".pw-card, #result_list, h1, #header-inner :is(a, span)";
    const shown = document.querySelectorAll(units);
    return [...shown].filter((each) => meets(boxOf(each))).map((each) => each.outerHTML);
}"""


@pytest.mark.once
@pytest.mark.parametrize("width", [1280, 390])
def test_saying_that_it_is_live_covers_nothing(page: Page, alice: Any, width: int):
    page.set_viewport_size({"width": width, "height": 600})
    for path in ("/admin/", "/admin/runners/runner/r1/change/", "/admin/runners/runner/"):
        page.goto(path)
        expect(says(page)).to_have_attribute("data-tone", "good")
        for share in (0, 0.5, 1):
            page.evaluate("share => scrollTo(0, share * document.body.scrollHeight)", share)
            assert page.evaluate(COVERED) == []


@pytest.mark.once
def test_it_says_when_it_is_behind_and_recovers(context: BrowserContext, alice: Any):
    page = context.new_page()  # where scripts may complain
    page.goto("/admin/")
    page.route("**/admin/", lambda route: route.fulfill(status=503))
    look(page)
    expect(says(page)).to_contain_text("The server does not answer. What you see is as of")
    page.unroute("**/admin/")
    says(page).get_by_role("button", name="Try now").click()
    expect(says(page)).to_have_text("Live")


@pytest.mark.once
def test_whoever_was_logged_out_is_told(page: Page, alice: Any):
    page.goto("/admin/")
    page.context.clear_cookies()
    look(page)
    expect(says(page)).to_contain_text("You were logged out")
    says(page).get_by_role("button", name="Log in").click()
    expect(page).to_have_url(re.compile(r"/admin/login/\?next=/admin/"))


@pytest.mark.once
def test_a_hidden_tab_asks_nobody(page: Page, alice: Any):
    with page.expect_request(re.compile(r"since=\d")):  # the one that is held until there is news
        page.goto("/admin/")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("Object.defineProperty(document, 'hidden', {get: () => true})")
    look(page)
    page.evaluate("new Promise(done => setTimeout(done, 50))")
    assert not [url for url in asked if "/admin/" in url]
