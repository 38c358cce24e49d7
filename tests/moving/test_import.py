"""manage.py import_electric_agents, on a database as the existing server's last schema has it."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from claims.models import ConsumerClaim
from core.principals import Principal
from dispatch import moved_in
from dispatch.models import Entity, EntityType, Registration, StreamEvent, Timer, Wake
from dispatch.streams import offsets
from moving.models import Taken
from runners.models import Change, Runner
from tests.factories import EntityFactory, RunnerFactory
from tests.postgres import private_postgres

SCHEMA = Path(__file__).with_name("electric_agents.sql")
ALICE, BOB = (Principal.parse(f"user:{name}") for name in ("alice", "bob"))

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A PostgreSQL beside that of this run, if it has one."""
    with private_postgres() as url:
        yield url


@pytest.fixture
def source(server: str) -> Iterator[str]:
    """The existing server's database, anew for each test."""
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute("CREATE DATABASE agents")
    url = f"{server.rpartition('/')[0]}/agents"
    with psycopg.connect(url) as agents:
        agents.execute(SCHEMA.read_text())
    yield url
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute("DROP DATABASE agents WITH (FORCE)")


@pytest.fixture
def change(source: str) -> Callable[[str], None]:
    """Run SQL on the existing server's database."""

    def run(sql: str) -> None:
        with psycopg.connect(source) as agents:
            agents.execute(sql)

    return run


def run(source: str, *options: Any) -> dict[str, Any]:
    """The report of a run."""
    output = StringIO()
    call_command("import_electric_agents", source, "--json", *options, stdout=output)
    report: dict[str, Any] = json.loads(output.getvalue())
    return report


def counts(report: dict[str, Any], kind: str) -> tuple[int, int, int, int]:
    """Found, taken, already here, not taken."""
    of = report["kinds"][kind]
    return of["found"], of["taken"], of["here"], sum(w["count"] for w in of["not_taken"].values())


def why(report: dict[str, Any], kind: str, key: str, *, among: str = "not_taken") -> str:
    """The reasons that the report gives for a row."""
    reasons = report["kinds"][kind][among]
    return "; ".join(reason for reason, of in reasons.items() if key in of["examples"])


def events(url: str) -> list[dict[str, Any]]:
    rows = StreamEvent.objects.filter(entity__url=url).order_by("offset")
    return [msgspec.json.decode(row.data) for row in rows]


def everything() -> dict[str, list[Any]]:
    """All rows that a run may write."""
    models = (Runner, EntityType, Entity, Wake, StreamEvent, ConsumerClaim, Timer, Registration)
    return {
        model.__name__: list(model._default_manager.order_by("pk").values()) for model in models
    } | {"states": list(Entity.objects.order_by("pk").values("dispatch_state__generation"))}


# --- What is taken ----------------------------------------------------------------------------


def test_all_of_it_is_in_the_feeds(source):
    run(source)
    shown = set(Change.objects.filter(departed=False, gone=False).values_list("key", flat=True))
    runners = Runner.objects.values_list("pk", flat=True)
    entities = Entity.objects.values_list("url", flat=True)
    assert shown == {*runners, *entities}
    assert len(entities) > 1


def test_runners_keep_their_owners_status_and_profiles(source):
    report = run(source)
    desk, shed = Runner.objects.order_by("pk")
    assert (desk.pk, desk.owner_principal, desk.enabled) == ("desk", ALICE.url, True)
    assert desk.sandbox_profiles == [{"name": "docker", "label": "Docker"}]
    assert (shed.owner_principal, shed.kind, shed.enabled) == (BOB.url, "server", False)
    assert counts(report, "runners") == (4, 2, 0, 2)
    assert "/id" in why(report, "runners", "bad id")
    assert "'/principal/nobody' is no principal" in why(report, "runners", "nobodys")


def test_a_runner_has_to_say_here_that_it_lives_and_its_offset_stays_behind(source, alice):
    report = run(source)
    health = alice.get("/_electric/runners/desk/health").body
    assert health["runner"]["liveness_status"] == "expired"
    assert health["runner"]["wake_stream_offset"] is None
    assert health["client"] == {"status": "streaming", "reconnect_count": 3}
    assert "stays behind" in why(report, "runners", "desk", among="notes")


