"""An entity's life over time: of each wake how long it waited, who claimed it, how long that was
held and renewed, and how it ended; and what is to come.

A page is a range of generations, read by their index, so it costs the same however many there were.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import accumulate, pairwise
from typing import Any

from django.db.models import Q

from claims.models import ConsumerClaim, OrphanReason
from dispatch.cron import Cron
from dispatch.models import LATE, DispatchState, Registration, Timer, Wake
from operators.kit.markup import counted, entity_link, ident, lines, page_of, quiet, took

Status = ConsumerClaim.Status

PAGE = 25
"""Wakes of one page."""
SHOWN = 10
"""Wakes on the entity's own page, and rows of what is to come."""
BESIDE = 3
"""Wakes before and after that of a claim, on the claim's page."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a spell, and where it lies on the axis, in percent of its length.

    ``kind`` is waiting, silent, delay, or how the claim that was held then stands.
    """

    kind: str
    begin: datetime
    end: datetime
    left: float = 0.0
    width: float = 0.0

    @property
    def says(self) -> str:
        """What it is, and how long it was."""
        return f"{_SAYS.get(self.kind, 'held')}, {took(self.end - self.begin)}"


_SAYS = {"waiting": "waiting", "silent": "not renewed any more", "delay": "delay after a failure"}

KINDS = [("waiting", "waiting for its runner"), *((each.value, each.value) for each in Status)]
KINDS += [("silent", "not renewed any more"), ("delay", "delay after a failure")]
"""Each kind of stretch, and what the key to the colours calls it."""


@dataclass(frozen=True, slots=True)
class Spell:
    """A wake and what came of it; one of the two may have been pruned."""

    generation: int
    wake: Wake | None
    claim: Any
    stretches: Sequence[Stretch]
    reason: str = ""
    """Why its claim is orphaned."""

    @property
    def runner_id(self) -> str | None:
        """Whom it was for; None where that one is gone."""
        of: Any = self.claim or self.wake
        runner_id: str | None = of.runner_id
        return runner_id

    @property
    def runner_name(self) -> str:
        """The id of who claimed it, also when that one is gone."""
        return str(self.claim.runner_name) if self.claim else self.runner_id or ""

    @property
    def holds(self) -> bool:
        """Whether its claim is active."""
        return self.claim is not None and self.claim.status == Status.ACTIVE

    @property
    def begin(self) -> datetime:
        """When it was woken, or else claimed."""
        return self.stretches[0].begin

    @property
    def waited(self) -> str:
        """How long until it was claimed."""
        return took(self.stretches[0].end - self.begin) if self.wake is not None else ""

    @property
    def renewed(self) -> str:
        """When its claim was renewed last, from when it began."""
        if self.claim is None or self.claim.last_heartbeat_at is None:
            return ""
        return took(self.claim.last_heartbeat_at - self.claim.claimed_at)


@dataclass(frozen=True, slots=True)
class Timeline:
    """A page of it, the newest first, and what its axis begins and ends with."""

    spells: Sequence[Spell]
    older: int | None
    """The generation that what came before is below; None where nothing did."""
    runners: Sequence[str]
    """Of each runner how many it claimed of these, and how those ended."""
    begin: datetime | None = None
    end: datetime | None = None
    cut: bool = False
    """Whether times in which nothing was to be done are cut short on the axis."""

    @property
    def form(self) -> str:
        """In which page.js writes the axis's ends."""
        long = self.begin and self.end and self.end - self.begin > timedelta(hours=20)
        return "weekday" if long else "seconds"

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """The kinds of stretches that it has, and what these are called."""
        has = {part.kind for spell in self.spells for part in spell.stretches}
        return [(kind, says) for kind, says in KINDS if kind in has]


def newest(state: Any, limit: int = SHOWN) -> Timeline:
    """The newest wakes of the entity whose dispatch state, with ``now``, this is."""
    return before(state, state.generation + 1, limit)


