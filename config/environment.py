"""Reads settings from the environment; a wrong one is reported in a sentence with a hint.

Each reader records the name that it was asked for, so that a misspelt one is found.
"""

import difflib
import os
from collections.abc import Iterable
from typing import Any
from urllib.parse import SplitResult, urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

from core.identifiers import is_number

PREFIX = "PULLWAKE_"

OF_RUNNERS = frozenset(
    PREFIX + name
    for name in (
        *("URL", "TOKEN", "PRINCIPAL", "PROFILE", "CONFIG", "SEND_URL", "STREAM_URL"),
        *("RUNNER_ID", "CONSUMER_ID", "EPOCH", "ENTITY_TYPE", "ENTITY_URL"),
        *("TRIGGER_EVENT", "WRITE_TOKEN"),
    )
)
"""What the Python runner and its command read or set, which may stand in the same shell."""

_ENGINES = {
    **dict.fromkeys(("postgres", "postgresql"), "django.db.backends.postgresql"),
    "sqlite": "django.db.backends.sqlite3",
}
_POSTGRES = "postgres://user:password@host:5432/name"
_YES = ("1", "yes", "true", "on", "y", "ok")
_NO = ("0", "no", "false", "off", "n", "")


def split_url(url: str) -> SplitResult:
    """The parts of a URL; of a text that cannot be one, all are empty."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises ValueError
    except ValueError:
        return urlsplit("")
    return parts


class Environment(environ.Env):  # type: ignore[misc]  # it ships no types
    """django-environ's, without values that name other variables; see `environ.Env`."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[str] = set()

    def get_value(self, var: str, *args: Any, **kwargs: Any) -> Any:
        """The value of a variable."""
        self.read.add(var)
        return super().get_value(var, *args, **kwargs)

    def bool(self, var: str, default: bool) -> bool:
        """Whether it says yes; raises ImproperlyConfigured for neither yes nor no."""
        text = self.str(var, "yes" if default else "no")
        if text.lower() not in (*_YES, *_NO):
            raise ImproperlyConfigured(f"{var} is {text!r}; it must be yes or no.")
        return text.lower() in _YES

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number within bounds; raises ImproperlyConfigured for anything else."""
        text = self.str(name, str(default))
        # The longest bound has ten digits: more are out of bounds, and not worth parsing.
        if not (is_number(text, 19) and low <= int(text) <= high):
            raise ImproperlyConfigured(f"{name} is {text!r}; it must be a number, {low} to {high}.")
        return int(text)

    def choice(self, name: str, default: str, choices: Iterable[str]) -> str:
        """One of several words; raises ImproperlyConfigured for any other."""
        text: str = self.str(name, default)
        *others, last = (repr(each) for each in choices)
        if repr(text) not in (*others, last):
            raise ImproperlyConfigured(
                f"{name} is {text!r}; it must be {', '.join(others)} or {last}."
            )
        return text

    def database(self, name: str, *, sqlite: str = "") -> dict[str, Any]:
        """Django's settings for the database at a URL; raises ImproperlyConfigured.

        ``sqlite`` is an example of an SQLite URL, if one is allowed. Errors never show the URL,
        which may hold a password.
        """
        url = self.str(name)
        scheme = url.partition("://")[0] if "://" in url else ""
        if scheme not in _ENGINES or (scheme == "sqlite" and not sqlite):
            said = f"begins with {scheme}://" if scheme else "is no URL"
            wanted = " or ".join(filter(None, [_POSTGRES, sqlite]))
            raise ImproperlyConfigured(f"{name} {said}; it must look like {wanted}.")
        try:
            if scheme != "sqlite":
                urlsplit(url).port  # noqa: B018  raises ValueError
            config: dict[str, Any] = self.db_url_config(url)
        except ValueError:
            raise ImproperlyConfigured(
                f"{name} cannot be read; a password's special characters must be "
                "percent-encoded, for instance / as %2F and @ as %40."
            ) from None
        if not config["NAME"]:
            raise ImproperlyConfigured(
                f"{name} names no database; add its name, as in {scheme}://…/pullwake."
            )
        return {**config, "ENGINE": _ENGINES[scheme]}

    def refuse_misspelt(self) -> None:
        """Raise ImproperlyConfigured for a variable that nobody reads and that nearly is a setting.

        Other names that begin like ours are ignored: they may belong to a newer version, or to
        Kubernetes, which sets PULLWAKE_SERVICE_HOST and the like for a service of that name.
        """
        known = {name.removeprefix(PREFIX): name for name in self.read if name.startswith(PREFIX)}
        for name in sorted(os.environ):
            if not name.startswith(PREFIX) or name in self.read | OF_RUNNERS:
                continue
            near = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1, cutoff=0.8)
            if near:
                raise ImproperlyConfigured(
                    f"{name} is no setting of Pullwake's; did you mean {known[near[0]]}?"
                )
