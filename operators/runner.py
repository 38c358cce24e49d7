"""Runners, as operators see them and act on them."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any, get_args

from django.contrib import admin
from django.db import transaction
from django.db.models import Count, F, OuterRef, Q, QuerySet, Subquery
from django.db.models.fields.json import KeyTextTransform
from django.http import Http404, HttpRequest
from django.utils.html import format_html, format_html_join

from claims import endings
from claims.reports import Report, examine, find_counted, with_failures, with_held, with_presence
from claims.standing import trouble_of
from core.clock import span_of
from core.errors import InvalidRequest, NotFound, NotRunning
from core.principals import Principal
from dispatch import arrivals, entities
from dispatch.models import DispatchState
from operators import audit
from operators.kit.forms import NeededReasonForm, TargetForm, propose_heir
from operators.kit.lists import column, exact, values, words
from operators.kit.markup import (
    NOTHING,
    badge,
    counted,
    entity_link,
    ident,
    lines,
    list_of,
    moment,
    page_of,
    plain,
    principal,
    quiet,
    sentences,
    shortened,
)
from operators.kit.verbs import OperatorAdmin, Order, Verb
from runners import registry
from runners.diagnostics import FIELDS
from runners.health import MANY_RECONNECTS, Presence, Status, health, presence
from runners.models import Runner

LABELS = {"claims_succeeded": "claims granted", "claims_failed": "calls to claim that failed"}
"""What a diagnostic counts, where its name says something else: a claim that failed was granted."""

MOST_MOVED = 100
"""Entities that one step moves; each is a transaction of its own."""

# --- What may be done to a runner --------------------------------------------------------------


def _enable_effect(runner: Any) -> str:
    if runner.enabled:
        raise InvalidRequest("It is already enabled.")
    runner.admin_status = Runner.AdminStatus.ENABLED  # after this verb
    trouble = trouble_of(runner, held=runner.held, now=runner.now)
    if trouble is not None:
        return (
            f"May claim again, but does not yet: {trouble.says}. Its entities wait until it does."
        )
    return "May claim again. Its unclaimed wakes are emitted again at once."


def _disable_effect(runner: Any) -> str:
    if not runner.enabled:
        raise InvalidRequest("It is already disabled.")
    goes_on = f" It keeps its {_held(runner)} to the end." if runner.held else ""
    return f"May not claim any more, and its entities wait.{goes_on}"


def _set_status(runner: Any, status: Runner.AdminStatus) -> str:
    if registry.lock_again(runner).admin_status == status:
        raise InvalidRequest(f"It is already {status}.")
    arrivals.set_admin_status(runner, status)
    return str(status.value)


def _held(runner: Any) -> str:
    return counted(runner.held, "active claim")


def _taken_back(runner: Any) -> str:
    return f"{_held(runner)} {'is' if runner.held == 1 else 'are'} taken back"


def _take_back_effect(runner: Any) -> str:
    if not runner.held:
        raise InvalidRequest("It holds no claim.")
    trouble = trouble_of(runner, held=0, now=runner.now)
    if trouble is not None:
        return f"Its {_taken_back(runner)}. Work that is left waits, because {trouble.says}."
    return (
        f"Its {_taken_back(runner)}. Entities with work left are woken again. The runner is online,"
        " and loses the work in progress."
    )


def _take_back(runner: Any, order: Order) -> str:
    taken = ended = 0
    for claim in runner.claims.active().select_related("runner"):
        with transaction.atomic():
            if endings.take_back(claim) is not None:
                taken += 1
                order.log(claim, f"Take back: with all claims of {runner}")
            else:
                ended += 1
    if not taken:
        raise InvalidRequest("It no longer holds a claim.")
    return f"{taken} taken back" + (f", {ended} had already ended" if ended else "")


def _move_effect(runner: Any) -> str:
    count = runner.dispatched
    if not count:
        raise InvalidRequest("No entity is dispatched to it.")
    return (
        f"Dispatches its {counted(count, 'entity', 'entities')} to the runner named below,"
        " together with their unclaimed wakes. Active claims stay with this runner. The other"
        " runner's owner can then read these entities."
    )


def _move(runner: Any, order: Order, why: str = "Move") -> str:
    target = order.data["target"]
    if target == runner.pk:
        raise InvalidRequest("It is the same runner.")
    states = runner.dispatch_states.filter(ended="")
    moved = _move_all(states, target, order, f"{why}: from {runner} to {target}")
    more = ", more to follow" if states.exists() else _the_last(order)
    return f"{counted(moved, 'entity', 'entities')} moved to {target}{more}"


def _the_last(order: Order) -> str:
    return f", the last of {order.total}" if order.total else ""


def _move_all(states: "QuerySet[DispatchState]", target: str, order: Order, said: str) -> int:
    """Move at most `MOST_MOVED` of these: how many. Each gets its audit entry."""
    moved = 0
    for state in states.select_related("entity").order_by("pk")[:MOST_MOVED]:
        # An entity that ends meanwhile stays, and does not stop the others from moving.
        with suppress(NotRunning), transaction.atomic():
            if entities.move(state.entity, target):
                moved += 1
                order.log(state.entity, said)
    return moved


# A drained runner is a disabled one whose entities were moved; it finishes its claims.
# The audit log knows which entities return when that is undone.


def _check_drainable(runner: Any) -> None:
    """Raise InvalidRequest where nothing is left to drain."""
    if not (runner.enabled or runner.dispatched):
        raise InvalidRequest("It is already disabled, and no entity is dispatched to it.")


def _drain_effect(runner: Any) -> str:
    _check_drainable(runner)
    count = runner.dispatched
    held = f"works its {_held(runner)} off" if runner.held else "holds no claim"
    return (
        f"May not claim any more, and {held}. Dispatches its {counted(count, 'entity', 'entities')}"
        " to the runner named below, whose owner can then read them. Undo drain brings them back."
    )


def _drain(runner: Any, order: Order) -> str:
    if order.data["target"] == runner.pk:
        raise InvalidRequest("It is the same runner.")
    _check_drainable(runner)
    if runner.enabled:
        with transaction.atomic():
            _set_status(runner, Runner.AdminStatus.DISABLED)
    return _move(runner, order, "Drain")


_UNDONE = "Undo drain: enabled"
"""How the entry begins of an undoing that was brought to its end."""


def _drained(runner: Any) -> list[tuple[str, "QuerySet[DispatchState]"]]:
    """The runners that it was drained to, and the entities that are still there.

    What happened before it was last enabled is over.
    """
    newest = audit.last_of_month(runner, "Drain", "Undo drain", "Enable")
    if newest is None or newest.change_message.startswith(("Enable", _UNDONE)):
        return []
    prefix = f"Drain: from {runner} to "
    over = audit.last_of_month(runner, "Enable", _UNDONE)
    entries = audit.of_entities(prefix, after=0 if over is None else over.pk)
    away: dict[str, set[int]] = {}
    for entity, said in entries:
        target = said.removeprefix(prefix).partition(". Reason:")[0].removesuffix(".")
        away.setdefault(target, set()).add(int(entity))
    found = [
        (target, DispatchState.objects.filter(runner=target, ended="", pk__in=pks))
        for target, pks in away.items()
    ]
    return [(target, states) for target, states in found if states.exists()]


def _away(runner: Any) -> int:
    """How many of its entities are where it was drained to."""
    return sum(states.count() for _, states in _drained(runner))


def _to_move(runner: Any) -> int:
    return int(runner.dispatch_states.filter(ended="").count())


def _undrain_effect(runner: Any) -> str:
    count = _away(runner)
    if not count:
        raise InvalidRequest("None of its entities is where it was drained to.")
    enabled = "" if runner.enabled else f"{_enable_effect(runner)} "
    return f"{enabled}Gets back {counted(count, 'entity', 'entities')} that it was drained of."


def _undrain(runner: Any, order: Order) -> str:
    drained = _drained(runner)
    if not runner.enabled:
        with transaction.atomic():
            _set_status(runner, Runner.AdminStatus.ENABLED)
    moved = sum(
        _move_all(states, runner.pk, order, f"Undo drain: from {target} to {runner}")
        for target, states in drained
    )
    back = f"{counted(moved, 'entity', 'entities')} moved back"
    if any(states.exists() for _, states in drained):
        return f"{back}, more to follow"
    return f"{_UNDONE.partition(': ')[2]}, and {back}{_the_last(order)}"


def _delete_effect(runner: Any) -> str:
    claims = f" Its {_taken_back(runner)}." if runner.held else ""
    count = runner.dispatched
    entities = "No entity is dispatched to it."
    if count:
        entities = (
            f"{counted(count, 'entity', 'entities')} keep their work and have no runner: they wait"
            " until they are moved to another. Move them first."
        ).replace("1 entity keep their work and have", "1 entity keeps its work and has")
    return f"Deleted for good.{claims} {entities}"


def _delete(runner: Any, order: Order) -> str:
    endings.delete_runner(runner)
    return "deleted"


VERBS = (
    Verb(
        "enable",
        "Enable",
        "runners.enable_runner",
        "Let these runners claim again?",
        _enable_effect,
        lambda runner, order: _set_status(runner, Runner.AdminStatus.ENABLED),
        fits=lambda runner: not runner.enabled,
    ),
    Verb(
        "disable",
        "Disable",
        "runners.disable_runner",
        "Keep these runners from claiming?",
        _disable_effect,
        lambda runner, order: _set_status(runner, Runner.AdminStatus.DISABLED),
        fits=lambda runner: runner.enabled,
    ),
    Verb(
        "drain",
        "Drain",
        "runners.disable_runner",
        "Drain these runners: no new claims, and their entities to another runner?",
        _drain_effect,
        _drain,
        form=TargetForm,
        proposes=lambda runners: propose_heir(runners, ()),
        also="dispatch.move_entity",
        one_transaction=False,
        left=_to_move,
        fits=lambda runner: bool(runner.dispatched),
    ),
    Verb(
        "undrain",
        "Undo drain",
        "runners.enable_runner",
        "Let these runners claim again, and give them back what they were drained of?",
        _undrain_effect,
        _undrain,
        also="dispatch.move_entity",
        one_transaction=False,
        left=_away,
        fits=lambda runner: bool(_drained(runner)),
    ),
    Verb(
        "expire-claims",
        "Take back claims",
        "claims.expire_consumerclaim",
        "Take back all claims of these runners?",
        _take_back_effect,
        _take_back,
        danger=True,
        one_transaction=False,
        fits=lambda runner: bool(runner.held),
    ),
    Verb(
        "move-entities",
        "Move entities",
        "dispatch.move_entity",
        "Dispatch the entities of these runners to another runner?",
        _move_effect,
        _move,
        form=TargetForm,
        proposes=lambda runners: propose_heir(runners, ()),
        one_transaction=False,
        left=_to_move,
        fits=lambda runner: bool(runner.dispatched),
    ),
    Verb(
        "delete",
        "Delete",
        "runners.delete_runner",
        "Delete these runners?",
        _delete_effect,
        _delete,
        prepare=endings.forget_past_of_runner,
        form=NeededReasonForm,
        danger=True,
        deletes=True,
    ),
)

# --- Runners ----------------------------------------------------------------------------------


def _owned_by(rows: Any, key: str) -> Any:
    try:
        return rows.owned_by(Principal.parse(key))
    except ValueError:
        return rows.none()


def _with_last_error(rows: Any, text: str) -> Any:
    said = KeyTextTransform("last_error", "liveness__diagnostics")
    return rows.annotate(said=said).filter(said__icontains=text)


@admin.register(Runner)
class RunnerAdmin(OperatorAdmin):
    row_order = "pk"
    verbs = VERBS
    unseen = ("sandbox_profiles",)
    told = True
    story_template = "operators/runner.html"
    list_display = (
        "name",
        "state",
        "alive",
        "held",
        "last_error",
        column("owner", lambda row: ident(principal(row.owner_principal))),
    )
    list_filter = (
        words("health", "health", values("condition", get_args(Status))),
        words("liveness", "liveness", values("presence", get_args(Presence))),
        words("kind", "kind", values("kind", Runner.Kind.values)),
        words("admin status", "admin_status", values("admin_status", Runner.AdminStatus.values)),
        exact("owner (kind:id)", "owner", _owned_by),
        exact("text of the last error", "error", _with_last_error),
    )
    search_fields = (
        "id__icontains",
        "label__icontains",
        "liveness__diagnostics__last_error__icontains",
    )
    search_help_text = "Part of the id, label or error; or user:alice"

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        rows: Any = super().get_queryset(request).select_related("liveness")
        filtered = {"health", "liveness"} & set(request.GET)
        return with_failures(with_held(with_presence(rows) if filtered else rows))

    def with_prospects(self, rows: "QuerySet[Any]") -> "QuerySet[Any]":
        each = Runner.objects.filter(pk=OuterRef("pk")).order_by().values("pk")
        living = Count("dispatch_states", filter=Q(dispatch_states__ended=""))
        told: QuerySet[Any] = rows.annotate(
            dispatched=Subquery(each.annotate(n=living).values("n"))
        )
        return told

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Any]", search_term: str
    ) -> tuple["QuerySet[Any]", bool]:
        if search_term.strip().startswith(tuple(f"{kind}:" for kind in Principal.KINDS)):
            return _owned_by(queryset, search_term.strip()), False
        found: tuple[QuerySet[Any], bool] = super().get_search_results(
            request, queryset, search_term
        )
        return found

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        waiting = row.wakes.outstanding().annotate(entity_url=F("entity__url"))
        try:
            report = examine(find_counted(row.pk))
        except NotFound:  # deleted just now
            raise Http404 from None
        return {
            "report": report,
            "doing": _doing(row, report),
            "heard": _is_heard(row),
            "done": None if row.enabled else audit.last(row, "Disable", "Drain"),
            "presence": presence(row, claims=report.held, now=row.now),
            "owner": principal(row.owner_principal),
            "diagnostics": list(_diagnostics(row.liveness.diagnostics or {}, row.now)),
            "active": list(row.claims.active().order_by("pk")[:50]),
            "recent": list(row.claims.ended().order_by("-pk")[:25]),
            "waiting": list(waiting.order_by("offset")[:25]),
            "claims_url": list_of("claims_consumerclaim", runner=row.pk),
            "wakes_url": list_of("dispatch_wake", runner=row.pk, status="outstanding"),
            "entities_url": list_of("dispatch_entity", runner=row.pk),
        }

    @admin.display(description="runner")
    def name(self, runner: Any) -> str:
        label = quiet(plain(runner.label)) if runner.label != runner.id else None
        return lines(
            ident(runner.id, page_of("runners_runner", runner.pk)), label, quiet(runner.kind)
        )

    @admin.display(description="health")
    def state(self, runner: Any) -> str | None:
        if presence(runner, claims=runner.held, now=runner.now) == "stopped":
            return None
        found = health(
            runner,
            claims=runner.held,
            lapsed=runner.lapsed,
            failed=runner.failed,
            ended=runner.ended,
            now=runner.now,
        )
        return lines(badge(found.status), sentences(found.issues) if found.issues else None)

    @admin.display(description="liveness")
    def alive(self, runner: Any) -> str:
        ends = runner.liveness.lease_expires_at
        word = badge(presence(runner, claims=runner.held, now=runner.now))
        if ends is None:
            return word
        said = "ends" if ends > runner.now else "ended"
        return lines(word, format_html("lease {} {}", said, moment(ends, runner.now)))

    @admin.display(description="claims")
    def held(self, runner: Any) -> str:
        limit = runner.max_concurrent_claims
        held = f"{runner.held} of {limit}" if limit is not None else str(runner.held)
        reconnects = (runner.liveness.diagnostics or {}).get("reconnect_count", 0)
        if not reconnects:
            return held
        said = counted(reconnects, "reconnect")
        return lines(held, badge(said, "warn") if reconnects > MANY_RECONNECTS else quiet(said))

    @admin.display(description="last error")
    def last_error(self, runner: Any) -> str | None:
        error = (runner.liveness.diagnostics or {}).get("last_error")
        if not error:
            return None
        silent = not _is_heard(runner)
        as_of = format_html("as of {}", moment(runner.liveness.last_seen_at, runner.now))
        return lines(shortened(error, 120), quiet(as_of) if silent else None)


def _is_heard(runner: Any) -> bool:
    """Whether its heartbeat lease runs, as that of a disabled runner may."""
    ends = runner.liveness.lease_expires_at
    return ends is not None and ends > runner.now


MOST_NAMED = 5
"""Entities that a sentence names."""


def _doing(runner: Any, report: Report) -> str:
    """What it works on now, in a sentence."""
    named = format_html_join(
        ", ",
        "{} ({})",
        (
            (entity_link(each.entity_id, each.entity_url), span_of(runner.now - each.claimed_at))
            for each in report.claims[:MOST_NAMED]
        ),
    )
    more = report.held - MOST_NAMED
    rest = f" and {more} more" if more > 0 else ""
    waits = counted(report.pending, "entity waits", "entities wait")
    waiting = f" {waits} for it." if report.pending else ""
    if not report.claims:
        return format_html("It works on nothing.{}", waiting)
    begins = "It works on" if _is_heard(runner) else "Nobody is at work, though it holds"
    return format_html("{} {}{}.{}", begins, named, rest, waiting)


def _diagnostics(client: dict[str, Any], now: datetime) -> Iterator[tuple[str, str]]:
    for name in FIELDS:
        value = client.get(name)
        if isinstance(value, bool):
            value = "yes" if value else "no"
        if name.endswith(("_at", "_since")):
            value = _told_time(value, now)
        yield LABELS.get(name, name.replace("_", " ")), NOTHING if value is None else str(value)


def _told_time(value: Any, now: datetime) -> Any:
    """A client's time, shown like any other; any other text is shown as it is."""
    try:
        when = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return value
    return value if when.tzinfo is None else moment(when, now)
