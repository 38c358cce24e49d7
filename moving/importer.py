"""Taking over what the existing server has, a batch a transaction.

Nothing of its dispatch is taken but whether an entity was to be woken: so its active claims are
expired and its wakes withdrawn before anything of it is here, and what was pending is woken by the
transaction that makes the entity. What is taken is marked as `Taken` in the same transaction, so
that a run which was ended half way goes on where it was.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TypeVar

from django.conf import settings
from django.db import DataError, IntegrityError, transaction

from claims import lifecycle
from claims.models import ConsumerClaim
from core.bodies import JsonObject
from core.errors import PullwakeError
from core.principals import Principal
from dispatch import entities, moved_in, registering, schedules, types
from dispatch.models import Entity, EntityType, Registration, Timer
from dispatch.moved_in import Arrival
from moving import rows, streams
from moving.models import Taken
from moving.report import Kind, NotTaken, Report
from moving.source import READ, Row, Source, Unreadable
from runners import diagnostics, registry
from runners.models import Runner

BATCH = 500
"""Rows in one transaction, at the most."""

_LEFT_BEHIND = {
    "users": "users are whom access tokens are issued for: manage.py create_token",
    "shared_state_links": "shared states are made anew: a runtime puts each at its next wake",
    "entity_permission_grants": "grants of single entities are not served here",
}
_DELETED = "it was taken before, and is gone here since"

T = TypeVar("T")


class Importer:
    """One run. ``owner`` gets what names no owner; ``folder`` is where `moving.streams` reads."""

    def __init__(
        self,
        source: Source,
        *,
        owner: Principal | None = None,
        folder: Path | None = None,
        dry_run: bool = False,
    ) -> None:
        self._source = source
        self._owner = owner
        self._folder = folder
        self._dry_run = dry_run
        self._report = Report(dry_run=dry_run)
        self._owners: dict[str, Principal] = {}  # of the runners that are here, by id
        self._types: dict[str, EntityType] = {}  # that were taken over, by name
        self._entities: set[str] = set()  # that were taken over and are here, by URL

    def run(self) -> Report:
        """Take over everything possible. Raises Unreadable if there is nothing."""
        self._take_runners()
        self._take_types()
        self._take_entities()
        others = self._source.other_tenants()
        if not any(kind.found for kind in self._report.kinds.values()):
            named = f"; these have: {', '.join(others)}" if others else ""
            raise Unreadable(f"The tenant {self._source.tenant!r} has nothing there{named}.")
        self._take_claims()
        self._take_each("scheduled tasks", "scheduled_tasks", self._take_task)
        self._take_each("wake registrations", "wake_registrations", self._take_registration)
        self._count_the_rest(others)
        return self._report

    # --- Runners and types --------------------------------------------------------------------

    def _take_runners(self) -> None:
        kind = self._report.of("runners")
        seen = {row["runner_id"]: row for row in self._source.rows("runner_runtime_diagnostics")}
        for row in self._source.rows("runners"):
            kind.found += 1
            with _refusing(kind, row["id"]):
                self._take_runner(row, seen.get(row["id"]) or {}, kind)

    def _take_runner(self, row: Row, seen: Row, kind: Kind) -> None:
        owner, facts = rows.owner(row), rows.runner_facts(row)
        runner_id = facts.pop("id")
        there = Runner.objects.filter(pk=runner_id).first()
        if there is not None and there.owner_principal != owner.url:
            raise NotTaken("a runner of its id is here, of another owner")
        if there is not None:
            kind.here += 1
        else:
            if self._taken("runner", [runner_id]):
                raise NotTaken(_DELETED)
            if not self._dry_run:
                with transaction.atomic():
                    runner = registry.register(owner, runner_id, facts)
                    _note_liveness(runner, seen)
                    self._mark("runner", [runner_id])
            kind.taken += 1
            if row.get("wake_stream") not in (None, f"/runners/{runner_id}/wake"):
                kind.note(runner_id, "its wake stream is /runners/<id>/wake here")
            if seen.get("wake_stream_offset"):
                kind.note(
                    runner_id, "its offset is of a stream that stays behind; here it has none"
                )
        self._owners[runner_id] = owner

    def _take_types(self) -> None:
        kind = self._report.of("entity types")
        grants = rows.grants_by_type(list(self._source.rows("entity_type_permission_grants")))
        for row in self._source.rows("entity_types"):
            kind.found += 1
            with _refusing(kind, row["name"]):
                self._take_type(row, grants.get(row["name"], []), kind)

    def _take_type(self, row: Row, grants: list[Row], kind: Kind) -> None:
        name = row["name"]
        there = types.find(name)
        taken = self._taken("entity type", [name])
        if there is not None:
            if not taken:
                raise NotTaken("a type of its name was registered here")
            self._types[name] = there
            kind.here += 1
            return
        if taken:
            raise NotTaken(_DELETED)
        facts = rows.type_facts(row, grants, kind)
        registrar = self._registrar(facts.get("default_runner"))
        if not self._dry_run:
            with transaction.atomic():
                self._types[name] = types.register(registrar, name, facts)
                self._mark("entity type", [name])
        kind.taken += 1

    def _registrar(self, default_runner: str | None) -> Principal:
        """The existing server keeps none: who owns the default runner, or all runners."""
        registrar = self._owners.get(default_runner or "") or self._owner
        owners = set(self._owners.values())
        if registrar is None and len(owners) == 1:
            (registrar,) = owners
        if registrar is None:
            raise NotTaken("nobody is known to have registered it: say --owner")
        return registrar

    # --- Entities -----------------------------------------------------------------------------

    def _take_entities(self) -> None:
        kind = self._report.of("entities")
        for urls in _batches(_parents_first(self._source.urls())):
            kind.found += len(urls)
            arrivals = list(self._arrivals(urls, kind))
            if self._dry_run:
                ready = (a for a in arrivals if a.pending and a.runner_id and not a.paused)
                self._report.woken += sum(not each.ended for each in ready)
            else:
                arrivals = self._make(arrivals, kind)
            kind.taken += len(arrivals)
            self._entities.update(each.url for each in arrivals)

    def _arrivals(self, urls: Sequence[str], kind: Kind) -> Iterator[Arrival]:
        """Which of these entities are to be made."""
        there = set(Entity.objects.filter(url__in=urls).values_list("url", flat=True))
        taken = self._taken("entity", urls)
        states = {
            row["entity_url"]: row
            for row in self._source.named("entity_dispatch_state", "entity_url", urls)
        }
        epochs = self._source.epochs(urls)
        claims = self._claims_of(urls)
        facts = {row["url"]: row for row in self._source.named("entities", "url", urls)}
        for url in urls:
            row = facts[url]
            with _refusing(kind, url):
                rows.require_entity(url)
                if url in taken and url in there:
                    kind.here += 1
                    self._entities.add(url)
                elif url in taken:
                    raise NotTaken(_DELETED)
                elif url in there:
                    raise NotTaken("an entity of its URL was made here")
                else:
                    state, own = states.get(url) or {}, claims.get(url, [])
                    highest = max(epochs.get(url, 0), state.get("active_epoch") or 0)
                    yield self._arrival(row, state, own, highest, kind)

    def _claims_of(self, urls: Sequence[str]) -> dict[str, list[Row]]:
        """Claims that are active, and with streams all, for what they acked."""
        found: dict[str, list[Row]] = {}
        for row in self._source.named("consumer_claims", "entity_url", urls):
            if self._folder is not None or row.get("status") == "active":
                found.setdefault(row["entity_url"], []).append(row)
        return found

    def _arrival(
        self, row: Row, state: Row, claims: list[Row], highest: int, kind: Kind
    ) -> Arrival:
        url = row["url"]
        facts = rows.entity_facts(row, kind)
        runner_id = rows.runner_id(row.get("dispatch_policy"), url, kind)
        if runner_id is not None and runner_id not in self._owners:
            kind.note(url, f"its runner {runner_id} is not here: it has none")
            runner_id = None
        creator = self._creator(row, runner_id, kind)
        held = any(each.get("status") == "active" for each in claims)
        pending = not facts.ended and (held or rows.is_pending(state))
        events, acked = self._stream(url, claims, kind, pending=pending)
        return Arrival(
            url=url,
            created_by=creator.url,
            created_at=facts.created_at,
            updated_at=facts.updated_at,
            generation=highest + 1,
            args=facts.args,
            tags=dict(facts.tags),
            sandbox=facts.sandbox,
            parent=facts.parent,
            entity_type=self._types.get(url.split("/")[1]),
            runner_id=runner_id,
            paused=facts.paused,
            ended=facts.ended,
            pending=pending,
            events=events,
            acked=None if facts.ended else acked,
        )

    def _creator(self, row: Row, runner_id: str | None, kind: Kind) -> Principal:
        if row.get("created_by"):
            return rows.principal(row["created_by"])
        creator = self._owners.get(runner_id or "") or self._owner
        if creator is None:
            raise NotTaken("it names no creator, and has no runner: say --owner")
        kind.note(row["url"], "it names no creator: it is its runner's owner's, or --owner's")
        return creator

    def _stream(
        self, url: str, claims: list[Row], kind: Kind, *, pending: bool
    ) -> tuple[list[JsonObject], int | None]:
        """An entity's events, and how many of them are acked; None means all."""
        if self._folder is None:
            return [], None
        events = streams.read(self._folder, url)
        if events is None:
            kind.note(url, "it starts without its stream: there is no file of it")
            return [], None
        offset = rows.acked_offset(claims, url)
        if offset is None:
            return events, 0 if pending else None
        return events, streams.count_acked(events, offset)

    def _make(self, arrivals: list[Arrival], kind: Kind) -> list[Arrival]:
        """Make them together, or one by one if the database refuses one: those that were made."""
        if not arrivals:
            return []
        try:
            with transaction.atomic():
                woken = moved_in.take_over(arrivals)
                self._mark("entity", [each.url for each in arrivals])
        except (IntegrityError, DataError) as problem:
            if len(arrivals) == 1:
                kind.refuse(arrivals[0].url, f"the database refuses it: {problem}".splitlines()[0])
                return []
            return [made for each in arrivals for made in self._make([each], kind)]
        self._report.woken += woken
        return arrivals

    # --- What was, and what is to come ----------------------------------------------------------

    def _take_claims(self) -> None:
        kind = self._report.of("claims")
        for batch in _batches(self._source.rows("consumer_claims", order=["claimed_at"])):
            kind.found += len(batch)
            urls = {row.get("entity_url") or "" for row in batch} & self._entities
            there = {each.url: each for each in Entity.objects.filter(url__in=urls)}
            known = set(
                ConsumerClaim.objects.filter(
                    consumer_id__in=[str(row.get("consumer_id")) for row in batch]
                ).values_list("consumer_id", "epoch")
            )
            history = []
            for row in batch:
                with _refusing(kind, str(row.get("consumer_id"))):
                    if (row.get("consumer_id"), row.get("epoch")) in known:
                        kind.here += 1
                    else:
                        history.append(self._claim(row, there))
            kind.taken += len(history)
            if not self._dry_run:
                lifecycle.take_over(history)

    def _claim(self, row: Row, there: dict[str, Entity]) -> ConsumerClaim:
        url = row.get("entity_url")
        if url not in self._entities:
            raise NotTaken("its entity is not taken")
        runner = row.get("runner_id") if row.get("runner_id") in self._owners else None
        claim = rows.claim(row, there.get(url or ""), runner, self._source.now)
        kept = timedelta(days=settings.PULLWAKE_RETENTION_DAYS)
        if claim.ended_at is not None and claim.ended_at < self._source.now - kept:
            raise NotTaken("it ended longer ago than PULLWAKE_RETENTION_DAYS")
        return claim

    def _take_each(self, name: str, table: str, take: Callable[[Row], None]) -> None:
        """Take a table's rows one by one."""
        kind = self._report.of(name)
        for row in self._source.rows(table, order=["id"]):
            kind.found += 1
            key = str(row.get("id") or _digest(row))
            with _refusing(kind, key):
                if self._taken(name, [key]):
                    kind.here += 1
                    continue
                with transaction.atomic():
                    take(row)
                    if not self._dry_run:
                        self._mark(name, [key])
                kind.taken += 1

    def _take_task(self, row: Row) -> None:
        task = rows.task(row)
        for url in filter(None, (task.target, task.owner)):
            if url not in self._entities:
                raise NotTaken(f"the entity {url} is not taken")
        if self._dry_run:
            return
        target = entities.find_at(task.target)
        if task.entry is not None:
            owner = entities.find_at(task.owner)
            if Timer.objects.filter(owner=owner, schedule=task.schedule).exists():
                raise NotTaken("a schedule of its name was set here")
            creator = Principal.parse(owner.created_by)
            schedules.set_future_send(owner, task.schedule, task.entry, creator, near_only=False)
            return
        message = replace(task.message, sender=self._sender(task.message.sender, target))
        entities.send(target, message, max(task.at - self._source.now, timedelta()))

    def _sender(self, said: str, target: Entity) -> str:
        """Who a delayed message is from: as it says, or else the creator of its target."""
        if said in self._entities:
            return said
        try:
            return rows.principal(said).url
        except NotTaken:
            return str(target.created_by)

    def _take_registration(self, row: Row) -> None:
        url, order = rows.registration(row)
        if url not in self._entities:
            raise NotTaken("its subscriber is not taken")
        if self._dry_run:
            return
        subscriber = entities.find_at(url)
        own = Registration.objects.filter(subscriber=subscriber, identity=order.identity)
        if own.exists():
            raise NotTaken("its subscriber has registered the same here")
        registering.register(subscriber, order)

    def _count_the_rest(self, others: dict[str, int]) -> None:
        for table in sorted(set(self._source.columns) - set(READ)):
            count = self._source.count(table)
            if count:
                kind = self._report.of(table)
                kind.found = count
                why = _LEFT_BEHIND.get(table, "nothing here corresponds to it")
                kind.not_taken[why].add("", count)
        for tenant, count in others.items():
            kind = self._report.of("entities and runners of other tenants")
            kind.found += count
            kind.not_taken["--tenant names another"].add(tenant, count)

    # --- What was taken before ------------------------------------------------------------------

    def _taken(self, kind: str, keys: Sequence[str]) -> set[str]:
        """Which of these rows an earlier run took."""
        before = Taken.objects.filter(tenant=self._source.tenant, kind=kind, key__in=keys)
        return set(before.values_list("key", flat=True))

    def _mark(self, kind: str, keys: Sequence[str]) -> None:
        """Record that these rows are taken, in the transaction that takes them over."""
        Taken.objects.bulk_create(
            Taken(tenant=self._source.tenant, kind=kind, key=key) for key in keys
        )


