"""What operators do: said beforehand, done once, refused with the reason, and written down."""

import html
import re

import pytest
from django.contrib import admin
from django.contrib.admin.models import DELETION, LogEntry

from claims.models import ConsumerClaim, DeadLetter
from dispatch import entities
from dispatch.models import Entity, EntityType, StreamEvent
from operators import audit
from runners.models import Runner
from tests.factories import RunnerFactory
from tests.operators.conftest import World
from tests.support import Api

CLAIMS, LETTERS, RUNNERS, ENTITIES, TYPES = (
    "/admin/claims/consumerclaim/",
    "/admin/claims/deadletter/",
    "/admin/runners/runner/",
    "/admin/dispatch/entity/",
    "/admin/dispatch/entitytype/",
)


def text(response):
    """What a page says, without its tags."""
    said = html.unescape(re.sub(r"<[^>]+>", " ", response.content.decode()))
    return re.sub(r"\s+", " ", said)


def do(browser, where, verb, *pks, **form):
    """Confirm a verb, and what the next page says."""
    return text(browser.post(f"{where}do/{verb}/", {"pk": pks, **form}, follow=True))


def following(page):
    """Where a page of progress goes on by itself."""
    body = page.content.decode()
    (action,) = re.findall(r'action="([^"]+)" class="pw-buttons" data-next', body)
    return html.unescape(action)


def pk_of(url):
    return Entity.objects.get(url=url).pk


@pytest.fixture
def pair(world: World):
    """An orphaned claim, and one that was released."""
    return world.row(world.orphaned), world.row(world.released)


def test_the_list_asks_before_it_does_anything(world, operator, pair):
    ticked = {"action": "expire", "_selected_action": [each.pk for each in pair], "index": "0"}
    asked = operator.post(CLAIMS, ticked)
    said = text(asked)
    assert (
        "Taken back, as its runner's heartbeat lease expired. /agent/e3 is freed; its work waits,"
        " because r1 has been expired for" in said
    )
    assert "It has already ended: released." in said
    assert world.row(world.orphaned).status == "active"


def test_it_counts_what_it_did_and_what_was_refused(world, operator, pair):
    said = do(operator, CLAIMS, "expire", *(each.pk for each in pair))
    assert "Take back: 1 done (freed; its work waits for r1)." in said
    assert "Take back: 1 refused." in said
    assert f"{pair[1]}: It has already ended: released." in said
    assert world.row(world.orphaned).status == "expired"
    assert world.row(world.released).status == "released"


def test_it_counts_each_of_what_it_did(world, operator):
    world.api.signal("/agent/e1", "SIGSTOP")
    said = do(operator, ENTITIES, "stop", *(pk_of(f"/agent/e{number}") for number in (1, 2, 4)))
    assert "Stop: 3 done (stopped, was idle: 2, stopped, was paused: 1)." in said


def test_it_names_each_row_by_its_id_and_links_to_it(world, operator, pair):
    claim, _ = pair
    asked = operator.get(f"{CLAIMS}do/expire/?pk={claim.pk}").content.decode()
    link = f'<a href="{CLAIMS}{claim.pk}/change/"><code>{claim.consumer_id}</code></a>'
    assert link in asked
    assert f'data-copy="{claim.consumer_id}"' in asked


def test_it_is_refused_when_the_state_moved_on(world, operator, pair):
    claim, _ = pair
    assert operator.get(f"{CLAIMS}do/expire/?pk={claim.pk}").status_code == 200
    world.orphaned.done()
    said = do(operator, CLAIMS, "expire", claim.pk)
    assert "It has already ended: released." in said
    assert "1 done" not in said
    assert not LogEntry.objects.exists()


def test_it_says_who_did_what_to_which_and_why(world, operator, pair):
    claim, _ = pair
    do(operator, CLAIMS, "expire", claim.pk, reason="the machine burned down")
    entry = LogEntry.objects.get()
    assert (entry.user.username, entry.object_id) == ("operator", str(claim.pk))
    assert entry.change_message == (
        "Take back: freed; its work waits for r1. Reason: the machine burned down"
    )
    log = text(operator.get("/admin/admin/logentry/"))
    assert "the machine burned down" in log
    assert "Log entries" not in log[log.index("Audit log") :]
    history = operator.get(f"{CLAIMS}{claim.pk}/history/", follow=True)
    assert "the machine burned down" in text(history)
    other = operator.get(f"{CLAIMS}{claim.pk + 1}/history/", follow=True)
    assert "the machine burned down" not in text(other)


