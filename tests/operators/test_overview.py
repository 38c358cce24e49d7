"""The front page: figures that lead to the lists behind them, and what needs somebody."""

import html
import re
from datetime import timedelta

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from claims import reaper, tallies
from claims.models import ClaimTally, ServerPulse
from core.clock import iso
from dispatch.models import DispatchState, Entity, StreamEvent, Timer, Wake
from dispatch.streams import waiters
from operators import overview
from runners.models import Runner, RunnerLiveness
from tests.factories import ConsumerClaimFactory, EntityFactory, RunnerFactory, ago, ahead
from tests.operators.conftest import World
from tests.operators.test_verbs import text
from tests.support import PAST

FIGURE = re.compile(r'<a href="([^"]+)"><b>(\d+)</b> <span>([^<]+)</span>')


def figures(page):
    """Each figure: {what it counts: (how many, the list behind it)}."""
    return {
        html.unescape(label): (int(number), html.unescape(url))
        for url, number, label in FIGURE.findall(page.content.decode())
    }


@pytest.fixture
def troubled(world: World) -> World:
    """A world in which everything is wrong that can be."""
    reaper.pulse()
    reaper.reap()
    failing = DispatchState.objects.filter(entity__url="/agent/e2")
    assert failing.update(failures=3)
    world.api.make_entity("/agent/stranded")
    world.api.send("/agent/stranded")
    world.api.register("r3")
    world.api.make_entity("/agent/orphan-to-be", "r3")
    world.api.send("/agent/orphan-to-be")
    world.api("DELETE", "/_electric/runners/r3")
    for condition in ("runFinished", {"on": "change"}):
        body = {"subscriberUrl": "/agent/e1", "sourceUrl": "/agent/e2", "condition": condition}
        assert world.api.post("/_electric/wake", body).status == 204
    return world


def test_each_figure_leads_to_as_many_rows(troubled, people):
    # A timer that is due becomes late between a figure and its list, on a busy machine.
    Timer.objects.due().exclude(pk__in=Timer.objects.late()).delete()
    found = figures(people["viewer"].get("/admin/"))
    assert len(found) >= 12
    for label, (number, url) in found.items():
        rows = people["viewer"].get(url).content.decode().count('class="data-row')
        assert rows == number, (label, url)


def test_it_counts_what_there_is(troubled, people):
    counted = {
        label: number for label, (number, _) in figures(people["viewer"].get("/admin/")).items()
    }
    assert counted == {
        "healthy": 0,
        "degraded": 1,
        "unhealthy": 1,
        "online": 0,
        "stopped": 0,
        "expired": 1,
        "offline": 1,
        "active": 1,
        "orphaned: its runner's heartbeat lease expired": 1,
        "entities with pending work": 4,
        "of them without a runner": 1,
        "entities that keep failing": 1,
        "unclaimed wakes": 2,
        "dead letters": 1,
        "entities that wait for others": 1,
        "pending timers": 4,
        "late timers": 1,
        "timers that failed in the last day": 1,
    }


def test_it_names_what_is_wrong(troubled, people):
    Wake.objects.outstanding().update(created_at=Now() - timedelta(minutes=3))
    said = text(people["viewer"].get("/admin/"))
    for trouble in (
        "1 orphaned claim: lapsed, or the runner is not at work oldest",
        "1 entity has work, but no runner",
        "1 entity keeps failing",
        "1 runner fell silent: the heartbeat lease expired oldest",
        "2 wakes unclaimed for minutes oldest",
        "1 dead letter: given up by a handler, to be redriven oldest",
        "3 in a row failed: no such tool",
        "1 timer is late: is a server up? oldest",
        "1 timer failed in the last day: nobody got the message",
        "1 runner is degraded",
    ):
        assert trouble in said
    assert "Nothing needs you." not in said


