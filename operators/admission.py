"""Who was authenticated elsewhere, by a provider or a proxy: let in by its groups, or not.

Its account here is kept for its name in the audit log, and for the roles of the moment: it has no
password, and what its groups map to is set anew at each login. A local account, one that has or had
a password, is not to be had this way, nor is a superuser's.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model, login
from django.contrib.auth.models import Group
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from core import audit
from core.errors import Forbidden, PullwakeError
from operators.kit.verbs import acting_as
from operators.roles import ROLES

SESSION = timedelta(hours=8)
"""For how long a login holds whose groups may change elsewhere."""

_NAME = re.compile(r"[^\s/\x00-\x1f\x7f]{1,150}")


@dataclass(frozen=True, slots=True)
class Person:
    """Who somebody is elsewhere."""

    name: str
    groups: frozenset[str]
    email: str = ""
    full_name: str = ""

    @property
    def roles(self) -> frozenset[str]:
        """The roles that PULLWAKE_OPERATOR_GROUPS maps its groups to."""
        mapped = settings.PULLWAKE_OPERATOR_GROUPS
        return frozenset(mapped[group] for group in self.groups if group in mapped)


def admit(request: HttpRequest, person: Person) -> None:
    """Log somebody in, with its roles. Raises Forbidden for who is to stay out, and logs it."""
    try:
        user = _account(person)
    except Forbidden:
        refuse(request, person.name)
        raise
    login(request, user, backend="django.contrib.auth.backends.ModelBackend")
    request.session.set_expiry(SESSION)


def refuse(request: HttpRequest, name: str) -> None:
    """Leave the line of somebody who is to stay out."""
    key = acting_as(name).key
    audit.note(request, principal=key, verb="log in", answer="refused", refused=True)


def page_of(request: HttpRequest, error: PullwakeError, status: int) -> HttpResponse:
    """The page of an error."""
    context = {"error": error, "status": status}
    return render(request, "operators/error.html", context, status=status)


@transaction.atomic
def _keep(person: Person) -> Any:
    """The account, with the roles of the moment; None for who may have none."""
    users = get_user_model()._default_manager
    user = users.select_for_update().filter(username=person.name).first()
    if user is not None and (user.has_usable_password() or user.is_superuser):
        return None
    if user is None:
        if not person.roles:
            return None
        user = users.create_user(person.name)
    first, _, last = person.full_name.partition(" ")
    user.email, user.first_name, user.last_name = person.email[:254], first[:150], last[:150]
    user.is_staff = bool(person.roles)
    user.save()
    user.groups.remove(*Group.objects.filter(name__in=ROLES.keys() - person.roles))
    user.groups.add(*Group.objects.filter(name__in=person.roles))
    return user


def _account(person: Person) -> Any:
    if not _NAME.fullmatch(person.name):
        raise Forbidden("The name that you have there is none that can be kept here.")
    user = _keep(person)
    if user is None and person.roles:
        raise Forbidden(f"{person.name} is a local account: log in with its password.")
    if user is None or not user.is_staff:
        raise Forbidden("None of the groups that you are in is let in here.")
    if not user.is_active:
        raise Forbidden("Your account here is not active.")
    return user


def groups_of(said: object) -> frozenset[str]:
    """Groups, as a claim or a header has them: a list, or names with commas between them."""
    if isinstance(said, str):
        said = said.split(",")
    named: Iterable[Any] = said if isinstance(said, list) else ()
    return frozenset(each.strip() for each in named if isinstance(each, str) and each.strip())
