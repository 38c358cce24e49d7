"""Descriptions of parameters and headers for the OpenAPI schema, and an example of each body."""

import json
from typing import Any

from api.http_errors import STATUSES
from core.bodies import JsonObject

CODES = frozenset(each.code for each in STATUSES)
"""Every code that an error may have; docs/api.md says what a client does on each."""

_ID = "0000000000000000_0000000000000002"

PARAMETERS: dict[str, tuple[str, Any]] = {
    # In addresses.
    "type_name": ("The name of the entity type.", "agent"),
    "name": ("The entity's id, which with its type's name is its URL.", "hello"),
    "runner_id": ("The runner's id.", "laptop"),
    "consumer_id": ("The claim's `consumerId`.", "w_3f0c9a7d51e84b6209ac17de"),
    "key": ("The key of the message, or of the tag.", "title"),
    "sid": ("The schedule's id, of the caller's choice.", "daily"),
    "shared_id": ("The shared state's id: 1 to 512 characters, slashes too.", "board"),
    # In queries.
    "limit": ("How many are answered at most: 1 to 1 000, and 1 000 unless said otherwise.", "100"),
    "before": (
        (
            "Those made before this one, a runner's id or an entity's URL. What `Link` has for the "
            "next page holds also where that one is deleted."
        ),
        "laptop",
    ),
    "after": ("Those whose name follows this one. `Link` has it for the next page.", "agent"),
    "owner_principal": ("The caller, as a key or URL; anybody else is refused.", "user:alice"),
    "type": ("Those of this type alone.", "agent"),
    "status": ("Those of this status alone.", "idle"),
    "parent": ("The children of this entity alone, by its URL.", "/agent/hello"),
    "tag": (
        "Those that have this tag: its name, or `name=value`. May be given again.",
        "title=Hello",
    ),
    "created_by": ("Those that this principal made, as a key or URL.", "user:alice"),
    "offset": (
        (
            "What follows this offset: of an event, or of `Stream-Next-Offset`. `-1` is all, and "
            "`now` nothing that is there."
        ),
        "-1",
    ),
    "live": (
        (
            "`long-poll` waits for what comes next, `sse` sends it as it comes; without it, what "
            "is there is answered. Both need an `offset`."
        ),
        "long-poll",
    ),
    "cursor": ("The last `Stream-Cursor`, so that caches tell long-polls apart.", "3379412"),
    # In headers.
    "Electric-Claim-Token": (
        "The claim's token, or its write token, instead of `Authorization`.",
        "gK3xv9tQb2LrWc71",
    ),
    "Electric-Owner-Entity": ("The URL of the entity that is to have it.", "/agent/hello"),
    "If-None-Match": ("An `ETag`: 304 where nothing changed since.", '"7b1c"'),
    "Producer-Id": (
        (
            "Who appends. With the next two, which come with it or not at all, an append that is "
            "sent again is made once."
        ),
        "laptop-1",
    ),
    "Producer-Epoch": (
        "One more with each start of the producer: those before it are fenced.",
        "1",
    ),
    "Producer-Seq": ("Of its appends in this epoch, counted from 0.", "0"),
    "Pullwake-Claim-Nonce": (
        (
            "A name of this request to claim or to mint, of at most 128 characters: sent again, it "
            "is answered with the claim, or the write token, that it made."
        ),
        "5f1c2a",
    ),
    "traceparent": (
        "Where in a trace the message is sent, as W3C has it: its claim tells the runner.",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
    "tracestate": ("W3C's, which goes with it.", "rojo=00f067aa0ba902b7"),
}
"""What each is, and an example."""

HEADERS = {
    "Link": 'Where the next page is, as `<URL>; rel="next"`; left out on the last.',
    "Retry-After": "Seconds until it may be tried again.",
    "X-Request-Id": "Names the request in the server's log, for whoever reports trouble.",
    "WWW-Authenticate": "Always `Bearer`.",
    "Stream-Next-Offset": "The offset to read on from; after an append also the one to ack.",
    "Stream-Up-To-Date": "`true` where the answer reaches the end of what there is.",
    "Stream-Cursor": "The `cursor` of the next long-poll.",
    "Stream-Earliest-Offset": (
        "Where the events before it were removed: what is left of the stream follows it."
    ),
    "Stream-Closed": "`true` at the end of a stream to which nothing will be added.",
    "ETag": "Names what was answered, for `If-None-Match`.",
    "Producer-Epoch": "The producer's epoch.",
    "Producer-Seq": "The number of the append that was made.",
    "Pullwake-Cursor": "The offset up to which the entity's stream was acked before.",
    "Pullwake-Tail": "The end of the entity's stream, which a done without acks acks.",
    "Pullwake-Other-Process": "`true` if another process of this runner's id is alive.",
}
"""Those of answers."""

_POLICY = {"targets": [{"type": "runner", "runnerId": "laptop"}]}
_TIME = "2026-05-19T11:01:11.631Z"
_LATER = "2026-05-19T11:01:41.631Z"
_EPOCH_MS = 1779188471631
_CLAIM = "w_3f0c9a7d51e84b6209ac17de"
_ALICE = "/principal/user%3Aalice"
_TXID = "0b7e6a52-6f0e-4c7d-9a55-2d6a3c1f8e10"
_PROFILE = {"name": "docker", "label": "Docker", "remote": False}
_COMMAND = {"name": "deploy", "arguments": [{"name": "where", "type": "string", "required": True}]}
_GRANT = {"subject_kind": "principal_kind", "subject_value": "service", "permission": "spawn"}
_RETENTION = {"events": 10_000, "days": 90}
_SCHEMA = {"type": "object", "required": ["text"]}
_WATCH = {
    "subscriberUrl": "/agent/hello",
    "condition": {"on": "change", "collections": ["runs"]},
    "debounceMs": 500,
}
_RUNNER = {
    "id": "laptop",
    "owner_principal": _ALICE,
    "label": "Alice's laptop",
    "kind": "local",
    "admin_status": "enabled",
    "wake_stream": "/runners/laptop/wake",
    "sandbox_profiles": [_PROFILE],
    "claim_lease_ms": 30000,
    "created_at": _TIME,
    "updated_at": _TIME,
}
_RUNNER_HEALTH = {
    "id": "laptop",
    "admin_status": "enabled",
    "liveness_status": "online",
    "lease_expires_at": _LATER,
    "lease_remaining_ms": 30000,
    "wake_stream": "/runners/laptop/wake",
    "wake_stream_offset": _ID,
    "last_seen_at": _TIME,
    "created_at": _TIME,
}
_ACTIVE = {
    "consumer_id": _CLAIM,
    "epoch": 7,
    "entity_url": "/agent/hello",
    "stream_path": "/agent/hello/main",
    "claimed_at": _TIME,
    "last_heartbeat_at": None,
    "lease_expires_at": _LATER,
}
_CLAIMED = {
    "type": "agent",
    "status": "idle",
    "url": "/agent/hello",
    "streams": {"main": "/agent/hello/main"},
    "tags": {"title": "Hello"},
    "spawnArgs": {},
    "sandbox": None,
    "createdBy": _ALICE,
}
_PRINCIPAL = {"url": _ALICE, "key": "user:alice", "kind": "user", "id": "alice"}
_PLACE = {"path": "/agent/hello/main", "offset": f"{_ID}_1"}
_ACK = {"path": "/agent/hello/main", "offset": _ID}
_COUNTS = {
    "entities_with_active_claim": 1,
    "entities_with_outstanding_wake": 0,
    "entities_with_pending_work": 0,
}
_VERDICT = {"status": "degraded", "issues": ["Client reports stream disconnected"]}
_FIELD = {"path": "/lease_ms", "message": "Expected `float` >= 1000.0"}
_FACTS = {"code": "INVALID_REQUEST", "message": "Not valid: /lease_ms.", "details": [_FIELD]}

_RUNNER_ROW = {
    **_RUNNER,
    "liveness_status": "online",
    "health_status": "healthy",
}
_CLAIM_ROW = {"consumer_id": _CLAIM, "epoch": 7, "runner_id": "laptop", "claimed_at": _EPOCH_MS}
_ENTITY_ROW = {
    "url": "/agent/hello",
    "type": "agent",
    "status": "running",
    "streams": {"main": "/agent/hello/main"},
    "tags": {"title": "Hello"},
    "pending": True,
    "failures": 0,
    "claim": _CLAIM_ROW,
    "created_by": _ALICE,
    "created_at": _EPOCH_MS,
    "updated_at": _EPOCH_MS,
}
_UPSERT = {"operation": "upsert"}

EXAMPLES: JsonObject = {
    "RunnerRow": _RUNNER_ROW,
    "RunnerEvent": {"headers": _UPSERT, "type": "runner", "key": "laptop", "value": _RUNNER_ROW},
    "ClaimRow": _CLAIM_ROW,
    "EntityRow": _ENTITY_ROW,
    "EntityEvent": {
        "headers": _UPSERT,
        "type": "entity",
        "key": "/agent/hello",
        "value": _ENTITY_ROW,
    },
    "StandingBody": {
        "reason": "runner_disabled",
        "message": "Its runner is disabled; enable it.",
        "since": _EPOCH_MS,
    },
    "ErrorDetail": _FIELD,
    "ErrorFacts": _FACTS,
    "ErrorBody": {"error": _FACTS},
    "Ok": {"status": "ok"},
    "Target": _POLICY["targets"][0],
    "DispatchPolicy": _POLICY,
    "SandboxProfile": _PROFILE,
    "Registration": {"id": "laptop", "label": "Alice's laptop", "max_concurrent_claims": 4},
    "RunnerBody": _RUNNER,
    "Heartbeat": {"lease_ms": 90000, "wake_stream_offset": _ID},
    "RunnerHealth": _RUNNER_HEALTH,
    "ActiveClaim": _ACTIVE,
    "ActiveClaims": {"active_count": 1, "active": [_ACTIVE]},
    "DispatchCounts": _COUNTS,
    "HealthVerdict": _VERDICT,
    "HealthReport": {
        "runner": _RUNNER_HEALTH,
        "client": {"stream_connected": False},
        "claims": {"active_count": 1, "active": [_ACTIVE]},
        "dispatch": _COUNTS,
        "health": _VERDICT,
    },
    "WakeEvent": {"subscription_id": "runner:laptop:9d5f0c1e7a3b2468"},
    "StreamPlace": _PLACE,
    "ClaimedEntity": _CLAIMED,
    "PrincipalBody": _PRINCIPAL,
    "ClaimBody": {
        "consumerId": _CLAIM,
        "epoch": 7,
        "wakeId": _CLAIM,
        "streamPath": "/agent/hello/main",
        "streams": [_PLACE],
        "callback": f"https://wake.example.com/_electric/wake-callbacks/{_CLAIM}",
        "claimToken": "Zp4uYd8sNf6Ha0Ve",
        "triggerEvent": "message_received",
        "attempt": 1,
        "entity": _CLAIMED,
        "principal": _PRINCIPAL,
    },
    "NothingToDo": {"done": True},
    "Acked": _ACK,
    "Callback": {"epoch": 7, "acks": [_ACK], "done": True},
    "CallbackAnswer": {"ok": True, "next_wake": False, "entity_cleared": True},
    "Sandbox": {"profile": "docker", "scope": "entity"},
    "NewWatch": _WATCH,
    "RunFinished": {"on": "runFinished", "includeResponse": True},
    "Change": {"on": "change", "collections": ["runs"], "ops": ["insert"]},
    "NewEntity": {"dispatch_policy": _POLICY, "tags": {"title": "Hello"}, "initialMessage": "Hi"},
    "EntityChange": {"tags": {"title": "Hello again"}},
    "EntityBody": {
        "url": "/agent/hello",
        "type": "agent",
        "status": "idle",
        "streams": {"main": "/agent/hello/main"},
        "tags": {"title": "Hello"},
        "spawn_args": {},
        "created_by": _ALICE,
        "created_at": _EPOCH_MS,
        "updated_at": _EPOCH_MS,
        "dispatch_policy": _POLICY,
    },
    "NewMessage": {"payload": "Hello", "key": "greeting-1"},
    "MessageChange": {"status": "cancelled"},
    "Sent": {"txid": _TXID},
    "NewSignal": {"signal": "SIGSTOP", "reason": "Wait for the review."},
    "SignalBody": {
        "url": "/agent/hello",
        "signal": "SIGSTOP",
        "previous_state": "idle",
        "new_state": "paused",
        "created_at": _EPOCH_MS,
        "txid": 42,
    },
    "TagValue": {"value": "Hello"},
    "NewSchedule": {
        "scheduleType": "cron",
        "expression": "0 9 * * 1-5",
        "timezone": "Europe/Berlin",
        "payload": "What is new?",
    },
    "CronStream": {"expression": "0 9 * * 1-5", "timezone": "Europe/Berlin"},
    "CronStreamBody": {
        "streamUrl": "/_cron/eyJleHByZXNzaW9uIjoiQGRhaWx5IiwidGltZXpvbmUiOiJVVEMifQ"
    },
    "Grant": _GRANT,
    "SlashArgument": _COMMAND["arguments"][0],
    "SlashCommand": _COMMAND,
    "WritableCollection": {"type": "comment", "operations": ["insert"]},
    "Retention": _RETENTION,
    "NewEntityType": {
        "name": "agent",
        "description": "Answers questions.",
        "inbox_schemas": {"question": _SCHEMA},
        "default_dispatch_policy": _POLICY,
        "permission_grants": [_GRANT],
        "retention": _RETENTION,
    },
    "NewSchemas": {"inbox_schemas": {"question": _SCHEMA}},
    "EntityTypeBody": {
        "name": "agent",
        "description": "Answers questions.",
        "permission_grants": [_GRANT],
        "registered_by": _ALICE,
        "revision": 1,
        "created_at": _TIME,
        "updated_at": _TIME,
    },
    "WakeRegistration": {**_WATCH, "sourceUrl": "/agent/child"},
    "WakeUnregistration": {"subscriberUrl": "/agent/hello", "sourceUrl": "/agent/child"},
    "WebhookSources": {"webhookSources": []},
}
"""One of each body, by its Struct."""


def _as_sent_events(events: list[Any]) -> str:
    control = {"streamNextOffset": _ID, "streamCursor": "3379412", "upToDate": True}
    told = (("data", events), ("control", control))
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in told)