def test_a_runner_that_was_stopped_is_no_trouble(alice, people):
    reaper.pulse()
    reaper.reap()
    alice.register("r1")
    goodbye = {"lease_ms": 1000, "diagnostics": {"status": "stopped", "stream_connected": False}}
    assert alice.post("/_electric/runners/r1/heartbeat", goodbye).status == 200
    RunnerLiveness.objects.update(lease_expires_at=PAST)
    page = people["viewer"].get("/admin/")
    assert "Nothing needs you." in text(page)
    number, url = figures(page)["stopped"]
    assert number == people["viewer"].get(url).content.decode().count('class="data-row') == 1
    for path in (url, "/admin/runners/runner/r1/change/"):
        said = text(people["viewer"].get(path))
        assert "stopped" in said
        assert "Heartbeat lease expired" not in said
    alice.post("/_electric/runners/r1/heartbeat", {"diagnostics": {"status": "streaming"}})
    assert figures(people["viewer"].get("/admin/"))["stopped"][0] == 0


def test_it_takes_runners_that_were_seen_and_that_never_were(alice, people):
    alice.register("r1")
    alice.post("/_electric/runners/r1/heartbeat")
    alice.post("/_electric/runners/r1/disable")
    alice.register("r2")
    assert figures(people["viewer"].get("/admin/"))["offline"][0] == 2


def test_what_has_ended_keeps_failing_no_more(troubled, people):
    troubled.api.signal("/agent/e2", "SIGKILL")
    number, url = figures(people["viewer"].get("/admin/"))["entities that keep failing"]
    assert number == people["viewer"].get(url).content.decode().count('class="data-row') == 0


def test_a_runners_figures_lead_to_as_many_rows(world, people):
    world.api.send("/agent/e3")  # claimed
    world.api.signal("/agent/e4", "SIGSTOP")
    page = people["viewer"].get("/admin/runners/runner/r1/change/").content.decode()
    found = re.findall(r'<dd><a href="([^"]+)">(\d+)', page)
    assert [int(number) for _, number in found] == [1, 0, 2]
    for url, number in found:
        listed = people["viewer"].get(html.unescape(url)).content.decode()
        assert listed.count('class="data-row') == int(number), url


def test_the_chart_shows_what_was_acquired_beside_what_ended(world, people):
    past = tallies.floor(timezone.now()) - 2 * tallies.SLICE
    ClaimTally.objects.create(since=past, acquired=8, released=2, failed=1)
    page = people["viewer"].get("/admin/?span=hour").content.decode()
    assert "The full height is 8 claims in 5 min." in page
    bar = page[page.index("8 acquired, 2 released, 1 failed, 0 expired, 0 fenced") :]
    assert re.findall(r"(?:bottom|height):([0-9.]+)%", bar)[:3] == ["100.00", "25.00", "12.50"]


def test_the_first_claims_are_in_the_bar_of_their_own_time(db, people):
    """Until the first slice was counted, all were where the last hour began."""
    began = tallies.floor(ConsumerClaimFactory.create().claimed_at)
    page = people["viewer"].get("/admin/?span=hour").content.decode()
    assert f"from {began:%H:%M} UTC: 1 acquired" in page


def test_it_says_when_nothing_is_wrong(alice, people):
    alice.register()
    alice.post("/_electric/runners/r1/heartbeat", {"diagnostics": {"status": "streaming"}})
    reaper.pulse()
    reaper.reap()
    assert "Nothing needs you." in text(people["viewer"].get("/admin/"))


def test_it_says_when_the_reaper_does_not_run(world, people):
    assert "The reaper is not running" in text(people["viewer"].get("/admin/"))
    reaper.pulse()
    reaper.reap()
    assert "The reaper is not running" not in text(people["viewer"].get("/admin/"))
    ServerPulse.objects.update(reaped_at=Now() - timedelta(hours=1))
    assert "The reaper is not running" in text(people["viewer"].get("/admin/"))


def test_it_says_when_its_listener_lost_the_database(alice, people, monkeypatch):
    assert overview.DEAF not in text(people["viewer"].get("/admin/"))
    monkeypatch.setattr(waiters.hub, "is_deaf", True)
    assert overview.DEAF in text(people["viewer"].get("/admin/"))


def test_it_says_how_to_begin_while_there_is_no_runner(people):
    said = text(people["viewer"].get("/admin/"))
    assert "How to begin" in said
    assert "pullwake run --url http://testserver --id my-laptop" in said


def test_it_does_not_say_how_to_begin_once_there_is_one(alice, people):
    alice.register()
    assert "How to begin" not in text(people["viewer"].get("/admin/"))


