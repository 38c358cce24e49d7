"""Runners and access tokens, as operators see them and act on them."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import ADDITION
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Count, OuterRef, Q, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from claims import endings
from claims.reports import examine, with_health, with_held
from core.errors import InvalidRequest, NotRunning
from core.principals import Principal
from dispatch import arrivals, entities
from operators.kit import (
    ExactFilter,
    NeededReasonForm,
    OperatorAdmin,
    Order,
    ReasonForm,
    Verb,
    WordFilter,
    log,
    where,
)
from operators.markup import (
    NOTHING,
    badge,
    ident,
    lines,
    list_of,
    moment,
    page_of,
    principal,
    quiet,
    sentences,
)
from runners import registry, tokens
from runners.diagnostics import FIELDS
from runners.health import MANY_RECONNECTS, health, liveness
from runners.models import AccessToken, Runner

MOST_MOVED = 1_000
"""Entities that one confirmation moves; each is a transaction of its own."""

MOST_OFFERED = 200
"""Runners to choose from; any other's id can be typed."""

# --- What may be done to a runner --------------------------------------------------------------


class RunnerInput(UnfoldAdminTextInputWidget):  # type: ignore[misc]
    """The id of a runner: typed, or chosen from those that can be at work."""

    def render(self, name: str, value: Any, attrs: Any = None, renderer: Any = None) -> str:
        """The field, and beside it the runners that are offered as it is typed."""
        offered = f"{name}-offered"
        field = super().render(name, value, {**(attrs or {}), "list": offered}, renderer)
        runners = with_held(Runner.objects.able()).order_by("pk")[:MOST_OFFERED]
        options = format_html_join(
            "",
            '<option value="{}">{}</option>',
            ((runner.pk, f"{runner.label}, {_held(runner)}") for runner in runners),
        )
        return format_html('{}<datalist id="{}">{}</datalist>', field, offered, options)


class TargetForm(ReasonForm):
    """Which runner is to take over, and why."""

    target = forms.CharField(
        label="Runner",
        max_length=128,
        widget=RunnerInput(attrs={"autocomplete": "off"}),
        help_text="Its id; those that are online are offered.",
    )
    field_order = ("target", "reason")

    def clean_target(self) -> str:
        """A runner that exists."""
        target: str = self.cleaned_data["target"].strip()
        if not Runner.objects.filter(pk=target).exists():
            raise forms.ValidationError(f"There is no runner {target}.")
        return target


def _held(runner: Any) -> str:
    return f"{runner.held} active claim{'' if runner.held == 1 else 's'}"


def _enable_effect(runner: Any) -> str:
    if runner.enabled:
        raise InvalidRequest("It is enabled already.")
    return "May claim again; its unclaimed wakes are emitted again at once."


def _disable_effect(runner: Any) -> str:
    if not runner.enabled:
        raise InvalidRequest("It is disabled already.")
    goes_on = f" It keeps its {_held(runner)} until each ends." if runner.held else ""
    return f"Claims nothing any more; its entities wait.{goes_on}"


def _set_status(runner: Any, status: Runner.AdminStatus) -> str:
    if registry.lock(runner.pk).admin_status == status:
        raise InvalidRequest(f"It is {status} already.")
    arrivals.set_admin_status(runner.pk, status)
    return str(status.value)


def _expire_effect(runner: Any) -> str:
    if not runner.held:
        raise InvalidRequest("It holds no claim.")
    fenced = ""
    if liveness(runner, runner.now) == "online":
        fenced = " The runner is online: what it is working on is thrown away."
    return (
        f"Its {_held(runner)} expire, and their entities are woken again if work is left.{fenced}"
    )


def _expire(runner: Any, order: Order) -> str:
    expired = ended = 0
    for claim in runner.claims.active().select_related("runner"):
        with transaction.atomic():
            if endings.take_back(claim) is not None:
                expired += 1
                log(order.user, claim, f"Expire: with all of {runner}. {_because(order)}".strip())
            else:
                ended += 1
    if not expired:
        raise InvalidRequest("It holds no claim any more.")
    return f"{expired} expired" + (f", {ended} had ended meanwhile" if ended else "")


def _move_effect(runner: Any) -> str:
    count = runner.dispatched
    if not count:
        raise InvalidRequest("No entity is dispatched to it.")
    some = f"the first {MOST_MOVED} of its {count}" if count > MOST_MOVED else f"its {count}"
    return (
        f"Dispatches {some} entit{'y' if count == 1 else 'ies'} to the runner named below, with"
        " their unclaimed wakes. Claims that run stay where they are. The other runner's owner can"
        " then read these entities."
    )


