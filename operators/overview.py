"""The figures on the admin's front page, each a link to the list behind it.

None of them counts claims, wakes or events that are over: `claims.tallies` has those. So the page
costs what is going on now, not all that ever happened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, get_args

from django.conf import settings
from django.db.models import Count, Min, OuterRef, Q, Subquery
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils import timezone

from claims import outliers, tallies
from claims.models import ClaimTally, ConsumerClaim, DeadLetter, OrphanReason, ServerPulse
from claims.reports import with_presence
from claims.standing import of_all as why_standing
from core.clock import span_of, with_now
from dispatch.models import FAILING, LATE, DispatchState, Entity, Registration, Timer, Wake
from dispatch.streams import waiters
from operators.kit.markup import counted, list_of, milliseconds, tone
from operators.remedies import Button, buttons
from operators.wake import OLD
from runners.health import Presence
from runners.models import Runner

SAMPLE = 1000
"""Newest claims that the times are taken from."""
SHOWN = 5
"""Rows of a table."""
SOON = timedelta(seconds=30)
"""Work that came since may be on its way."""

SPANS = {
    "hour": (timedelta(hours=1), timedelta(minutes=5), "%H:%M"),
    "day": (timedelta(days=1), timedelta(hours=1), "%H:%M"),
    "week": (timedelta(days=7), timedelta(hours=6), "%a %H:%M"),
}
OUTCOMES = ("acquired", *tallies.OUTCOMES)

PERMISSIONS = ("runners.view_runner", "claims.view_consumerclaim", "dispatch.view_entity")


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, what it counts, and the list behind it."""

    label: str
    number: int
    url: str
    tone: str = ""
    oldest: datetime | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something to look at, and where."""

    says: str
    url: str
    since: datetime | None = None
    tone: str = "bad"


@dataclass(frozen=True, slots=True)
class Stands:
    """An entity that stands, why, how many wait for the same runner, and what helps."""

    entity: Entity
    says: str
    number: int
    url: str
    remedies: Sequence[Button]


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of time in the chart; heights are percent of the chart's."""

    label: str
    start: datetime
    counts: Sequence[tuple[str, int, float]]
    acquired: float
    title: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars, how many claims its height stands for, and how long each bar's stretch is."""

    bars: Sequence[Bar]
    highest: int
    step: str
    form: str
    """In which page.js writes the bars' times, in the reader's zone."""


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Unfold's DASHBOARD_CALLBACK: what the front page shows to this operator."""
    user = request.user
    context["title"] = "Overview"
    context["may_look"] = all(user.has_perm(name) for name in PERMISSIONS)
    if context["may_look"]:
        span = request.GET.get("span", "")
        context |= figures(span if span in SPANS else "day", user)
        context["server"] = settings.PULLWAKE_PUBLIC_URL or request.build_absolute_uri("/")[:-1]
        context["development"] = settings.DEVELOPMENT
    return context


def figures(span: str, user: Any) -> dict[str, Any]:
    """All figures; ``span``, one of `SPANS`, is the chart's; ``user`` is who may press buttons."""
    pulse = with_now(ServerPulse.objects.all()).first()
    now = timezone.now() if pulse is None else pulse.now
    runners = _runners()
    claims, orphans = _claims()
    waiting = list(DispatchState.objects.longest_waiting())
    work = _work(waiting)
    wakes, old_wakes = _wakes()
    letters = _dead_letters()
    timers = _timers()
    reaper = _reaper(pulse, now)
    total = _Totals(now)
    standing, failing = _helped(waiting, now, user)
    return {
        "now": now,
        "empty": not any(figure.number for figure in runners.values()),
        "groups": [
            ("Runners", [*runners.values()]),
            ("Claims", [claims, *orphans]),
            ("Work", [*work, wakes, letters, _waits(), *timers]),
        ],
        "troubles": _troubles(runners, orphans, work, old_wakes, letters, timers, reaper, now),
        "orphans": _oldest_orphans() if any(each.number for each in orphans) else [],
        "failing": failing,
        "standing": standing,
        "failures": outliers.failures(now, SHOWN),
        "talkers": outliers.talkers(now, SHOWN),
        "quiet": list(ConsumerClaim.objects.quiet().order_by("pk")[:SHOWN]),
        "reaper": reaper,
        "totals": [(name, total.of(length)) for name, (length, _, _) in SPANS.items()],
        "outcomes": OUTCOMES,
        "chart": total.chart(span),
        "span": span,
        "spans": list(SPANS),
        "times": [
            ("wake to claim", _percentiles(_wake_to_claim())),
            ("claim to done", _percentiles(_claim_to_done())),
        ],
        "sample": SAMPLE,
    }


