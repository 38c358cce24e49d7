"""The inputs of confirmations."""

from collections.abc import Iterable
from typing import Any

from django import forms
from django.utils.html import format_html, format_html_join
from unfold.widgets import (
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanWidget,
)

from claims.reports import with_failures, with_held
from claims.standing import heir_of, says_failing, trouble_of
from core.clock import with_now
from operators.kit.markup import counted
from runners.models import Runner

MOST_OFFERED = 200
"""Runners to choose from; any other's id can be typed."""


class ReasonForm(forms.Form):
    reason = forms.CharField(
        max_length=500,
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text="Kept in the audit log.",
    )


class NeededReasonForm(ReasonForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["reason"].required = True


class RunnerInput(UnfoldAdminTextInputWidget):  # type: ignore[misc]
    """The id of a runner: typed, or chosen from those that can be at work."""

    def render(self, name: str, value: Any, attrs: Any = None, renderer: Any = None) -> str:
        offered = f"{name}-offered"
        field = super().render(name, value, {**(attrs or {}), "list": offered}, renderer)
        runners: Iterable[Any] = with_held(Runner.objects.able()).order_by("pk")[:MOST_OFFERED]
        options = format_html_join(
            "",
            '<option value="{}">{}, {}</option>',
            ((each.pk, each.label, counted(each.held, "active claim")) for each in runners),
        )
        return format_html('{}<datalist id="{}">{}</datalist>', field, offered, options)


class TargetForm(ReasonForm):
    """Which runner takes over. One that cannot work, or fails most, must be confirmed."""

    target = forms.CharField(
        label="Runner",
        max_length=128,
        widget=RunnerInput(attrs={"autocomplete": "off"}),
        help_text="Its id. Runners that are online are suggested.",
    )
    anyway = forms.BooleanField(
        label="To this runner all the same", required=False, widget=forms.HiddenInput()
    )
    field_order = ("target", "anyway", "reason")

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        anyway = cleaned.pop("anyway", False)
        if "target" not in cleaned:
            return cleaned
        target = cleaned["target"] = cleaned["target"].strip()
        rows: Any = with_now(with_failures(with_held(Runner.objects.select_related("liveness"))))
        runner = rows.filter(pk=target).first()
        if runner is None:
            self.add_error("target", f"There is no runner {target}.")
            return cleaned
        trouble = trouble_of(runner, held=runner.held, now=runner.now)
        failing = says_failing(runner.pk, runner.failed, runner.ended)
        problem = f"Most fails there: {failing}." if failing else ""
        if trouble is not None:
            problem = f"Nothing is worked on there: {trouble.says}."
        if problem and not anyway:
            self.add_error("target", problem)
            self.fields["anyway"].widget = UnfoldBooleanWidget()
        return cleaned


def propose_heir(runners: Iterable[Runner | None], creators: Iterable[str]) -> dict[str, Any]:
    """For `Verb.proposes`: a runner that could take over from these, all of one owner and kind.

    Work without a runner could go to a runner of its creator's.
    """
    present = [each for each in runners if each is not None]
    kinds: set[tuple[str, str | None]] = {(each.owner_principal, each.kind) for each in present}
    kinds = kinds or {(creator, None) for creator in creators}
    if len(kinds) != 1:
        return {}
    ((owner, kind),) = kinds
    heir = heir_of(owner, kind, {each.pk for each in present})
    return {} if heir is None else {"target": heir.pk}
