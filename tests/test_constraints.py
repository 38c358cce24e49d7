"""The invariants are the database's: raw SQL that would break one is refused, on both databases."""

from typing import Any

import pytest
from django.apps import apps
from django.db import IntegrityError, connection, models, transaction

from dispatch.models import StreamEvent
from tests.factories import (
    AccessTokenFactory,
    ConsumerClaimFactory,
    DeadLetterFactory,
    DeliveryFactory,
    EntityFactory,
    EntityTypeFactory,
    ProducerFactory,
    RunnerFactory,
    ServerPulseFactory,
    SharedStateProducerFactory,
    TakenMessageFactory,
    TimerFactory,
    WakeFactory,
)
from tests.standing import APPS

MINE = "entity_id = (SELECT id FROM dispatch_entity WHERE url = '/agent/claimed')"
WOKEN = "entity_id = (SELECT id FROM dispatch_entity WHERE url = '/agent/woken')"


def copied(table: str, where: str, **changes: str) -> str:
    """SQL that inserts a row again under another id, with these columns changed, as SQL."""
    with connection.cursor() as cursor:
        columns = [
            each.name for each in connection.introspection.get_table_description(cursor, table)
        ]
    columns.remove("id")
    values = ", ".join(changes.get(each, f'"{each}"') for each in columns)
    named = ", ".join(f'"{each}"' for each in columns)
    return f"INSERT INTO {table} ({named}) SELECT {values} FROM {table} WHERE {where}"  # noqa: S608


