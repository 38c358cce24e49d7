"""Admits, by their groups, people who were authenticated by a login provider or a proxy.

Their account here exists for the audit log and for their current roles: it has no password, and the
roles that their groups map to are set at each login. This way nobody gets a local account, one that
has or had a password, nor a superuser's.
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
    """A person, as the provider or proxy knows them."""

    name: str
    groups: frozenset[str]
    email: str = ""
    full_name: str = ""

    @property
    def roles(self) -> frozenset[str]:
        """The roles that PULLWAKE_OPERATOR_GROUPS maps the person's groups to."""
        mapped = settings.PULLWAKE_OPERATOR_GROUPS
        return frozenset(mapped[group] for group in self.groups if group in mapped)


def admit(request: HttpRequest, person: Person) -> None:
    """Log a person in, with their roles. Raises Forbidden for one to be kept out."""
    try:
        user = _account(person)
    except Forbidden:
        refuse(request, person.name)
        raise
    login(request, user, backend="django.contrib.auth.backends.ModelBackend")
    request.session.set_expiry(SESSION)


def refuse(request: HttpRequest, name: str) -> None:
    """Log that a person was kept out."""
    key = acting_as(name).key
    audit.note(request, principal=key, verb="log in", answer="refused", refused=True)


def error_page(
    request: HttpRequest, error: PullwakeError, status: int, again: str = ""
) -> HttpResponse:
    """The page of an error; ``again`` is the address at which to try once more."""
    context = {"error": error, "status": status, "again": again}
    return render(request, "operators/error.html", context, status=status)


@transaction.atomic
def _keep(person: Person) -> Any:
    """The account, with the current roles; None for a person who may have none."""
    users = get_user_model()._default_manager
    user = users.select_for_update().filter(username=person.name).first()
    if user is not None and (user.has_usable_password() or user.is_superuser):
        return None
    if user is None:
        if not person.roles:
            return None
        user = users.create_user(person.name)
    first, _, last = _text(person.full_name).partition(" ")
    user.email, user.first_name, user.last_name = _text(person.email)[:254], first[:150], last[:150]
    user.is_staff = bool(person.roles)
    user.save()
    user.groups.remove(*Group.objects.filter(name__in=ROLES.keys() - person.roles))
    user.groups.add(*Group.objects.filter(name__in=person.roles))
    return user


def _text(said: str) -> str:
    """What somebody is called elsewhere, without what no database or page takes."""
    return "".join(filter(str.isprintable, said))


def _account(person: Person) -> Any:
    if not (_NAME.fullmatch(person.name) and person.name.isprintable()):
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
    """Groups from a claim or a header: a list, or names separated by commas."""
    if isinstance(said, str):
        said = said.split(",")
    named: Iterable[Any] = said if isinstance(said, list) else ()
    return frozenset(each.strip() for each in named if isinstance(each, str) and each.strip())
