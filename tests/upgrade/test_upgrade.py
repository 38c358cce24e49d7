"""The database that commit 45bd801 left is migrated, and its runners and operators go on with it.

`make_45bd801` says what is in it. Each test here has entities of its own.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from tests.support import Claim, Database, HttpApi, Server, empty_database, wait_until
from tests.upgrade.known import (
    ACCESS_TOKEN,
    AGENT,
    DIAGNOSTICS,
    FOLDER,
    LEASE_MS,
    PRODUCER,
    REVOKED_TOKEN,
    claim_token,
    log_in,
    post,
    text,
    wake_of,
    write_token,
)

pytestmark = pytest.mark.slow

# What the API said of each entity at 45bd801.
STATUS = {
    "/agent/idle": "idle",
    "/agent/child": "idle",
    "/job/held": "running",
    "/job/watched": "running",
    "/job/moved": "running",
    "/job/stopping": "stopping",
    "/job/lapsed": "running",
    "/job/late": "running",
    "/job/met": "running",
    "/job/full": "running",
    "/job/refused": "idle",
    "/job/woken": "idle",
    "/job/signalled": "idle",
    "/job/paused": "paused",
    "/job/failing": "idle",
    "/job/overdue": "idle",
    "/job/shelved": "idle",
    "/job/stranded": "idle",
    "/job/stopped": "stopped",
    "/job/killed": "killed",
    "/job/taken": "idle",
}
BOBS_STATUS = {"/agent/bobs": "idle", "/job/bobs": "idle"}

VIEWERS_MAY = {
    "admin.view_logentry",
    "claims.view_consumerclaim",
    "dispatch.view_dispatchstate",
    "dispatch.view_entity",
    "dispatch.view_entitytype",
    "dispatch.view_wake",
    "runners.view_runner",
}
OPERATORS_MAY = VIEWERS_MAY | {
    "claims.expire_consumerclaim",
    "dispatch.kill_entity",
    "dispatch.move_entity",
    "dispatch.pause_entity",
    "dispatch.resume_entity",
    "dispatch.send_entity",
    "dispatch.stop_entity",
    "dispatch.wake_entity",
    "runners.delete_runner",
    "runners.disable_runner",
    "runners.enable_runner",
}

LISTS = {
    "claims/consumerclaim",
    "dispatch/dispatchstate",
    "dispatch/entity",
    "dispatch/entitytype",
    "dispatch/wake",
    "admin/logentry",
    "runners/runner",
}
VERBS = {
    "claims/consumerclaim": ("expire",),
    "dispatch/entity": ("wake", "send", "move", "pause", "resume", "stop", "kill"),
    "runners/runner": ("enable", "disable", "expire-claims", "move-entities", "delete"),
}


# --- The migration ----------------------------------------------------------------------------

POSTGRES_COLUMNS = """
    SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'
"""
SQLITE_COLUMNS = """
    SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c
    WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%'
"""
POSTGRES_SCHEMA = (
    """
    SELECT table_name, column_name, data_type, character_maximum_length, is_nullable,
        column_default, is_identity
    FROM information_schema.columns WHERE table_schema = 'public'
    """,
    "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'",
    """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    """,
    """
    SELECT relname, reloptions::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
    """,
)
SQLITE_SCHEMA = ("SELECT type, name, sql FROM sqlite_master",)

Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Upgraded:
    """The database, and the rows of each table before the migration and right after it."""

    database: Database
    before: Rows
    after: Rows

    def pk(self, table: str, **facts: str) -> Any:
        """The key of a row of the dump in which these columns have these values."""
        return next(row["id"] for row in self.before[table] if facts.items() <= row.items())


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    """The database of this run's kind, migrated."""
    with empty_database(tmp_path_factory.mktemp("upgrade")) as database:
        engine = "postgres" if database.path is None else "sqlite"
        database.load(FOLDER / f"45bd801.{engine}.sql")
        before = rows(database)
        migrated = database.manage("migrate", "--verbosity=0")
        assert migrated.returncode == 0, migrated.stderr
        yield Upgraded(database, before, rows(database))


