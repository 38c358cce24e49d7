"""Rows by the hundred thousand, straight into the tables: what a benchmark starts from.

Only PostgreSQL. Tokens are known: entity ``/bench/<name>`` is claimed with ``pwc_<name>`` and
written with ``pww_<name>``.
"""

from typing import Any, Literal

import psycopg
from psycopg.sql import SQL, Identifier

OWNER = "/principal/user%3Abench"

Stage = Literal["idle", "pending", "claimed"]

_RUNNERS = """
    INSERT INTO runners_runner
        (id, owner_principal, label, kind, admin_status, sandbox_profiles, claim_lease_ms)
    SELECT %(prefix)s || n, %(owner)s, 'bench', 'server', 'enabled', '[]', 600000
    FROM generate_series(0, %(count)s - 1) n;
    INSERT INTO runners_runnerliveness (runner_id)
    SELECT %(prefix)s || n FROM generate_series(0, %(count)s - 1) n;
    INSERT INTO runners_wakestream (runner_id, tail)
    SELECT %(prefix)s || n, 0 FROM generate_series(0, %(count)s - 1) n;
    INSERT INTO runners_change
        (kind, key, transaction, owner, other_owner, type, registration, told, retagged, gone,
         departed)
    SELECT 'runner', %(prefix)s || n, pg_current_xact_id()::text::bigint, %(owner)s, '', '', '',
           'offline degraded', 0, false, false
    FROM generate_series(0, %(count)s - 1) n;
"""

# An entity's generations are its past claims, each released, and then the wake that is at stage.
_ENTITIES = """
    CREATE TEMPORARY TABLE seeding ON COMMIT DROP AS
        SELECT n, '/bench/' || %(prefix)s || n AS url, %(prefix)s || n AS name,
               %(runner)s || n %% %(runners)s AS runner_id
        FROM generate_series(0, %(count)s - 1) n;

    INSERT INTO dispatch_entity
        (type, url, subscription_key, tags, spawn_args, sandbox, parent, created_by)
    SELECT 'bench', url, left(encode(sha256(url::bytea), 'hex'), 16), '{}', '{}', NULL, '',
           %(owner)s
    FROM seeding ORDER BY n;

    CREATE TEMPORARY TABLE seeded ON COMMIT DROP AS
        SELECT seeding.*, entity.id AS entity_id
        FROM seeding JOIN dispatch_entity entity USING (url);
    ANALYZE seeded;

    INSERT INTO dispatch_streamevent (entity_id, "offset", message_key, work, data)
    SELECT entity_id, place, NULL, true,
           '{"type":"inbox","key":"msg","value":{"from":"/principal/user%%3Abench","payload":'
           || '"seeded","timestamp":"2026-01-01T00:00:00.000Z","mode":"immediate"},'
           || '"headers":{"operation":"insert","txid":"0","offset":"0000000000000000_'
           || lpad(place::text, 16, '0') || '"}}'
    FROM generate_series(1, %(events)s) place CROSS JOIN seeded ORDER BY place, entity_id;

    INSERT INTO dispatch_wake
        (wake_id, entity_id, generation, runner_id, status, "offset", emissions)
    SELECT 'w_' || left(md5(url || generation), 24), entity_id, generation, runner_id,
           CASE WHEN generation > %(past)s AND %(stage)s = 'pending'
                THEN 'outstanding' ELSE 'claimed' END,
           stream.tail + row_number() OVER (PARTITION BY runner_id ORDER BY generation, n), 1
    FROM generate_series(1, %(past)s + (%(stage)s <> 'idle')::int) generation
    CROSS JOIN seeded JOIN runners_wakestream stream USING (runner_id)
    ORDER BY generation, n;

    UPDATE runners_wakestream stream SET tail = newest
    FROM (SELECT runner_id, max("offset") AS newest FROM dispatch_wake
          WHERE runner_id LIKE %(runner)s || '%%' GROUP BY runner_id) wake
    WHERE wake.runner_id = stream.runner_id;

    INSERT INTO claims_consumerclaim
        (consumer_id, epoch, entity_id, entity_url, runner_id, runner_name, status, claimed_at,
         lease, lease_expires_at, ended_at, delivered_offset, acked_streams, error,
         claim_token_hash, write_token_hash)
    SELECT 'w_' || left(md5(url || generation), 24), generation, entity_id, url, runner_id,
           runner_id, CASE WHEN active THEN 'active' ELSE 'released' END,
           now() - interval '1 day', interval '10 minutes', now() + interval '1 hour',
           CASE WHEN active THEN NULL ELSE now() END, %(events)s, '[]', '',
           encode(sha256(('pwc_' || name)::bytea), 'hex'),
           CASE WHEN active THEN encode(sha256(('pww_' || name)::bytea), 'hex') ELSE '' END
    FROM generate_series(1, %(past)s + (%(stage)s = 'claimed')::int) generation
    CROSS JOIN seeded CROSS JOIN LATERAL (SELECT generation > %(past)s AS active) whether
    ORDER BY generation, n;

    INSERT INTO dispatch_dispatchstate
        (entity_id, runner_id, generation, tail, cursor, last_work_offset, outstanding_wake_id,
         active_epoch, given_offset, claimed_tail, paused, stop_requested, ended, failures)
    SELECT seeded.entity_id, seeded.runner_id, %(past)s + (%(stage)s <> 'idle')::int, %(events)s,
           %(events)s - (%(stage)s <> 'idle')::int, %(events)s, wake.id,
           CASE WHEN %(stage)s = 'claimed' THEN %(past)s + 1 END,
           CASE WHEN %(stage)s = 'claimed' THEN %(events)s END,
           CASE WHEN %(stage)s = 'claimed' THEN %(events)s ELSE 0 END, false, false, '', 0
    FROM seeded LEFT JOIN dispatch_wake wake
        ON wake.entity_id = seeded.entity_id AND wake.status = 'outstanding'
    ORDER BY n;

    INSERT INTO runners_change
        (kind, key, transaction, owner, other_owner, type, registration, told, retagged, gone,
         departed)
    SELECT 'entity', url, pg_current_xact_id()::text::bigint, %(owner)s, '', 'bench', '', '', 0,
           false, false
    FROM seeded ORDER BY n;
"""