def test_what_cannot_be_read_stands_in_no_other_rows_way(source, change):
    change(
        "UPDATE entities SET spawn_args = ('{\"n\": ' || repeat('9', 5000) || '}')::jsonb"
        " WHERE url = '/chat/asleep';"
        "UPDATE scheduled_tasks SET fire_at = '9999-12-31 23:59:59.999999Z' WHERE id = 1;"
        "INSERT INTO scheduled_tasks (id, payload, fire_at) VALUES (9, jsonb_build_object("
        " 'entityUrl', '/chat/quiet', 'payload', 1, 'key', repeat('k', 257)), now());"
        "UPDATE runners SET created_at = 'infinity' WHERE id = 'desk';"
        "UPDATE consumer_claims SET claimed_at = '0044-03-15 BC' WHERE epoch = 6;"
        "UPDATE entities SET spawn_args = (repeat('[', 3000) || repeat(']', 3000))::jsonb"
        " WHERE url = '/chat/quiet'"
    )
    report = run(source)
    assert set(Runner.objects.values_list("pk", flat=True)) == {"desk", "shed"}
    assert Entity.objects.filter(url="/chat/boss").exists()
    assert why(report, "entities", "/chat/quiet") == "The body is nested too deeply."
    assert "out of range" in why(report, "entities", "/chat/asleep")
    assert "never" in why(report, "scheduled tasks", "1")
    assert "256 characters" in why(report, "scheduled tasks", "9")


def test_before_migration_0007_runners_have_the_user_ids_of_their_owners(source, change):
    change(
        "ALTER TABLE runners RENAME owner_principal TO owner_user_id;"
        "DROP TABLE runner_runtime_diagnostics;"
        "UPDATE runners SET owner_user_id = CASE id WHEN 'desk' THEN 'alice'"
        " WHEN 'shed' THEN 'service:shed' ELSE 'no/body' END"
    )
    report = run(source)
    owners = dict(Runner.objects.values_list("pk", "owner_principal"))
    assert owners == {"desk": ALICE.url, "shed": "/principal/service%3Ashed"}
    assert "no user's id" in why(report, "runners", "nobodys")


def test_types_are_held_to_our_rules(source):
    report = run(source, "--owner", "user:bob")
    chat, hook = EntityType.objects.order_by("name")
    assert (chat.registered_by, chat.default_runner, chat.revision) == (ALICE.url, "desk", 4)
    assert chat.creation_schema == {"type": "object"}
    assert chat.inbox_schemas == {"ask": {"type": "object"}}
    # Nothing is checked by it, so that it may look ahead.
    assert chat.state_schemas == {"person": {"pattern": r"^(?!\.)b"}}
    assert chat.slash_commands == [{"name": "reset"}]
    assert chat.permission_grants == [
        {"subject_kind": "principal", "subject_value": BOB.url, "permission": "spawn"}
    ]
    notes = why(report, "entity types", "chat", among="notes")
    assert "inbox_schemas/odd" in notes
    assert "it expires" in notes
    assert "'group' 'staff' is nobody here" in notes
    assert (hook.registered_by, hook.default_runner) == (BOB.url, None)
    assert "webhook" in why(report, "entity types", "hook", among="notes")
    assert "own" in why(report, "entity types", "principal")


def test_a_type_that_nobody_is_known_to_have_registered_needs_an_owner(source):
    report = run(source)
    assert "--owner" in why(report, "entity types", "hook")


