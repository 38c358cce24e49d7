"""What a shell offers after `pullwake` and the tabulator key."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any

Parsers = Callable[[], Mapping[str, argparse.ArgumentParser] | Any]

_BASH = """\
_pullwake() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}"
    case "${{COMP_WORDS[1]}}" in
{cases}
        *) COMPREPLY=($(compgen -W "{commands}" -- "$word")) ;;
    esac
    [ "$COMP_CWORD" -eq 1 ] && COMPREPLY=($(compgen -W "{commands}" -- "$word"))
}}
complete -o default -F _pullwake pullwake
"""

_FISH_COMMAND = "complete -c pullwake -n __fish_use_subcommand -f -a {name} -d {says}"
_FISH_OPTION = "complete -c pullwake -n '__fish_seen_subcommand_from {name}' -l {option}"


def add(add_parser: Callable[..., argparse.ArgumentParser], parsers: Parsers) -> None:
    """Add the command `completion`; `parsers` gives those of all commands."""
    parser = add_parser(
        "completion",
        help="print what makes a shell complete these commands",
        description="Print what makes a shell complete these commands.",
        epilog='example: eval "$(pullwake completion bash)"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(act=lambda args: _print(args.shell, parsers()))


def _print(shell: str, parsers: Mapping[str, argparse.ArgumentParser]) -> int:
    options = {name: _options(parser) for name, parser in parsers.items()}
    sys.stdout.write(_fish(options) if shell == "fish" else _bash(options, zsh=shell == "zsh"))
    return 0


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [
        each for action in parser._actions for each in action.option_strings if each[:2] == "--"
    ]


def _bash(options: Mapping[str, list[str]], *, zsh: bool) -> str:
    cases = "\n".join(
        f'        {name}) COMPREPLY=($(compgen -W "{" ".join(each)}" -- "$word")) ;;'
        for name, each in options.items()
    )
    begin = "autoload -U +X bashcompinit && bashcompinit\n" if zsh else ""
    return begin + _BASH.format(cases=cases, commands=" ".join(options))


def _fish(options: Mapping[str, list[str]]) -> str:
    lines = []
    for name, each in options.items():
        lines.append(_FISH_COMMAND.format(name=name, says=name))
        lines += [_FISH_OPTION.format(name=name, option=option[2:]) for option in each]
    return "\n".join(lines) + "\n"
