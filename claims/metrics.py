"""What this room counts: claims asked for, made and ended, how long that took, and the reaper."""

from prometheus_client import Counter, Histogram

from core.metrics import REGISTRY, WAITS

CLAIM_REQUESTS = Counter(
    "pullwake_claim_requests",
    "Requests to claim, by what came of them.",
    ["outcome"],
    registry=REGISTRY,
)
CLAIM_WAIT = Histogram(
    "pullwake_claim_wait_seconds",
    "From when a wake was first emitted to its claim.",
    ["type"],
    buckets=WAITS,
    registry=REGISTRY,
)
CLAIM_WORK = Histogram(
    "pullwake_claim_work_seconds",
    "From a claim to its end, by how it ended.",
    ["type", "outcome"],
    buckets=WAITS,
    registry=REGISTRY,
)
RUNNER_CLAIM_ENDS = Counter(
    "pullwake_runner_claim_ends",
    "Claims ended, by runner and how they ended.",
    ["runner", "outcome"],
    registry=REGISTRY,
)
REAPER_ROUNDS = Counter(
    "pullwake_reaper_rounds",
    "Rounds of this server's housekeeping, by whether they came through: done or failed.",
    ["outcome"],
    registry=REGISTRY,
)
REAPER_ROUND = Histogram(
    "pullwake_reaper_round_seconds",
    "How long a round of housekeeping took.",
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, float("inf")),
    registry=REGISTRY,
)
WAKES_LATE = Counter(
    "pullwake_wakes_late",
    "Wakes that nobody claimed in time, and that the reaper emitted again.",
    registry=REGISTRY,
)
ENTITIES_RETRIED = Counter(
    "pullwake_entities_retried",
    "Entities that the reaper woke once their delay after a failure was over.",
    registry=REGISTRY,
)

for _outcome in ("done", "failed"):
    REAPER_ROUNDS.labels(_outcome)