def test_entities_come_with_what_they_are(source, alice):
    report = run(source)
    boss = alice.get("/_electric/entities/chat/boss").body
    assert boss["tags"] == {"team": "red"}
    assert boss["spawn_args"] == {"goal": 1}
    assert boss["sandbox"] == {"profile": "docker"}
    assert boss["created_at"] == 1779188471631
    assert boss["dispatch_policy"]["targets"][0]["runnerId"] == "desk"
    child = Entity.objects.get(url="/chat/a-child")
    assert child.parent == "/chat/boss"
    assert child.pk > Entity.objects.get(url="/chat/boss").pk, "a parent is older than its child"
    assert child.registration == EntityType.objects.get(name="chat").registration != ""
    first = events("/chat/boss")[0]
    assert (first["type"], first["value"]["args"]) == ("entity_created", {"goal": 1})
    assert events("/chat/boss")[1]["type"] == "slash_command"
    assert counts(report, "entities") == (11, 8, 0, 3)
    assert "own" in why(report, "entities", "/principal/user%3Aalice")
    assert "--owner" in why(report, "entities", "/chat/orphan")
    assert "/tags/n" in why(report, "entities", "/chat/tagged")


def test_who_is_nobodys_is_its_runners_owners(source):
    run(source)
    assert Entity.objects.get(url="/chat/quiet").created_by == ALICE.url


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("boss", "idle"),
        ("quiet", "idle"),
        ("asleep", "paused"),
        ("leaving", "stopped"),
        ("dead", "killed"),
    ],
)
def test_no_entity_is_at_work_and_the_ended_stay_ended(source, alice, name, status):
    run(source)
    assert alice.get(f"/_electric/entities/chat/{name}").body["status"] == status


def test_who_has_no_runner_here_has_none(source):
    report = run(source)
    for url in ("/hook/h", "/chat/lost"):
        assert Entity.objects.get(url=url).dispatch_state.runner_id is None
    assert "webhook" in why(report, "entities", "/hook/h", among="notes")
    assert "nobodys is not here" in why(report, "entities", "/chat/lost", among="notes")


def test_a_runner_of_that_id_of_another_owner_gets_nothing(source):
    RunnerFactory.create(id="desk", owner_principal="/principal/user%3Aeve")
    report = run(source, "--owner", "user:bob")
    assert "another owner" in why(report, "runners", "desk")
    assert Runner.objects.get(pk="desk").owner_principal == "/principal/user%3Aeve"
    assert Entity.objects.get(url="/chat/boss").dispatch_state.runner_id is None
    assert not Wake.objects.exists()


# --- Dispatch ---------------------------------------------------------------------------------


def test_active_claims_come_expired_and_what_was_pending_is_woken(source, alice):
    report = run(source)
    assert not ConsumerClaim.objects.active().exists()
    claim = ConsumerClaim.objects.get(consumer_id="w_000000000000000000000002")
    assert (claim.status, claim.epoch, claim.runner_id) == ("expired", 7, "desk")
    woken = Wake.objects.outstanding().values_list("entity__url", flat=True)
    assert set(woken) == {"/chat/boss", "/chat/a-child"}
    assert report["woken"] == 2
    given = alice.post("/_electric/runners/desk/claim", {}).body
    assert given["entity"]["url"] in woken
    path = given["streams"][0]["path"]
    unread = alice.get(f"{path}?offset={given['streams'][0]['offset']}").body
    assert [event["type"] for event in unread] == ["wake"]


def test_no_epoch_is_given_twice(source, alice):
    run(source)
    wakes = dict(Wake.objects.values_list("entity__url", "generation"))
    assert wakes["/chat/boss"] > 7
    assert Entity.objects.get(url="/chat/asleep").dispatch_state.generation > 1


def test_who_is_paused_is_woken_once_it_goes_on(source, alice):
    run(source)
    asleep = Wake.objects.filter(entity__url="/chat/asleep")
    assert not asleep.exists()
    alice.post("/_electric/entities/chat/asleep/signal", {"signal": "SIGCONT"})
    assert asleep.outstanding().exists()


def test_claims_are_history(source):
    report = run(source)
    assert counts(report, "claims") == (5, 3, 0, 2)
    failed = ConsumerClaim.objects.get(status="failed")
    assert (failed.runner_id, failed.runner_name) == (None, "gone")
    assert failed.entity is not None
    assert failed.entity.url == "/chat/asleep"
    assert "RETENTION" in why(report, "claims", "w_000000000000000000000004")
    assert "not taken" in why(report, "claims", "w_000000000000000000000005")