def rows(database: Database) -> Rows:
    """All that is in a database, by table."""
    asked = POSTGRES_COLUMNS if database.path is None else SQLITE_COLUMNS
    columns: dict[str, list[str]] = {}
    for table, column in database.execute(asked):
        columns.setdefault(table, []).append(column)
    found: Rows = {}
    for table, names in columns.items():
        listed = ", ".join(f'"{name}"' for name in names)
        read = database.execute(f'SELECT {listed} FROM "{table}"')  # noqa: S608
        found[table] = [dict(zip(names, row, strict=True)) for row in read]
    return found


def test_no_migration_is_missing(upgraded: Upgraded):
    for command in (["makemigrations", "--check", "--dry-run"], ["migrate", "--check"]):
        done = upgraded.database.manage(*command)
        assert done.returncode == 0, done.stdout + done.stderr


RELABELLED = {"auth_permission": {"name"}}
"""Columns that a migration rewrites."""


def test_each_row_is_as_it_was(upgraded: Upgraded):
    """In the columns that are still there; there may be more rows."""
    assert len(upgraded.before["claims_consumerclaim"]) == 21
    assert set(upgraded.before) <= set(upgraded.after)
    for table, before in upgraded.before.items():
        after = upgraded.after[table]
        if before:
            kept = sorted(set(before[0]) & set(after[0]) - RELABELLED.get(table, set()))
            lost = Counter(repr([row[name] for name in kept]) for row in before)
            lost.subtract(repr([row[name] for name in kept]) for row in after)
            assert not +lost, table


def test_each_permission_is_called_as_in_a_new_database(upgraded: Upgraded, template: Database):
    asked = "SELECT codename, name FROM auth_permission"
    assert ("expire_consumerclaim", "Can take claims back") in template.execute(asked)
    assert set(upgraded.database.execute(asked)) == set(template.execute(asked))


def test_its_schema_is_that_of_a_new_database(upgraded: Upgraded, template: Database):
    """Whoever edits a migration that was released makes two kinds of databases."""
    asked = POSTGRES_SCHEMA if upgraded.database.path is None else SQLITE_SCHEMA
    for sql in asked:
        assert set(upgraded.database.execute(sql)) == set(template.execute(sql))


@pytest.mark.parametrize(("name", "may"), [("olga", OPERATORS_MAY), ("vera", VIEWERS_MAY)])
def test_who_has_a_role_may_what_she_might(upgraded: Upgraded, name: str, may: set[str]):
    found = upgraded.database.execute(
        """
        SELECT t.app_label, p.codename
        FROM auth_user u
        JOIN auth_user_groups ug ON ug.user_id = u.id
        JOIN auth_group_permissions gp ON gp.group_id = ug.group_id
        JOIN auth_permission p ON p.id = gp.permission_id
        JOIN django_content_type t ON t.id = p.content_type_id
        WHERE u.username = %s
        """,
        name,
    )
    assert {f"{app}.{codename}" for app, codename in found} >= may


# --- A server on it ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A server, and what it said before its reaper took back anything and any test did."""

    server: Server
    told: dict[str, str]
    listed: dict[str, str]
    health: Any


@pytest.fixture(scope="module")
def served(upgraded: Upgraded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that reaps often, started again after one whose reaper waited."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    server = Server(
        upgraded.database.url,
        log,
        {"PULLWAKE_REAPER_INTERVAL_MS": "3600000", "PULLWAKE_RETENTION_DAYS": "36500"},
        forked=True,
    )
    try:
        server.start()
        alice, bob = server.client(), server.client("user:bob")
        told = {url: alice.status(url) for url in STATUS}
        told |= {url: bob.status(url) for url in BOBS_STATUS}
        listed = {
            entity["url"]: entity["status"]
            for api in (alice, bob)
            for entity in api.get("/_electric/entities").body
        }
        health = alice.get("/_electric/runners/laptop/health").body
        server.stop()
        server.env["PULLWAKE_REAPER_INTERVAL_MS"] = "200"
        server.start()
        yield Served(server, told, listed, health)
    finally:
        server.close()


@pytest.fixture(scope="module")
def alice(served: Served) -> HttpApi:
    """The API as user:alice calls it, over HTTP."""
    return served.server.client("user:alice")