def before(state: Any, generation: int, limit: int = PAGE) -> Timeline:
    """Those just before a generation: three statements at the most."""
    wakes = list(_wakes(state, generation__lt=generation)[: limit + 1])
    more = len(wakes) > limit
    wakes = wakes[:limit]
    spells = _spells(state, wakes, with_active=generation > state.generation)
    older = spells[-1].generation if spells and more else None
    return _timeline(spells, older)


def around(state: Any, claim: Any) -> Timeline:
    """A claim with those just before and after it."""
    span = (max(claim.epoch - BESIDE, 0), claim.epoch + BESIDE)
    wakes = list(_wakes(state, generation__range=span)[: 2 * BESIDE + 1])
    return _timeline(_spells(state, wakes, with_active=False, of=claim), None)


def _wakes(state: Any, **which: Any) -> Any:
    return Wake.objects.filter(entity=state.entity_id, **which).order_by("-generation")


def _spells(state: Any, wakes: Sequence[Wake], *, with_active: bool, of: Any = None) -> list[Spell]:
    """What came of these wakes, the newest first.

    A claim that is held for long may outlive its wake: the active one is told of all the same, and
    so is the one that the page is ``of``.
    """
    by_wake = Q(consumer_id__in=[wake.wake_id for wake in wakes], entity=state.entity_id)
    rows: Any = ConsumerClaim.objects.filter(by_wake).with_orphan_reason()
    claims = {claim.epoch: claim for claim in rows.defer("acked_streams")}
    if of is not None:
        claims.setdefault(of.epoch, of)
    elif with_active and state.active_epoch not in {None, *claims}:
        active: Any = ConsumerClaim.objects.active().filter(entity=state.entity_id)
        claims |= {claim.epoch: claim for claim in active.with_orphan_reason()}
    known = {wake.generation: wake for wake in wakes}
    spells: list[Spell] = []
    later: datetime | None = None
    for generation in sorted({*known, *claims}, reverse=True):
        wake, claim = known.get(generation), claims.get(generation)
        stretches = list(_stretches(state, wake, claim, later))
        reason = OrphanReason(claim.orphan_reason).label if claim and claim.orphan_reason else ""
        spells.append(Spell(generation, wake, claim, stretches, reason))
        later = stretches[0].begin
    return spells


def _stretches(
    state: Any, wake: Wake | None, claim: Any, later: datetime | None
) -> Iterator[Stretch]:
    """What was the case when; ``later`` is when the entity was woken again, if it was."""
    now = state.now
    if claim is None:
        assert wake is not None  # noqa: S101  what makes a spell
        waits = wake.status == Wake.Status.OUTSTANDING
        yield Stretch("waiting", wake.created_at, now if waits else later or wake.emitted_at)
        return
    if wake is not None:
        yield Stretch("waiting", wake.created_at, claim.claimed_at)
    end = claim.ended_at or max(now, claim.claimed_at)
    silent = claim.status == Status.EXPIRED or claim.orphan_reason
    renewed = max(claim.claimed_at, claim.last_heartbeat_at or claim.claimed_at)
    yield Stretch(claim.status, claim.claimed_at, min(renewed, end) if silent else end)
    if silent:
        yield Stretch("silent", min(renewed, end), end)
    if claim.status == Status.FAILED:
        again = later or (now if state.retry_at is not None else None)
        if again is not None and again > end:
            yield Stretch("delay", end, again)


# --- The axis ---------------------------------------------------------------------------------

_SCALE = 1 / 3
"""The power of its length that a time is drawn as long as: so 80 ms show beside an hour's wait."""
_GAP = 0.04
"""The most of the axis that a time takes in which nothing was to be done."""


def _timeline(spells: Sequence[Spell], older: int | None) -> Timeline:
    if not spells:
        return Timeline([], older, [])
    knots, cut = _axis([part for spell in spells for part in spell.stretches])
    placed = [
        replace(spell, stretches=[_placed(part, knots) for part in spell.stretches])
        for spell in spells
    ]
    return Timeline(placed, older, _by_runner(spells), knots[0][0], knots[-1][0], cut)


