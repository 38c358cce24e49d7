"""Where the server is and who asks: from options, the environment, or a profile."""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .transport import Headers, check_url

FIELDS = frozenset({"url", "token", "token_file", "principal"})


@dataclass(frozen=True, slots=True)
class Connection:
    """A server's address, and whose credentials go there."""

    url: str
    token: str | None = None
    token_file: Path | None = None
    """Read anew for each request, as its token may rotate."""
    principal: str | None = None

    def headers(self) -> Headers:
        """Raises OSError for a token file that cannot be read."""
        token = self.token
        if self.token_file is not None:
            token = self.token_file.read_text().strip()
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return (
            headers if self.principal is None else {**headers, "Electric-Principal": self.principal}
        )


def add_options(add: Callable[..., object]) -> None:
    """The options that say where and who."""
    add("--url", help="the server ($PULLWAKE_URL, else the profile's)")
    add(
        "--token",
        help="an access token (better as $PULLWAKE_TOKEN: arguments can be seen by other users)",
    )
    add("--token-file", type=Path, help="a file with the token, read anew for each request")
    add(
        "--as",
        dest="principal",
        metavar="PRINCIPAL",
        help="who asks, such as user:alice, where the server believes that ($PULLWAKE_PRINCIPAL)",
    )
    add(
        "--profile",
        help="of ~/.config/pullwake/config.toml or $PULLWAKE_CONFIG: a table with url, token_file"
        " or token, and principal ($PULLWAKE_PROFILE, else default)",
    )


def connection(args: argparse.Namespace) -> Connection:
    """What these options, the environment and the profile say, in this order.

    Raises ValueError for what makes no sense, and where nothing says where the server is.
    """
    if args.token and args.token_file:
        raise ValueError("argument --token-file: not allowed with argument --token")
    profile = _profile(args.profile or os.environ.get("PULLWAKE_PROFILE"))
    url = args.url or os.environ.get("PULLWAKE_URL") or profile.get("url")
    if not url:
        raise ValueError(
            "no server is named: give --url, or $PULLWAKE_URL, or a profile with a url"
        )
    check_url(url)
    token, token_file = args.token, args.token_file
    if token is None and token_file is None:
        token = os.environ.get("PULLWAKE_TOKEN") or None
    # A profile's token is for its own server: not for one that was named otherwise.
    if token is None and token_file is None and url == profile.get("url"):
        token = profile.get("token")
        token_file = Path(profile["token_file"]).expanduser() if "token_file" in profile else None
    principal = args.principal or os.environ.get("PULLWAKE_PRINCIPAL") or profile.get("principal")
    return Connection(url, token, token_file, principal)


def profiles() -> list[str]:
    """The names of all profiles. Raises ValueError for a file that cannot be read."""
    return list(_tables())


def _path() -> Path:
    return Path(os.environ.get("PULLWAKE_CONFIG") or "~/.config/pullwake/config.toml").expanduser()


def _tables() -> Mapping[str, Any]:
    path = _path()
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _profile(name: str | None) -> Mapping[str, str]:
    path, profile = _path(), _tables().get(name or "default")
    if profile is None:
        if name is None:
            return {}
        raise ValueError(f"there is no profile {name!r} in {path}")
    known = isinstance(profile, dict) and all(isinstance(each, str) for each in profile.values())
    if not known or not profile.keys() <= FIELDS:
        fields = ", ".join(sorted(FIELDS))
        raise ValueError(
            f"the profile {name or 'default'!r} in {path} may have only {fields}, each a text"
        )
    return {key: str(value) for key, value in profile.items()}
