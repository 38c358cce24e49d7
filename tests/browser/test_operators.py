"""An operator at work, in a real browser, on a real server."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PHONE, one_time_login
from tests.support import Database, Server, wait_until

FAINT = Path(__file__).with_name("faint.js").read_text()

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def alice(quiet_server: Server):
    """The API of the server, as user:alice calls it."""
    return quiet_server.client()


@pytest.fixture
def killed(alice):
    """A claim whose runner was killed: its leases are the shortest, and are over soon."""
    alice.register("doomed", claim_lease_ms=1000)
    alice.make_entity("/agent/e1", "doomed")
    alice.send("/agent/e1")
    alice.post("/_electric/runners/doomed/heartbeat", {"lease_ms": 1000})
    return alice.claim("doomed")


def test_an_orphaned_claim_is_found_taken_back_and_done_by_another(page: Page, alice, killed):
    page.goto("/admin/")
    # The page finds it out by itself.
    trouble = page.get_by_role("link", name="1 orphaned claim")
    expect(trouble).to_be_visible(timeout=30_000)
    expect(page.get_by_text("its runner's heartbeat lease expired").first).to_be_visible()

    trouble.click()
    consumer_id = killed.body["consumerId"]
    row = page.get_by_role("row").filter(has_text=consumer_id)
    expect(row).to_contain_text("orphaned")
    row.get_by_role("checkbox").check()
    page.locator("select[name=action]").select_option("expire")
    page.get_by_role("button", name="Run").click()

    expect(page.get_by_role("table")).to_contain_text(
        "/agent/e1 is freed; its work waits, because doomed"
    )
    page.get_by_label("Reason").fill("the machine is gone")
    page.get_by_role("button", name="Take back").click()
    expect(
        page.get_by_text("Take back: 1 done (freed; its work waits for doomed).")
    ).to_be_visible()
    expect(page.get_by_text("It ended: expired")).to_be_visible()
    expect(page.get_by_text("The entity was woken again")).to_be_visible()
    assert killed.done().error == "FENCED"

    # Its runner is dead: another takes over.
    alice.register("heir")
    alice.post("/_electric/runners/heir/heartbeat", {"lease_ms": 60_000})
    page.get_by_role("link", name="/agent/e1").first.click()
    verbs = page.get_by_role("navigation", name="What may be done")
    verbs.get_by_role("link", name="Move", exact=True).click()
    page.get_by_label("Runner").fill("heir")
    page.get_by_role("button", name="Move").click()
    expect(page.get_by_text("Move: 1 done (moved to heir).")).to_be_visible()
    heir = alice.claim("heir")
    assert heir.epoch > killed.epoch
    assert heir.done().status == 200

    page.reload()
    its_claim = page.get_by_role("link", name=f"Claim of epoch {heir.epoch}")
    expect(page.get_by_role("row").filter(has=its_claim)).to_contain_text("released")
    page.goto("/admin/admin/logentry/")
    expect(page.get_by_text("Reason: the machine is gone")).to_be_visible()


def test_an_orphaned_claim_goes_to_a_living_runner_in_two_clicks(page: Page, alice, killed):
    """Nobody has to know which: one that has room is proposed."""
    wait_until(lambda: "expired" in str(alice.get("/_electric/runners/doomed/health").body))
    alice.register("heir")
    alice.post("/_electric/runners/heir/heartbeat", {"lease_ms": 60_000})
    page.goto("/admin/")
    orphans = page.locator("section", has_text="Orphaned claims, oldest first")
    orphans.get_by_role("link", name="Take back and move").click()
    expect(page.get_by_label("Runner", exact=True)).to_have_value("heir")
    page.get_by_role("button", name="Take back and move").click()
    expect(page.get_by_text("1 done (freed, and moved to heir).")).to_be_visible()
    assert alice.claim("heir").done().status == 200


def test_the_overview_refreshes_without_losing_the_readers_place(page: Page, alice):
    page.set_viewport_size({"width": 1440, "height": 400})
    alice.register("r1")
    page.goto("/admin/")
    page.evaluate("window.scrollTo(0, 300)")
    alice.register("r2")
    expect(page.locator("li", has_text="degraded").locator("b")).to_have_text("2", timeout=30_000)
    assert page.evaluate("window.scrollY") == 300


@pytest.mark.once
def test_an_id_is_copied_with_one_click(page: Page, alice):
    alice.register("to-copy")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto("/admin/runners/runner/")
    page.get_by_role("button", name="Copy to-copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == "to-copy"


@pytest.mark.once
def test_times_count_on_and_say_exactly_when(page: Page, alice):
    alice.register("r1")
    alice.post("/_electric/runners/r1/heartbeat", {"lease_ms": 60_000})
    page.goto("/admin/runners/runner/r1/change/")
    lease = page.locator("dt", has_text="Heartbeat lease ends").locator("+ dd time")
    expect(lease).to_have_text(re.compile(r"in \d+ s"))
    first = lease.inner_text()
    expect(lease).not_to_have_text(first)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} UTC", lease.get_attribute("title") or ""
    )


@pytest.mark.once
def test_a_click_on_a_time_shows_all_of_them_exactly(page: Page, alice):
    alice.register("r1")
    page.goto("/admin/runners/runner/r1/change/")
    times = page.locator("dt", has_text=re.compile("Registered|Changed")).locator("+ dd time")
    times.first.click()
    for time in times.all():
        expect(time).to_have_text(time.get_attribute("title") or "")
    times.first.click()
    expect(times.last).to_have_text(re.compile("ago$"))


@pytest.mark.once
def test_a_dead_letters_reason_has_its_lines(page: Page, alice):
    alice.register("r1")
    alice.make_entity("/agent/e1")
    alice.send("/agent/e1")
    reason = "Traceback:\n  line 12, in handle"
    assert alice.claim().call({"failed": True, "give_up": True, "error": reason}).status == 200
    page.goto("/admin/claims/deadletter/")
    page.get_by_role("row").filter(has_text="Traceback").get_by_role("link").first.click()
    shown = page.get_by_role("definition").filter(has_text="Traceback")
    assert shown.inner_text() == reason


def test_ids_of_the_usual_length_are_in_one_piece(page: Page, alice):
    """Beside what is long and takes all the room that it gets."""
    runner_id, url = "of-a-long-name-" * 8, f"/agent/{'of-a-long-name-' * 8}"
    alice.register(runner_id)
    alice.make_entity(url, runner_id)
    alice.send(url)
    claim = alice.claim(runner_id)
    assert claim.fail("and of long errors " * 20).status == 200
    page.goto("/admin/claims/consumerclaim/")
    box = page.locator("#result_list code", has_text=claim.body["consumerId"]).bounding_box()
    assert box is not None
    assert box["height"] < 24


def test_a_filter_is_chosen_and_taken_away(page: Page, alice):
    alice.register("r1")
    alice.register("r2", kind="ci")
    page.goto("/admin/runners/runner/")
    page.get_by_text("Filters filter_list").click()
    page.get_by_role("link", name="offline", exact=True).click()
    expect(page).to_have_url(re.compile("liveness=offline"))
    page.get_by_text("Filters filter_list").click()
    page.locator("input[name=owner]").fill("user:alice")
    page.get_by_role("button", name="Apply Filters").click()
    expect(page).to_have_url(re.compile("owner=user%3Aalice"))
    expect(page.locator(".pw-narrowed")).to_contain_text("owner (kind:id): user:alice")
    expect(page.locator("tr.data-row")).to_have_count(2)
    page.get_by_role("link", name="Without the filter liveness").click()
    expect(page).not_to_have_url(re.compile("liveness="))


def test_a_token_is_issued_and_opens_the_api(page: Page, quiet_server: Server):
    page.goto("/admin/runners/accesstoken/")
    page.get_by_role("link", name="Issue a token").click()
    page.get_by_label("Principal").fill("user:carol")
    page.get_by_role("button", name="Issue").click()
    secret = page.locator(".pw-secret code").inner_text()
    carol = quiet_server.client(None, Authorization=f"Bearer {secret}")
    assert carol.register("carols")["owner_principal"] == "/principal/user%3Acarol"


def test_the_login_works_once(page: Page, quiet_server: Server):
    page.context.clear_cookies()
    response = page.request.get(one_time_login(quiet_server))
    assert response.status == 404


@pytest.mark.once
@pytest.mark.parametrize("context", [{"viewport": PHONE}], indirect=True, ids=["phone"])
def test_a_phone_is_not_asked_to_select_where_there_is_no_box(page: Page, killed):
    for path in ("/admin/dispatch/dispatchstate/", "/admin/claims/consumerclaim/"):
        page.goto(path)
        first = page.locator("#result_list td").first
        label = first.evaluate("cell => getComputedStyle(cell, '::before').content")
        assert "Select" not in label, path


PAGES = (
    "/admin/",
    "/admin/runners/runner/",
    "/admin/runners/runner/doomed/change/",
    "/admin/claims/consumerclaim/",
    "/admin/claims/consumerclaim/{claim}/change/",
    "/admin/claims/consumerclaim/{ended}/change/",
    "/admin/claims/consumerclaim/do/expire/?pk={claim}",
    "/admin/dispatch/entity/",
    "/admin/dispatch/entity/{entity}/change/",
    "/admin/dispatch/entity/do/send/?pk={entity}",
    "/admin/dispatch/wake/",
    "/admin/dispatch/wake/{wake}/change/",
    "/admin/dispatch/entity/{entity}/timeline/",
    "/admin/claims/deadletter/",
    "/admin/claims/deadletter/{letter}/change/",
    "/admin/dispatch/timer/",
    "/admin/dispatch/timer/{timer}/change/",
    "/admin/dispatch/sharedstate/",
    "/admin/dispatch/sharedstate/{shared}/change/",
    "/admin/dispatch/dispatchstate/",
    "/admin/dispatch/entitytype/",
    "/admin/runners/accesstoken/",
    "/admin/runners/accesstoken/issue/",
    "/admin/admin/logentry/",
)
PEOPLE = ("/admin/auth/user/{user}/change/", "/admin/auth/group/{group}/change/")


def some_rows(database: Database) -> dict[str, int]:
    """The keys of an active and an ended claim, of the first entity and its wake, and of others."""
    ((claim, ended, entity, last, wake, letter, timer, shared, user, group),) = database.execute(
        "SELECT (SELECT id FROM claims_consumerclaim WHERE status = 'active'),"
        " (SELECT id FROM claims_consumerclaim WHERE status <> 'active'),"
        " (SELECT min(id) FROM dispatch_entity), (SELECT max(id) FROM dispatch_entity),"
        " (SELECT min(id) FROM dispatch_wake),"
        " (SELECT id FROM claims_deadletter), (SELECT id FROM dispatch_timer),"
        " (SELECT id FROM dispatch_sharedstate),"
        " (SELECT min(id) FROM auth_user), (SELECT min(id) FROM auth_group)"
    )
    named = {"claim": claim, "ended": ended, "entity": entity, "last": last, "wake": wake}
    named |= {"letter": letter, "timer": timer, "shared": shared}
    return named | {"user": user, "group": group}


def make_more(api: Any, url: str) -> None:
    """A dead letter of a claim that can be made, a timer and a shared state, of an entity."""
    claim = api.claim("doomed")
    gave_up = claim.call({"failed": True, "error": "no such tool", "give_up": True})
    assert gave_up.status == 200, gave_up
    api.send(url, afterMs=3_600_000)
    api.share("board", url)


@pytest.mark.once
@pytest.mark.parametrize(
    "context",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"color_scheme": "light", "viewport": PHONE},
        {"color_scheme": "dark", "viewport": PHONE},
    ],
    indirect=True,
    ids=["light", "dark", "phone", "dark phone"],
)
def test_every_page_fits_and_reads(page: Page, quiet_server: Server, alice, killed):
    word = "/where/no/line/may/break" * 8
    alice.make_entity(f"/agent/{'long-' * 20}", "doomed")
    alice.send(f"/agent/{'long-' * 20}")
    alice.post(
        "/_electric/runners/doomed/heartbeat",
        {"lease_ms": 1000, "diagnostics": {"last_error": word}},
    )
    make_more(alice, f"/agent/{'long-' * 20}")
    ample = f"runner-{'long' * 30}"
    alice.register(ample)
    alice.make_entity("/agent/far", ample)
    alice.send("/agent/far")
    alice.post(f"/_electric/runners/{ample}/disable")
    of_ample = (
        f"/admin/runners/runner/{ample}/change/",
        f"/admin/runners/runner/do/drain/?pk={ample}",
        f"/admin/dispatch/entity/?runner={ample}",
        "/admin/dispatch/entity/{last}/change/",
    )
    rows = some_rows(quiet_server.database)
    for path in (each.format(**rows) for each in (*PAGES, *of_ample, *PEOPLE)):
        response = page.goto(path)
        assert response is not None
        assert response.status == 200, path
        too_wide = page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert too_wide <= 0, path
        assert page.evaluate(FAINT) == [], path


# Others' pages, or much like one that is among those.
OTHERS = (
    *PEOPLE,
    "/admin/dispatch/entity/all/move/?runner=doomed",
    "/admin/nowhere/",
)
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()


def told_by_axe(page: Page) -> list[Any]:
    """What is serious or moderate: the rule, and the elements."""
    page.evaluate(AXE)
    # Only of these does it work out all nodes; what passes, it would describe in as much time.
    found = page.evaluate("axe.run({resultTypes: ['violations']}).then((run) => run.violations)")
    return [
        (each["id"], [node["html"][:200] for node in each["nodes"]])
        for each in found
        if each["impact"] in ("critical", "serious", "moderate")
    ]


@pytest.mark.once
@pytest.mark.parametrize(
    "context",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"color_scheme": "light", "viewport": PHONE},
        {"color_scheme": "dark", "viewport": PHONE},
    ],
    indirect=True,
    ids=["light", "dark", "phone", "dark phone"],
)
def test_axe_finds_nothing_serious_or_moderate(page: Page, quiet_server: Server, alice, killed):
    alice.make_entity("/agent/e2", "doomed")
    alice.send("/agent/e2")
    make_more(alice, "/agent/e2")
    alice.make_entity("/agent/child", "doomed", parent="/agent/e2")
    alice.post("/_electric/runners/doomed/disable")
    page = page.context.new_page()  # where a page may be missing
    rows = some_rows(quiet_server.database)
    for path in (each.format(**rows) for each in (*PAGES, *OTHERS)):
        page.goto(path)
        page.wait_for_load_state("load")
        assert told_by_axe(page) == [], path


COLOURS = """[...document.querySelectorAll("*")].map((element) => {
  const style = getComputedStyle(element);
  return [style.color, style.backgroundColor, style.backgroundImage, style.opacity, style.filter,
          style.textShadow, style.display, style.visibility];
}).join()"""
"""What the colour scheme may change of a page, as far as axe sees it."""


@pytest.mark.once
@pytest.mark.parametrize(
    "context", [{}, {"viewport": PHONE}], indirect=True, ids=["desktop", "phone"]
)
def test_axe_finds_nothing_serious_or_moderate_on_the_apis_page(page: Page):
    page.goto("/_electric/docs")
    for what in ("Register a runner", "Send a message"):
        page.locator(".opblock-summary-control", has_text=what).click()
    expect(page.locator(".responses-table")).to_have_count(2)
    seen = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours = page.evaluate(COLOURS)
        # It is the largest page by far: what looks the same is not looked at again.
        if colours not in seen:
            seen.append(colours)
            assert told_by_axe(page) == [], scheme


def press(page: Page, text: str) -> None:
    """Go by the keyboard to a link or button of this text, and press Enter."""
    page.wait_for_load_state()  # an address is there before its page is
    focused = "document.activeElement.matches('a, button') ? document.activeElement.innerText : ''"
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate(focused).strip().startswith(text):
            page.keyboard.press("Enter")
            return
    raise AssertionError(text)


def test_an_orphaned_claim_is_reached_by_keyboard_alone(page: Page, alice, killed):
    wait_until(lambda: "expired" in str(alice.get("/_electric/runners/doomed/health").body))
    page.goto("/admin/")
    press(page, "1 orphaned claim")
    expect(page).to_have_url(re.compile("orphaned=any"))
    press(page, killed.body["consumerId"])
    expect(page).to_have_url(re.compile("/change/"))
    press(page, "Take back")  # and move, which comes first
    expect(page).to_have_url(re.compile("do/expire-and-move/"))
    expect(page.get_by_role("button", name="Take back and move")).to_be_visible()


@pytest.mark.once
@pytest.mark.parametrize("context", [{"timezone_id": "Asia/Kolkata"}], indirect=True, ids=["IST"])
def test_times_are_in_the_readers_zone(page: Page, alice):
    alice.register("r1")
    page.goto("/admin/runners/runner/r1/change/")
    time = page.locator("dt", has_text="Registered").locator("+ dd time")
    written = page.evaluate(
        "(iso) => new Date(iso).toLocaleTimeString('sv')", time.get_attribute("datetime")
    )
    expect(time).to_have_attribute("title", re.compile(rf"{written}\.\d{{3}} GMT\+5:30"))
    page.goto("/admin/?span=hour")
    expect(page.get_by_text("Times are GMT+5:30.")).to_be_visible()
    assert "from" in (page.locator(".pw-bar").first.get_attribute("title") or "")
    assert "GMT+5:30" in (page.locator(".pw-bar").first.get_attribute("title") or "")


@pytest.mark.once
@pytest.mark.parametrize("context", [{"reduced_motion": "reduce"}], indirect=True, ids=["calm"])
def test_nothing_moves_for_who_wants_it_calm(page: Page, alice):
    alice.register("r1")
    page.goto("/admin/runners/runner/")
    moving = page.evaluate(
        "[...document.querySelectorAll('*')].filter((each) => {"
        " const style = getComputedStyle(each);"
        " return parseFloat(style.transitionDuration) > 0.01"
        " || parseFloat(style.animationDuration) > 0.01 }).length"
    )
    assert moving == 0


def test_what_was_typed_outlives_a_session_that_ran_out(page: Page, quiet_server: Server, killed):
    cookies: Any = page.context.cookies()
    (rows,) = [some_rows(quiet_server.database)]
    page.goto(f"/admin/claims/consumerclaim/do/expire/?pk={rows['claim']}")
    page.get_by_label("Reason").fill("the machine is gone")
    page.context.clear_cookies(name="sessionid")
    page.get_by_role("button", name="Take back", exact=True).click()
    expect(page.get_by_label("Password")).to_be_visible()
    address = page.url
    page.context.add_cookies(cookies)  # as who logs in again gets them
    page.goto(unquote(parse_qs(urlsplit(address).query)["next"][0]))
    expect(page.get_by_label("Reason")).to_have_value("the machine is gone")
    page.get_by_role("button", name="Take back", exact=True).click()
    expect(page.get_by_text("Take back: 1 done")).to_be_visible()


def test_a_thousand_entities_move_with_progress(page: Page, alice):
    """Paused in between, and gone on with from the address."""
    for runner_id in ("from-here", "to-there"):
        alice.register(runner_id)
        alice.post(f"/_electric/runners/{runner_id}/heartbeat", {"lease_ms": 3_600_000})
    for number in range(1000):
        alice.make_entity(f"/agent/of-many-{number}", "from-here")
    page.goto("/admin/dispatch/entity/?runner=from-here")
    page.get_by_text("Do to all that fit").click()
    page.get_by_role("link", name="Move", exact=True).click()
    expect(page.get_by_text("1000 entities fit the filters")).to_be_visible()
    page.get_by_label("Runner", exact=True).fill("to-there")
    page.get_by_role("button", name="Move 1000").click()
    progress = page.get_by_role("progressbar", name="Move")
    expect(progress).to_have_attribute("max", "1000")
    # Opened again, its address does not do twice what is done.
    page.wait_for_function("document.querySelector('form[data-next]')?.action === location.href")
    page.get_by_role("link", name="Pause").click(timeout=20_000)
    expect(page.get_by_text("it goes on from there")).to_be_visible()
    expect(page.get_by_label("Runner", exact=True)).to_have_value("to-there")
    page.get_by_role("button", name=re.compile("^Move")).click()
    expect(page.get_by_text(re.compile(r"Move: \d+ done"))).to_be_visible(timeout=120_000)
    expect(page.get_by_text("Nothing here that fits.")).to_be_visible()


def test_ctrl_k_finds_rows_by_parts_of_their_ids(page: Page, alice):
    alice.register("gpu-berlin-7")
    page.goto("/admin/")
    page.keyboard.press("Control+k")
    # The theme moves the focus there a moment after the box opens.
    page.get_by_placeholder("Type to search").press_sequentially("berlin")
    expect(page.get_by_role("link", name=re.compile("gpu-berlin-7"))).to_be_visible()


@pytest.mark.once
@pytest.mark.parametrize("context", [{"viewport": PHONE}], indirect=True, ids=["phone"])
def test_a_row_takes_little_of_a_phone_and_has_its_own_name(page: Page, killed):
    page.goto("/admin/claims/consumerclaim/")
    row = page.locator("#result_list tr.data-row").first
    box = row.bounding_box()
    assert box is not None
    assert box["height"] < 200  # it was 400
    expect(row.get_by_role("checkbox")).to_have_accessible_name(
        f"Select {killed.body['consumerId']}"
    )


@pytest.mark.once
def test_the_runner_list_is_not_cut_off(page: Page, alice):
    long = "a-runner-with-a-rather-long-name-0123456789"
    alice.register(long, label="A label that says in many words what this runner is there for")
    diagnostics = {"last_error": "connection reset by peer while reading the wake stream " * 3}
    alice.post(f"/_electric/runners/{long}/heartbeat", {"diagnostics": diagnostics})
    page.goto("/admin/runners/runner/")
    table = page.locator("#result_list")
    right = table.evaluate(
        "(table) => Math.max(...[...table.querySelectorAll('td')].map((cell) =>"
        " cell.getBoundingClientRect().right))"
    )
    assert right <= 1440
    name = table.locator("code", has_text=long).bounding_box()
    assert name is not None


@pytest.mark.once
def test_the_apis_page_is_read_under_its_policy(page: Page):
    page.goto("/_electric/docs")
    expect(page.get_by_role("heading", name="Pullwake")).to_be_visible()
    expect(page.get_by_text("Register a runner")).to_be_visible()