def _move(runner: Any, order: Order) -> str:
    target = order.data["target"]
    if target == runner.pk:
        raise InvalidRequest("It is the same runner.")
    states = runner.dispatch_states.filter(ended="")
    moved = 0
    for state in states.select_related("entity").order_by("pk")[:MOST_MOVED]:
        # One that ends meanwhile stays, and does not keep the others.
        with suppress(NotRunning), transaction.atomic():
            if entities.move(state.entity, target):
                moved += 1
                said = f"Move: from {runner} to {target}. {_because(order)}".strip()
                log(order.user, state.entity, said)
    more = ", more are left: move again" if states.exists() else ""
    return f"{moved} entities moved to {target}{more}"


def _delete_effect(runner: Any) -> str:
    claims = {0: "", 1: "its active claim expires, "}.get(
        runner.held, f"its {_held(runner)} expire, "
    )
    return f"It is gone for good: {claims}and its entities keep their work and wait for a runner."


def _delete(runner: Any, order: Order) -> str:
    endings.delete_runner(runner.pk)
    return "deleted"


def _because(order: Order) -> str:
    return f"Reason: {order.reason}" if order.reason else ""


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
        "expire-claims",
        "Expire claims",
        "claims.expire_consumerclaim",
        "Take back every claim of these runners?",
        _expire_effect,
        _expire,
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
        one_transaction=False,
    ),
    Verb(
        "delete",
        "Delete",
        "runners.delete_runner",
        "Delete these runners?",
        _delete_effect,
        _delete,
        form=NeededReasonForm,
        danger=True,
        deletes=True,
    ),
)

# --- Filters ----------------------------------------------------------------------------------


class HealthFilter(WordFilter):
    """By the worst of what is wrong."""

    title = "health"
    parameter_name = "health"
    words = {
        word: (word, where(health_status=word)) for word in ("healthy", "degraded", "unhealthy")
    }


class LivenessFilter(WordFilter):
    """By liveness."""

    title = "liveness"
    parameter_name = "liveness"
    words = {word: (word, where(liveness_status=word)) for word in ("online", "offline", "expired")}


class KindFilter(WordFilter):
    """By kind."""

    title = "kind"
    parameter_name = "kind"
    words = {kind.value: (kind.value, where(kind=kind.value)) for kind in Runner.Kind}


class AdminStatusFilter(WordFilter):
    """By whether it may claim."""

    title = "admin status"
    parameter_name = "admin_status"
    words = {
        status.value: (status.value, where(admin_status=status.value))
        for status in Runner.AdminStatus
    }


class OwnerFilter(ExactFilter):
    """By owner."""

    title = "owner (kind:id)"
    parameter_name = "owner"

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Any]") -> "QuerySet[Any]":
        """The runners of a principal."""
        return _owned(queryset, (self.value() or "").strip())


def _owned(rows: "QuerySet[Any]", key: str) -> "QuerySet[Any]":
    if not key:
        return rows
    try:
        return rows.filter(owner_principal=Principal.parse(key).url)
    except ValueError:
        return rows.none()


# --- Runners ----------------------------------------------------------------------------------