def test_the_page_of_a_claim_says_what_it_acked_there(source, admin_client):
    run(source)
    released = ConsumerClaim.objects.get(status="released")
    page = admin_client.get(f"/admin/claims/consumerclaim/{released.pk}/change/")
    assert "0000000000000000_0000000000000200" in page.content.decode()


@pytest.mark.parametrize("acked", ["7", "[7]", '[{"path": "/chat/boss/main", "offset": 7}]'])
def test_acks_of_no_known_form_are_none(source, folder, change, admin_client, acked):
    change(f"UPDATE consumer_claims SET acked_streams = '{acked}' WHERE epoch = 6")  # noqa: S608
    run(source, "--streams", str(folder))
    released = ConsumerClaim.objects.get(status="released")
    assert released.acked_streams == []
    page = admin_client.get(f"/admin/claims/consumerclaim/{released.pk}/change/")
    assert page.status_code == 200


# --- What is to come --------------------------------------------------------------------------


def test_what_was_to_be_sent_is_sent_when_it_was_to_be(source):
    report = run(source)
    later, nightly = Timer.objects.order_by("due_at")
    assert abs(later.due_at - timezone.now() - timedelta(days=1)) < timedelta(minutes=5)
    assert (later.target_url, later.key) == ("/chat/quiet", "scheduled-task-1")
    assert json.loads(later.message)["sender"] == ALICE.url
    assert nightly.owner is not None
    assert (nightly.owner.url, nightly.schedule) == ("/chat/boss", "nightly")
    assert counts(report, "scheduled tasks") == (5, 2, 0, 3)
    assert "over" in why(report, "scheduled tasks", "3")
    assert "cron" in why(report, "scheduled tasks", "4")
    assert "stopped or killed" in why(report, "scheduled tasks", "5")


def test_who_waits_goes_on_waiting(source):
    report = run(source)
    of_child, of_cron = Registration.objects.order_by("pk")
    assert (of_child.subscriber.url, of_child.source_url) == ("/chat/boss", "/chat/a-child")
    assert (of_child.condition, of_child.manifest_key) == ("run_finished", "child:chat:a-child")
    assert of_cron.tick_at is not None
    assert Entity.objects.get(url="/chat/a-child").dispatch_state.watched
    assert counts(report, "wake registrations") == (4, 2, 0, 2)
    assert "lists of entities" in why(report, "wake registrations", "3")
    assert "killed" in why(report, "wake registrations", "4")


def test_what_has_no_place_here_is_counted(source):
    report = run(source)
    for table, count in (
        ("users", 2),
        ("shared_state_links", 1),
        ("entity_permission_grants", 1),
        ("entities and runners of other tenants", 2),
    ):
        assert counts(report, table) == (count, 0, 0, count), table
    assert not Entity.objects.filter(url="/chat/x").exists()


def test_another_tenant_is_taken_by_its_name(source):
    report = run(source, "--tenant", "other", "--owner", "user:eve")
    assert set(Entity.objects.values_list("url", flat=True)) == {"/chat/x"}
    assert set(Runner.objects.values_list("pk", flat=True)) == {"theirs"}
    assert counts(report, "entities and runners of other tenants")[0] == 15


# --- Streams ----------------------------------------------------------------------------------


def _event(kind: str, key: str, place: int, operation: str = "insert", **value: Any) -> Any:
    headers = {"operation": operation, "txid": f"tx-{place}", "offset": f"{0:016}_{place:016}"}
    return {"type": kind, "key": key, "value": value, "headers": headers}


