"""Every duration a runner goes by, in one place. All in seconds."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The defaults are the protocol's, or follow from it; tests shorten them."""

    heartbeat_interval: float = 30.0
    heartbeat_gap: float = 2.0
    """A changed diagnostic is reported this long after it changed, and no more often."""
    heartbeat_timeout: float = 10.0
    request_timeout: float = 15.0
    """For one claim, callback, append or catch-up read."""
    connect_timeout: float = 30.0
    """For all of one connection attempt: registering and the first read."""
    long_poll_deadline: float = 60.0
    """A long-poll that was not answered by then is dead. A server holds one for 30 s by default."""
    sse_idle_deadline: float = 90.0
    """An event stream silent for this long is dead. A server ends one after about 60 s."""
    sse_deadline: float = 300.0
    """An event stream that goes on for longer is given up for a new one, whatever it brings."""
    backoff_min: float = 1.0
    backoff_max: float = 30.0
    stable_after: float = 5.0
    """A connection that lasted for this long, or brought a wake, was a success: the next trouble
    is new trouble, and its backoff starts afresh. One that only came about was none."""
    retry_after_max: float = 60.0
    """A server may ask for this long a wait, and no longer."""
    watch_after: float = 1.0
    """Once a handler has run for so long, its entity's stream is watched for what arrives."""
    watch_gap: float = 0.5
    """How long it is left alone when it brought only what the handler itself wrote."""
    retry_for: float = 120.0
    """How long minting, reading messages and appending are tried again in one claim."""
    report_for: float = 600.0
    """How long the outcome of finished work is offered to a server that does not answer."""
    clock_tick: float = 1.0
    clock_jump: float = 5.0
    """The wall clock moving this far against the monotonic one means the machine slept."""
    stop_grace: float = 30.0
    """How long `stop()` lets running work finish, unless it is told otherwise."""
    claim_settle: float = 2.0
    """How long `stop()` waits for the answer to a claim that is on its way, and work goes on while
    the server is asked whether a lease that lapsed unnoticed is lost."""
    cancel_grace: float = 10.0
    """How long a cancelled handler may clean up before it is abandoned."""
    farewell_timeout: float = 2.0
    """How long the last heartbeat, and closing connections, may hold up the end of `stop()`."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be more than 0 seconds")