@admin.register(Runner)
class RunnerAdmin(OperatorAdmin):
    """Which runners there are, how they are, and what they hold."""

    row_order = "pk"
    verbs = VERBS
    unseen = ("sandbox_profiles",)
    story_template = "operators/runner.html"
    list_display = ("name", "state", "alive", "held", "last_error", "owner", "place")
    list_display_links = None
    list_filter = (HealthFilter, LivenessFilter, KindFilter, AdminStatusFilter, OwnerFilter)
    search_fields = ("id",)
    search_help_text = "Id, label, or owner such as user:alice"

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        """Runners with what their health is made of, and what the filters ask for."""
        rows: Any = super().get_queryset(request).select_related("liveness")
        filtered = {"health", "liveness"} & set(request.GET)
        return with_health(rows) if filtered else with_held(rows)

    def with_prospects(self, rows: "QuerySet[Any]") -> "QuerySet[Any]":
        """Runners with how many entities that have not ended are dispatched to each."""
        each = Runner.objects.filter(pk=OuterRef("pk")).order_by().values("pk")
        living = Count("dispatch_states", filter=Q(dispatch_states__ended=""))
        count = Subquery(each.annotate(n=living).values("n"))
        counted: QuerySet[Any] = rows.annotate(dispatched=count)
        return counted

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Any]", search_term: str
    ) -> tuple["QuerySet[Any]", bool]:
        """By a part of the id or the label, or by the owner."""
        term = search_term.strip()
        if not term:
            return queryset, False
        if any(term.startswith(f"{kind}:") for kind in Principal.KINDS):
            return _owned(queryset, term), False
        return queryset.filter(Q(id__icontains=term) | Q(label__icontains=term)), False

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """The report of the health endpoint, and what it is made of."""
        report = examine(row)
        now = row.now
        active = list(row.claims.active().order_by("pk")[:50])
        return {
            "report": report,
            "liveness": liveness(row, now),
            "owner": principal(row.owner_principal),
            "diagnostics": list(_diagnostics(row.liveness.diagnostics or {}, now)),
            "active": active,
            "recent": list(row.claims.exclude(status="active").order_by("-pk")[:25]),
            "waiting": list(
                row.wakes.outstanding().select_related("entity").order_by("offset")[:25]
            ),
            "claims_url": list_of("claims_consumerclaim", runner=row.pk),
            "wakes_url": list_of("dispatch_wake", runner=row.pk, status="outstanding"),
            "entities_url": list_of("dispatch_entity", runner=row.pk),
        }

    @admin.display(description="runner")
    def name(self, runner: Any) -> str:
        """Its id and label."""
        label = quiet(runner.label) if runner.label != runner.id else None
        return lines(ident(runner.id, page_of("runners_runner", runner.pk)), label)

    @admin.display(description="health")
    def state(self, runner: Any) -> str:
        """The worst of what is wrong, and each thing that is."""
        found = health(runner, claims=runner.held, lapsed=runner.lapsed, now=runner.now)
        return lines(badge(found.status), sentences(found.issues) if found.issues else None)

    @admin.display(description="liveness")
    def alive(self, runner: Any) -> str:
        """Whether its heartbeat lease runs, and for how long."""
        ends = runner.liveness.lease_expires_at
        if ends is None:
            return badge(liveness(runner, runner.now))
        said = "ends" if ends > runner.now else "ended"
        left = format_html("lease {} {}", said, moment(ends, runner.now))
        return lines(badge(liveness(runner, runner.now)), left)

    @admin.display(description="claims")
    def held(self, runner: Any) -> str:
        """How many it holds, of how many it may."""
        limit = runner.max_concurrent_claims
        held = f"{runner.held} of {limit}" if limit is not None else str(runner.held)
        reconnects = (runner.liveness.diagnostics or {}).get("reconnect_count", 0)
        many = f"{reconnects} reconnect{'' if reconnects == 1 else 's'}"
        return lines(
            held,
            None
            if not reconnects
            else badge(many, "warn")
            if reconnects > MANY_RECONNECTS
            else quiet(many),
        )

    @admin.display(description="last error")
    def last_error(self, runner: Any) -> str:
        """What its client last complained of."""
        error = (runner.liveness.diagnostics or {}).get("last_error") or NOTHING
        return error if len(error) <= 120 else f"{error[:119]}…"

    @admin.display(description="owner")
    def owner(self, runner: Any) -> str:
        """Whose it is."""
        return ident(principal(runner.owner_principal))

    @admin.display(description="kind")
    def place(self, runner: Any) -> str:
        """Where it runs."""
        return lines(runner.kind, None if runner.enabled else badge("disabled"))


def _diagnostics(client: dict[str, Any], now: datetime) -> Iterator[tuple[str, str]]:
    for name in FIELDS:
        value = client.get(name)
        if isinstance(value, bool):
            value = "yes" if value else "no"
        if name.endswith(("_at", "_since")):
            value = _told_time(value, now)
        yield name.replace("_", " "), NOTHING if value is None else str(value)


def _told_time(value: Any, now: datetime) -> Any:
    """A client's time as any other; whatever else it wrote there stays as it is."""
    try:
        when = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return value
    return value if when.tzinfo is None else moment(when, now)


# --- Access tokens -----------------------------------------------------------------------------


class TokenForm(forms.Form):
    """Whose token, what for, and for how long."""

    principal = forms.CharField(
        max_length=400,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "user:alice"}),
        help_text="kind:id, the kind one of user, agent, service, system.",
    )
    label = forms.CharField(
        max_length=256,
        required=False,
        widget=UnfoldAdminTextInputWidget(),
        help_text="What it is for.",
    )
    days = forms.TypedChoiceField(
        label="Valid for",
        coerce=int,
        choices=[(30, "30 days"), (90, "90 days"), (365, "a year"), (0, "until it is revoked")],
        initial=90,
        widget=UnfoldAdminSelectWidget(),
    )

    def clean_principal(self) -> Principal:
        """A principal."""
        try:
            return Principal.parse(self.cleaned_data["principal"].strip())
        except ValueError as exc:
            raise forms.ValidationError(f"This is no principal: {exc}.") from None