STREAM = [
    _event("entity_created", "entity-created", 100, entity_type="chat", args={}),
    _event("inbox", "one", 150, payload="done", mode="immediate", timestamp="2026-05-19T11:00:00Z"),
    _event("run", "r", 200, status="started"),
    _event("inbox", "two", 300, payload="to do", mode="immediate"),
    _event("inbox", "three", 400, payload="queued", mode="queued", status="pending", position="a"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (
        ("boss", json.dumps(STREAM)),
        ("quiet", json.dumps(STREAM[:3])),
        ("leaving", json.dumps(STREAM[:3])[:-9]),
    ):
        (tmp_path / "chat" / name).mkdir(parents=True)
        (tmp_path / "chat" / name / "main.json").write_text(text)
    (tmp_path / "chat" / "a-child").mkdir()
    lines = "\n".join(json.dumps(event) for event in STREAM[:2])
    (tmp_path / "chat" / "a-child" / "main.jsonl").write_text(lines)
    return tmp_path


def test_with_its_stream_an_entity_goes_on_where_its_claims_acked(source, folder, alice):
    run(source, "--streams", str(folder))
    told = events("/chat/boss")
    keys = [*(event["key"] for event in STREAM), "schedule:nightly"]
    assert [event["key"] for event in told] == keys
    assert told[3]["headers"]["offset"] == offsets.encode(4)
    boss = Entity.objects.get(url="/chat/boss").dispatch_state
    assert (boss.cursor, boss.last_work_offset, boss.queue_waiting) == (3, 5, True)
    assert boss.outstanding_wake is not None


def test_a_message_that_was_sent_there_is_not_sent_again(source, folder, alice):
    run(source, "--streams", str(folder))
    before = events("/chat/boss")
    again = {"payload": "to do", "key": "two"}
    assert alice.post("/_electric/entities/chat/boss/send", again).body == {"txid": "tx-300"}
    assert events("/chat/boss") == before


def test_a_stream_of_lines_that_nobody_acked_is_all_to_do(source, folder):
    run(source, "--streams", str(folder))
    child = Entity.objects.get(url="/chat/a-child").dispatch_state
    assert (child.tail, child.cursor, child.pending) == (2, 0, True)


def test_a_stream_of_who_was_not_pending_is_done(source, folder):
    run(source, "--streams", str(folder))
    quiet = Entity.objects.get(url="/chat/quiet").dispatch_state
    assert not quiet.pending
    assert quiet.tail >= 3


def test_a_stream_that_cannot_be_read_keeps_its_entity_for_the_next_run(source, folder):
    report = run(source, "--streams", str(folder))
    assert "main.json" in why(report, "entities", "/chat/leaving")
    assert "no file" in why(report, "entities", "/chat/asleep", among="notes")
    (folder / "chat" / "leaving" / "main.json").write_text(json.dumps(STREAM[:3]))
    report = run(source, "--streams", str(folder))
    assert report["kinds"]["entities"]["taken"] == 1
    assert len(events("/chat/leaving")) == 3


# --- Again, and not at all ----------------------------------------------------------------------


def test_a_second_run_changes_nothing(source):
    first = run(source)
    before = everything()
    second = run(source)
    assert everything() == before
    for kind in ("runners", "entity types", "entities", "claims"):
        assert counts(second, kind)[1:3] == (0, counts(first, kind)[1]), kind
    for kind in ("scheduled tasks", "wake registrations"):
        assert counts(second, kind)[1:3] == (0, 2), kind


def test_what_was_changed_here_since_stays(source, alice):
    run(source)
    alice("DELETE", "/_electric/entities/chat/quiet")
    alice.post("/_electric/runners/desk/disable")
    alice.post("/_electric/entities/chat/boss/tags/team", {"value": "blue"})
    alice.post(
        "/_electric/wake/unregister",
        {"subscriberUrl": "/chat/boss", "manifestKey": "child:chat:a-child"},
    )
    Timer.objects.all().delete()
    report = run(source)
    assert not Entity.objects.filter(url="/chat/quiet").exists()
    assert "gone here since" in why(report, "entities", "/chat/quiet")
    assert not Runner.objects.get(pk="desk").enabled
    assert Entity.objects.get(url="/chat/boss").tags == {"team": "blue"}
    assert not Timer.objects.exists()
    assert not Registration.objects.filter(subscriber__url="/chat/boss").exists()


def test_an_entity_that_was_made_here_is_not_taken_over(source):
    EntityFactory.create(url="/chat/boss", created_by=BOB.url)
    report = run(source)
    assert Entity.objects.get(url="/chat/boss").created_by == BOB.url
    assert "was made here" in why(report, "entities", "/chat/boss")
    assert "its subscriber is not taken" in why(report, "wake registrations", "1")


def test_a_dry_run_says_the_same_and_changes_nothing(source, folder):
    dry = run(source, "--dry-run")
    assert not any(everything().values())
    assert not Taken.objects.exists()
    wet = run(source)
    for kind in wet["kinds"]:
        if kind not in ("scheduled tasks", "wake registrations"):  # what is there decides, too
            assert dry["kinds"][kind] == wet["kinds"][kind], kind
    assert dry["woken"] == wet["woken"]


def test_the_report_is_to_be_read(source):
    output = StringIO()
    call_command("import_electric_agents", source, stdout=output)
    said = output.getvalue()
    assert "runners: 4 found, 2 taken, 0 already here, 2 not taken" in said
    assert "entities woken: 2" in said


def test_a_run_that_was_ended_goes_on_where_it_was(source, monkeypatch):
    """As if the process had died between two batches: what one transaction made is whole."""
    monkeypatch.setattr("moving.importer.BATCH", 3)
    made: list[int] = []
    make = moved_in.take_over

    def dies(arrivals: Any) -> int:
        if made:
            raise KeyboardInterrupt
        made.append(len(arrivals))
        return make(arrivals)

    monkeypatch.setattr(moved_in, "take_over", dies)
    with pytest.raises(KeyboardInterrupt):
        run(source)
    entities_made = Entity.objects.count()
    assert 0 < entities_made < 8
    assert Taken.objects.filter(kind="entity").count() == entities_made
    monkeypatch.setattr(moved_in, "take_over", make)
    report = run(source)
    assert counts(report, "entities")[1:3] == (8 - entities_made, entities_made)
    assert Wake.objects.outstanding().count() == 2


def test_nothing_of_the_source_is_written(source):
    with psycopg.connect(source) as agents:
        before = agents.execute(_CONTENTS).fetchone()
    run(source)
    with psycopg.connect(source) as agents:
        assert agents.execute(_CONTENTS).fetchone() == before


_CONTENTS = (
    "SELECT array[(SELECT json_agg(e ORDER BY url)::text FROM entities e),"
    " (SELECT json_agg(r ORDER BY id)::text FROM runners r),"
    " (SELECT json_agg(c ORDER BY consumer_id)::text FROM consumer_claims c),"
    " (SELECT json_agg(s ORDER BY entity_url)::text FROM entity_dispatch_state s)]"
)


# --- Refused ------------------------------------------------------------------------------------


def test_an_address_that_leads_nowhere_is_one_sentence():
    with pytest.raises(CommandError, match="cannot be read"):
        run("postgres://nobody:secret@127.0.0.1:9/none")


def test_no_database_of_that_kind_is_refused(server):
    with pytest.raises(CommandError, match="no database of the existing server"):
        run(server)


@pytest.mark.postgres
def test_our_own_database_is_refused(source):
    own = connection.settings_dict
    address = f"{own['USER']}:{own['PASSWORD']}@{own['HOST']}:{own['PORT']}/{own['NAME']}"
    with pytest.raises(CommandError, match="Pullwake itself is on"):
        run(f"postgres://{address}")


def test_a_tenant_without_anything_is_refused_with_those_that_have(source):
    with pytest.raises(
        CommandError, match="'nobody' has nothing there; these have: default, other"
    ):
        run(source, "--tenant", "nobody")


def test_our_database_must_be_migrated(source, monkeypatch):
    monkeypatch.setattr(
        "django.db.migrations.executor.MigrationExecutor.migration_plan", lambda *_: [object()]
    )
    with pytest.raises(CommandError, match="is not migrated"):
        run(source)


def test_an_owner_that_is_no_principal_is_refused(source):
    with pytest.raises(CommandError, match="is not a principal"):
        run(source, "--owner", "alice")
