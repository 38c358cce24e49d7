"""manage.py prune, as a process."""

import signal

import pytest
from django.core.management import CommandError, call_command

from tests.commands.conftest import filled
from tests.support import wait_until

TABLES = {
    "claims": "claims_consumerclaim",
    "wakes": "dispatch_wake",
    "events": "dispatch_streamevent",
    "dead letters": "claims_deadletter",
    "shared events": "dispatch_sharedstateevent",
    "changes": "runners_change",
    "timers": "dispatch_timer",
    "audit entries": "django_admin_log",
    "sessions": "django_session",
}


ROWS = """
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from core import audit
from dispatch.models import Entity, SharedState, SharedStateEvent
from tests.factories import (
    EntityTypeFactory, SharedStateEventFactory, SharedStateFactory, StreamEventFactory,
    TimerFactory, ahead
)

for status in ("released", "failed", "expired", "fenced"):
    claim(status, claimed_at=ago(days=32), ended_at=ago(days=31), **{status: True})
claim("today", released=True)
claim("active", claimed_at=ago(days=32))
WakeFactory.create(entity__url="/agent/waiting", entity__runner=r1)
Wake.objects.exclude(entity__url="/agent/today").update(emitted_at=ago(days=31))

ended = {"stopped": "stopped", "killed": "killed", "stopped-today": "stopped"}
for name, end in ended.items():
    WakeFactory.create(
        entity__url=f"/agent/{name}", entity__runner=r1, withdrawn=True, **{f"entity__{end}": True}
    )
DeadLetterFactory.create(entity__url="/agent/given-up", given_up_at=ago(days=31))
DeadLetterFactory.create(entity__url="/agent/redriven", given_up_at=ago(days=31), redriven=True)
DeadLetterFactory.create(entity__url="/agent/redriven-today", redriven=True)
DeadLetterFactory.create(entity=Entity.objects.get(url="/agent/stopped"), given_up_at=ago(days=31))
StreamEvent.objects.exclude(entity__url="/agent/stopped-today").update(created_at=ago(days=31))

for name in ("active", "stopped"):
    SharedStateFactory.create(name=name, link__entity=Entity.objects.get(url=f"/agent/{name}"))
SharedStateEvent.objects.update(created_at=ago(days=31))
SharedStateEventFactory.create(state=SharedState.objects.get(name="stopped"), offset=2)

EntityTypeFactory.create(name="chat", retain_events=1)
talks = {"dispatch_state__tail": 3, "dispatch_state__cursor": 3}
talker = EntityFactory.create(type="chat", url="/agent/talks", **talks)
for offset in (2, 3):
    StreamEventFactory.create(entity=talker, offset=offset)

ended = Entity.objects.get(url="/agent/killed")
TimerFactory.create(target=ended, failed=True, failed_at=ago(days=31))
TimerFactory.create(target=ended, failed=True)
TimerFactory.create(target=ended, created_at=ago(days=31))

operator = User.objects.create_user("olga")
audit.record(r1, "Disabled by manage.py.", flag=CHANGE)
LogEntry.objects.log_actions(operator.pk, [r1], CHANGE, "Drain", single_object=True)
audit.record_call(r1, "Disabled by user:alice", flag=CHANGE)
LogEntry.objects.update(action_time=ago(days=31))
audit.record_call(r1, "Enabled by user:alice", flag=CHANGE)

for key, expire_date in (("over", ago(seconds=1)), ("open", ahead(days=1))):
    Session.objects.create(session_key=key, session_data="", expire_date=expire_date)
"""


@pytest.fixture(scope="module")
def template(template, tmp_path_factory):
    """With `ROWS`."""
    with filled(template, tmp_path_factory.mktemp("aged"), ROWS) as database:
        yield database