@pytest.fixture(scope="module")
def bob(served: Served) -> HttpApi:
    """The API as user:bob calls it, over HTTP."""
    return served.server.client("user:bob")


def old_claim(upgraded: Upgraded, api: HttpApi, url: str) -> Claim:
    """The entity's newest claim of those in the dump, as its holder knows it."""
    newest = max(
        (row for row in upgraded.before["claims_consumerclaim"] if row["entity_url"] == url),
        key=lambda row: row["epoch"],
    )
    return Claim(
        api,
        {
            "consumerId": newest["consumer_id"],
            "wakeId": newest["consumer_id"],
            "epoch": newest["epoch"],
            "claimToken": claim_token(url),
            "streamPath": f"{url}/main",
        },
    )


def wakes_of(api: HttpApi, runner_id: str, url: str, offset: str = "-1") -> list[Any]:
    """The entity's wakes on its runner's stream."""
    return [wake for wake in api.wakes(runner_id, offset) if wake["stream"] == f"{url[1:]}/main"]


def work_off(api: HttpApi, runner_id: str, url: str, epoch: int) -> None:
    """The entity is woken for this epoch: claim it and be done."""
    (wake,) = wait_until(lambda: wakes_of(api, runner_id, url), what=f"a wake of {url}")
    assert wake["generation"] == epoch
    claim = api.claim(runner_id, wake)
    assert claim.epoch == epoch
    assert claim.body["entity"]["url"] == url
    assert api.status(url) == "running"
    done = claim.done()
    assert (done.status, done.body["entity_cleared"], done.body["next_wake"]) == (200, True, False)
    assert api.status(url) == "idle"


def test_each_entity_has_the_status_that_it_had(served: Served):
    assert served.told == STATUS | BOBS_STATUS
    assert served.listed == STATUS | BOBS_STATUS


def test_a_runner_holds_what_it_held(served: Served):
    held = [claim["entity_url"] for claim in served.health["claims"]["active"]]
    names = ("held", "watched", "moved", "stopping", "late", "met")
    assert held == [f"/job/{name}" for name in names]
    # /job/moved is dispatched elsewhere by now.
    assert served.health["dispatch"]["entities_with_active_claim"] == 5
    assert served.health["client"] == DIAGNOSTICS


def test_runners_are_what_they_were(alice: HttpApi, bob: HttpApi):
    listed = {runner["id"]: runner for runner in alice.get("/_electric/runners").body}
    assert set(listed) == {"laptop", "box", "hasty", "shelf"}
    assert [runner["id"] for runner in bob.get("/_electric/runners").body] == ["bobs"]
    assert listed["box"]["max_concurrent_claims"] == 1
    laptop = listed["laptop"]
    assert laptop["owner_principal"] == "/principal/user%3Aalice"
    assert laptop["claim_lease_ms"] == LEASE_MS
    assert [profile["name"] for profile in laptop["sandbox_profiles"]] == ["docker"]
    assert laptop["diagnostics"] == DIAGNOSTICS
    assert alice.get("/_electric/runners/bobs").status == 403


def test_entities_are_what_they_were(alice: HttpApi):
    entity = alice.get("/_electric/entities/agent/idle").body
    assert entity["tags"] == {"team": "a", "größe": "\N{ROCKET}"}
    assert entity["spawn_args"] == {"model": "large"}
    assert entity["sandbox"]["profile"] == "docker"
    assert entity["created_by"] == "/principal/user%3Aalice"
    assert entity["dispatch_policy"]["targets"][0]["runnerId"] == "laptop"
    assert alice.get("/_electric/entities/agent/child").body["parent"] == "/agent/idle"
    assert alice.get("/_electric/entities/job/bobs").status == 403
    assert alice.get("/_electric/entities/job/deleted").status == 404
    events = alice.events("/agent/idle")
    assert [event["type"] for event in events] == ["entity_created", "inbox", "text"]
    assert events[2]["value"] == text(1)["value"]


