"""That something stands, why, and the buttons that help: on pages and in confirmations."""

import re

import pytest

from claims.models import DeadLetter
from dispatch.models import DispatchState, Entity, Wake
from runners.models import Runner, RunnerLiveness
from tests.factories import ConsumerClaimFactory, EntityFactory, RunnerFactory, ago, ahead
from tests.operators.test_verbs import CLAIMS, ENTITIES, RUNNERS, do, pk_of, text


def offered(browser, path, where):
    """The labels of the buttons in a part of a page."""
    page = browser.get(path).content.decode()
    (part,) = re.findall(where, page, re.DOTALL)
    return re.findall(r'<a class="pw-button[^>]*>([^<]+)</a>', part)


CARD = r'aria-label="Why it stands">(.*?)</section>'
VERBS = r'aria-label="What may be done">(.*?)</nav>'


def page_of(url):
    return f"{ENTITIES}{pk_of(url)}/change/"


def test_an_entitys_and_its_wakes_page_say_why_it_stands_and_what_helps(world, people):
    Runner.objects.filter(pk="r1").update(admin_status="disabled")
    wake = Wake.objects.get(entity__url="/agent/e4")
    for path in (page_of("/agent/e4"), f"/admin/dispatch/wake/{wake.pk}/change/"):
        said = text(people["operator"].get(path))
        assert re.search(r"Stands for \d+ s: r1 is disabled\.", said)
        assert offered(people["operator"], path, CARD) == ["Move", "Enable"]
        assert offered(people["viewer"], path, CARD) == []


def test_it_says_nothing_of_what_does_not_stand(world, people):
    DeadLetter.objects.update(redriven_at=ago(hours=1))
    assert "Stands" not in text(people["operator"].get(page_of("/agent/e1")))


def test_it_offers_no_verb_that_would_do_nothing(world, people):
    browser = people["operator"]
    assert offered(browser, page_of("/agent/e4"), VERBS) == [
        "Send a message",
        "Move",
        "Pause",
        "Stop",
        "Kill",
        "History",
    ]  # no *Wake now*: r1 is dead
    RunnerLiveness.objects.filter(runner="r1").update(lease_expires_at=ahead(minutes=1))
    assert offered(browser, page_of("/agent/e4"), VERBS)[0] == "Wake now"
    DispatchState.objects.filter(entity__url="/agent/e3").update(stop_requested=True)
    assert offered(browser, page_of("/agent/e3"), VERBS) == ["Move", "Kill", "History"]
    assert "Move entities" not in offered(browser, f"{RUNNERS}r2/change/", VERBS)
    assert "Move entities" in offered(browser, f"{RUNNERS}r1/change/", VERBS)


def test_waking_is_not_offered_where_the_runner_is_full(world, operator):
    RunnerLiveness.objects.filter(runner="r1").update(lease_expires_at=ahead(minutes=1))
    Runner.objects.filter(pk="r1").update(max_concurrent_claims=1)
    page = page_of("/agent/e4")
    assert "r1 is full" in text(operator.get(page))
    assert offered(operator, page, CARD) == ["Move"]
    assert "Wake now" not in offered(operator, page, VERBS)


def test_a_dead_letter_of_an_entity_at_its_end_is_not_to_be_redriven(world, operator):
    letter = DeadLetter.objects.get()
    page = f"/admin/claims/deadletter/{letter.pk}/change/"
    assert "Redrive" in offered(operator, page, VERBS)
    DispatchState.objects.filter(pk=letter.entity_id).update(ended="killed")
    assert "Redrive" not in offered(operator, page, VERBS)


def test_nothing_is_offered_for_all_where_nothing_fits(world, operator):
    assert "Do to all that fit" in text(operator.get(f"{ENTITIES}?runner=r1"))
    assert "Do to all that fit" not in text(operator.get(f"{ENTITIES}?runner=r2"))
    # The rows of this page are gone; those of others fit.
    emptied = text(operator.get(f"{ENTITIES}?runner=r1&after=1"))
    assert "Nothing more here." in emptied
    assert "Do to all that fit" in emptied


def test_moving_says_that_a_dead_runner_keeps_its_claim(world, operator):
    asked = text(operator.get(f"{ENTITIES}do/move/?pk={pk_of('/agent/e3')}"))
    assert re.search(
        r"Its active claim stays with the present runner, and r1 has been expired for \d+ s: "
        "take it back, too.",
        asked,
    )
    RunnerLiveness.objects.filter(runner="r1").update(lease_expires_at=ahead(minutes=1))
    asked = text(operator.get(f"{ENTITIES}do/move/?pk={pk_of('/agent/e3')}"))
    assert "Its active claim stays with the present runner. That" in asked


def test_waking_warns_where_nobody_would_claim(world, operator):
    asked = text(operator.get(f"{ENTITIES}do/wake/?pk={pk_of('/agent/e4')}"))
    assert "But nobody claims it now: r1 has been expired for" in asked
    assert "Move it instead." in asked


def test_moving_warns_of_a_target_that_cannot_work(world, operator):
    said = do(operator, ENTITIES, "move", pk_of("/agent/e4"), target="r2")
    assert "Nothing is worked on there: r2 has never been seen." in said
    assert "To this runner all the same" in said
    assert Entity.objects.get(url="/agent/e4").dispatch_state.runner_id == "r1"
    said = do(operator, ENTITIES, "move", pk_of("/agent/e4"), target="r2", anyway="on")
    assert "moved to r2" in said


