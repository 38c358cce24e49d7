"""``manage.py generate_load_data``: fill an empty PostgreSQL, to try pages and query plans."""

import time
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection, transaction

from claims import reaper, tallies
from claims.management.commands.expire_claims import positive_int
from dispatch.models import Entity
from runners.models import Runner

# Each entity has the same number of events, and of wakes with a claim each. The rest is decided
# by remainders of the entity's number, so that the same arguments give the same data.
STEPS = {
    "entities planned": """
        CREATE TEMP TABLE planned ON COMMIT DROP AS
        SELECT *,
            failing OR stranded OR active OR waiting AS pending,
            '/' || type || '/' || lpad(i::text, 6, '0') AS url
        FROM (SELECT *,
            i %% 33 = 0 AND NOT (ended OR stranded OR failing) AS active,
            i %% 37 = 0 AND i %% 33 > 0 AND NOT (ended OR stranded OR failing OR paused) AS waiting
        FROM (SELECT i, i %% 53 = 0 AS ended,
            i %% 211 = 0 AND i %% 53 > 0 AS paused,
            i %% 997 = 0 AND i %% 53 > 0 AND i %% 211 > 0 AS stranded,
            i %% 991 = 0 AND i %% 53 > 0 AND i %% 211 > 0 AND i %% 997 > 0 AS failing,
            (ARRAY['agent', 'session', 'job', 'review'])[1 + i %% 4] AS type,
            'runner-' || lpad((1 + i %% %(runners)s)::text, 5, '0') AS runner_id
        FROM generate_series(1, %(entities)s) AS i) AS a) AS b
    """,
    "runners": """
        INSERT INTO runners_runner (id, owner_principal, label, kind, admin_status,
            sandbox_profiles, max_concurrent_claims, claim_lease_ms, created_at, updated_at)
        SELECT 'runner-' || lpad(i::text, 5, '0'), '/principal/user%%3Aowner-' || i %% 100,
            (ARRAY['Berlin', 'Dublin', 'Osaka', 'Austin'])[1 + i %% 4] || ' ' || i,
            (ARRAY['local', 'cloud-worker', 'sandbox', 'ci', 'server'])[1 + i %% 5],
            CASE WHEN i %% 71 = 0 THEN 'disabled' ELSE 'enabled' END, '[]',
            CASE WHEN i %% 3 = 0 THEN 20 END, 30000,
            now() - interval '40 days', now() - interval '2 hours' * (i %% 50)
        FROM generate_series(1, %(runners)s) AS i
    """,
    "liveness": """
        INSERT INTO runners_runnerliveness (runner_id, last_seen_at, lease_expires_at,
            wake_stream_offset, diagnostics)
        SELECT id, seen, seen + CASE WHEN i %% 61 = 0 THEN interval '90 seconds'
                ELSE interval '1 day' END, '-1', CASE WHEN seen IS NOT NULL THEN
            jsonb_build_object('status', 'streaming', 'stream_connected', i %% 83 > 0,
                'last_heartbeat_ok', i %% 97 > 0, 'last_claim_result', 'claimed',
                'started_at', '2026-11-01T08:00:00.000Z', 'last_heartbeat_at', seen,
                'last_error', CASE WHEN i %% 83 = 0 THEN 'connection reset by peer' END,
                'reconnect_count', CASE WHEN i %% 89 = 0 THEN 12 ELSE i %% 4 END,
                'events_received', 1000 + i, 'claims_succeeded', 900 + i,
                'claims_skipped', i %% 10, 'claims_failed', i %% 5) END
        FROM (SELECT r.id, right(r.id, 5)::int AS i, CASE
                WHEN right(r.id, 5)::int %% 131 = 0 THEN NULL
                WHEN right(r.id, 5)::int %% 61 = 0 THEN now() - interval '7 minutes'
                ELSE now() - interval '1 second' * (right(r.id, 5)::int %% 30) END AS seen
              FROM runners_runner r) AS r
    """,
    "wake streams": """
        INSERT INTO runners_wakestream (runner_id, tail) SELECT id, 1000000 FROM runners_runner
    """,
    "entity types": """
        INSERT INTO dispatch_entitytype (name, description, registered_by, permission_grants,
            revision, created_at, updated_at)
        SELECT name, 'Made for trials', '/principal/user%%3Aowner-1', '[]', 1, now(), now()
        FROM unnest(ARRAY['agent', 'session', 'job', 'review']) AS name
    """,
    "entities": """
        INSERT INTO dispatch_entity (id, type, url, subscription_key, tags, spawn_args, sandbox,
            parent, created_by, created_at, updated_at)
        SELECT i, type, url, left(encode(sha256(url::bytea), 'hex'), 16), '{}', '{}', NULL, '',
            '/principal/user%%3Aowner-' || i %% 100, now() - interval '40 days', now()
        FROM planned
    """,
    "events": """
        INSERT INTO dispatch_streamevent (entity_id, "offset", work, data, created_at)
        SELECT i, o, o > 1 AND (o > %(per_entity)s - 2 OR o %% 5 = 0), CASE
            WHEN o = 1 THEN '{"type":"entity_created","key":"entity-created","value":{}}'
            WHEN o > %(per_entity)s - 2 OR o %% 5 = 0 THEN
                '{"type":"inbox","key":"m' || o || '","value":{"from":'
                '"/principal/user%%3Aowner-1","payload":"Do it","mode":"immediate"},'
                '"headers":{"operation":"insert"}}'
            ELSE '{"type":"text","key":"t' || o || '","value":"' || repeat('working ', 8) || '"}'
            END, now() - interval '1 minute' * ((%(per_entity)s - o) * 60 + i %% 45 + 1)
        FROM generate_series(1, %(per_entity)s) AS o, planned
    """,
    "wakes": """
        INSERT INTO dispatch_wake (id, wake_id, entity_id, generation, runner_id, status, "offset",
            created_at, emitted_at, emissions)
        SELECT id, 'w_' || left(md5(i || '.' || g), 24), i, g, runner_id, 'claimed', id, at, at,
            1 + (i %% 50 = 0)::int
        FROM generate_series(1, %(claims_each)s) AS g, planned
        CROSS JOIN LATERAL (SELECT (g - 1) * %(entities)s + i) AS n(id)
        CROSS JOIN LATERAL (SELECT now() - interval '40 seconds' - interval '30 days'
            * (1 - id::float / (%(claims_each)s * %(entities)s))) AS w(at)
        ORDER BY id
    """,
    "claims": """
        INSERT INTO claims_consumerclaim (id, consumer_id, epoch, entity_id, entity_url, runner_id,
            runner_name, status, claimed_at, last_heartbeat_at, lease, lease_expires_at, ended_at,
            delivered_offset, acked_streams, error, claim_token_hash, write_token_hash)
        SELECT w.id, w.wake_id, w.generation, w.entity_id, url, w.runner_id, w.runner_id,
            became, at, beat, interval '30 seconds',
            -- Nobody renews the active ones, which are to last while they are looked at.
            beat + CASE WHEN became = 'active' THEN interval '1 day' ELSE interval '30 seconds' END,
            CASE WHEN became <> 'active' THEN at + interval '1 second' * (2 + w.id %% 35) END,
            %(per_entity)s - 2, '[]',
            CASE WHEN became = 'failed' THEN 'The tool answered 500' ELSE '' END,
            md5(w.wake_id), ''
        FROM dispatch_wake w JOIN planned ON i = w.entity_id
        JOIN runners_runnerliveness l ON l.runner_id = w.runner_id
        CROSS JOIN LATERAL (SELECT CASE
            WHEN w.generation = %(claims_each)s AND active THEN 'active'
            WHEN w.generation = %(claims_each)s AND failing THEN 'failed'
            WHEN w.id %% 100 < 93 THEN 'released' WHEN w.id %% 100 < 96 THEN 'failed'
            WHEN w.id %% 100 < 99 THEN 'expired' ELSE 'fenced' END) AS s(became)
        CROSS JOIN LATERAL (SELECT
            CASE WHEN became = 'active' THEN now() - interval '9 minutes'
                 ELSE w.created_at + interval '1 millisecond' * (20 + (w.id * 7919) %% 900) END,
            CASE WHEN became <> 'active' THEN w.created_at + interval '2 seconds'
                 ELSE coalesce(l.last_seen_at, now()) - interval '1 second' * (w.id %% 15) END
            ) AS t(at, beat)
        ORDER BY w.id
    """,
    "unclaimed wakes": """
        INSERT INTO dispatch_wake (id, wake_id, entity_id, generation, runner_id, status, "offset",
            created_at, emitted_at, emissions)
        SELECT %(claims_each)s * %(entities)s + i, 'w_' || left(md5('u' || i), 24), i,
            %(claims_each)s + 1, runner_id, 'outstanding', 1000000 - i,
            now() - interval '1 second' * (i %% 170), now() - interval '1 second' * (i %% 50),
            1 + (i %% 170) / 60
        FROM planned WHERE waiting ORDER BY i
    """,
    "dispatch states": """
        INSERT INTO dispatch_dispatchstate (entity_id, runner_id, generation, tail, cursor,
            last_work_offset, outstanding_wake_id, paused, stop_requested, ended, failures,
            retry_at, last_wake_at, last_claimed_at, last_released_at)
        SELECT i, CASE WHEN NOT stranded THEN p.runner_id END,
            %(claims_each)s + waiting::int, %(per_entity)s,
            %(per_entity)s - 2 * pending::int, %(per_entity)s, w.id, paused, false,
            CASE WHEN NOT ended THEN '' WHEN i %% 2 = 0 THEN 'stopped' ELSE 'killed' END,
            CASE WHEN failing THEN 3 + i %% 5 ELSE 0 END,
            CASE WHEN failing THEN now() + interval '20 minutes' END,
            now() - interval '9 minutes', now() - interval '9 minutes', now() - interval '1 hour'
        FROM planned p LEFT JOIN dispatch_wake w
            ON w.id = %(claims_each)s * %(entities)s + i AND w.status = 'outstanding'
    """,
    "changes": """
        INSERT INTO runners_change (kind, key, transaction, owner, other_owner, type, registration,
            told, retagged, gone, departed)
        SELECT 'runner', id, 0, owner_principal, '', '', '', '', 0, FALSE, FALSE
        FROM runners_runner
        UNION ALL
        SELECT 'entity', url, 0, created_by, '', type, '', '', 0, FALSE, FALSE
        FROM dispatch_entity
    """,
    "sequences": """
        SELECT setval(pg_get_serial_sequence('dispatch_entity', 'id'), %(entities)s),
            setval(pg_get_serial_sequence('dispatch_wake', 'id'), max(w.id)),
            setval(pg_get_serial_sequence('claims_consumerclaim', 'id'), max(w.id))
        FROM dispatch_wake w
    """,
}


