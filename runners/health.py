"""A runner's health: a pure function of its rows, the number of its claims, and the time.

The rules are in the wire contract's section Health; `claims.reports` gathers the inputs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from runners.models import Runner

Liveness = Literal["online", "offline", "expired"]
Presence = Literal["online", "stopped", "expired", "offline"]
Status = Literal["healthy", "degraded", "unhealthy"]

MANY_RECONNECTS = 5
MANY_FAILURES = 3
"""From this many recent failures on, their share counts: half of the claims is too many."""


@dataclass(frozen=True, slots=True)
class Health:
    """The worst status, and each thing that is wrong, in a sentence."""

    status: Status
    issues: Sequence[str]


def liveness(runner: Runner, now: datetime) -> Liveness:
    """online while the lease runs, expired after it, offline when disabled or never seen."""
    expires_at = runner.liveness.lease_expires_at
    if not runner.enabled or expires_at is None:
        return "offline"
    return "online" if expires_at > now else "expired"


def presence(runner: Runner, *, claims: int, now: datetime) -> Presence:
    """`liveness` as people see it: a runner that announced its stop is then "stopped".

    Not if it left ``claims`` behind. In the protocol it is expired.
    """
    status = liveness(runner, now)
    said = (runner.liveness.diagnostics or {}).get("status")
    return "stopped" if (status, said, claims) == ("expired", "stopped", 0) else status


def health(
    runner: Runner, *, claims: int, lapsed: int, failed: int, ended: int, now: datetime
) -> Health:
    """The health of a runner that holds ``claims`` active claims, of which ``lapsed`` have lapsed.

    Of its last ``ended`` claims, ``failed`` failed recently.
    """
    unhealthy = list(_unhealthy(runner, now))
    degraded = [*_degraded(runner, claims, lapsed), *_failing(failed, ended)]
    status: Status = "unhealthy" if unhealthy else "degraded" if degraded else "healthy"
    return Health(status, [*unhealthy, *degraded])


def _unhealthy(runner: Runner, now: datetime) -> Iterable[str]:
    if not runner.enabled:
        yield "Runner is disabled"
    expires_at = runner.liveness.lease_expires_at
    if runner.enabled and expires_at is not None and expires_at <= now:
        yield f"Heartbeat lease expired {int((now - expires_at).total_seconds())}s ago"


def _degraded(runner: Runner, claims: int, lapsed: int) -> Iterable[str]:
    seen = runner.liveness.last_seen_at is not None
    client = runner.liveness.diagnostics or {}
    if runner.enabled and not seen:
        yield "Runner has never sent a heartbeat"
    if client.get("stream_connected") is False:
        yield "Client reports stream disconnected"
    if client.get("last_heartbeat_ok") is False:
        yield "Client reports last heartbeat failed"
    if client.get("reconnect_count", 0) > MANY_RECONNECTS:
        yield f"Client has reconnected {client['reconnect_count']} times"
    if seen and not client:
        yield "No client diagnostics available"
    if lapsed:
        yield f"{lapsed} active {'claim has' if lapsed == 1 else 'claims have'} a lapsed lease"
    limit = runner.max_concurrent_claims
    if limit is not None and claims >= limit:
        yield f"Runner holds {claims} of at most {limit} claims"


def _failing(failed: int, ended: int) -> Iterable[str]:
    if fails(failed, ended):
        yield f"{failed} of its last {ended} claims failed"


def fails(failed: int, ended: int) -> bool:
    """Whether this many failures among the claims that ended last are too many."""
    return failed >= MANY_FAILURES and 2 * failed >= ended
