"""What annoys: stale forms, reloads, weight, addresses without a slash, lists without an order."""

import gzip
import html
import re
from urllib.parse import unquote

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from claims import tallies
from claims.models import ClaimTally, DeadLetter
from dispatch.models import Entity, Wake
from runners.models import AccessToken, Runner, RunnerLiveness
from tests.factories import (
    ConsumerClaimFactory,
    DeadLetterFactory,
    EntityFactory,
    RunnerFactory,
    WakeFactory,
    ago,
    ahead,
)
from tests.operators.test_verbs import CLAIMS, ENTITIES, RUNNERS, do, pk_of, text

WAKES = "/admin/dispatch/wake/"


def shown(page):
    return re.findall(r"<code>(w_[0-9a-f]+)</code>", page.content.decode())


def test_wakes_that_are_unclaimed_for_minutes_are_counted_and_listed_by_age(world, people):
    r1 = Runner.objects.get(pk="r1")
    old = [
        WakeFactory.create(entity__runner=r1, created_at=ago(minutes=minutes)) for minutes in (9, 5)
    ]
    said = people["viewer"].get("/admin/").content.decode()
    (url,) = re.findall(r'<a href="([^"]+)">2 wakes unclaimed for minutes</a>', said)
    listed = people["viewer"].get(html.unescape(url))
    assert shown(listed) == [wake.wake_id for wake in old]


def test_the_oldest_come_first_over_pages(world, people):
    for _ in range(60):
        WakeFactory.create(entity__runner=Runner.objects.get(pk="r1"))
    order = list(Wake.objects.order_by("pk").values_list("wake_id", flat=True))
    first = people["viewer"].get(f"{WAKES}?order=oldest")
    assert shown(first) == order[:50]
    (following,) = re.findall(r'href="([^"]+)" rel="next"', first.content.decode())
    second = people["viewer"].get(WAKES + html.unescape(following))
    assert shown(second) == order[50:]


def test_an_unclaimed_wake_has_verbs(world, operator):
    wake = Wake.objects.get(entity__url="/agent/e4")
    asked = text(operator.get(f"{WAKES}do/wake/?pk={wake.pk}"))
    assert "Its unclaimed wake is emitted again" in asked
    assert "But nobody claims it now: r1" in asked
    said = do(operator, WAKES, "move", wake.pk, target="r2", anyway="on")
    assert "moved to r2" in said
    assert "Move: moved to r2." in text(operator.get("/admin/admin/logentry/?what=entity"))
    assert "It is withdrawn." in do(operator, WAKES, "wake", wake.pk)
    assert Entity.objects.get(url="/agent/e4").dispatch_state.runner_id == "r2"


@pytest.mark.parametrize(
    ("term", "urls"),
    [
        ("gent/e1", ["/agent/e1"]),
        ("E1", ["/agent/e1"]),
        ("team=search", ["/agent/e2"]),
        ("team=sear", []),
        ('a"b=c', ["/agent/e2"]),
        ("/agent/e3", ["/agent/e3"]),
    ],
)
def test_entities_are_found_by_parts_and_tags(world, people, term, urls):
    Entity.objects.filter(url="/agent/e2").update(tags={"team": "search", 'a"b': "c"})
    page = people["viewer"].get(ENTITIES, {"q": term}).content.decode()
    assert re.findall(r"<code>(/agent/[^<]+)</code>", page) == urls


def test_rows_of_each_kind_are_found_by_parts(world, people):
    wake = Wake.objects.get(entity__url="/agent/e4")
    (letter,) = DeadLetter.objects.all()
    claim = world.orphaned.body["consumerId"]
    for where, term, found in (
        (CLAIMS, claim[5:15], claim),
        (CLAIMS, "gent/e3", claim),
        (WAKES, wake.wake_id[5:15], wake.wake_id),
        (WAKES, "gent/e4", wake.wake_id),
        ("/admin/claims/deadletter/", letter.reason[1:], "/agent/e1"),
        ("/admin/dispatch/timer/", "gent/e4", "/agent/e4"),
        ("/admin/dispatch/sharedstate/", "moderator", "debate-/moderator/x"),
        ("/admin/dispatch/dispatchstate/", "gent/e4", "/agent/e4"),
        ("/admin/dispatch/entitytype/", "gen", "agent"),
    ):
        codes = re.findall(
            r"<code>([^<]+)</code>", people["viewer"].get(where, {"q": term}).content.decode()
        )
        assert found in codes, term
        assert "/agent/e2" not in codes, term


def test_claims_and_runners_are_found_by_their_last_error(world, people):
    RunnerLiveness.objects.filter(runner="r1").update(diagnostics={"last_error": "Reset by peer"})
    for where, term, found in (
        (CLAIMS, "SUCH tool", [world.failed.body["consumerId"], "/agent/e2", "r1"]),
        (RUNNERS, "reset by", ["r1", "user:alice"]),
    ):
        page = people["viewer"].get(where, {"q": term}).content.decode()
        assert re.findall(r"<code>([^<]+)</code>", page) == found


def test_a_login_that_is_to_lead_elsewhere_leads_to_the_overview(db):
    User.objects.create_superuser("root", password="let me in, please")
    form = {"username": "root", "password": "let me in, please", "next": "https://evil.example/"}
    answer = Client().post("/admin/login/?next=https://evil.example/", form)
    assert answer.headers["Location"] == "/admin/"


