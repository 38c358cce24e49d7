"""Logging in: its log lines, and the one-time login of development mode."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model, login
from django.contrib.auth.signals import user_logged_in, user_login_failed
from django.contrib.sessions.models import Session
from django.db.models.functions import Now
from django.dispatch import receiver
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
)
from django.urls import reverse
from django.utils import timezone

from core import audit
from core.identifiers import hash_secret, new_secret
from operators.kit.verbs import acting_as

DEVELOPER = "developer"
"""The name of the user whom the one-time login makes, and whom production mode retires."""

_VALID = timedelta(days=1)


def one_time_path() -> str:
    """The path that logs the developer in, once: nobody can guess it, even knowing SECRET_KEY.

    The hash of its secret is stored as the key of a session without a user.
    """
    users = get_user_model()._default_manager
    users.update_or_create(
        username=DEVELOPER,
        defaults={"is_active": True},
        create_defaults={"is_staff": True, "is_superuser": True},
    )
    secret = new_secret("pwl")
    Session.objects.create(
        session_key=_session_key(secret), session_data="", expire_date=timezone.now() + _VALID
    )
    return reverse("login-once", kwargs={"token": secret})


def login_once(request: HttpRequest, token: str) -> HttpResponse:
    """Log the developer in, with a secret that is thereby used up."""
    if not settings.DEVELOPMENT:
        raise Http404
    if request.method != "GET":  # for a request that only checks whether the address exists
        return HttpResponseNotAllowed(["GET"])
    kept = Session.objects.filter(session_key=_session_key(token), expire_date__gt=Now())
    if not kept.delete()[0]:
        raise Http404
    developer = get_user_model()._default_manager.get(username=DEVELOPER)
    login(request, developer, backend="django.contrib.auth.backends.ModelBackend")
    return HttpResponseRedirect(reverse("admin:index"))


def _session_key(secret: str) -> str:
    return hash_secret(secret)[:40]


@receiver(user_logged_in)
def note_login(request: HttpRequest, user: Any, **kwargs: Any) -> None:
    """Log that a person is in."""
    _note(request, user.get_username(), "ok")


@receiver(user_login_failed)
def note_failure(request: HttpRequest | None, credentials: dict[str, Any], **kwargs: Any) -> None:
    """Log that a person was refused."""
    if request is not None:
        _note(request, str(credentials.get("username", "")), "refused")


def _note(request: HttpRequest, username: str, answer: str) -> None:
    match = request.resolver_match
    audit.note(
        request,
        principal=acting_as(username).key,
        verb="log in",
        answer=answer,
        refused=answer == "refused",
        # The path of the one-time login is its secret.
        target=f"/{match.route}" if match and match.url_name == "login-once" else "",
    )