def test_a_type_is_what_it_was_and_its_rules_hold(alice: HttpApi, bob: HttpApi, served: Served):
    known = alice.get("/_electric/entity-types/agent").body
    assert known["revision"] == 2
    for name in ("description", "creation_schema", "inbox_schemas", "state_schemas"):
        assert known[name] == AGENT[name], name
    assert known["default_dispatch_policy"]["targets"][0]["runnerId"] == "laptop"
    made = bob("PUT", "/_electric/entities/agent/new", {"args": {"model": "small"}})
    assert made.status == 201
    assert made.body["dispatch_policy"]["targets"][0]["runnerId"] == "laptop"
    assert bob("PUT", "/_electric/entities/agent/newer", {}).error == "INVALID_REQUEST"
    carol = served.server.client("user:carol")
    refused = carol("PUT", "/_electric/entities/agent/newer", {"args": {"model": "small"}})
    assert refused.status == 403
    question = {"payload": {}, "type": "question"}
    assert alice.post("/_electric/entities/agent/child/send", question).status == 400
    service = served.server.client("service:janitor")
    service.send("/agent/child", {"text": "Why?"}, type="question")
    assert alice.post("/_electric/entity-types", AGENT).body["revision"] == 3


def test_the_holder_of_a_claim_goes_on(upgraded: Upgraded, alice: HttpApi):
    claim = old_claim(upgraded, alice, "/job/held")
    old = write_token("/job/held")
    for seq, status in ((1, 204), (2, 200), (2, 204), (4, 409)):
        appended = claim.append(text(seq), token=old, **PRODUCER, Producer_Seq=str(seq))
        assert appended.status == status, seq
    fenced = {**PRODUCER, "Producer_Epoch": "0"}
    assert claim.append(text(0), token=old, **fenced, Producer_Seq="0").error == "PRODUCER_FENCED"
    assert claim.call({}, token=claim_token("/job/met")).status == 401

    renewed = claim.heartbeat()
    assert renewed.status == 200
    assert renewed.body["lease_expires_at"] < "2100"
    token = claim.mint()
    assert claim.append(text(3), token=old).status == 401
    assert claim.append(text(3), token=token).status == 204
    texts = [event["key"] for event in alice.events("/job/held") if event["type"] == "text"]
    assert texts == ["text-0", "text-1", "text-2", "text-3"]

    assert alice.status("/job/held") == "running"
    done = claim.done()
    assert (done.status, done.body["entity_cleared"], done.body["next_wake"]) == (200, True, True)
    assert alice.status("/job/held") == "idle"
    assert claim.append(text(4), token=token).status == 401
    # A message came during the claim.
    work_off(alice, "laptop", "/job/held", claim.epoch + 1)
    assert claim.heartbeat().error == "FENCED"


def test_a_claim_whose_entity_was_moved_ends_where_it_is(upgraded: Upgraded, alice: HttpApi):
    alice.send("/job/moved")
    assert wakes_of(alice, "hasty", "/job/moved") == []
    assert old_claim(upgraded, alice, "/job/moved").done().body["next_wake"]
    assert alice.status("/job/moved") == "idle"
    (wake,) = wakes_of(alice, "hasty", "/job/moved")
    assert wake["generation"] == 2


def test_an_entity_that_was_asked_to_stop_stops(upgraded: Upgraded, alice: HttpApi):
    assert alice.status("/job/stopping") == "stopping"
    assert old_claim(upgraded, alice, "/job/stopping").done().status == 200
    assert alice.status("/job/stopping") == "stopped"


def test_the_reaper_takes_back_a_claim_that_lapsed(upgraded: Upgraded, alice: HttpApi):
    wait_until(lambda: wakes_of(alice, "hasty", "/job/lapsed"), what="the reaper")
    assert alice.status("/job/lapsed") == "idle"
    assert old_claim(upgraded, alice, "/job/lapsed").heartbeat().error == "FENCED"
    alice.register("hasty", claim_lease_ms=LEASE_MS)
    work_off(alice, "hasty", "/job/lapsed", 2)


def test_a_claim_that_lapsed_is_still_its_holders(upgraded: Upgraded, alice: HttpApi):
    claim = old_claim(upgraded, alice, "/job/late")
    assert claim.heartbeat().status == 200
    assert alice.try_claim("laptop", wake_of("laptop", "/job/late")).error == "ALREADY_CLAIMED"
    assert claim.done().body["entity_cleared"]
    assert alice.status("/job/late") == "idle"