def test_a_dead_letter_has_a_history(world, operator):
    letter = DeadLetter.objects.get()
    assert "1 done" in do(operator, LETTERS, "redrive", letter.pk, reason="the disk has room again")
    history = operator.get(f"{LETTERS}{letter.pk}/history/", follow=True)
    assert "the disk has room again" in text(history)


def test_the_audit_log_can_be_narrowed_to_whatever_has_verbs():
    acted_on = {
        (model._meta.app_label, model._meta.model_name)
        for model, page in admin.site._registry.items()
        if getattr(page, "verbs", ())
    }
    assert acted_on <= {(app, name) for app, name, _ in audit.KINDS}


def test_rows_that_are_gone_are_counted_as_refused(world, operator, pair):
    said = do(operator, CLAIMS, "expire", 999_999, pair[0].pk)
    assert "1 done" in said
    assert "1 no longer there" in said


def test_an_order_for_nothing_is_not_found(world, operator):
    assert operator.get(f"{CLAIMS}do/expire/").status_code == 404
    assert operator.get(f"{CLAIMS}do/expire/?pk=x").status_code == 404


def test_it_warns_before_a_healthy_claim_is_taken_back(world, operator):
    world.api.post("/_electric/runners/r1/heartbeat", {"lease_ms": 60_000})
    claim = world.row(world.orphaned)
    said = text(operator.get(f"{CLAIMS}do/expire/?pk={claim.pk}"))
    assert "Taken back although nothing is wrong with it: its handler is fenced" in said


# --- Entities -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "form", "said", "status"),
    [
        ("pause", {}, "paused, was idle", "paused"),
        ("stop", {}, "stopped, was idle", "stopped"),
        ("kill", {"reason": "amok"}, "killed, was idle", "killed"),
        ("send", {"payload": '{"do": "it"}'}, "sent, txid", "idle"),
        ("move", {"target": "r2", "anyway": "on"}, "moved to r2", "idle"),
    ],
)
def test_it_acts_on_an_entity(world, operator, verb, form, said, status):
    answer = do(operator, ENTITIES, verb, pk_of("/agent/e1"), **form)
    assert f"1 done ({said}" in answer
    assert world.api.status("/agent/e1") == status


def test_it_resumes_what_is_paused(world, operator):
    world.api.signal("/agent/e1", "SIGSTOP")
    assert "idle, was paused" in do(operator, ENTITIES, "resume", pk_of("/agent/e1"))
    assert "It is not paused." in text(
        operator.get(f"{ENTITIES}do/resume/?pk={pk_of('/agent/e1')}")
    )


def test_it_wakes_an_entity_within_its_delay(world, operator):
    woken = {wake["stream"]: wake["generation"] for wake in world.api.wakes()}
    assert "agent/e2/main" not in woken  # it failed, and waits
    said = do(operator, ENTITIES, "wake", pk_of("/agent/e2"))
    assert "1 done (emitted, but r1 cannot claim it now)" in said  # for it is dead
    woken = {wake["stream"]: wake["generation"] for wake in world.api.wakes()}
    assert woken["agent/e2/main"] == 2


def test_it_emits_an_unclaimed_wake_again(world, operator):
    tail = world.api.get("/runners/r1/wake?offset=now").headers["Stream-Next-Offset"]
    world.api.post("/_electric/runners/r1/heartbeat")
    assert "1 done (woken)" in do(operator, ENTITIES, "wake", pk_of("/agent/e4"))
    (wake,) = world.api.wakes(offset=tail)
    assert (wake["stream"], wake["generation"]) == ("agent/e4/main", 1)