# What each constraint forbids; a callable makes its SQL when the rows are there.
FORBIDDEN: dict[str, list[Any]] = {
    # runners
    "runner_owner_url": [
        "UPDATE runners_runner SET owner_principal = 'user:alice'",
        "UPDATE runners_runner SET owner_principal = '/principal/user:alice'",
        "UPDATE runners_runner SET owner_principal = '/principal/robot%3Aalice'",
        "UPDATE runners_runner SET owner_principal = '/principal/user%3A'",
        "UPDATE runners_runner SET owner_principal = '/principal/user%3Aa/b'",
        "UPDATE runners_runner SET owner_principal = '/principal/user%3Aa:b'",
        "UPDATE runners_runner SET owner_principal = '/principal/user%3Aa b'",
        "UPDATE runners_runner SET owner_principal = '/principal/user%3Aé'",
        "UPDATE runners_runner SET owner_principal = ''",
    ],
    "runner_max_claims_positive": ["UPDATE runners_runner SET max_concurrent_claims = 0"],
    "runner_claim_lease": ["UPDATE runners_runner SET claim_lease_ms = 999"],
    "token_runner_or_scope": [
        "UPDATE runners_accesstoken SET scope = 'metrics', runner_id = 'r1'",
    ],
    "change_newest": [lambda: copied("runners_change", "NOT departed")],
    "token_principal_url": [
        "UPDATE runners_accesstoken SET principal = 'user:alice'",
        "UPDATE runners_accesstoken SET principal = '/principal/user%3A'",
    ],
    "token_expires_later": ["UPDATE runners_accesstoken SET expires_at = created_at"],
    # dispatch
    "type_registrar_url": [
        "UPDATE dispatch_entitytype SET registered_by = 'user:alice'",
        "UPDATE dispatch_entitytype SET registered_by = '/principal/user%3A'",
    ],
    "entity_creator_url": [
        "UPDATE dispatch_entity SET created_by = 'user:alice'",
        "UPDATE dispatch_entity SET created_by = '/principal/user%3A'",
    ],
    "state_cursor_within_stream": ["UPDATE dispatch_dispatchstate SET cursor = tail + 1"],
    "state_work_within_stream": ["UPDATE dispatch_dispatchstate SET last_work_offset = tail + 1"],
    "state_wake_only_when_awake": [
        *(
            f"UPDATE dispatch_dispatchstate SET {change} WHERE outstanding_wake_id IS NOT NULL"  # noqa: S608
            for change in ("paused = NOT paused", "ended = 'stopped'", "runner_id = NULL")
        )
    ],
    "queue_message_once": [lambda: copied("dispatch_queuedmessage", "entity_id > 0")],
    "taken_message_once": [lambda: copied("dispatch_takenmessage", "entity_id > 0")],
    "wake_generation_once": [
        lambda: copied("dispatch_wake", MINE, wake_id="'w_other'"),
    ],
    "wake_one_outstanding": [
        lambda: copied("dispatch_wake", WOKEN, wake_id="'w_other'", generation="generation + 1"),
    ],
    "wake_generation_from_1": ["UPDATE dispatch_wake SET generation = 0"],
    "wake_outstanding_has_runner": [
        "UPDATE dispatch_wake SET runner_id = NULL WHERE status = 'outstanding'"
    ],
    "event_offset_once": [
        lambda: copied("dispatch_streamevent", f"{MINE} AND message_key IS NULL")
    ],
    "event_message_once": [
        lambda: copied("dispatch_streamevent", "message_key = 'k'", offset='"offset" + 100')
    ],
    "producer_once": [lambda: copied("dispatch_producer", "1 = 1")],
    "shared_state_name_once": [lambda: copied("dispatch_sharedstate", "1 = 1")],
    "shared_state_creator_url": [
        "UPDATE dispatch_sharedstate SET created_by = 'user:alice'",
        "UPDATE dispatch_sharedstate SET created_by = '/principal/user%3A'",
    ],
    "shared_state_event_offset_once": [lambda: copied("dispatch_sharedstateevent", "1 = 1")],
    "shared_state_producer_once": [lambda: copied("dispatch_sharedstateproducer", "1 = 1")],
    "shared_state_link_once": [lambda: copied("dispatch_sharedstatelink", "1 = 1")],
    "registration_once": [lambda: copied("dispatch_registration", "1 = 1")],
    "registration_is_due": ["UPDATE dispatch_registration SET due_at = NULL"],
    "delivery_once": [lambda: copied("dispatch_delivery", "1 = 1")],
    "timer_message_once": [lambda: copied("dispatch_timer", "owner_id IS NULL")],
    "timer_schedule_once": [lambda: copied("dispatch_timer", "owner_id > 0", key="'other'")],
    "timer_schedule_of_an_owner": [
        f"UPDATE dispatch_timer SET {change}"  # noqa: S608
        for change in (
            "schedule = 's' WHERE owner_id IS NULL",
            "owner_id = target_id WHERE owner_id IS NULL",
            "principal = '/principal/user%3Aalice' WHERE owner_id IS NULL",
            "schedule = '' WHERE owner_id > 0",
            "entry = '' WHERE owner_id > 0",
            "principal = NULL WHERE owner_id > 0",
        )
    ],
    "timer_failed_for_a_reason": ["UPDATE dispatch_timer SET failed_at = created_at"],
    "timer_principal_url": [
        "UPDATE dispatch_timer SET principal = 'user:alice' WHERE owner_id > 0"
    ],
    # claims
    "dead_letter_once": [lambda: copied("claims_deadletter", "attempts > 0")],
    "claim_identity": [
        lambda: copied(
            "claims_consumerclaim",
            "status = 'active'",
            status="'released'",
            ended_at="claimed_at",
            write_token_hash="''",
        ),
    ],
    "claim_one_active": [
        lambda: copied("claims_consumerclaim", "status = 'active'", epoch="epoch + 1"),
    ],
    "claim_epoch_from_1": ["UPDATE claims_consumerclaim SET epoch = 0"],
    "state_woken_or_claimed": [
        "UPDATE dispatch_dispatchstate SET active_epoch = generation WHERE outstanding_wake_id > 0"
    ],
    "state_claim_of_a_wake": [
        "UPDATE dispatch_dispatchstate SET active_epoch = generation + 1 WHERE active_epoch > 0",
        "UPDATE dispatch_dispatchstate SET ended = 'killed' WHERE active_epoch > 0",
    ],
    "claim_active_has_lease": ["UPDATE claims_consumerclaim SET lease_expires_at = NULL"],
    "claim_ended_iff_terminal": [
        "UPDATE claims_consumerclaim SET ended_at = claimed_at",
        "UPDATE claims_consumerclaim SET status = 'released', write_token_hash = ''",
        "UPDATE claims_consumerclaim SET status = 'expired', write_token_hash = ''",
    ],
    "claim_ends_after_it_began": [
        """
        UPDATE claims_consumerclaim
        SET status = 'released', write_token_hash = '', ended_at = '2020-01-01 00:00:00+00:00'
        """
    ],
    "claim_write_token_dies": [
        "UPDATE claims_consumerclaim SET status = 'released', ended_at = claimed_at"
    ],
    "claim_active_has_entity": ["UPDATE claims_consumerclaim SET entity_id = NULL"],
    "server_pulse_one_row": ["UPDATE claims_serverpulse SET id = 2"],
}
UNIQUE = {
    "AccessToken.token_hash": lambda: copied("runners_accesstoken", "1 = 1"),
    "Entity.url": lambda: copied("dispatch_entity", "url = '/agent/claimed'"),
    "Wake.wake_id": lambda: copied(
        "dispatch_wake", MINE, generation="generation + 1", status="'withdrawn'"
    ),
}