@pytest.mark.parametrize("span", ["hour", "day", "week"])
def test_the_sums_count_claims_that_began_and_ended(world, people, span):
    page = people["viewer"].get(f"/admin/?span={span}").content.decode()
    row = re.search(rf'<tr><th scope="row">{span}</th>(.*?)</tr>', page, re.DOTALL)
    assert row is not None
    sums = re.findall(r'data-label="(\w+)"><a href="([^"]+)">(\d+)', row[1])
    assert [(outcome, int(number)) for outcome, _, number in sums] == [
        ("Acquired", 3),
        ("Released", 1),
        ("Failed", 1),
        ("Expired", 0),
        ("Fenced", 0),
    ]
    for _, url, number in sums:
        listed = people["viewer"].get(html.unescape(url)).content.decode()
        assert listed.count('class="data-row') == int(number)


def test_it_takes_any_span(world, people):
    assert people["viewer"].get("/admin/?span=century").status_code == 200


@pytest.mark.parametrize(
    ("query", "urls"),
    [
        ("status=running", ["/agent/e3"]),
        ("status=paused", ["/agent/e4"]),
        ("status=stopped", []),
        ("work=pending", ["/agent/e4", "/agent/e3", "/agent/e2"]),
        ("work=waiting", ["/agent/e2"]),
        ("work=delayed", ["/agent/e2"]),
        ("work=woken", []),
        ("type=agent&runner=r1", ["/agent/e4", "/agent/e3", "/agent/e2", "/agent/e1"]),
        ("runner=r2", []),
        ("creator=user:alice&status=paused", ["/agent/e4"]),
        ("creator=user:bob", []),
        ("creator=nobody", []),
        ("tag=a__b.c%3Dx%3Dy", ["/agent/e1"]),
        ("tag=a__b.c%3Dx", []),
        ("tag=a__b.c", ["/agent/e1"]),
        ("tag=a__b", []),
        ("tag=5%3Dsix", ["/agent/e1"]),
        ("tag=99999999999999999999%3Dx", []),
        ("q=/agent/e1", ["/agent/e1"]),
        ("q=agent/e2", ["/agent/e2"]),
        ("q=nothing", []),
    ],
)
def test_entities_are_filtered(world, people, query, urls):
    world.api.signal("/agent/e4", "SIGSTOP")
    Entity.objects.filter(url="/agent/e1").update(tags={"a__b.c": "x=y", "5": "six"})
    page = people["viewer"].get(f"/admin/dispatch/entity/?{query}").content.decode()
    assert re.findall(r"<code>(/agent/[^<]+)</code>", page) == urls


def test_an_entity_is_found_by_its_subscription(world, people):
    key = Entity.objects.get(url="/agent/e1").subscription_key
    page = people["viewer"].get(f"/admin/dispatch/entity/?q={key}").content.decode()
    assert re.findall(r"<code>(/agent/[^<]+)</code>", page) == ["/agent/e1"]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["bobs", "r1", "r2"]),
        ("q=R1", ["r1"]),
        ("q=user:bob", ["bobs"]),
        ("owner=user:alice", ["r1", "r2"]),
        ("owner=nobody", []),
        ("health=unhealthy", ["r1"]),
        ("health=degraded", ["bobs", "r2"]),
        ("liveness=offline", ["bobs", "r2"]),
        ("kind=ci", ["bobs"]),
        ("admin_status=disabled", []),
    ],
)
def test_runners_are_filtered(world, bob, people, query, names):
    bob.register("bobs", kind="ci")
    page = people["viewer"].get(f"/admin/runners/runner/?{query}").content.decode()
    assert re.findall(r"/admin/runners/runner/([^/]+)/change/", page) == names


@pytest.mark.parametrize(
    ("query", "which"),
    [
        ("status=released", ["released"]),
        ("runner=r1", ["orphaned", "failed", "released"]),
        ("runner=r2", []),
        ("entity=/agent/e2", ["failed"]),
        ("age=hour", ["orphaned", "failed", "released"]),
        ("age=older-hour", []),
        ("ended=hour", ["failed", "released"]),
        ("orphaned=any", ["orphaned"]),
        ("error=SUCH+tool", ["failed"]),
        ("error=SUCH+tool&status=released", []),
        ("q=w_none", []),
    ],
)
def test_claims_are_filtered(world, people, query, which):
    page = people["viewer"].get(f"/admin/claims/consumerclaim/?{query}").content.decode()
    shown = re.findall(r"<code>(w_[0-9a-f]+)</code>", page)
    assert shown == [getattr(world, name).body["consumerId"] for name in which]


