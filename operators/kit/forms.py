"""What a confirmation asks for."""

from collections.abc import Iterable
from typing import Any

from django import forms
from django.utils.html import format_html, format_html_join
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from claims.reports import with_held
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
    """Which runner takes over."""

    target = forms.CharField(
        label="Runner",
        max_length=128,
        widget=RunnerInput(attrs={"autocomplete": "off"}),
        help_text="Its id. Runners that are online are suggested.",
    )
    field_order = ("target", "reason")

    def clean_target(self) -> str:
        target: str = self.cleaned_data["target"].strip()
        if not Runner.objects.filter(pk=target).exists():
            raise forms.ValidationError(f"There is no runner {target}.")
        return target