@contextmanager
def _refusing(kind: Kind, key: str) -> Iterator[None]:
    """Report a row that is not taken, and go on with the next."""
    try:
        yield
    except (NotTaken, PullwakeError) as reason:
        kind.refuse(key, reason)


def _batches(rows: Iterable[T]) -> Iterator[list[T]]:
    them = iter(rows)
    while batch := list(islice(them, BATCH)):
        yield batch


def _parents_first(urls: Sequence[tuple[str, str]]) -> list[str]:
    """The URLs in their order, but each after its parent's; ``urls`` has pairs of the two."""
    parents = dict(urls)
    placed: dict[str, None] = {}
    for url in parents:
        line = [url]
        while (parent := parents[line[-1]]) in parents and parent not in placed:
            if parent in line:
                break  # a circle has no first
            line.append(parent)
        placed.update(dict.fromkeys(reversed(line)))
    return list(placed)


def _note_liveness(runner: Runner, seen: Row) -> None:
    """Keep what the runner last reported there; that it lives it must report here."""
    last = seen.get("last_seen_at")
    if last is None:
        return
    registry.heartbeat(
        runner,
        now=min(last, runner.now),
        lease_expires_at=min(seen.get("liveness_lease_expires_at") or last, runner.now),
        diagnostics=diagnostics.cleaned(seen.get("diagnostics") or {}) or None,
    )


def _digest(row: Row) -> str:
    return hashlib.sha256(repr(sorted(row.items(), key=str)).encode()).hexdigest()
