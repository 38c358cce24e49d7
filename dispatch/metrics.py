"""What this room counts: messages, wakes, and whether this process hears about wakes at once."""

from prometheus_client import Counter, Gauge

from core.metrics import REGISTRY

SENDS = Counter(
    "pullwake_sends",
    "Messages that were sent to entities, by whether they were new: sent, delayed or repeated.",
    ["type", "outcome"],
    registry=REGISTRY,
)
WAKES_EMITTED = Counter(
    "pullwake_wakes_emitted",
    "Wakes emitted, each counted once however often it is emitted again.",
    ["type"],
    registry=REGISTRY,
)
WAKES_EMITTED_AGAIN = Counter(
    "pullwake_wakes_emitted_again",
    "Emissions of wakes that had been emitted before and were still unclaimed.",
    registry=REGISTRY,
)
LISTENER_UP = Gauge(
    "pullwake_listener_up",
    "Whether all workers hear of wakes at once; else within two seconds.",
    multiprocess_mode="livemin",
    registry=REGISTRY,
)
LISTENER_LOSSES = Counter(
    "pullwake_listener_losses",
    "Times that a worker's listener lost its connection to the database.",
    registry=REGISTRY,
)

# None is needed before the first reader waits.
LISTENER_UP.set(1)