def test_the_menu_finds_rows_that_its_reader_may_see(world, people):
    def found(who, term):
        page = people[who].get(f"/admin/search/?s={term}&extended=1").content.decode()
        return re.findall(r'data-title="([^"]+)"', page)

    assert "/agent/e3" in found("viewer", "gent/e3")
    assert "r1" in found("viewer", "r1")
    page = people["viewer"].get("/admin/search/?s=gent/e4&extended=1").content.decode()
    assert "wake of /agent/e4" in page
    assert found("nobody", "gent/e3") == []


def test_a_confirmation_is_found_again_after_a_login(world, people):
    claim = world.row(world.orphaned)
    answer = people["stranger"].post(f"{CLAIMS}do/expire/?pk={claim.pk}", {"pk": claim.pk})
    after = unquote(answer.headers["Location"].partition("next=")[2])
    assert people["operator"].get(after).status_code == 200
    asked = people["operator"].get(f"{CLAIMS}do/expire/?pk={claim.pk}").content.decode()
    assert f'action="{CLAIMS}do/expire/?pk={claim.pk}"' in asked


def test_it_says_who_disabled_a_runner_through_the_api_and_since_when(world, people):
    world.api.post("/_electric/runners/r1/disable")
    said = text(people["viewer"].get("/admin/runners/runner/r1/change/"))
    assert re.search(r"\d+ s ago Disabled by user:alice, through the API\.", said)
    assert "(no operator)" not in said
    world.api.post("/_electric/runners/r1/enable")
    said = text(people["viewer"].get("/admin/runners/runner/r1/change/"))
    assert "Disabled by" not in said


def test_it_says_who_paused_an_entity_and_since_when(world, operator):
    world.api.signal("/agent/e1", "SIGSTOP")
    page = f"{ENTITIES}{pk_of('/agent/e1')}/change/"
    assert re.search(r"\d+ s ago Paused by user:alice, through the API\.", text(operator.get(page)))
    do(operator, ENTITIES, "resume", pk_of("/agent/e1"))
    do(operator, ENTITIES, "pause", pk_of("/agent/e1"), reason="too loud")
    said = text(operator.get(page))
    assert "Pause: paused, was idle. Reason: too loud operator" in said


def test_a_page_is_compressed_for_who_takes_it(world, people):
    plain = people["viewer"].get(CLAIMS)
    packed = people["viewer"].get(CLAIMS, HTTP_ACCEPT_ENCODING="gzip")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert len(packed.content) * 5 < len(plain.content)
    assert b"</html>" in gzip.decompress(packed.content)


def test_the_admin_is_found_without_its_slash(db):
    answer = Client().get("/admin")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/admin/")


def test_a_stale_form_is_told_in_words(db):
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(User.objects.create_superuser("root"))
    answer = browser.post("/admin/runners/accesstoken/issue/", {}, HTTP_ACCEPT="text/html")
    assert answer.status_code == 403
    said = text(answer)
    assert "This form is out of date. Nothing was done." in said
    assert "Open the form anew" in said
    assert "CSRF" not in said


def test_a_page_that_is_loaded_again_issues_no_second_token(people):
    browser = people["superuser"]
    form = browser.get("/admin/runners/accesstoken/issue/").content.decode()
    (once,) = re.findall(r'name="once" value="([^"]+)"', form)
    asked = {"principal": "user:carol", "days": "30", "once": once}
    first = browser.post("/admin/runners/accesstoken/issue/", asked)
    assert "shown this once" in text(first)
    again = browser.post("/admin/runners/accesstoken/issue/", asked, follow=True)
    assert "This token was issued before: it is not shown again." in text(again)
    assert AccessToken.objects.count() == 1


def test_the_chart_has_an_axis_and_names_its_zone(world, people):
    past = tallies.floor(timezone.now()) - 2 * tallies.SLICE
    ClaimTally.objects.create(since=past, acquired=8)
    page = people["viewer"].get("/admin/?span=hour").content.decode()
    assert '<div class="pw-axis" aria-hidden="true"><span>8</span><span>0</span></div>' in page
    assert "Times are" in page
    assert re.search(r'<time data-form="zone" datetime="[^"]+">UTC</time>', page)


def test_waking_does_not_warn_of_a_runner_that_lives(world, operator):
    RunnerLiveness.objects.filter(runner="r1").update(lease_expires_at=ahead(minutes=1))
    wake = Wake.objects.get(entity__url="/agent/e4")
    for where, pk in ((ENTITIES, wake.entity_id), (WAKES, wake.pk)):
        asked = text(operator.get(f"{where}do/wake/?pk={pk}"))
        assert "Its unclaimed wake is emitted again" in asked
        assert "nobody claims it now" not in asked


def test_what_would_turn_other_text_around_is_seen(people):
    turned = "no \u202esuch tool"
    runner = RunnerFactory.create(id="turned", label=turned, online=True)
    entity = EntityFactory.create(runner=runner, pending=True, failing=True)
    claim = ConsumerClaimFactory.create(entity=entity, failed=True, error=turned)
    letter = DeadLetterFactory.create(reason=turned)
    for path in (
        "/admin/",
        CLAIMS,
        f"{CLAIMS}{claim.pk}/change/",
        RUNNERS,
        f"{RUNNERS}{runner.pk}/change/",
        f"{ENTITIES}{entity.pk}/change/",
        "/admin/claims/deadletter/",
        f"/admin/claims/deadletter/{letter.pk}/change/",
    ):
        page = people["operator"].get(path).content.decode()
        assert "no \ufffdsuch" in page, path
        assert "\u202e" not in page, path
