"""What a shell offers after `pullwake` and the Tab key: words, and names that the server has.

A shell's script hands the line on as far as it is typed, and gets a word a line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .client import connected
from .errors import RunnerError
from .profiles import add_options, connection, profiles

WORDS = "completion-words"
"""The command that the scripts call; nobody else does, so help does not list it."""

_PATIENCE_S = 2.0
"""A shell waits no longer for names."""
_MOST = 500

# What is offered is the whole word, but bash takes colons and equals signs to end one.
_BASH = f"""\
_pullwake() {{
    local line="${{COMP_LINE:0:COMP_POINT}}" word cut
    word="${{line##*[[:space:]]}}"
    cut="${{word%"${{word##*[:=]}}"}}"
    mapfile -t COMPREPLY < <(pullwake {WORDS} "$line" 2>/dev/null)
    COMPREPLY=("${{COMPREPLY[@]#"$cut"}}")
    [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == */ ]] && compopt -o nospace 2>/dev/null
    return 0
}}
complete -o default -F _pullwake pullwake
"""
_ZSH = f"""\
#compdef pullwake
_pullwake() {{
    local -a found
    found=("${{(@f)$(pullwake {WORDS} "${{(j: :)words[1,CURRENT]}}" 2>/dev/null)}}")
    if [[ -z $found ]]; then _files
    elif [[ $found[1] == */ ]]; then compadd -S '' -a found
    else compadd -a found; fi
}}
compdef _pullwake pullwake
"""
_FISH = f"""\
complete -c pullwake -f -a '(pullwake {WORDS} (commandline -cp | string collect) 2>/dev/null)'
complete -c pullwake -l token-file -r -F
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


@dataclass(frozen=True, slots=True)
class Names:
    """Rows of the server's that a word may name: each as ``says`` of it, if it is asked."""

    path: str
    says: Callable[[Mapping[str, Any]], str]


ENTITIES = Names("/_electric/entities", lambda row: str(row["url"])[1:])
ENTITY_URLS = Names("/_electric/entities", lambda row: str(row["url"]))
RUNNERS = Names("/_electric/runners", lambda row: str(row["id"]))
TYPES = Names("/_electric/entity-types", lambda row: str(row["name"]))
NEW = Names("/_electric/entity-types", lambda row: f"{row['name']}/")


def names(action: object, of: Names) -> None:
    """The argument that was just added takes one of these names."""
    action.names = of  # type: ignore[attr-defined]


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command `completion`."""
    parser = add_parser(
        "completion",
        help="print a script with which a shell completes these commands",
        description="Print a script with which a shell completes these commands, and the names of"
        " entities, runners and types.",
        epilog='example: eval "$(pullwake completion bash)"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=tuple(SCRIPTS))
    parser.set_defaults(act=lambda args: _print([SCRIPTS[args.shell].removesuffix("\n")]))


def complete(line: str, parsers: Mapping[str, argparse.ArgumentParser]) -> int:
    """Print what the last word of a line may be, a word a line."""
    return _print(_words_or_none(line, parsers))


def _print(lines: Iterable[str]) -> int:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


def _words_or_none(line: str, parsers: Mapping[str, argparse.ArgumentParser]) -> list[str]:
    """`words`, or none where a profile makes no sense or no server answers: nobody was asked."""
    try:
        return words(line, parsers)
    except (RunnerError, OSError, ValueError, argparse.ArgumentError):
        return []


def words(line: str, parsers: Mapping[str, argparse.ArgumentParser]) -> list[str]:
    """What the last word of a line may be."""
    typed = _split(line)[1:] or [""]
    *before, begun = typed
    if not before:
        offered: Sequence[str] = list(parsers)
    elif before[0] in parsers:
        offered = _of_command(parsers[before[0]], before[1:], begun)
    else:
        offered = []
    return [each for each in offered if each.startswith(begun)][:_MOST]


def _split(line: str) -> list[str]:
    try:
        found = shlex.split(line)
    except ValueError:  # within a quotation
        found = line.split()
    return [*found, ""] if not line or line[-1].isspace() else found


def _of_command(
    parser: argparse.ArgumentParser, before: Sequence[str], begun: str
) -> Sequence[str]:
    options = {name: each for each in parser._actions for name in each.option_strings}
    given = [each for each in parser._actions if not each.option_strings]
    waiting: argparse.Action | None = None
    for word in before:
        if waiting is not None:
            waiting = None
        elif word.startswith("--") and "=" not in word:
            waiting = options.get(word)
            if waiting is not None and waiting.nargs == 0:
                waiting = None
        elif not word.startswith("-"):
            given = given[1:]
    name, equals, value = begun.partition("=")
    if waiting is None and equals and name in options:
        return [f"{name}={each}" for each in _of_value(options[name], before, value)]
    if waiting is None and begun.startswith("-"):
        return [name for name in options if name.startswith("--")]
    if waiting is None:
        waiting = given[0] if given else None
    return [] if waiting is None else _of_value(waiting, before, begun)


def _of_value(action: argparse.Action, before: Sequence[str], begun: str) -> Sequence[str]:
    if action.choices is not None:
        return [str(each) for each in action.choices]
    if action.dest == "profile":
        return profiles()
    of: Names | None = getattr(action, "names", None)
    return [] if of is None else _ask(of, before, begun)


def _ask(of: Names, before: Sequence[str], begun: str) -> Sequence[str]:
    """The names that the server has, as far as it says them in time. Raises RunnerError, OSError,
    ValueError or ArgumentError where it cannot be asked.
    """
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False)
    add_options(parser.add_argument)
    where = connection(parser.parse_known_args(before)[0])
    kind, slash, _ = begun.lstrip("/").partition("/")
    query = {"type": kind} if slash and of in (ENTITIES, ENTITY_URLS) else {}
    found: list[str] = []

    async def ask() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S), connected(where) as client:
                async for row in client.rows(of.path, query):
                    name = of.says(row)
                    if name.startswith(begun):
                        found.append(name)
                    if len(found) == _MOST:
                        return

    asyncio.run(ask())
    return found
