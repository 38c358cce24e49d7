"""People authenticated by a proxy: PULLWAKE_REMOTE_USER_HEADER, PULLWAKE_REMOTE_USER_PROXIES.

Each request names its user again: a login ends with the header, and follows its groups. From any
address that is not such a proxy's the header means nothing, and is removed before anything else
sees it.
"""

from collections.abc import Callable

from django.conf import settings
from django.contrib import auth
from django.http import HttpRequest, HttpResponse

from core.addresses import is_among
from core.errors import Forbidden
from operators import admission
from operators.admission import Person

_SAID = "remote_user"
"""In the session: what the headers said when it was begun."""


def with_remote_user(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware, after those of sessions and authentication."""
    names = [settings.PULLWAKE_REMOTE_USER_HEADER, settings.PULLWAKE_REMOTE_GROUPS_HEADER]
    who, groups = (f"HTTP_{name.upper().replace('-', '_')}" for name in names)

    def answer(request: HttpRequest) -> HttpResponse:
        said = [request.META.get(who, ""), request.META.get(groups, "")]
        proxies = settings.PULLWAKE_REMOTE_USER_PROXIES
        if not is_among(request.META.get("REMOTE_ADDR", ""), proxies):
            request.META.pop(who, None)
            request.META.pop(groups, None)
            said = ["", ""]
        begun = request.session.get(_SAID)
        if begun is not None and begun != said:
            auth.logout(request)
        if said[0] and begun != said and request.path_info.startswith("/admin/"):
            try:
                admission.admit(request, Person(said[0], admission.groups_of(said[1])))
            except Forbidden as problem:
                return admission.error_page(request, problem, 403)
            request.session[_SAID] = said
        return get_response(request)

    return answer