@pytest.fixture
def aged(database):
    """Of everything an old row that may go and what must stay.

    Claims: one ended and old in each of the terminal states, one ended today, one active and old.
    Wakes: old and claimed, old and outstanding, today's. Events: old ones of a stopped, a killed
    and of living entities, and today's of one that was stopped today.
    Two acked events more than its type has it keep, of one that talks.
    Dead letters: old ones that were not redriven, were, and of a stopped entity; today's redriven.
    """
    return database


def counts(database):
    found = {}
    for name, table in TABLES.items():
        ((found[name],),) = database.execute(f"SELECT count(*) FROM {table}")  # noqa: S608
    return found


def said(deleted):
    return "".join(f"deleted {count} {name}\n" for name, count in deleted.items())


def urls(database, table):
    of_entity = f"SELECT entity_id FROM {table}"  # noqa: S608
    rows = database.execute(
        f"SELECT url FROM dispatch_entity WHERE id IN ({of_entity}) ORDER BY url"  # noqa: S608
    )
    return [url.removeprefix("/agent/") for (url,) in rows]


def test_it_deletes_what_is_past_its_retention_and_nothing_else(aged):
    before = counts(aged)
    done = aged.manage("prune")
    assert (done.returncode, done.stderr) == (0, "")
    after = counts(aged)

    deleted = {name: before[name] - after[name] for name in TABLES}
    assert done.stdout == said({**deleted, "events": deleted["events"] - 2, "acked events": 2})
    kept = aged.execute("SELECT entity_url, status FROM claims_consumerclaim ORDER BY 1")
    assert kept == [("/agent/active", "active"), ("/agent/today", "released")]
    assert urls(aged, "dispatch_wake") == [
        *("killed", "stopped", "stopped-today", "today", "waiting")
    ]
    assert set(urls(aged, "dispatch_streamevent")) == {
        *("active", "expired", "failed", "fenced", "released", "today", "waiting"),
        *("stopped-today", "given-up", "redriven", "redriven-today", "talks"),
    }
    assert urls(aged, "claims_deadletter") == ["given-up", "redriven-today"]
    assert aged.execute(
        'SELECT name, "offset" FROM dispatch_sharedstateevent'
        " JOIN dispatch_sharedstate ON state_id = dispatch_sharedstate.id ORDER BY 1"
    ) == [("active", 1), ("stopped", 2)]
    assert aged.execute("SELECT change_message FROM django_admin_log ORDER BY id") == [
        ("Disabled by manage.py.",),
        ("Drain",),
        ("Enabled by user:alice, through the API.",),
    ]
    assert aged.execute("SELECT session_key FROM django_session") == [("open",)]
    assert aged.manage("prune").stdout == said(dict.fromkeys([*TABLES, "acked events"], 0))


def test_the_retention_is_a_setting(aged):
    before = counts(aged)
    assert aged.manage("prune", PULLWAKE_RETENTION_DAYS="32").returncode == 0
    # What a type does not keep, and sessions, have nothing to do with it.
    kept = {"events": before["events"] - 2, "sessions": 1}
    assert counts(aged) == {**before, **kept}


def test_a_dry_run_counts_and_deletes_nothing(aged):
    before = counts(aged)
    said = aged.manage("prune", "--dry-run").stdout
    assert counts(aged) == before
    assert said == aged.manage("prune").stdout.replace("deleted", "would delete")


def test_sigterm_lets_the_batch_finish_and_begins_no_other(aged, start):
    before = counts(aged)
    with aged.locked("claims_consumerclaim"):
        command = start("prune", "--batch", "1")
        wait_until(lambda: command.is_at(aged), timeout=30)
        command.process.send_signal(signal.SIGTERM)
        assert command.process.poll() is None

    assert command.process.wait(15) == 0, command.said
    assert command.said == "deleted 1 claims\n"
    assert counts(aged) == {**before, "claims": before["claims"] - 1}


@pytest.mark.parametrize("batch", ["0", "-1", "1.5", "x", ""])
def test_it_refuses_a_bad_batch(db, batch):
    with pytest.raises(CommandError, match="argument --batch: "):
        call_command("prune", f"--batch={batch}")
