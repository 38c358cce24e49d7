"""Runners: registered, seen, enabled and disabled; the only writer of their rows.

Lock order: a runner is locked before any dispatch state.
"""

from contextlib import nullcontext
from datetime import datetime, timedelta
from functools import cache

from django.conf import settings
from django.db import transaction
from django.db.models import Exists
from django.db.models.functions import Now

from core import quotas
from core.bodies import JsonObject
from core.clock import with_now
from core.database import Unflushed
from core.errors import Forbidden, NotFound
from core.prepared import ByKey, Param, Select, UpdateByKey
from core.principals import Principal
from runners import changes
from runners.health import health, liveness
from runners.models import Change, Runner, RunnerLiveness, RunnerQuerySet, WakeStream

HEARTBEAT_LEASE = timedelta(seconds=30)
"""The liveness lease of a heartbeat that names none."""


def register(owner: Principal, runner_id: str, facts: JsonObject) -> Runner:
    """Register a runner, or update what is given of the owner's own.

    ``facts`` are fields of `Runner`. Raises Forbidden for an id that another principal owns, and
    RateLimited past PULLWAKE_MAX_RUNNERS.
    """
    with transaction.atomic():
        new = Runner(
            id=runner_id,
            owner_principal=owner.url,
            **{"claim_lease_ms": settings.PULLWAKE_CLAIM_LEASE_MS, **facts},
        )
        if settings.PULLWAKE_MAX_RUNNERS and not Runner.objects.filter(pk=runner_id).exists():
            own = Runner.objects.owned_by(owner)
            quotas.take("runners", settings.PULLWAKE_MAX_RUNNERS, owner.url, own.count)
        runner = None
        while runner is None:  # the runner may be deleted between the two
            # Two first registrations may race: one inserts, and both go on from that row.
            Runner.objects.bulk_create([new], ignore_conflicts=True)
            runner = _lock(runner_id)
        require_owner(runner, owner.url)
        Runner.objects.filter(pk=runner_id).update(updated_at=Now(), **facts)
        RunnerLiveness.objects.bulk_create([RunnerLiveness(runner=runner)], ignore_conflicts=True)
        WakeStream.objects.bulk_create([WakeStream(runner=runner)], ignore_conflicts=True)
        return _tell(find_seen(runner_id))


_RUNNER = Select(lambda: Runner.objects.filter(pk=Param("id")))


def find(runner_id: str) -> Runner:
    """A runner. Raises NotFound."""
    return found(_RUNNER.first(id=runner_id), runner_id)


def seen() -> RunnerQuerySet:
    """Runners with their liveness and ``now``."""
    return with_now(Runner.objects.select_related("liveness"))


_RUNNER_SEEN = ByKey(seen)


def find_seen(runner_id: str) -> Runner:
    """One of `seen`. Raises NotFound."""
    return found(_RUNNER_SEEN.first(runner_id), runner_id)


def found(runner: Runner | None, runner_id: str) -> Runner:
    """The runner that was looked for by this id. Raises NotFound."""
    if runner is None:
        raise NotFound(f"There is no runner {runner_id}.")
    return runner


def lock(runner_id: str) -> Runner:
    """A runner, locked until the transaction ends. Raises NotFound."""
    return found(_lock(runner_id), runner_id)


def lock_again(runner: Runner) -> Runner:
    """`lock` for a runner that was found before.

    Raises NotFound where it was deleted since, also if another principal has registered its id.
    """
    locked = lock(runner.pk)
    if locked.owner_principal != runner.owner_principal:
        return found(None, runner.pk)
    return locked


def lock_own(caller: Principal, runner_id: str) -> Runner:
    """The caller's runner, locked against deletion until the transaction ends.

    Raises NotFound, or Forbidden for another principal's runner.
    """
    return require_owner(lock(runner_id), caller.url)


def require_owner(runner: Runner, *owners: str) -> Runner:
    """The runner, if one of these principals (URLs) owns it. Raises Forbidden."""
    if runner.owner_principal not in owners:
        raise Forbidden(f"The runner {runner.pk} is another principal's.")
    return runner


_LOCKED = Select(lambda: Runner.objects.select_for_update(no_key=True).filter(pk=Param("id")))


def _lock(runner_id: str) -> Runner | None:
    return _LOCKED.first(id=runner_id)


def set_admin_status(runner: Runner, status: Runner.AdminStatus) -> Runner:
    """Enable or disable a runner. Raises NotFound."""
    with transaction.atomic():
        lock_again(runner)
        Runner.objects.filter(pk=runner.pk).update(admin_status=status, updated_at=Now())
        return _tell(find_seen(runner.pk))


def _tell(runner: Runner) -> Runner:
    """The runner, once its feed has its health; the reaper looks at its claims, and tells those."""
    alive = liveness(runner, runner.now)
    verdict = health(runner, claims=0, lapsed=0, failed=0, ended=0, now=runner.now)
    changes.write(
        Change.Kind.RUNNER,
        runner.pk,
        owner=runner.owner_principal,
        told=told(alive, verdict.status),
    )
    return runner


def told(alive: str, status: str) -> str:
    """A runner's liveness and health, as its feed shows them."""
    return f"{alive} {status}"


@cache
def _note(*names: str) -> UpdateByKey:
    facts: JsonObject = {name: Param(name, RunnerLiveness._meta.get_field(name)) for name in names}
    own = RunnerLiveness.objects.filter
    # Another principal may have registered the id since its owner was looked up.
    same = Exists(Runner.objects.filter(pk=Param("runner"), owner_principal=Param("owner")))
    # A heartbeat that a crash of the database loses is repeated.
    return UpdateByKey(lambda: own(Unflushed(), same, runner=Param("runner")), "runner", **facts)


def heartbeat(
    runner: Runner,
    *,
    now: datetime,
    lease_expires_at: datetime,
    wake_stream_offset: str | None = None,
    diagnostics: JsonObject | None = None,
) -> None:
    """Record that a runner lives, on it and in the database; None keeps the former value.

    ``now`` is the database's time. Its feed is told when the runner comes online, and not of
    further heartbeats. Raises NotFound when the runner was deleted meanwhile.
    """
    facts: JsonObject = {"last_seen_at": now, "lease_expires_at": lease_expires_at}
    if wake_stream_offset is not None:
        facts["wake_stream_offset"] = wake_stream_offset
    if diagnostics:
        facts["diagnostics"] = diagnostics
    is_news = runner.enabled and liveness(runner, now) != "online"
    with transaction.atomic() if is_news else nullcontext():
        if not _note(*facts).count(runner=runner.pk, owner=runner.owner_principal, **facts):
            raise NotFound(f"There is no runner {runner.pk}.")
        for name, value in facts.items():
            setattr(runner.liveness, name, value)
        if is_news:
            _tell(runner)