def test_it_warns_of_a_runner_that_fails_what_it_claims(operator):
    bad = RunnerFactory.create(id="bad-deploy", online=True)
    entity = EntityFactory.create(pending=True, runner=bad)
    DispatchState.objects.filter(pk=entity.pk).update(failures=2, retry_at=ahead(minutes=5))
    for _ in range(3):
        ConsumerClaimFactory.create(entity__runner=bad, failed=True)
    says = "3 of the last 3 claims of bad-deploy failed."
    assert says in text(operator.get(page_of(entity.url)))
    assert offered(operator, page_of(entity.url), CARD) == ["Move", "Wake now"]
    asked = text(operator.get(f"{ENTITIES}do/wake/?pk={entity.pk}"))
    assert f"But {says} Move it instead." in asked
    other = EntityFactory.create(pending=True)
    said = do(operator, ENTITIES, "move", other.pk, target="bad-deploy")
    assert f"Most fails there: {says}" in said
    assert "moved" in do(operator, ENTITIES, "move", other.pk, target="bad-deploy", anyway="on")


@pytest.mark.parametrize(
    ("where", "verb"),
    [
        (CLAIMS, "expire-and-move"),
        (ENTITIES, "move"),
        (RUNNERS, "move-entities"),
    ],
)
def test_it_proposes_who_could_take_over(world, operator, where, verb):
    RunnerFactory.create(id="heir", online=True)
    RunnerFactory.create(id="a-kind-of-its-own", kind="ci", online=True)
    fails = RunnerFactory.create(id="bad-deploy", online=True)
    for _ in range(3):
        ConsumerClaimFactory.create(entity__runner=fails, failed=True)
    pk = {
        CLAIMS: world.row(world.orphaned).pk,
        ENTITIES: pk_of("/agent/e4"),
        RUNNERS: "r1",
    }[where]
    page = operator.get(f"{where}do/{verb}/?pk={pk}").content.decode()
    (field,) = re.findall(r'<input [^>]*name="target"[^>]*>', page)
    assert 'value="heir"' in field


def test_it_proposes_nobody_for_claims_of_many_owners(world, operator):
    RunnerFactory.create(id="heir", online=True)
    bobs = RunnerFactory.create(id="bobs", owner_principal="/principal/user%3Abob", silent=True)
    other = ConsumerClaimFactory.create(entity__runner=bobs)
    path = f"{CLAIMS}do/expire-and-move/?pk={world.row(world.orphaned).pk}&pk={other.pk}"
    (field,) = re.findall(r'<input [^>]*name="target"[^>]*>', operator.get(path).content.decode())
    assert "value=" not in field


def test_a_dead_runners_claim_is_taken_back_and_its_work_done_elsewhere(world, operator):
    world.api.register("heir")
    world.api.post("/_electric/runners/heir/heartbeat")
    claim = world.row(world.orphaned)
    asked = text(operator.get(f"{CLAIMS}do/expire-and-move/?pk={claim.pk}"))
    assert "/agent/e3 is dispatched to the runner named below, woken there" in asked
    said = do(operator, CLAIMS, "expire-and-move", claim.pk, target="heir")
    assert "1 done (freed, and moved to heir)" in said
    assert [wake["stream"] for wake in world.api.wakes("heir")] == ["agent/e3/main"]
    assert world.row(world.orphaned).error == "It was taken back by an operator."
    assert "already ended" in do(operator, CLAIMS, "expire-and-move", claim.pk, target="heir")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (
            "entity/do/resume/?pk={e4}",
            "Resumes, and as work is pending, its work waits, because r1",
        ),
        ("entity/do/send/?pk={e2}", "appended to its stream; its work waits, because r1 has been"),
        ("/runners/runner/do/expire-claims/?pk=r1", "Work that is left waits, because r1 has been"),
        ("/claims/deadletter/do/redrive/?pk={letter}", "its work waits, because r1 has been"),
        ("/runners/runner/do/delete/?pk=r1", "4 entities keep their work and have no runner"),
        ("/runners/runner/do/delete/?pk=r2", "No entity is dispatched to it."),
    ],
)
def test_a_confirmation_promises_nothing_that_a_dead_runner_will_not_do(
    world, operator, path, says
):
    world.api.signal("/agent/e4", "SIGSTOP")
    letter = DeadLetter.objects.get()
    path = path.format(e4=pk_of("/agent/e4"), e2=pk_of("/agent/e2"), letter=letter.pk)
    root = "/admin" if path.startswith("/") else "/admin/dispatch/"
    assert says in text(operator.get(root + path))


def test_enabling_says_that_the_runner_is_still_dead(world, operator):
    Runner.objects.filter(pk="r1").update(admin_status="disabled")
    asked = text(operator.get(f"{RUNNERS}do/enable/?pk=r1"))
    assert "May claim again, but does not yet: r1 has been expired for" in asked


def test_the_overview_says_what_stands_longest_by_runner(world, people):
    """One entity for each runner, and how many stand there with it."""
    Runner.objects.filter(pk="r1").update(admin_status="disabled")
    for number in range(3):
        made = EntityFactory.create(
            pending=True, url=f"/agent/old-{number}", runner=Runner.objects.get(pk="r1")
        )
        made.events.filter(work=True).update(created_at=ago(minutes=40 - number))
    page = people["operator"].get("/admin/").content.decode()
    (table,) = re.findall(r"What stands, longest first(.*?)</section>", page, re.DOTALL)
    (row,) = re.findall(r"<tr>(?:(?!<th).)*?</tr>", table, re.DOTALL)
    assert "/agent/old-0" in row
    assert "Stands for 40 min: r1 is disabled." in row
    assert re.findall(r'<a class="pw-button[^>]*>([^<]+)</a>', row) == ["Move", "Enable"]
    ((url, number),) = re.findall(r'<a href="([^"]+)">(\d+)</a>', row)
    listed = people["viewer"].get(url.replace("&amp;", "&")).content.decode()
    assert listed.count('class="data-row') == int(number) == 5
