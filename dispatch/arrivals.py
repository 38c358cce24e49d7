"""A runner arrives or returns: its waiting wakes are emitted again at once.

A runner commits its offset on receipt, so one that restarted would otherwise wait for the reaper.
"""

from django.db import transaction

from core.bodies import JsonObject
from core.principals import Principal
from dispatch import wakes
from dispatch.streams import waiters
from runners import registry
from runners.models import Runner


def register(owner: Principal, runner_id: str, facts: JsonObject) -> Runner:
    """`registry.register`, and emit its unclaimed wakes again. Raises Forbidden."""
    with transaction.atomic():
        runner = registry.register(owner, runner_id, facts)
        waiters.announce(waiters.RUNNER_FEED)
        wakes.reemit(runner.wakes.all())
    return runner


def set_admin_status(runner: Runner, status: Runner.AdminStatus) -> Runner:
    """`registry.set_admin_status`; enabling emits unclaimed wakes again. Raises NotFound."""
    with transaction.atomic():
        runner = registry.set_admin_status(runner, status)
        waiters.announce(waiters.RUNNER_FEED)
        if status == Runner.AdminStatus.ENABLED:
            wakes.reemit(runner.wakes.all())
    return runner