@pytest.mark.parametrize(
    ("url", "prepare", "why"),
    [
        ("/agent/e1", None, "Nothing lies past this entity's cursor."),
        ("/agent/e3", None, "A live claim holds this entity."),
        ("/agent/e4", "SIGSTOP", "The entity is paused."),
        ("/agent/e4", "SIGTERM", "The entity is stopping, stopped or killed."),
    ],
)
def test_it_does_not_wake_what_cannot_work(world, operator, url, prepare, why):
    if prepare:
        world.api.signal(url, prepare)
    assert why in text(operator.get(f"{ENTITIES}do/wake/?pk={pk_of(url)}"))
    assert f"{url}: {why}" in do(operator, ENTITIES, "wake", pk_of(url))


def test_a_message_is_sent_in_the_operators_name(world, operator):
    do(operator, ENTITIES, "send", pk_of("/agent/e1"), payload="no JSON, but text")
    value = world.api.events("/agent/e1")[-1]["value"]
    assert value["payload"] == "no JSON, but text"
    assert value["from"] == "/principal/system%3Aoperator%3Aoperator"


def test_a_signal_carries_the_reason_to_the_stream(world, operator):
    do(operator, ENTITIES, "stop", pk_of("/agent/e1"), reason="retired")
    value = world.api.events("/agent/e1")[-1]["value"]
    assert (value["signal"], value["reason"]) == ("SIGTERM", "retired")


def test_it_takes_no_message_that_cannot_be_stored(world, operator):
    before = StreamEvent.objects.count()
    said = do(operator, ENTITIES, "send", pk_of("/agent/e1"), payload='"\\u0000"')
    assert "NUL" in said
    assert StreamEvent.objects.count() == before


def test_killing_needs_a_reason(world, operator):
    said = do(operator, ENTITIES, "kill", pk_of("/agent/e1"))
    assert "This field is required." in said
    assert world.api.status("/agent/e1") == "idle"


def test_an_entity_moves_with_its_wake(world, operator):
    do(operator, ENTITIES, "move", pk_of("/agent/e4"), target="r2", anyway="on")
    assert [wake["stream"] for wake in world.api.wakes("r2")] == ["agent/e4/main"]
    assert "agent/e4/main" not in [wake["stream"] for wake in world.api.wakes("r1")]


def test_an_entity_moves_to_another_owners_runner(world, operator):
    Api("user:bob").register("bobs")
    assert "moved to bobs" in do(
        operator, ENTITIES, "move", pk_of("/agent/e4"), target="bobs", anyway="on"
    )


def test_nothing_moves_to_a_runner_that_does_not_exist(world, operator):
    said = do(operator, ENTITIES, "move", pk_of("/agent/e4"), target="nobody")
    assert "There is no runner nobody." in said
    assert Entity.objects.get(url="/agent/e4").dispatch_state.runner_id == "r1"


@pytest.mark.parametrize("where", [f"{ENTITIES}do/move/?pk=1", f"{RUNNERS}do/move-entities/?pk=r1"])
def test_it_offers_the_runners_that_can_take_over(world, operator, where):
    """Not one that is dead, as r1, was never seen, as r2, or is disabled."""
    world.api.register("heir", label="The heir")
    world.api.register("off")
    for runner_id in ("heir", "off"):
        world.api.post(f"/_electric/runners/{runner_id}/heartbeat", {})
    do(operator, RUNNERS, "disable", "off")
    asked = operator.get(where.replace("=1", f"={pk_of('/agent/e4')}")).content.decode()
    offered = re.findall(r'<option value="([^"]*)">([^<]*)</option>', asked)
    assert offered == [("heir", "The heir, 0 active claims")]
    (field,) = re.findall(r'<input [^>]*name="target"[^>]*>', asked)
    assert f'list="{re.findall("<datalist id=.([^ >]+).>", asked)[0]}"' in field


def test_what_has_ended_stays_where_it_is(world, operator):
    world.api.signal("/agent/e4", "SIGKILL")
    killed = pk_of("/agent/e4")
    asked = text(operator.get(f"{ENTITIES}do/move/?pk={killed}"))
    assert "refused The entity is killed." in asked
    assert "The entity is killed." in do(
        operator, ENTITIES, "move", killed, target="r2", anyway="on"
    )
    assert "its 3 entities" in text(operator.get(f"{RUNNERS}do/move-entities/?pk=r1"))
    assert "3 entities moved to r2)" in do(
        operator, RUNNERS, "move-entities", "r1", target="r2", anyway="on"
    )
    assert Entity.objects.get(pk=killed).dispatch_state.runner_id == "r1"


