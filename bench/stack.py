"""The stack's limit: a view that does nothing, behind the same gunicorn, worker and middleware.

A POST answers with the body that it was sent, so that as many bytes go over the wire.
"""

import os

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
settings.ROOT_URLCONF = __name__


def empty(request: HttpRequest) -> HttpResponse:
    """No authentication, no validation, no database."""
    body = request.body or b"{}"
    return HttpResponse(
        body, content_type="application/json", headers={"Content-Length": str(len(body))}
    )


urlpatterns = [path("livez", empty), path("empty", empty)]

from config.wsgi import application  # noqa: E402  with these addresses

__all__ = ["application"]