# --- Now --------------------------------------------------------------------------------------


def _runners() -> dict[str, Figure]:
    """How many runners have each health and each presence."""
    rows: Any = with_presence(Runner.objects.all()).order_by()
    found = list(
        rows.values_list("condition", "presence").annotate(
            Count("pk"), Min("liveness__lease_expires_at")
        )
    )

    def figure(kind: str, place: int, word: str) -> Figure:
        fitting = [(n, lease) for *words, n, lease in found if words[place] == word]
        number = sum(n for n, _ in fitting)
        url = list_of("runners_runner", **{kind: word})
        oldest = min(lease for _, lease in fitting) if number and word == "expired" else None
        return Figure(word, number, url, tone(word) if number else "", oldest)

    return {
        **{word: figure("health", 0, word) for word in ("healthy", "degraded", "unhealthy")},
        **{word: figure("liveness", 1, word) for word in get_args(Presence)},
    }


def _claims() -> tuple[Figure, list[Figure]]:
    """The active claims, and the orphaned ones among them by reason."""
    rows: Any = ConsumerClaim.objects.active().with_orphan_reason().order_by()
    found = {
        reason: (n, oldest)
        for reason, n, oldest in rows.values_list("orphan_reason").annotate(
            n=Count("pk"), oldest=Min("orphaned_since")
        )
    }
    number = sum(n for n, _ in found.values())
    active = Figure("active", number, list_of("claims_consumerclaim", status="active"))
    orphans = [
        Figure(
            f"orphaned: {reason.label}",
            found[reason.value][0],
            list_of("claims_consumerclaim", orphaned=reason.value),
            tone("orphaned"),
            found[reason.value][1],
        )
        for reason in OrphanReason
        if reason.value in found
    ]
    nothing = Figure("orphaned", 0, list_of("claims_consumerclaim", orphaned="any"))
    return active, orphans or [nothing]


def _oldest_orphans() -> list[Any]:
    rows: Any = with_now(ConsumerClaim.objects.active().with_orphan_reason())
    orphaned = rows.exclude(orphan_reason="").select_related("runner").order_by("orphaned_since")
    shown = list(orphaned[:SHOWN])
    for claim in shown:
        claim.reason = OrphanReason(claim.orphan_reason).label
    return shown


def _work(waiting: Sequence[Any]) -> list[Figure]:
    """Entities with work that nobody holds, those without a runner, and those that keep failing.

    ``waiting`` are those of `longest_waiting`.
    """
    stranded = next((each for each in waiting if each.runner_id is None), None)
    failing = DispatchState.objects.failing().count()
    return [
        Figure(
            "entities with pending work",
            sum(each.n for each in waiting),
            list_of("dispatch_entity", work="waiting"),
            oldest=waiting[0].pending_since if waiting else None,
        ),
        Figure(
            "of them without a runner",
            stranded.n if stranded else 0,
            list_of("dispatch_entity", work="stranded"),
            tone("no runner") if stranded else "",
            stranded.pending_since if stranded else None,
        ),
        Figure(
            "entities that keep failing",
            failing,
            list_of("dispatch_entity", work="failing"),
            tone("keeps failing") if failing else "",
        ),
    ]


def _helped(waiting: Sequence[Any], now: datetime, user: Any) -> tuple[list[Stands], list[Any]]:
    """What stands longest and what fails most, each with what helps this user to mend it.

    Of each runner whose entities wait longest it is one entity.
    """
    oldest = {
        each.pk: each
        for each in waiting
        if each.pending_since is not None and now - each.pending_since > SOON
    }
    shown = dict(list(oldest.items())[:SHOWN])
    failing = _worst_failing()
    pks = {*shown, *(each.pk for each in failing)}
    found = why_standing(pks) if pks else {}
    for state in failing:
        state.remedies = list(buttons(found[state.pk], user)) if state.pk in found else []
    stands = [
        Stands(
            found[pk].state.entity,
            found[pk].sentence(now),
            each.n,
            list_of("dispatch_entity", work="stranded")
            if each.runner_id is None
            else list_of("dispatch_entity", work="waiting", runner=each.runner_id),
            list(buttons(found[pk], user)),
        )
        for pk, each in shown.items()
        if pk in found
    ]
    return stands, failing


