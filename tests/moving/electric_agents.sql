-- The existing server's database, as its last published schema has it, and some of what it may hold.
CREATE TABLE runners (
    tenant_id text NOT NULL DEFAULT 'default', id text NOT NULL, owner_principal text NOT NULL, label text,
    kind text, admin_status text, wake_stream text, sandbox_profiles jsonb DEFAULT '[]',
    created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now(), PRIMARY KEY (tenant_id, id));
CREATE TABLE runner_runtime_diagnostics (
    tenant_id text NOT NULL DEFAULT 'default', runner_id text NOT NULL, owner_principal text,
    wake_stream_offset text, last_seen_at timestamptz, liveness_lease_expires_at timestamptz,
    diagnostics jsonb, updated_at timestamptz, PRIMARY KEY (tenant_id, runner_id));
CREATE TABLE consumer_claims (
    tenant_id text NOT NULL DEFAULT 'default', consumer_id text NOT NULL, epoch integer NOT NULL,
    wake_id text, entity_url text, stream_path text, runner_id text, status text, claimed_at timestamptz,
    last_heartbeat_at timestamptz, lease_expires_at timestamptz, released_at timestamptz,
    acked_streams jsonb DEFAULT '[]', updated_at timestamptz, PRIMARY KEY (tenant_id, consumer_id, epoch));
CREATE TABLE entity_dispatch_state (
    tenant_id text NOT NULL DEFAULT 'default', entity_url text NOT NULL, pending_source_streams jsonb,
    pending_reason text, pending_since timestamptz, outstanding_wake_id text, outstanding_wake_target jsonb,
    outstanding_wake_created_at timestamptz, active_consumer_id text, active_runner_id text,
    active_epoch integer, active_claimed_at timestamptz, active_lease_expires_at timestamptz,
    last_wake_id text, last_claimed_at timestamptz, last_released_at timestamptz,
    last_completed_at timestamptz, last_error text, updated_at timestamptz, PRIMARY KEY (tenant_id, entity_url));
CREATE TABLE entities (
    tenant_id text NOT NULL DEFAULT 'default', url text NOT NULL, type text NOT NULL, status text NOT NULL,
    subscription_id text, write_token text, spawn_args jsonb DEFAULT '{}', parent text, type_revision integer,
    inbox_schemas jsonb, state_schemas jsonb, metadata_schema jsonb, created_at bigint NOT NULL,
    updated_at bigint NOT NULL, tags jsonb DEFAULT '{}', tags_index text[], dispatch_policy jsonb,
    created_by text, sandbox jsonb, PRIMARY KEY (tenant_id, url));
CREATE TABLE entity_types (
    tenant_id text NOT NULL DEFAULT 'default', name text NOT NULL, description text, creation_schema jsonb,
    inbox_schemas jsonb, state_schemas jsonb, metadata_schema jsonb, serve_endpoint text,
    revision integer DEFAULT 1, created_at text, updated_at text, default_dispatch_policy jsonb,
    slash_commands jsonb, externally_writable_collections jsonb, PRIMARY KEY (tenant_id, name));
CREATE TABLE entity_type_permission_grants (
    tenant_id text NOT NULL DEFAULT 'default', id serial, entity_type text, subject_kind text,
    subject_value text, permission text, expires_at timestamptz, PRIMARY KEY (tenant_id, id));
CREATE TABLE entity_permission_grants (
    tenant_id text NOT NULL DEFAULT 'default', id serial, entity_url text, subject_kind text,
    subject_value text, permission text, PRIMARY KEY (tenant_id, id));
CREATE TABLE scheduled_tasks (
    tenant_id text NOT NULL DEFAULT 'default', id bigserial, kind text, payload jsonb, fire_at timestamptz,
    owner_entity_url text, manifest_key text, completed_at timestamptz, PRIMARY KEY (tenant_id, id));
CREATE TABLE wake_registrations (
    tenant_id text NOT NULL DEFAULT 'default', id serial, subscriber_url text, source_url text, condition jsonb,
    debounce_ms integer, timeout_ms integer, include_response boolean, manifest_key text,
    PRIMARY KEY (tenant_id, id));
CREATE TABLE users (tenant_id text NOT NULL DEFAULT 'default', id text, display_name text, PRIMARY KEY (tenant_id, id));
CREATE TABLE shared_state_links (
    tenant_id text NOT NULL DEFAULT 'default', id serial, entity_url text, shared_state_id text,
    PRIMARY KEY (tenant_id, id));