class Command(BaseCommand):
    """Make runners, entities, events, wakes and claims in bulk."""

    help = (
        "Fill an empty PostgreSQL with runners, entities, events, wakes and claims, as they are "
        "after a month of work, to try pages and plans on. In development mode only."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """How many of each."""
        for name, number in (
            ("runners", 10_000),
            ("entities", 100_000),
            ("claims", 1_000_000),
            ("events", 2_000_000),
        ):
            parser.add_argument(f"--{name}", type=positive_int, default=number)

    def handle(self, *args: Any, **options: Any) -> None:
        """Fill the tables, each in one statement."""
        if not settings.DEVELOPMENT:
            raise CommandError("Made-up data is for development mode: set PULLWAKE_MODE.")
        if connection.vendor != "postgresql":
            raise CommandError("This needs PostgreSQL: set DATABASE_URL.")
        if Runner.objects.exists() or Entity.objects.exists():
            raise CommandError("The database is not empty.")
        numbers = {
            "runners": options["runners"],
            "entities": options["entities"],
            "claims_each": max(options["claims"] // options["entities"], 1),
            "per_entity": max(options["events"] // options["entities"], 4),
        }
        with transaction.atomic(), connection.cursor() as cursor:
            for name, statement in STEPS.items():
                began = time.monotonic()
                cursor.execute(statement, numbers)
                took = time.monotonic() - began
                self.stdout.write(f"{name}: {cursor.rowcount} in {took:.1f} s")
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")
        reaper.pulse()
        while tallies.catch_up():
            pass