def _worst_failing() -> list[Any]:
    """For each, ``how`` its newest claim ended, and with what ``error``."""
    newest = ConsumerClaim.objects.ended().filter(entity=OuterRef("pk")).order_by("-pk")
    failing = DispatchState.objects.failing().select_related("entity")
    told = failing.annotate(how=Subquery(newest.values("status")[:1])).annotate(
        error=Subquery(newest.values("error")[:1])
    )
    return list(told.order_by("-failures", "pk")[:SHOWN])


def _wakes() -> tuple[Figure, Figure]:
    """All unclaimed wakes, and those unclaimed for minutes."""
    old = Q(created_at__lte=Now() - OLD)
    found = Wake.objects.outstanding().aggregate(
        n=Count("pk"), oldest=Min("created_at"), old=Count("pk", filter=old)
    )
    url = list_of("dispatch_wake", status="outstanding")
    oldest = list_of("dispatch_wake", status="outstanding", age="old", order="oldest")
    return (
        Figure("unclaimed wakes", found["n"], url, oldest=found["oldest"]),
        Figure("unclaimed for minutes", found["old"], oldest, oldest=found["oldest"]),
    )


def _dead_letters() -> Figure:
    found = DeadLetter.objects.filter(redriven_at=None).aggregate(
        n=Count("pk"), oldest=Min("given_up_at")
    )
    url = list_of("claims_deadletter", redriven="no")
    return Figure(
        "dead letters", found["n"], url, tone("given up") if found["n"] else "", found["oldest"]
    )


def _waits() -> Figure:
    """Entities that wait for something elsewhere, or for a cron expression."""
    waiting = Registration.objects.aggregate(n=Count("subscriber", distinct=True))["n"]
    return Figure("entities that wait for others", waiting, list_of("dispatch_entity", waits="yes"))


def _timers() -> list[Figure]:
    """Timers that wait for their time, the late ones among them, and failures of the last day."""
    is_late = Q(due_at__lte=Now() - LATE)
    found = Timer.objects.pending().aggregate(
        n=Count("pk"), late=Count("pk", filter=is_late), oldest=Min("due_at", filter=is_late)
    )
    failed = Timer.objects.failed().filter(failed_at__gt=Now() - timedelta(days=1)).count()
    return [
        Figure("pending timers", found["n"], list_of("dispatch_timer", state="pending")),
        Figure(
            "late timers",
            found["late"],
            list_of("dispatch_timer", state="late"),
            tone("late") if found["late"] else "",
            found["oldest"],
        ),
        Figure(
            "timers that failed in the last day",
            failed,
            list_of("dispatch_timer", state="failed"),
            tone("degraded") if failed else "",
        ),
    ]


def _reaper(pulse: ServerPulse | None, now: datetime) -> dict[str, Any]:
    ran = None if pulse is None else pulse.reaped_at
    patience = timedelta(milliseconds=6 * settings.PULLWAKE_REAPER_INTERVAL_MS)
    return {"pulse": pulse, "ran": ran, "late": ran is None or now - ran > patience}


DEAF = "This server's listener lost the database: readers wait a second or two longer"


def _troubles(
    runners: dict[str, Figure],
    orphans: Sequence[Figure],
    work: Sequence[Figure],
    wakes: Figure,
    letters: Figure,
    timers: Sequence[Figure],
    reaper: dict[str, Any],
    now: datetime,
) -> list[Trouble]:
    """What is wrong, worst first."""
    found: list[Trouble] = []
    _, stranded, failing = work
    if reaper["late"]:
        found.append(Trouble("The reaper is not running: is a server up?", "", reaper["ran"]))
    if waiters.hub.is_deaf:
        found.append(Trouble(DEAF, "", tone="warn"))
    orphaned = sum(each.number for each in orphans)
    if orphaned:
        says = f"{counted(orphaned, 'orphaned claim')}: lapsed, or the runner is not at work"
        since = min(each.oldest for each in orphans if each.oldest is not None)
        found.append(Trouble(says, list_of("claims_consumerclaim", orphaned="any"), since))
    if stranded.number:
        says = f"{counted(stranded.number, 'entity has', 'entities have')} work, but no runner"
        found.append(Trouble(says, stranded.url, stranded.oldest))
    if failing.number:
        says = counted(failing.number, "entity keeps failing", "entities keep failing")
        found.append(Trouble(f"{says}: {FAILING} or more claims in a row", failing.url))
    silent = runners["expired"]
    if silent.number:
        says = f"{counted(silent.number, 'runner')} fell silent: the heartbeat lease expired"
        found.append(Trouble(says, silent.url, silent.oldest))
    if wakes.number:
        says = f"{counted(wakes.number, 'wake')} unclaimed for minutes"
        found.append(Trouble(says, wakes.url, wakes.oldest, "warn"))
    if letters.number:
        says = f"{counted(letters.number, 'dead letter')}: given up by a handler, to be redriven"
        found.append(Trouble(says, letters.url, letters.oldest, "warn"))
    _, late, failed = timers
    if late.number:
        says = f"{counted(late.number, 'timer is', 'timers are')} late: is a server up?"
        found.append(Trouble(says, late.url, late.oldest))
    if failed.number:
        says = f"{counted(failed.number, 'timer')} failed in the last day: nobody got the message"
        found.append(Trouble(says, failed.url, tone="warn"))
    degraded = runners["degraded"]
    if degraded.number:
        says = f"{counted(degraded.number, 'runner is', 'runners are')} degraded"
        found.append(Trouble(says, degraded.url, tone="warn"))
    return found