INSERT INTO runners (id, owner_principal, label, kind, admin_status, wake_stream, sandbox_profiles) VALUES
    ('desk', '/principal/user%3Aalice', 'Desk', 'local', 'enabled', '/runners/desk/wake',
     '[{"name": "docker", "label": "Docker"}]'),
    ('shed', '/principal/user%3Abob', 'Shed', 'server', 'disabled', '/old/shed', '[]'),
    ('bad id', '/principal/user%3Abob', 'Bad', 'local', 'enabled', NULL, '[]'),
    ('nobodys', '/principal/nobody', 'Nobody''s', 'local', 'enabled', NULL, '[]');
INSERT INTO runners (tenant_id, id, owner_principal, label, kind, admin_status) VALUES
    ('other', 'theirs', '/principal/user%3Aeve', 'Theirs', 'local', 'enabled');
INSERT INTO runner_runtime_diagnostics (runner_id, wake_stream_offset, last_seen_at, liveness_lease_expires_at, diagnostics)
    VALUES ('desk', '0000000000000000_0000000000004711', now(), now() + interval '90 seconds',
            '{"status": "streaming", "reconnect_count": 3, "mood": "fine"}');

INSERT INTO entity_types (name, description, creation_schema, inbox_schemas, state_schemas, revision,
                          created_at, default_dispatch_policy, slash_commands) VALUES
    ('chat', 'Talks', '{"type": "object"}', '{"ask": {"type": "object"}, "odd": {"type": "nonsense"}}',
     '{"person": {"pattern": "^(?!\\.)b"}, "odd": {"type": "nonsense"}}', 4,
     '2026-05-19T11:01:11.631Z', '{"targets": [{"type": "runner", "runnerId": "desk"}]}', '[{"name": "reset"}]'),
    ('hook', 'Was called', NULL, NULL, NULL, 1, '2026-05-19T11:01:11.631Z',
     '{"targets": [{"type": "webhook", "url": "https://hook.example"}]}', NULL),
    ('principal', 'Its own', NULL, NULL, NULL, 1, NULL, NULL, NULL);
INSERT INTO entity_type_permission_grants (entity_type, subject_kind, subject_value, permission, expires_at) VALUES
    ('chat', 'principal', 'user:bob', 'spawn', NULL),
    ('chat', 'principal', 'user:carol', 'spawn', now() + interval '1 day'),
    ('chat', 'group', 'staff', 'spawn', NULL);

-- In this order a child comes before its parent: both were made in one millisecond.
INSERT INTO entities (url, type, status, spawn_args, parent, created_at, updated_at, tags, dispatch_policy, created_by, sandbox) VALUES
    ('/chat/a-child', 'chat', 'idle', '{}', '/chat/boss', 1779188471631, 1779188471631, '{}',
     '{"targets": [{"type": "runner", "runnerId": "desk"}]}', '/principal/user%3Aalice', NULL),
    ('/chat/boss', 'chat', 'running', '{"goal": 1}', NULL, 1779188471631, 1779188471700, '{"team": "red"}',
     '{"targets": [{"type": "runner", "runnerId": "desk"}]}', '/principal/user%3Aalice', '{"profile": "docker"}'),
    ('/chat/quiet', 'chat', 'idle', '{}', NULL, 1779188471632, 1779188471632, '{}',
     '{"targets": [{"type": "runner", "runnerId": "desk"}]}', NULL, NULL),
    ('/chat/asleep', 'chat', 'paused', '{}', NULL, 1779188471633, 1779188471633, '{}',
     '{"targets": [{"type": "runner", "runnerId": "desk"}]}', '/principal/user%3Aalice', NULL),
    ('/chat/leaving', 'chat', 'stopping', '{}', NULL, 1779188471634, 1779188471634, '{}',
     '{"targets": [{"type": "runner", "runnerId": "desk"}]}', '/principal/user%3Aalice', NULL),
    ('/chat/dead', 'chat', 'killed', '{}', NULL, 1779188471635, 1779188471635, '{}',
     '{"targets": [{"type": "runner", "runnerId": "desk"}]}', '/principal/user%3Aalice', NULL),
    ('/hook/h', 'hook', 'idle', '{}', NULL, 1779188471636, 1779188471636, '{}',
     '{"targets": [{"type": "webhook", "url": "https://hook.example"}]}', '/principal/user%3Abob', NULL),
    ('/chat/lost', 'chat', 'idle', '{}', NULL, 1779188471637, 1779188471637, '{}',
     '{"targets": [{"type": "runner", "runnerId": "nobodys"}]}', '/principal/user%3Abob', NULL),
    ('/chat/orphan', 'chat', 'idle', '{}', NULL, 1779188471638, 1779188471638, '{}', NULL, NULL, NULL),
    ('/chat/tagged', 'chat', 'idle', '{}', NULL, 1779188471639, 1779188471639, '{"n": 1}', NULL, 'user:bob', NULL),
    ('/principal/user%3Aalice', 'principal', 'idle', '{}', NULL, 1779188471600, 1779188471600, '{}', NULL, NULL, NULL);