_ANSWER = {
    "type": "output",
    "key": "answer-1",
    "value": {"text": "Hello back"},
    "headers": {"operation": "insert"},
}
_TASK = {
    "type": "task",
    "key": "tests",
    "value": {"done": False},
    "headers": {"operation": "insert"},
}
_READ: dict[str, list[Any]] = {
    "readRunnerWakes": [
        {
            "type": "wake",
            "subscription_id": "runner:laptop:9d5f0c1e7a3b2468",
            "stream": "agent/hello/main",
            "generation": 7,
            "ts": _EPOCH_MS,
        }
    ],
    "readEntityStream": [
        {
            "type": "inbox",
            "key": "greeting-1",
            "value": {
                "from": _ALICE,
                "payload": "Hello",
                "timestamp": _TIME,
                "mode": "immediate",
            },
            "headers": {"operation": "insert", "txid": _TXID, "offset": _ID},
        }
    ],
    "readSharedState": [{**_TASK, "headers": {"operation": "insert", "offset": _ID}}],
    "followRunners": [EXAMPLES["RunnerEvent"]],
    "followEntitiesThatMayRead": [EXAMPLES["EntityEvent"]],
}

STREAMED: dict[tuple[str, str], Any] = {
    ("appendToEntityStream", "application/json"): _ANSWER,
    ("appendToSharedState", "application/json"): _TASK,
    **{(name, "application/json"): events for name, events in _READ.items()},
    **{(name, "text/event-stream"): _as_sent_events(events) for name, events in _READ.items()},
    ("getMetrics", "text/plain"): 'pullwake_claims_active{state="all"} 3.0\n',
}
"""What is no Struct: by the operation and the media type, what it takes, or else answers."""