def test_a_claim_that_lapsed_gives_way_to_another(upgraded: Upgraded, alice: HttpApi):
    claim = alice.claim("laptop", wake_of("laptop", "/job/met"))
    assert claim.epoch == 2
    assert old_claim(upgraded, alice, "/job/met").done().error == "FENCED"
    assert alice.status("/job/met") == "running"
    assert claim.done().body["entity_cleared"]
    assert alice.status("/job/met") == "idle"


def test_a_claim_limit_holds(upgraded: Upgraded, alice: HttpApi):
    refused = alice.try_claim("box", wake_of("box", "/job/refused"))
    assert refused.error == "CLAIM_LIMIT_REACHED"
    tail = alice("HEAD", "/runners/box/wake").headers["Stream-Next-Offset"]
    assert old_claim(upgraded, alice, "/job/full").done().body["entity_cleared"]
    assert len(wakes_of(alice, "box", "/job/refused", tail)) == 1
    work_off(alice, "box", "/job/refused", 1)


def test_an_outstanding_wake_is_delivered_again_and_claimed(alice: HttpApi):
    """Its runner had received it, committed its offset and died: it is emitted past that."""
    offset = alice.get("/_electric/runners/laptop").body["wake_stream_offset"]
    assert alice.post("/_electric/runners/laptop/heartbeat").status == 200  # only then: it lives
    wait_until(lambda: wakes_of(alice, "laptop", "/job/woken", offset), what="the wake, again")
    events = [event for event in alice.events("/job/woken") if event["type"] == "inbox"]
    for event, number in zip(events[1:], (1, 2), strict=True):
        assert event["value"]["payload"] == {"n": number}
        again = alice.send("/job/woken", {"n": "changed"}, key=event["key"])
        assert again == event["headers"]["txid"]
    assert [event["key"] for event in events[1:]] == ["one", "two"]
    work_off(alice, "laptop", "/job/woken", 2)
    alice.send("/job/woken")
    work_off(alice, "laptop", "/job/woken", 3)


def test_an_unhandled_signal_is_work(alice: HttpApi):
    (signal,) = [event for event in alice.events("/job/signalled") if event["type"] == "signal"]
    assert signal["value"]["signal"] == "SIGUSR"
    assert signal["value"]["status"] == "unhandled"
    assert signal["value"]["payload"] == {"n": 1}
    work_off(alice, "laptop", "/job/signalled", 1)


def test_a_paused_entity_resumes(alice: HttpApi):
    assert wakes_of(alice, "laptop", "/job/paused") == []
    assert alice.try_claim("laptop", wake_of("laptop", "/job/paused")).body == {"done": True}
    assert alice.signal("/job/paused", "SIGCONT")["previous_state"] == "paused"
    work_off(alice, "laptop", "/job/paused", 2)


def test_an_entity_that_fails_waits_out_its_delay_or_a_message(alice: HttpApi):
    asked = wake_of("laptop", "/job/failing")
    assert alice.try_claim("laptop", asked).error == "NO_PENDING_WORK"
    alice.send("/job/failing")
    work_off(alice, "laptop", "/job/failing", 3)


def test_an_entity_whose_delay_is_over_is_woken(alice: HttpApi):
    work_off(alice, "laptop", "/job/overdue", 2)


def test_the_wake_of_a_disabled_runner_waits_for_it(alice: HttpApi):
    assert alice.try_claim("shelf").error == "NOT_RUNNING"
    assert alice.post("/_electric/runners/shelf/enable").status == 200
    work_off(alice, "shelf", "/job/shelved", 1)


def test_work_whose_runner_is_gone_waits_for_another(alice: HttpApi):
    assert "dispatch_policy" not in alice.get("/_electric/entities/job/stranded").body
    policy = {"targets": [{"type": "runner", "runnerId": "laptop"}]}
    alice("PATCH", "/_electric/entities/job/stranded", {"dispatch_policy": policy})
    work_off(alice, "laptop", "/job/stranded", 2)


