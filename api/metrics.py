"""What this room counts: the reads that are held until there is news."""

from prometheus_client import Counter, Gauge

from core.metrics import REGISTRY

HELD_READS = Gauge(
    "pullwake_held_reads",
    "Reads of streams that are held now.",
    ["mode"],
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
HELD_READS_ENDED = Counter(
    "pullwake_held_reads_ended",
    "Reads of streams that were held, and are over.",
    ["mode"],
    registry=REGISTRY,
)

for _mode in ("long-poll", "sse"):
    HELD_READS.labels(_mode)
    HELD_READS_ENDED.labels(_mode)
