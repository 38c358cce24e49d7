"""Logging in: what is written down of it, and the one-time login of development mode."""

from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model, login
from django.contrib.auth.signals import user_logged_in, user_login_failed
from django.contrib.auth.tokens import default_token_generator
from django.dispatch import receiver
from django.http import Http404, HttpRequest, HttpResponseRedirect
from django.urls import reverse

from core import audit
from operators.kit.verbs import acting_as


def login_once(request: HttpRequest, token: str) -> HttpResponseRedirect:
    """Log the developer in. The token holds the time of the last login, so it works once."""
    developer = get_user_model()._default_manager.filter(username="developer").first()
    if not settings.DEVELOPMENT or not default_token_generator.check_token(developer, token):
        raise Http404
    login(request, developer)
    return HttpResponseRedirect(reverse("admin:index"))


@receiver(user_logged_in)
def note_login(request: HttpRequest, user: Any, **kwargs: Any) -> None:
    """Leave a line of who is in."""
    _note(request, user.get_username(), "ok")


@receiver(user_login_failed)
def note_failure(request: HttpRequest | None, credentials: dict[str, Any], **kwargs: Any) -> None:
    """Leave a line of who is not."""
    if request is not None:
        _note(request, str(credentials.get("username", "")), "refused")


def _note(request: HttpRequest, username: str, answer: str) -> None:
    key = acting_as(username).key
    audit.note(request, principal=key, verb="log in", answer=answer, refused=answer == "refused")