def test_what_ended_is_still_ended(upgraded: Upgraded, alice: HttpApi):
    for url in ("/job/stopped", "/job/killed"):
        assert alice.post(f"/_electric/entities{url}/send", {"payload": 1}).error == "NOT_RUNNING"
    again = old_claim(upgraded, alice, "/job/stopped").done()
    assert (again.status, again.body["entity_cleared"]) == (200, False)
    for url in ("/job/killed", "/job/deleted", "/job/taken"):
        assert old_claim(upgraded, alice, url).done().error == "FENCED"


def test_an_access_token_opens_what_it_did(served: Served):
    api = served.server.client(None, Authorization=f"Bearer {ACCESS_TOKEN}")
    assert {runner["id"] for runner in api.get("/_electric/runners").body} >= {"laptop", "box"}
    revoked = served.server.client(None, Authorization=f"Bearer {REVOKED_TOKEN}")
    assert revoked.get("/_electric/runners").error == "UNAUTHORIZED"


# --- Operators --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people(served: Served) -> Iterator[dict[str, httpx2.Client]]:
    """Those who may log in, each with the password that she had."""
    with (
        closing(log_in(served.server, "ada")) as ada,
        closing(log_in(served.server, "olga")) as olga,
        closing(log_in(served.server, "vera")) as vera,
    ):
        yield {"ada": ada, "olga": olga, "vera": vera}


def rows_pages(upgraded: Upgraded) -> dict[str, list[Any]]:
    """The rows whose pages are looked at, by model."""
    watched = upgraded.pk("claims_consumerclaim", entity_url="/job/watched")
    ended = [
        upgraded.pk("claims_consumerclaim", status=status)
        for status in ("released", "failed", "expired", "fenced")
    ]
    return {
        "claims/consumerclaim": [watched, *ended],
        "dispatch/entity": [upgraded.pk("dispatch_entity", url=url) for url in STATUS],
        "dispatch/wake": [
            upgraded.pk("dispatch_wake", status=status)
            for status in ("outstanding", "claimed", "withdrawn")
        ],
        "dispatch/entitytype": ["agent"],
        "runners/runner": ["laptop", "box", "hasty", "shelf", "bobs"],
    }


@pytest.mark.parametrize("who", ["ada", "olga", "vera"])
def test_each_page_is_where_it_was(upgraded: Upgraded, people, who: str):
    browser = people[who]
    pages = ["/admin/", *(f"/admin/{model}/" for model in LISTS)]
    pages += [
        f"/admin/{model}/{pk}/change/" for model, pks in rows_pages(upgraded).items() for pk in pks
    ]
    shown = {page: browser.get(page).status_code for page in pages}
    assert shown == dict.fromkeys(pages, 200)
    token = upgraded.pk("runners_accesstoken", label="laptop")
    for page in ("", "issue/", f"{token}/change/"):
        expected = 200 if who == "ada" else 403
        assert browser.get(f"/admin/runners/accesstoken/{page}").status_code == expected


@pytest.mark.parametrize(("who", "expected"), [("olga", 200), ("vera", 403)])
def test_each_verb_is_where_it_was(upgraded: Upgraded, people, who: str, expected: int):
    pages = rows_pages(upgraded)
    paths = [
        f"/admin/{model}/do/{verb}/?pk={pages[model][0]}"
        for model, verbs in VERBS.items()
        for verb in verbs
    ]
    shown = {path: people[who].get(path).status_code for path in paths}
    assert shown == dict.fromkeys(paths, expected)


def test_the_audit_log_is_there_and_goes_on(upgraded: Upgraded, people, alice: HttpApi):
    log = people["vera"].get("/admin/admin/logentry/").text
    assert "Reason: hangs" in log
    assert "Reason: to be repaired" in log
    child = str(upgraded.pk("dispatch_entity", url="/agent/child"))
    for who, status in (("vera", 403), ("olga", 302)):
        path, reason = "/admin/dispatch/entity/do/pause/", f"{who} wants it"
        assert post(people[who], path, pk=child, reason=reason).status_code == status
    assert alice.status("/agent/child") == "paused"
    log = people["vera"].get("/admin/admin/logentry/").text
    assert "olga wants it" in log
    assert "vera wants it" not in log
