"""The kit of metrics: where they are kept, and label values that cannot grow without bound.

Each room has its own metrics in its ``metrics.py``, counted by the process that does the work, in
memory that a server's workers share (prometheus-client's multiprocess mode), without a statement.
What the database knows is read when Prometheus scrapes, in `config.serving.metrics`.
"""

from django.conf import settings
from prometheus_client import CollectorRegistry

REGISTRY = CollectorRegistry()
"""All that this process counts."""

OTHER = "(other)"
"""The name of all that have none in a metric; no id is of this form."""

WAITS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800, 7200, float("inf"))
"""Buckets for what takes from milliseconds to hours, in seconds."""


class Names:
    """Values of a label: the first PULLWAKE_METRICS_NAMES that appear, and `OTHER` for the rest.

    Any caller can invent entity types and runners, and each one is a Prometheus time series for as
    long as the process lives.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        """The name, or `OTHER`."""
        if name not in self._known:
            if len(self._known) >= settings.PULLWAKE_METRICS_NAMES:
                return OTHER
            self._known.add(name)
        return name


type_name = Names()
"""For entity types."""

runner_name = Names()
"""For runners."""
