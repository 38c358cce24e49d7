"""Access tokens: who may call the API. Issued and shown once, listed, revoked."""

from datetime import timedelta
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.models import ADDITION
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils import timezone
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from claims import endings
from core.errors import NotRunning
from core.identifiers import is_id, new_id
from core.principals import Principal
from operators.kit.lists import RUNNER, column, moment_column, row_column, where, words
from operators.kit.markup import (
    NOTHING,
    badge,
    counted,
    ident,
    lines,
    moment,
    page_of,
    principal,
)
from operators.kit.verbs import OperatorAdmin, Order, Verb, log
from runners import tokens
from runners.models import AccessToken, AccessTokenQuerySet


def new_id_of_form() -> str:
    """An id that distinguishes a form sent twice from two forms."""
    return new_id("form")


def _validities() -> list[tuple[int, str]]:
    """How long a token may be valid; PULLWAKE_TOKEN_DAYS is one of the choices."""
    days = sorted({30, 90, 365, settings.PULLWAKE_TOKEN_DAYS} - {0})
    return [*((each, f"{each} days") for each in days), (0, "until it is revoked")]


SENT = "token-forms-sent"
"""The session's key for the ids of forms that it has sent."""


class TokenForm(forms.Form):
    once = forms.CharField(
        max_length=64, required=False, widget=forms.HiddenInput(), initial=new_id_of_form
    )
    principal = forms.CharField(
        max_length=400,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "user:alice"}),
        help_text="kind:id, where the kind is user, agent, service or system.",
    )
    label = forms.CharField(
        max_length=256,
        required=False,
        widget=UnfoldAdminTextInputWidget(),
        help_text="What it is for.",
    )
    runner = forms.CharField(
        max_length=128,
        required=False,
        widget=UnfoldAdminTextInputWidget(),
        help_text="The id of the one runner that it is for: it then opens nothing else. "
        "The runner need not exist yet.",
    )
    scope = forms.ChoiceField(
        label="Opens",
        required=False,
        choices=AccessToken.Scope.choices,
        widget=UnfoldAdminSelectWidget(),
        help_text="Metrics is for Prometheus: the token reads /metrics, and opens nothing else.",
    )
    days = forms.TypedChoiceField(
        label="Valid for", coerce=int, choices=_validities, widget=UnfoldAdminSelectWidget()
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["days"].initial = settings.PULLWAKE_TOKEN_DAYS

    def clean_principal(self) -> Principal:
        try:
            return Principal.parse(self.cleaned_data["principal"].strip())
        except ValueError as exc:
            raise forms.ValidationError(f"This is not a principal: {exc}.") from None

    def clean(self) -> dict[str, Any]:
        asked: dict[str, Any] = super().clean() or {}
        if asked.get("runner") and asked.get("scope"):
            self.add_error("scope", "A token is for one runner, or for metrics.")
        return asked

    def clean_runner(self) -> str | None:
        runner_id: str = self.cleaned_data["runner"].strip()
        if runner_id and not is_id(runner_id):
            raise forms.ValidationError("This is not the id of a runner.")
        return runner_id or None


def _validity(token: Any) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "valid" if token.expires_at is None or token.expires_at > token.now else "expired"


def _purpose(token: Any) -> str:
    """What it opens: one runner, /metrics, or all that its principal may do."""
    if token.scope:
        return "metrics"
    return RUNNER(token) if token.runner_id else "any"


def _revoke_effect(token: Any) -> str:
    if token.revoked_at is not None:
        raise NotRunning("It is already revoked.")
    remembered = int(tokens.REMEMBERED.total_seconds())
    return f"It stops opening the API within {remembered} s."


def _revoke(token: Any, order: Order) -> str:
    if not tokens.revoke(token):
        raise NotRunning("It has already been revoked.")
    return "revoked"


def _fence_effect(token: Any) -> str:
    if token.scope:
        return f"{_revoke_effect(token)} It could hold nothing."
    whose = f"runner {token.runner_id}"
    if token.runner_id is None:
        owner = Principal.parse(token.principal).key
        whose = f"all {counted(endings.holders(token).count(), 'runner')} of {owner}"
    held = counted(endings.held_with(token).count(), "active claim")
    return (
        f"{_revoke_effect(token)} {held} of {whose} will be taken back: what holds them can write "
        "no more, and their entities are woken again."
    )


def _fence(token: Any, order: Order) -> str:
    taken = endings.revoke_and_take_back(token)
    if taken is None:
        raise NotRunning("It has already been revoked.")
    return f"revoked, and {counted(taken, 'claim')} taken back"


REVOKE = Verb(
    "revoke",
    "Revoke",
    "runners.revoke_accesstoken",
    "Revoke these access tokens?",
    _revoke_effect,
    _revoke,
    danger=True,
    fits=lambda token: _validity(token) == "valid",
)

FENCE = Verb(
    "revoke-and-fence",
    "Revoke and fence",
    "runners.revoke_accesstoken",
    "Revoke these access tokens, and take back what they may hold?",
    _fence_effect,
    _fence,
    danger=True,
    one_transaction=False,
    fits=lambda token: _validity(token) == "valid",
)


@admin.register(AccessToken)
class AccessTokenAdmin(OperatorAdmin):
    verbs = (REVOKE, FENCE)
    unseen = ("token_hash",)
    story_template = "operators/token.html"
    change_list_template = "operators/tokens.html"
    list_display = (
        row_column(
            "principal",
            lambda row: ident(principal(row.principal), page_of("runners_accesstoken", row.pk)),
        ),
        "label",
        column("for", _purpose),
        "validity",
        moment_column("created_at", "issued"),
        moment_column("last_used_at", "last used"),
        column("from", lambda row: row.last_used_from or NOTHING),
    )
    list_filter = (
        words(
            "validity",
            "validity",
            {
                "valid": ("valid", AccessTokenQuerySet.valid),
                "expired": ("expired", AccessTokenQuerySet.expired),
                "revoked": ("revoked", where(revoked_at__isnull=False)),
            },
        ),
    )
    search_fields = ("label__icontains",)
    search_help_text = "Part of the label, or a principal such as user:alice"

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Any]", search_term: str
    ) -> tuple["QuerySet[Any]", bool]:
        try:
            whose = Q(principal=Principal.parse(search_term.strip()).url)
        except ValueError:
            found: tuple[QuerySet[Any], bool] = super().get_search_results(
                request, queryset, search_term
            )
            return found
        return queryset.filter(whose), False

    def get_urls(self) -> list[URLPattern]:
        issue = self.admin_site.admin_view(self.issue_view)
        return [path("issue/", issue, name=self._url_name("issue")), *super().get_urls()]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        may_issue = request.user.has_perm("runners.issue_accesstoken")
        extra = {**(extra_context or {}), "may_issue": may_issue}
        return super().changelist_view(request, extra)

    def issue_view(self, request: HttpRequest) -> HttpResponse:
        """Issue a token, and show its secret this once."""
        if not request.user.has_perm("runners.issue_accesstoken"):
            raise PermissionDenied
        form = TokenForm(request.POST or None)
        context = {"title": "Issue an access token", "form": form}
        if request.method == "POST" and form.is_valid():
            asked = form.cleaned_data
            sent = request.session.get(SENT, [])
            if asked["once"] in sent:  # the page was reloaded, which sends its form again
                messages.warning(request, "This token was issued before: it is not shown again.")
                return HttpResponseRedirect(self._url("changelist"))
            request.session[SENT] = [*sent[-9:], asked["once"]]
            expires_at = timezone.now() + timedelta(days=asked["days"]) if asked["days"] else None
            owner = asked["principal"].key
            with transaction.atomic():
                token, secret = tokens.issue(
                    asked["principal"],
                    label=asked["label"],
                    expires_at=expires_at,
                    runner_id=asked["runner"],
                    scope=AccessToken.Scope(asked["scope"]),
                )
                log(request.user, token, f"Issued for {owner}.", flag=ADDITION)
            context |= {"secret": secret, "token": token, "owner": owner}
            messages.success(request, "The token is issued. Copy it now: it is not shown again.")
        return self.render(request, "operators/issue.html", context)

    def story(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        return {"owner": principal(row.principal), "validity": _validity(row)}

    @admin.display(description="validity")
    def validity(self, token: Any) -> str:
        until = None
        if token.revoked_at is None and token.expires_at is not None:
            until = moment(token.expires_at, token.now)
        return lines(badge(_validity(token)), until)