def runners(connection: "psycopg.Connection[Any]", prefix: str, count: int) -> None:
    """Make runners ``<prefix>0``, ``<prefix>1`` …, none of which has sent a heartbeat."""
    _execute(connection, _RUNNERS, prefix=prefix, count=count, owner=OWNER)


def entities(
    connection: "psycopg.Connection[Any]",
    prefix: str,
    count: int,
    stage: Stage,
    *,
    runner: str,
    runners: int,
    events: int = 2,
    past: int = 0,
) -> None:
    """Make entities ``/bench/<prefix>0`` and on, for runners ``<runner>0`` and on in turn.

    ``events`` in the stream of each, ``past`` claims that were released; and unless idle, a wake
    that waits, or an active claim, for the newest event.
    """
    _execute(
        connection,
        _ENTITIES,
        prefix=prefix,
        count=count,
        stage=stage,
        runner=runner,
        runners=runners,
        events=events,
        past=past,
        owner=OWNER,
    )


def settle(connection: "psycopg.Connection[Any]") -> None:
    """Update statistics and the visibility map, as autovacuum would later.

    It leaves alone what is empty: what it has vacuumed so PostgreSQL plans to read whole.
    """
    names = [name for (name,) in connection.execute("SELECT relname FROM pg_stat_user_tables")]
    for name in names:
        table = Identifier(name)
        ((filled,),) = connection.execute(SQL("SELECT EXISTS (SELECT FROM {})").format(table))
        if filled:
            connection.execute(SQL("VACUUM ANALYZE {}").format(table))
    connection.execute("CHECKPOINT")


def _execute(connection: "psycopg.Connection[Any]", sql: str, **params: Any) -> None:
    with connection.transaction(), psycopg.ClientCursor(connection) as cursor:
        cursor.execute(sql, params)
