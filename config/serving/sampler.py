"""What a worker measures about itself every few seconds: its pool, and its use of the system."""

import os
from typing import Any

from django.conf import settings
from django.db import connection
from prometheus_client import Counter, Gauge, ProcessCollector

from core.metrics import REGISTRY
from core.rounds import Rounds

POOL = Gauge(
    "pullwake_db_pool_connections",
    "Connections of the workers' pools to the database.",
    ["state"],
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
POOL_MAX = Gauge(
    "pullwake_db_pool_max_connections",
    "How many the pools may have.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
POOL_WAITING = Gauge(
    "pullwake_db_pool_waiting",
    "Requests and threads that wait for a connection now.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
POOL_REQUESTS = Counter(
    "pullwake_db_pool_requests", "Connections asked of the pools.", registry=REGISTRY
)
POOL_WAITS = Counter(
    "pullwake_db_pool_waits", "Connections that had to be waited for.", registry=REGISTRY
)
POOL_WAIT_SECONDS = Counter(
    "pullwake_db_pool_wait_seconds", "How long they were waited for.", registry=REGISTRY
)
POOL_ERRORS = Counter(
    "pullwake_db_pool_errors",
    "Connections that were not to be had in time: a dry pool, or no database.",
    registry=REGISTRY,
)
CPU = Counter(
    "pullwake_worker_cpu_seconds", "CPU time of the workers, user and system.", registry=REGISTRY
)


def _of_worker(name: str, says: str) -> Gauge:
    return Gauge(name, says, multiprocess_mode="liveall", registry=REGISTRY)


MEMORY = _of_worker("pullwake_worker_resident_memory_bytes", "Memory that a worker has.")
FILES = _of_worker("pullwake_worker_open_fds", "Files and connections that a worker has open.")
MAX_FILES = _of_worker("pullwake_worker_max_fds", "How many it may have open.")
STARTED = _of_worker("pullwake_worker_start_time_seconds", "When a worker was started, since 1970.")

for _state in ("idle", "in_use"):
    POOL.labels(_state)

_TAKEN: dict[str, tuple[Counter, float]] = {
    "requests_num": (POOL_REQUESTS, 1),
    "requests_queued": (POOL_WAITS, 1),
    "requests_wait_ms": (POOL_WAIT_SECONDS, 1 / 1000),
    "requests_errors": (POOL_ERRORS, 1),
}
"""Of `psycopg_pool`'s statistics, those that only grow."""

_OF_PROCESS: dict[str, Gauge] = {
    "process_resident_memory_bytes": MEMORY,
    "process_open_fds": FILES,
    "process_max_fds": MAX_FILES,
    "process_start_time_seconds": STARTED,
}


class Sampler(Rounds):
    """The thread of a worker that measures."""

    NAME = "sampler"
    EVERY_S = 5.0
    FAILED = "the worker could not be looked at, and is again"

    def __init__(self) -> None:
        super().__init__()
        self._process = ProcessCollector(registry=None)
        self._seen: dict[str, float] = {}

    def _round(self) -> None:
        for metric in self._process.collect():
            for sample in metric.samples:
                if sample.name in _OF_PROCESS:
                    _OF_PROCESS[sample.name].set(sample.value)
        times = os.times()
        self._count("cpu", times.user + times.system, CPU)
        if not settings.SQLITE:
            self._sample_pool(connection.pool.get_stats())  # type: ignore[attr-defined]

    def _sample_pool(self, stats: dict[str, Any]) -> None:
        available = stats.get("pool_available", 0)
        POOL.labels("idle").set(available)
        POOL.labels("in_use").set(stats.get("pool_size", 0) - available)
        POOL_MAX.set(stats.get("pool_max", 0))
        POOL_WAITING.set(stats.get("requests_waiting", 0))
        for name, (counter, unit) in _TAKEN.items():
            self._count(name, stats.get(name, 0) * unit, counter)

    def _count(self, name: str, total: float, counter: Counter) -> None:
        """Add the growth of a total to a counter."""
        counter.inc(max(total - self._seen.get(name, 0.0), 0.0))
        self._seen[name] = total