# --- Over time ----------------------------------------------------------------------------------


class _Totals:
    """The slices of a week, with what came after the last of them."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        week = SPANS["week"][0]
        rows = ClaimTally.objects.filter(since__gte=now - week - tallies.SLICE).order_by("since")
        self.slices = [
            (each.since, {name: getattr(each, name) for name in OUTCOMES}) for each in rows
        ]
        until = self.slices[-1][0] + tallies.SLICE if self.slices else tallies.next_slice(now)
        # Without a reaper there are no slices: at most an hour is counted here.
        until = max(until, now - SPANS["hour"][0])
        self.slices.append((until, tallies.count(until, now + timedelta(minutes=1))))

    def of(self, length: timedelta) -> dict[str, int]:
        start = self.now - length
        return {
            name: sum(counts[name] for since, counts in self.slices if since >= start)
            for name in OUTCOMES
        }

    def chart(self, span: str) -> Chart:
        length, step, form = SPANS[span]
        first = tallies.floor(self.now, step) - length + step
        steps = {first + step * i: dict.fromkeys(OUTCOMES, 0) for i in range(length // step)}
        for since, counts in self.slices:
            bar = steps.get(tallies.floor(since, step))
            for name in OUTCOMES if bar is not None else ():
                bar[name] += counts[name]  # type: ignore[index]
        highest = max(max(_ended(bar), bar["acquired"]) for bar in steps.values())
        bars = [_bar(start, form, bar, highest or 1) for start, bar in steps.items()]
        return Chart(bars, highest, span_of(step), "weekday" if "%a" in form else "hour")


def _ended(counts: dict[str, int]) -> int:
    return sum(counts[name] for name in tallies.OUTCOMES)


def _bar(start: datetime, form: str, counts: dict[str, int], highest: int) -> Bar:
    label = start.strftime(form)
    heights = {name: 100 * number / highest for name, number in counts.items()}
    shown = [(name, counts[name], heights[name]) for name in tallies.OUTCOMES]
    said = ", ".join(f"{counts[name]} {name}" for name in OUTCOMES)
    return Bar(label, start, shown, heights["acquired"], f"from {label} UTC: {said}")


def _wake_to_claim() -> list[float]:
    newest = ConsumerClaim.objects.order_by("-pk").values_list("consumer_id", "claimed_at")
    claimed = dict(newest[:SAMPLE])
    woken = Wake.objects.filter(wake_id__in=claimed).values_list("wake_id", "created_at")
    return [(claimed[wake_id] - when).total_seconds() * 1000 for wake_id, when in woken]


def _claim_to_done() -> list[float]:
    released = ConsumerClaim.objects.filter(status=ConsumerClaim.Status.RELEASED)
    newest = released.order_by("-ended_at").values_list("claimed_at", "ended_at")[:SAMPLE]
    return [(ended - claimed).total_seconds() * 1000 for claimed, ended in newest if ended]


def _percentiles(times: list[float]) -> tuple[str, str]:
    """The median and the 95th percentile, by nearest rank."""
    if not times:
        return milliseconds(None), milliseconds(None)
    ranked = sorted(times)

    def at(share: float) -> str:
        return milliseconds(ranked[min(int(share * len(ranked)), len(ranked) - 1)])

    return at(0.5), at(0.95)