INSERT INTO entities (tenant_id, url, type, status, created_at, updated_at) VALUES ('other', '/chat/x', 'chat', 'idle', 1, 1);

INSERT INTO consumer_claims (consumer_id, epoch, entity_url, stream_path, runner_id, status, claimed_at,
                             last_heartbeat_at, lease_expires_at, released_at, acked_streams, updated_at) VALUES
    ('w_000000000000000000000001', 6, '/chat/boss', '/chat/boss/main', 'desk', 'released', now() - interval '2 hours',
     NULL, now() - interval '1 hour', now() - interval '1 hour',
     '[{"path": "/chat/boss/main", "offset": "0000000000000000_0000000000000200"}]', now() - interval '1 hour'),
    ('w_000000000000000000000002', 7, '/chat/boss', '/chat/boss/main', 'desk', 'active', now() - interval '1 minute',
     now(), now() + interval '30 seconds', NULL, '[]', now()),
    ('w_000000000000000000000003', 1, '/chat/asleep', '/chat/asleep/main', 'gone', 'failed', now() - interval '1 hour',
     NULL, NULL, NULL, '[]', now() - interval '50 minutes'),
    ('w_000000000000000000000004', 1, '/chat/quiet', '/chat/quiet/main', 'desk', 'released', now() - interval '400 days',
     NULL, NULL, now() - interval '399 days', '[]', now() - interval '399 days'),
    ('w_000000000000000000000005', 1, '/principal/user%3Aalice', '', 'desk', 'expired', now(), NULL, NULL, NULL, '[]', now());
INSERT INTO entity_dispatch_state (entity_url, pending_source_streams, pending_since, outstanding_wake_id,
                                   active_consumer_id, active_epoch) VALUES
    ('/chat/boss', NULL, NULL, NULL, 'w_000000000000000000000002', 7),
    ('/chat/a-child', '["/chat/a-child/main"]', now(), NULL, NULL, NULL),
    ('/chat/asleep', '["/chat/asleep/main"]', now(), NULL, NULL, NULL),
    ('/chat/lost', NULL, NULL, 'w_00000000000000000000000a', NULL, NULL),
    ('/chat/dead', '["/chat/dead/main"]', now(), NULL, NULL, NULL),
    ('/chat/quiet', '[]', NULL, NULL, NULL, NULL);

INSERT INTO scheduled_tasks (kind, payload, fire_at, owner_entity_url, manifest_key, completed_at) VALUES
    ('delayed_send', '{"entityUrl": "/chat/quiet", "from": "/principal/user%3Aalice", "payload": "later"}',
     now() + interval '1 day', NULL, NULL, NULL),
    ('delayed_send', '{"entityUrl": "/chat/quiet", "payload": {"n": 1}, "messageType": "ask"}',
     now() + interval '2 days', '/chat/boss', 'schedule:nightly', NULL),
    ('delayed_send', '{"entityUrl": "/chat/quiet", "payload": "sent"}', now() - interval '1 day', NULL, NULL, now()),
    ('cron_tick', '{}', now() + interval '1 hour', NULL, NULL, NULL),
    ('delayed_send', '{"entityUrl": "/chat/dead", "payload": "too late"}', now() + interval '1 day', NULL, NULL, NULL);
INSERT INTO wake_registrations (subscriber_url, source_url, condition, debounce_ms, include_response, manifest_key) VALUES
    ('/chat/boss', '/chat/a-child', '"runFinished"', NULL, true, 'child:chat:a-child'),
    ('/chat/quiet', '/_cron/eyJleHByZXNzaW9uIjoiMCA5ICogKiAqIiwidGltZXpvbmUiOiJVVEMifQ', '{"on": "change"}', NULL, NULL, NULL),
    ('/chat/quiet', '/_entities/abc', '{"on": "change"}', NULL, NULL, NULL),
    ('/chat/dead', '/chat/boss', '"runFinished"', NULL, NULL, NULL);
INSERT INTO users (id, display_name) VALUES ('alice', 'Alice'), ('bob', 'Bob');
INSERT INTO shared_state_links (entity_url, shared_state_id) VALUES ('/chat/boss', 'board');
INSERT INTO entity_permission_grants (entity_url, subject_kind, subject_value, permission) VALUES
    ('/chat/boss', 'principal', 'user:bob', 'read');