def test_what_ends_meanwhile_does_not_keep_the_others(world, operator, monkeypatch):
    move = entities.move

    def late(entity, runner_id):
        if entity.url == "/agent/e1":
            world.api.signal("/agent/e2", "SIGKILL")
        return move(entity, runner_id)

    monkeypatch.setattr(entities, "move", late)
    assert "3 entities moved to r2)" in do(
        operator, RUNNERS, "move-entities", "r1", target="r2", anyway="on"
    )
    assert Entity.objects.get(url="/agent/e2").dispatch_state.runner_id == "r1"


def test_it_says_how_many_entities_will_move(world, operator):
    asked = text(operator.get(f"{RUNNERS}do/move-entities/?pk=r1&pk=r2"))
    assert "Dispatches its 4 entities to the runner named below" in asked
    assert "No entity is dispatched to it." in asked


def test_it_moves_nowhere_where_it_is(world, operator):
    said = do(operator, ENTITIES, "move", pk_of("/agent/e4"), target="r1", anyway="on")
    assert "It is already dispatched to that runner." in said


# --- Runners ------------------------------------------------------------------------------------


def test_it_disables_and_enables(world, operator):
    assert "1 done (disabled)" in do(operator, RUNNERS, "disable", "r1")
    assert "It is already disabled." in do(operator, RUNNERS, "disable", "r1")
    assert "1 done (enabled)" in do(operator, RUNNERS, "enable", "r1")
    assert Runner.objects.get(pk="r1").enabled


def test_it_drains_a_runner_and_undoes_it(world, operator):
    world.api.post("/_electric/runners/r1/heartbeat", {"lease_ms": 60_000})
    RunnerFactory.create(id="heir", online=True)
    ended = pk_of("/agent/e1")
    asked = text(operator.get(f"{RUNNERS}do/drain/?pk=r1"))
    assert "May not claim any more, and works its 1 active claim off." in asked
    assert "Dispatches its 4 entities" in asked
    said = do(operator, RUNNERS, "drain", "r1", target="heir", reason="new image")
    assert "1 done (4 entities moved to heir)" in said
    assert not Runner.objects.get(pk="r1").enabled
    assert not Runner.objects.get(pk="r1").dispatch_states.exists()
    assert world.orphaned.heartbeat().status == 200
    assert world.orphaned.done().status == 200  # what runs finishes

    page = text(operator.get(f"{RUNNERS}r1/change/"))
    assert "Undo drain" in page
    assert "Drain: 4 entities moved to heir. Reason: new image" in page
    do(operator, ENTITIES, "move", ended, target="r2", anyway="on")  # somebody moved it on since
    assert "Gets back 3 entities" in text(operator.get(f"{RUNNERS}do/undrain/?pk=r1"))
    said = do(operator, RUNNERS, "undrain", "r1")
    assert "1 done (enabled, and 3 entities moved back)" in said
    assert Runner.objects.get(pk="r1").dispatch_states.count() == 3
    assert Entity.objects.get(pk=ended).dispatch_state.runner_id == "r2"


def test_a_large_runner_is_drained_and_undrained_in_steps(world, operator, monkeypatch):
    monkeypatch.setattr("operators.runner.MOST_MOVED", 3)
    RunnerFactory.create(id="heir", online=True)
    page = f"{RUNNERS}r1/change/"
    order = {"pk": "r1", "target": "heir"}
    step = operator.post(f"{RUNNERS}do/drain/?pk=r1", order)
    assert "Drain: 3 of 4" in text(step)
    assert following(step) == f"{RUNNERS}do/drain/?pk=r1&total=4"
    said = text(operator.post(following(step), order, follow=True))
    assert "1 done (1 entity moved to heir, the last of 4)." in said
    assert "already disabled" in do(operator, RUNNERS, "drain", "r1", target="heir")
    step = operator.post(f"{RUNNERS}do/undrain/?pk=r1", {"pk": "r1"})
    assert "Undo drain: 3 of 4" in text(step)
    assert "Undo drain" in text(operator.get(page))
    assert "enabled, and 1 entity moved back" in do(operator, RUNNERS, "undrain", "r1")
    assert Runner.objects.get(pk="r1").dispatch_states.count() == 4
    # What is there later by somebody's choice is not brought back.
    do(operator, RUNNERS, "move-entities", "r1", target="heir")
    assert "Undo drain" not in text(operator.get(page))