def _valid(token: Any) -> bool:
    return token.revoked_at is None and (token.expires_at is None or token.expires_at > token.now)


def _revoke_effect(token: Any) -> str:
    if token.revoked_at is not None:
        raise NotRunning("It is revoked already.")
    remembered = int(tokens.REMEMBERED.total_seconds())
    return f"It opens nothing any more, {remembered} s from now at the latest."


def _revoke(token: Any, order: Order) -> str:
    if not tokens.revoke(token):
        raise NotRunning("It was revoked meanwhile.")
    return "revoked"


class ValidFilter(WordFilter):
    """By whether it opens anything."""

    title = "validity"
    parameter_name = "validity"
    words = {
        "valid": ("valid", lambda rows: rows.valid()),
        "expired": ("expired", lambda rows: rows.expired()),
        "revoked": ("revoked", where(revoked_at__isnull=False)),
    }


@admin.register(AccessToken)
class AccessTokenAdmin(OperatorAdmin):
    """Who may call the API."""

    verbs = (
        Verb(
            "revoke",
            "Revoke",
            "runners.revoke_accesstoken",
            "Revoke these access tokens?",
            _revoke_effect,
            _revoke,
            danger=True,
            fits=_valid,
        ),
    )
    unseen = ("token_hash",)
    story_template = "operators/token.html"
    change_list_template = "operators/tokens.html"
    list_display = ("whose", "label", "validity", "created", "used")
    list_display_links = None
    list_filter = (ValidFilter,)
    search_fields = ("label",)
    search_help_text = "Label, or principal such as user:alice"

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Any]", search_term: str
    ) -> tuple["QuerySet[Any]", bool]:
        """By a part of the label, or by the principal."""
        term = search_term.strip()
        if not term:
            return queryset, False
        try:
            whose = Q(principal=Principal.parse(term).url)
        except ValueError:
            whose = Q()
        return queryset.filter(whose or Q(label__icontains=term)), False

    def get_urls(self) -> list[URLPattern]:
        """Issuing has a page of its own."""
        issue = path(
            "issue/", self.admin_site.admin_view(self.issue_view), name="runners_accesstoken_issue"
        )
        return [issue, *super().get_urls()]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The list, with a button to issue one."""
        may_issue = request.user.has_perm("runners.issue_accesstoken")
        extra = {**(extra_context or {}), "may_issue": may_issue}
        return super().changelist_view(request, extra)  # type: ignore[no-any-return]

    def issue_view(self, request: HttpRequest) -> HttpResponse:
        """Issue a token, and show its secret this once."""
        if not request.user.has_perm("runners.issue_accesstoken"):
            raise PermissionDenied
        form = TokenForm(request.POST or None)
        context = {
            **self.admin_site.each_context(request),
            "title": "Issue an access token",
            "opts": self.opts,
            "form": form,
        }
        if request.method == "POST" and form.is_valid():
            asked = form.cleaned_data
            expires_at = timezone.now() + timedelta(days=asked["days"]) if asked["days"] else None
            with transaction.atomic():
                token, secret = tokens.issue(
                    asked["principal"], label=asked["label"], expires_at=expires_at
                )
                log(request.user, token, f"Issued for {asked['principal'].key}.", flag=ADDITION)
            context |= {"secret": secret, "token": token, "owner": asked["principal"].key}
            messages.success(request, "The token is issued. Copy it now: it is not shown again.")
        return TemplateResponse(request, "operators/issue.html", context)

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """Whose it is, how long it is good, and when it was last used."""
        return {"owner": principal(row.principal), "validity": _validity(row)}

    @admin.display(description="principal")
    def whose(self, token: Any) -> str:
        """Whose it is."""
        return ident(principal(token.principal), page_of("runners_accesstoken", token.pk))

    @admin.display(description="validity")
    def validity(self, token: Any) -> str:
        """Whether it opens anything, and until when."""
        until = None
        if token.revoked_at is None and token.expires_at is not None:
            until = moment(token.expires_at, token.now)
        return lines(badge(_validity(token)), until)

    @admin.display(description="issued")
    def created(self, token: Any) -> str:
        """When it was issued."""
        return moment(token.created_at, token.now)

    @admin.display(description="last used")
    def used(self, token: Any) -> str:
        """When it was last used."""
        return moment(token.last_used_at, token.now)


def _validity(token: Any) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "valid" if _valid(token) else "expired"