@pytest.fixture
def rows(db: None) -> None:
    """A row of every table: among them a claimed and a woken entity."""
    runner = RunnerFactory.create()
    EntityTypeFactory.create(name="agent")
    claimed = EntityFactory.create(url="/agent/claimed", runner=runner, pending=True)
    StreamEvent.objects.filter(message_key__isnull=False).update(message_key="k")
    ConsumerClaimFactory.create(entity=claimed, write_token_hash="0" * 64)
    ProducerFactory.create(entity=claimed)
    DeliveryFactory.create(registration__subscriber=claimed)
    TimerFactory.create(target=claimed)
    TimerFactory.create(target=claimed, scheduled=True)
    woken = EntityFactory.create(url="/agent/woken", runner=runner, queued=True)
    TakenMessageFactory.create(entity=claimed)
    WakeFactory.create(entity=woken)
    SharedStateProducerFactory.create()
    AccessTokenFactory.create()
    DeadLetterFactory.create(entity=claimed)
    ServerPulseFactory.create()


def refused_by(sql: str) -> str:
    """What the database says when it refuses this; fails the test when it does not."""
    with (
        pytest.raises(IntegrityError) as refusal,
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(sql)
    return str(refusal.value)


def ours() -> list[type[models.Model]]:
    return [model for app in APPS for model in apps.get_app_config(app).get_models()]


def test_there_is_a_try_at_every_constraint():
    named = {constraint.name for model in ours() for constraint in model._meta.constraints}
    assert named == set(FORBIDDEN)
    unique = {
        f"{model.__name__}.{field.name}"
        for model in ours()
        for field in model._meta.local_concrete_fields
        if field.unique and not field.primary_key and not field.is_relation
    }
    assert unique == set(UNIQUE)


@pytest.mark.parametrize(
    ("name", "sql"), [(name, sql) for name, tries in FORBIDDEN.items() for sql in tries]
)
def test_the_database_refuses(rows, name, sql):
    said = refused_by(sql if isinstance(sql, str) else sql())
    constraint = next(
        each for model in ours() for each in model._meta.constraints if each.name == name
    )
    # SQLite names a check, but of a unique index only its columns.
    if connection.vendor == "postgresql" or isinstance(constraint, models.CheckConstraint):
        assert name in said
    else:
        assert "UNIQUE constraint failed" in said
        assert (
            all(f".{field}" in said for field in getattr(constraint, "fields", ()))
            or f"'{name}'" in said
        )


@pytest.mark.parametrize("name", UNIQUE)
def test_the_database_refuses_it_twice(rows, name):
    assert name.partition(".")[2] in refused_by(UNIQUE[name]())


def test_a_foreign_key_leads_somewhere(rows):
    with connection.cursor() as cursor:
        cursor.execute("UPDATE dispatch_dispatchstate SET runner_id = 'nobody'")
    with pytest.raises(IntegrityError):
        connection.check_constraints()
    transaction.set_rollback(True)