def _axis(parts: Sequence[Stretch]) -> tuple[list[tuple[datetime, float]], bool]:
    """Times and their places in percent, between which it is even; and whether any gap was cut."""
    times = sorted({part.begin for part in parts} | {part.end for part in parts})
    busy = {part.begin: part.end for part in parts if part.end > part.begin}
    lengths: list[float] = []
    gaps: list[int] = []
    until = times[0]
    for number, (begin, end) in enumerate(pairwise(times)):
        until = max(until, busy.get(begin, until))
        if begin >= until:
            gaps.append(number)
        lengths.append((end - begin).total_seconds() ** _SCALE)
    longest = _GAP * (sum(lengths) - sum(lengths[each] for each in gaps) or 1.0)
    cut = any(lengths[each] > longest for each in gaps)
    for each in gaps:
        lengths[each] = min(lengths[each], longest)
    whole = sum(lengths) or 1.0
    places = accumulate((each / whole * 100 for each in lengths), initial=0.0)
    return list(zip(times, places, strict=True)), cut


def _placed(part: Stretch, knots: Sequence[tuple[datetime, float]]) -> Stretch:
    left, right = _at(part.begin, knots), _at(part.end, knots)
    return replace(part, left=left, width=max(right - left, 0))


def _at(when: datetime, knots: Sequence[tuple[datetime, float]]) -> float:
    here = bisect_right(knots, when, key=lambda knot: knot[0])
    if here == 0:
        return 0.0
    (since, place), (until, then) = knots[here - 1], knots[min(here, len(knots) - 1)]
    if until <= since:  # the end of the axis
        return place
    return place + (then - place) * ((when - since) / (until - since))


def _by_runner(spells: Sequence[Spell]) -> list[str]:
    ended: dict[str, Counter[str]] = {}
    for spell in spells:
        if spell.claim is not None:
            how = "orphaned" if spell.reason else spell.claim.status
            ended.setdefault(spell.runner_name, Counter())[how] += 1
    return [
        f"{runner}: {counted(each.total(), 'claim')}, "
        + ", ".join(f"{number} {how}" for how, number in each.most_common())
        for runner, each in ended.items()
    ]


# --- What is to come --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ahead:
    """Something that is to happen, or could not: when, for whom, and its state."""

    what: Any
    state: str
    whom: Any
    at: datetime
    error: str = ""


def ahead(state: DispatchState, claim: Any) -> list[Ahead]:
    """What is to come for an entity, of each kind a few, what failed and the soonest first.

    ``claim`` is its active one, if it has one; two statements.
    """
    entity, now = state.entity_id, state.now
    timers = Timer.objects.filter(Q(target=entity) | Q(owner=entity)).defer("message", "entry")
    found = [_timer(each, now) for each in timers.order_by("due_at", "pk")[:SHOWN]]
    due = Registration.objects.filter(subscriber=entity, due_at__isnull=False)
    found += [_due(each, now) for each in due.order_by("due_at")[:SHOWN]]
    if claim is not None and claim.lease_expires_at > now:
        found.append(Ahead("end of its claim's lease", "pending", "itself", claim.lease_expires_at))
    if state.retry_at is not None and not state.ended:
        tries = f"next try, after {counted(state.failures, 'failure')}"
        found.append(Ahead(tries, _state(state.retry_at, now), "itself", state.retry_at))
    return sorted(found, key=lambda each: (each.state != "failed", each.at))


def _state(at: datetime, now: datetime) -> str:
    return "late" if at <= now - LATE else "pending"


def _timer(timer: Timer, now: datetime) -> Ahead:
    timer.now = now
    what = ident(timer.name, page_of("dispatch_timer", timer.pk))
    whom = entity_link(timer.target_id, timer.target_url)
    return Ahead(what, timer.state, whom, timer.due_at, timer.error)


def _due(row: Registration, now: datetime) -> Ahead:
    assert row.due_at is not None  # noqa: S101  what it was looked for by
    if row.tick_at is not None:
        cron = Cron.of(row.source_url)
        what = lines(ident(cron.expression), quiet(cron.timezone))
    else:
        told = "told of changes" if row.due_at == row.deliver_at else "end of its wait"
        what = lines(told, quiet(row.source_url))
    return Ahead(what, _state(row.due_at, now), "itself", row.due_at)
