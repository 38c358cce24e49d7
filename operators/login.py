"""The one-time login of development mode, whose address `manage.py serve` prints."""

from django.conf import settings
from django.contrib.auth import get_user_model, login
from django.contrib.auth.tokens import default_token_generator
from django.http import Http404, HttpRequest, HttpResponseRedirect
from django.urls import reverse


def login_once(request: HttpRequest, token: str) -> HttpResponseRedirect:
    """Log the developer in. The token holds the time of the last login, so it works once."""
    developer = get_user_model()._default_manager.filter(username="developer").first()
    if not settings.DEVELOPMENT or not default_token_generator.check_token(developer, token):
        raise Http404
    login(request, developer)
    return HttpResponseRedirect(reverse("admin:index"))
