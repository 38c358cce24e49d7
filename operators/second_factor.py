"""The second factor of local passwords: an authenticator's codes (TOTP), and recovery codes.

PULLWAKE_TOTP says whether operators may have one, or must. django-otp stores the devices; no code
works twice, and repeated guesses must wait longer and longer. It is an extra: while that setting is
off nothing of it is imported. People who log in elsewhere have a second factor there.
"""

from collections.abc import Callable
from typing import Any

import django_otp
import segno
from django import forms
from django.conf import settings
from django.contrib import admin, auth, messages
from django.contrib.auth.signals import user_login_failed
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods
from django_otp.plugins.otp_static.models import StaticDevice, StaticToken
from django_otp.plugins.otp_totp.models import TOTPDevice
from unfold.forms import AuthenticationForm
from unfold.widgets import BASE_INPUT_CLASSES

from core import audit
from operators.kit.verbs import acting_as
from operators.login import DEVELOPER

RECOVERY_CODES = 10

WRONG = "The code is wrong, or was used. After some of those it takes a while until one is tried."

DEVICES = (TOTPDevice, StaticDevice)
"""Whose own pages in the admin would show secrets."""


class CodeField(forms.CharField):
    """A code, from an authenticator or for recovery."""

    def __init__(self, **facts: Any) -> None:
        attrs = {"autocomplete": "one-time-code", "class": " ".join(BASE_INPUT_CLASSES)}
        super().__init__(max_length=32, widget=forms.TextInput(attrs=attrs), **facts)

    def clean(self, value: Any) -> str:
        """Remove the spaces that authenticators show."""
        return str(super().clean(value)).replace(" ", "").lower()


class LoginForm(AuthenticationForm):  # type: ignore[misc]
    """A person with a second factor enters both: a wrong code counts as a wrong password."""

    code = CodeField(required=False, label="Code, if you have a second factor")

    def clean(self) -> Any:
        """Raises ValidationError without telling a wrong code from a used one."""
        cleaned = super().clean()
        user = self.get_user()
        if user is not None and _has_device(user):
            code = self.cleaned_data.get("code", "")
            if not code:
                raise ValidationError(
                    "Say the code of your authenticator, too, or a recovery code.", "code_required"
                )
            user.otp_device = _verified(user, code)
            if user.otp_device is None:
                told = {"username": user.get_username()}
                user_login_failed.send(__name__, credentials=told, request=self.request)
                raise ValidationError(WRONG, "code_wrong")
        return cleaned


class _CodeForm(forms.Form):
    code = CodeField(label="Code")


def with_second_factor(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware, after django-otp's: who has or must have a second factor needs it for each page.

    A session that began before its user had a second factor ends.
    """

    def answer(request: HttpRequest) -> HttpResponse:
        user: Any = request.user
        free = [reverse(name) for name in ("admin:login", "admin:logout")]
        inside = request.path_info.startswith("/admin/") and request.path_info not in free
        if not inside or not _is_asked(user) or user.is_verified():
            return get_response(request)
        if _has_device(user):
            auth.logout(request)
            return redirect_to_login(request.get_full_path(), reverse("admin:login"))
        own = reverse("second-factor")
        if settings.PULLWAKE_TOTP == "required" and request.path_info != own:
            return HttpResponseRedirect(own)
        return get_response(request)

    return answer


@never_cache
@require_http_methods(["GET", "POST"])
def page(request: HttpRequest) -> HttpResponse:
    """One's own second factor: turned on and off, and new recovery codes."""
    if not admin.site.has_permission(request):
        return redirect_to_login(request.get_full_path(), reverse("admin:login"))
    user: Any = request.user
    if not _is_asked(user):
        messages.info(request, "You log in without a password of this server: it asks for no code.")
        return HttpResponseRedirect(reverse("admin:index"))
    form = _CodeForm(request.POST or None)
    codes: list[str] = []
    if request.method == "POST" and form.is_valid():
        codes = _act(request, form)
        if not form.errors and not codes:
            return HttpResponseRedirect(reverse("second-factor"))
    context = {
        **admin.site.each_context(request),
        "title": "Second factor",
        "form": form,
        "codes": codes,
        "is_on": _has_device(user),
        "is_required": settings.PULLWAKE_TOTP == "required",
    }
    if not context["is_on"]:
        device = _unconfirmed(user)
        context["secret"] = device.config_url.partition("secret=")[2].partition("&")[0]
        context["picture"] = segno.make(device.config_url).svg_data_uri(scale=5, light="#fff")
    return TemplateResponse(request, "operators/second_factor.html", context)


def remove(user: Any) -> bool:
    """Take a user's second factor away: whether there was one."""
    with transaction.atomic():
        gone, _ = TOTPDevice.objects.filter(user=user).delete()
        StaticDevice.objects.filter(user=user).delete()
    return bool(gone)


def _act(request: HttpRequest, form: forms.Form) -> list[str]:
    """Do what was asked for with a right code: the new recovery codes, if any."""
    user: Any = request.user
    code, asked = form.cleaned_data["code"], request.POST.get("do")
    if not _has_device(user):
        device = django_otp.verify_token(user, _unconfirmed(user).persistent_id, code)
        if device is None:
            form.add_error("code", WRONG)
            return []
        device.confirmed = True
        device.save()
        django_otp.login(request, device)
        _note(request, "turn on the second factor")
        return _new_codes(user)
    if _verified(user, code) is None:
        form.add_error("code", WRONG)
        return []
    if asked == "codes":
        _note(request, "renew recovery codes")
        return _new_codes(user)
    if asked == "off" and settings.PULLWAKE_TOTP != "required":
        remove(user)
        _note(request, "turn off the second factor")
    return []


def _note(request: HttpRequest, verb: str) -> None:
    key = acting_as(request.user.get_username()).key
    audit.note(request, principal=key, verb=verb, answer="ok")


def _is_asked(user: Any) -> bool:
    """Whether a person logs in with a password here; the one-time login is development mode's."""
    if not user.is_authenticated or not user.has_usable_password():
        return False
    return not (settings.DEVELOPMENT and user.get_username() == DEVELOPER)


def _has_device(user: Any) -> bool:
    return bool(TOTPDevice.objects.filter(user=user, confirmed=True).exists())


def _verified(user: Any, code: str) -> Any:
    """The device that produced this code, or None; recovery codes are not six digits."""
    kind = TOTPDevice if code.isdecimal() else StaticDevice
    device = kind.objects.filter(user=user, confirmed=True).first()
    return device and django_otp.verify_token(user, device.persistent_id, code)


def _unconfirmed(user: Any) -> Any:
    """The authenticator that a user is adding."""
    own = TOTPDevice.objects.filter(user=user, confirmed=False)
    return own.first() or TOTPDevice.objects.create(user=user, confirmed=False, name="own")


def _new_codes(user: Any) -> list[str]:
    """New recovery codes, each good for one use; former ones become invalid."""
    with transaction.atomic():
        StaticDevice.objects.filter(user=user).delete()
        device = StaticDevice.objects.create(user=user, name="recovery")
        # A letter in front, so that none is taken for an authenticator's.
        codes = [f"r{StaticToken.random_token()}" for _ in range(RECOVERY_CODES)]
        StaticToken.objects.bulk_create(StaticToken(device=device, token=code) for code in codes)
    return codes