def test_it_undrains_nothing_that_was_not_drained(world, operator):
    none = "None of its entities is where it was drained to."
    assert none in text(operator.get(f"{RUNNERS}do/undrain/?pk=r1"))
    do(operator, RUNNERS, "disable", "r1")
    assert "Undo drain" not in text(operator.get(f"{RUNNERS}r1/change/"))


def test_it_takes_back_every_claim_of_a_runner(world, operator):
    said = do(operator, RUNNERS, "expire-claims", "r1", reason="burned down")
    assert "1 done (1 taken back)" in said
    assert world.row(world.orphaned).status == "expired"
    whole = sorted(LogEntry.objects.values_list("content_type__model", flat=True))
    assert whole == ["consumerclaim", "runner"]
    assert "It no longer holds a claim." in do(operator, RUNNERS, "expire-claims", "r1")


def test_it_moves_every_entity_of_a_runner(world, operator):
    said = do(operator, RUNNERS, "move-entities", "r1", target="r2", anyway="on")
    assert "4 entities moved to r2" in said
    assert not Runner.objects.get(pk="r1").dispatch_states.exists()
    assert "agent/e4/main" in [wake["stream"] for wake in world.api.wakes("r2")]
    assert world.row(world.orphaned).status == "active"  # a claim stays where it is


def test_it_deletes_a_runner_for_a_reason(world, operator):
    assert "This field is required." in do(operator, RUNNERS, "delete", "r1")
    said = do(operator, RUNNERS, "delete", "r1", reason="scrapped")
    assert "1 done (deleted)" in said
    assert not Runner.objects.filter(pk="r1").exists()
    assert world.row(world.orphaned).status == "expired"
    entry = LogEntry.objects.get()
    assert (entry.action_flag, entry.object_id) == (DELETION, "r1")


def test_a_verb_takes_only_so_many_at_once(world, operator, monkeypatch):
    monkeypatch.setattr("operators.kit.verbs.MOST_AT_ONCE", 1)
    pks = [str(each.pk) for each in ConsumerClaim.objects.order_by("pk")]
    ticked = {"action": "expire", "_selected_action": pks, "index": "0"}
    assert "2 are left out" in text(operator.post(CLAIMS, ticked))


# --- Entity types -------------------------------------------------------------------------------


def test_it_transfers_a_type(world, operator, bob):
    asked = text(operator.get(f"{TYPES}do/transfer/?pk=agent"))
    assert "user:alice loses, and the principal named below gets, all rights" in asked
    said = do(operator, TYPES, "transfer", "agent", registrar="user:bob", reason="was squatted")
    assert "Transfer: 1 done (transferred to user:bob)." in said
    entry = LogEntry.objects.get()
    assert (entry.object_id, entry.change_message) == (
        "agent",
        "Transfer: transferred to user:bob. Reason: was squatted",
    )
    assert bob.get("/_electric/entities/agent/e1").status == 200
    said = do(operator, TYPES, "transfer", "agent", registrar="/principal/user%3Abob")
    assert "user:bob is already its registrar." in said


def test_it_transfers_a_type_to_a_principal_alone(world, operator):
    said = do(operator, TYPES, "transfer", "agent", registrar="bob")
    assert "Not a principal" in said
    assert not LogEntry.objects.exists()


def test_it_removes_a_type_and_its_entities_live_on(world, operator):
    assert "are their creators' alone" in text(operator.get(f"{TYPES}do/remove/?pk=agent"))
    assert "This field is required" in do(operator, TYPES, "remove", "agent")
    said = do(operator, TYPES, "remove", "agent", reason="was squatted")
    assert "Remove: 1 done (removed)." in said
    entry = LogEntry.objects.get()
    assert (entry.action_flag, entry.object_id) == (DELETION, "agent")
    assert not EntityType.objects.exists()
    assert world.api.get("/_electric/entities/agent/e1").status == 200