def test_a_claim_is_found_by_its_consumer_id(world, people):
    consumer_id = world.failed.body["consumerId"]
    page = people["viewer"].get(f"/admin/claims/consumerclaim/?q={consumer_id}").content.decode()
    assert re.findall(r"<code>(w_[0-9a-f]+)</code>", page) == [consumer_id]


def test_a_claims_page_tells_its_story(world, people):
    world.api.post("/_electric/runners/r1/heartbeat", {"lease_ms": 60_000})
    claim = world.row(world.failed)
    said = text(people["viewer"].get(f"/admin/claims/consumerclaim/{claim.pk}/change/"))
    story = said[said.index("Its story") :]
    steps = [
        "The entity was woken",
        "The runner claimed it",
        "It ended: failed",
        "The entity is woken again 1 failure in a row",
    ]
    places = [story.index(step) for step in steps]
    assert places == sorted(places)
    assert "no such tool" in story
    assert re.search(r"The runner claimed it \d+ ms after the wake", story)


def test_a_claims_page_says_why_its_entity_was_not_woken_again(world, people):
    claim = world.row(world.released)
    path = f"/admin/claims/consumerclaim/{claim.pk}/change/"
    assert "was not woken again it has no work left" in text(people["viewer"].get(path))
    world.api.signal("/agent/e1", "SIGKILL")
    assert "was not woken again it was killed" in text(people["viewer"].get(path))


def test_a_runners_page_shows_what_the_health_endpoint_reports(world, people):
    report = world.api.get("/_electric/runners/r1/health").body
    said = text(people["viewer"].get("/admin/runners/runner/r1/change/"))
    assert report["health"]["status"] in said
    for issue in report["health"]["issues"]:
        assert issue.partition(" expired ")[0] in said  # how long ago differs
    for claim in report["claims"]["active"]:
        assert claim["consumer_id"] in said
    assert Runner.objects.get(pk="r1").wake_stream_path in said


def test_a_runners_page_shows_all_sixteen_diagnostics(world, people):
    client = {
        "status": "streaming",
        "stream_connected": True,
        "last_heartbeat_ok": False,
        "last_claim_result": "no_work",
        "last_error": "connection reset",
        "started_at": iso(timezone.now() - timedelta(days=3)),
        "last_error_at": "who knows",
        "reconnect_count": 0,
        "claims_failed": 7,
    }
    world.api.post("/_electric/runners/r1/heartbeat", {"diagnostics": client})
    said = text(people["viewer"].get("/admin/runners/runner/r1/change/"))
    shown = said[said.index("Diagnostics") :]
    for expected in (
        "Status streaming",
        "Stream connected yes",
        "Last heartbeat ok no",
        "Last claim result no_work",
        "Last error connection reset",
        "Reconnect count 0",
        "Claims failed 7",
        "Last dispatch at -",
        "Started at 3 d ago",
        "Last error at who knows",
    ):
        assert expected in shown


def section(page, title):
    """What a part of the overview says."""
    (part,) = re.findall(rf"<h2>{title}.*?</section>", page.content.decode(), re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", part))), part


def test_it_tells_failures_by_runner_and_error(world, people):
    bad = RunnerFactory.create(id="bad-deploy", online=True)
    for _ in range(4):
        ConsumerClaimFactory.create(entity__runner=bad, failed=True, error="KeyError: KEY\nat 1")
    page = people["operator"].get("/admin/")
    said, part = section(page, "Failures in the last hour")
    assert "bad-deploy" in said
    assert "4 of 4 KeyError: KEY 4 Drain Disable Move its entities" in said
    (listed,) = re.findall(r'<a href="(/admin/claims/[^"]+)">4 of 4', part)
    rows = people["viewer"].get(html.unescape(listed)).content.decode().count('class="data-row')
    assert rows == 4
    assert "1 runner is degraded" not in section_of_troubles(page)
    _, seen = section(people["viewer"].get("/admin/"), "Failures in the last hour")
    assert "/do/" not in seen


def test_what_fails_is_offered_nothing_that_would_do_nothing(world, people):
    bad = RunnerFactory.create(id="bad-deploy", silent=True)
    for _ in range(3):
        ConsumerClaimFactory.create(entity__runner=bad, failed=True, error="KeyError: KEY")
    DispatchState.objects.filter(runner=bad).update(failures=3, retry_at=ahead(minutes=9))

    def helps(title):
        return re.findall(r'pw-button"[^>]*>([^<]+)<', section(operator.get("/admin/"), title)[1])

    operator = people["operator"]
    assert set(helps("Entities that keep failing")) == {"Move"}  # its runner is dead
    assert helps("Failures in the last hour") == ["Drain", "Disable", "Move its entities"]
    Runner.objects.filter(pk="bad-deploy").update(admin_status="disabled")
    assert helps("Failures in the last hour") == ["Move its entities"]
    DispatchState.objects.filter(runner=bad).update(runner="r2")
    assert helps("Failures in the last hour") == []
    said, _ = section(operator.get("/admin/"), "Failures in the last hour")
    assert re.search("bad-deploy .* disabled 3 of 3", said)


def section_of_troubles(page):
    return text(page).partition("As of")[0]


def test_it_tells_who_talks_and_who_writes_nothing(world, people):
    talker = EntityFactory.create(url="/agent/talker", pending=True)
    for _ in range(31):
        ConsumerClaimFactory.create(entity=talker, released=True)
    quiet = ConsumerClaimFactory.create(
        entity__url="/agent/quiet", claimed_at=ago(minutes=20), last_heartbeat_at=ago(seconds=1)
    )
    StreamEvent.objects.filter(entity=quiet.entity).update(created_at=ago(minutes=30))
    page = people["viewer"].get("/admin/")
    assert re.search(r"/agent/talker .*31 31 of 35", section(page, "Entities that are claimed")[0])
    said, part = section(page, "Claims that write nothing")
    assert "/agent/quiet" in said
    assert "nothing since 20 min ago" in said
    assert "Take back" not in said
    assert "Take back" in section(people["operator"].get("/admin/"), "Claims that write nothing")[0]
    (listed,) = re.findall(r'<a href="([^"]+)">All of them', part)
    assert quiet.consumer_id in people["viewer"].get(html.unescape(listed)).content.decode()


def test_a_runner_says_in_the_list_that_its_claims_fail(world, people):
    bad = RunnerFactory.create(id="bad-deploy", online=True)
    for _ in range(4):
        ConsumerClaimFactory.create(entity__runner=bad, failed=True)
    assert "4 of its last 4 claims failed" in text(people["viewer"].get("/admin/runners/runner/"))


def test_diagnostics_of_a_silent_runner_are_as_of_then(world, people):
    client = {"status": "streaming", "claims_succeeded": 3, "last_error": "reset by peer"}
    RunnerLiveness.objects.filter(runner="r1").update(
        diagnostics=client, last_seen_at=ago(minutes=5, seconds=1)
    )
    said = text(people["viewer"].get("/admin/runners/runner/r1/change/"))
    assert "Diagnostics as of 5 min ago" in said
    assert "Claims granted 3" in said
    assert "Claims succeeded" not in said
    assert "reset by peer as of 5 min ago" in text(people["viewer"].get("/admin/runners/runner/"))
    world.api.post("/_electric/runners/r1/heartbeat")
    page = "/admin/runners/runner/r1/change/"
    assert "Diagnostics as of" not in text(people["viewer"].get(page))
    world.api.post("/_electric/runners/r1/disable")  # which silences nobody
    assert "Diagnostics as of" not in text(people["viewer"].get(page))


def test_a_runners_page_says_in_words_what_it_works_on(world, people):
    page = "/admin/runners/runner/r1/change/"
    said = text(people["viewer"].get(page))
    assert re.search(
        r"Nobody is at work, though it holds /agent/e3 .*?\(\d+ s\)\. \d entit\w+ waits? for it\.",
        said,
    )
    world.api.post("/_electric/runners/r1/heartbeat")
    assert "It works on /agent/e3" in text(people["viewer"].get(page))
    assert "It works on nothing." in text(people["viewer"].get("/admin/runners/runner/r2/change/"))
