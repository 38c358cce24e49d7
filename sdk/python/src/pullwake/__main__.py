"""`pullwake`, or `python -m pullwake`: the command, one subcommand a job."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version

from . import completion, people
from .command import CommandHandler
from .errors import RegistrationRefused
from .logs import configure
from .people import EX_FAILURE, EX_REFUSED, EX_REJECTED
from .profiles import add_options, connection
from .runner import DEFAULT_CLAIMS, PullWakeRunner
from .timing import Timing

log = logging.getLogger("pullwake.runner")

EX_OK = 0
EX_USAGE = 2
EX_CANCELLED = 75

EPILOG = """\
The command gets {"wake": ..., "messages": [...], "events": [...]} on its standard input, and
PULLWAKE_URL, PULLWAKE_RUNNER_ID, PULLWAKE_ENTITY_URL, PULLWAKE_ENTITY_TYPE, PULLWAKE_EPOCH,
PULLWAKE_CONSUMER_ID, PULLWAKE_TRIGGER_EVENT, PULLWAKE_STREAM_URL, PULLWAKE_SEND_URL and
PULLWAKE_WRITE_TOKEN in its environment, and TRACEPARENT where what woke it has a trace. Each line
it prints is appended to the entity's main stream. Exit status 0 is done, anything else is failed.

SIGTERM or Ctrl-C: claim no more, and let running commands finish. Once more: end them.

exit status: 0 stopped, all work finished; 1 an error of the runner itself; 2 wrong usage;
75 stopped, but work was cut off (it comes again); 77 the server refuses the credentials, or the
runner's id is another's; 78 the server rejects the runner's id or settings.
"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pullwake", description="Run agents of a pull-wake control plane, and talk to them."
    )
    parser.add_argument("--version", action="version", version=f"pullwake {version('pullwake')}")
    add_commands(parser)
    return parser


def add_commands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Add all commands. Returns the parser of each."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    add_run(commands.add_parser)
    people.add_all(commands.add_parser)
    completion.add(commands.add_parser)
    return commands.choices


def add_run(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add_parser(
        "run",
        help="be a runner, and run a command for each wake",
        description="Be a pull-wake runner, and run a command for each wake.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_options(add)
    own = add(
        "--id",
        default=os.environ.get("PULLWAKE_RUNNER_ID", socket.gethostname()),
        help="the runner's id ($PULLWAKE_RUNNER_ID, else the host's name)",
    )
    completion.names(own, completion.RUNNERS)
    add(
        "--exec",
        required=True,
        metavar="COMMAND",
        dest="command",
        help="what to run for each wake, in a shell",
    )
    add("--label", help="its name for people (default: its id)")
    add(
        "--max-concurrent-claims",
        type=_count,
        metavar="N",
        help=f"work on so many wakes at once (default: what the server holds, else"
        f" {DEFAULT_CLAIMS})",
    )
    add(
        "--claim-lease",
        type=_seconds,
        metavar="SECONDS",
        help="how long a claim outlives the runner's silence, 1 to 600 (default: the server's)",
    )
    add(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="end a command that runs for longer, and report it failed (default: never)",
    )
    add(
        "--out-of-touch",
        choices=("cancel", "work"),
        default="cancel",
        help="when a lease runs out while the server cannot be reached: cancel the command, or let"
        " it work on until the server says that the claim is lost (default: cancel)",
    )
    add(
        "--grace",
        type=_seconds,
        metavar="SECONDS",
        default=30.0,
        help="how long running commands may take when stopping (default: 30)",
    )
    add(
        "--output",
        choices=("text", "json"),
        default="text",
        help="text: each line of output becomes an `output` event; json: each is an event",
    )
    add(
        "--live",
        choices=("auto", "long-poll", "sse"),
        default="auto",
        help="how to wait for wakes (default: auto)",
    )
    add(
        "--health-port",
        type=_address,
        metavar="[HOST:]PORT",
        help="serve /livez, /readyz and /metrics there, without HOST on all interfaces",
    )
    add("--log-format", choices=("text", "json"), default="text", help="(default: text)")
    add("-v", "--verbose", action="store_true", help="log more")
    add("-q", "--quiet", action="store_true", help="log only what is wrong")
    parser.set_defaults(act=partial(run, parser))


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say. Returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if list(given[:1]) == [completion.WORDS] and len(given) == 2:
        return completion.complete(given[1], add_commands(argparse.ArgumentParser()))
    args = parser().parse_args(given)
    if not hasattr(args, "act"):
        parser().print_help(sys.stderr)
        raise SystemExit(EX_USAGE)
    status: int = args.act(args)
    return status


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Be a runner until stopped. Returns the exit status."""
    level = logging.INFO
    if args.verbose or args.quiet:
        level = logging.DEBUG if args.verbose else logging.WARNING
    configure(args.log_format, level)
    try:
        return asyncio.run(serve(args))
    except ValueError as error:  # a URL or a number that cannot be right
        parser.error(str(error))
    except KeyboardInterrupt:
        return EX_CANCELLED
    except Exception:
        log.exception("the runner failed")
        return EX_FAILURE


async def serve(args: argparse.Namespace) -> int:
    to = connection(args)
    runner = PullWakeRunner(
        to.url,
        args.id,
        CommandHandler(args.command, to.url, output=args.output),
        headers=to.headers,
        label=args.label,
        max_concurrent_claims=args.max_concurrent_claims,
        claim_lease=args.claim_lease,
        live=args.live,
        work_timeout=args.timeout,
        out_of_touch=args.out_of_touch,
        health_host=args.health_port[0] if args.health_port else None,
        health_port=args.health_port[1] if args.health_port else None,
        timing=Timing(stop_grace=args.grace),
    )
    log.info("runner %s at %s runs: %s", args.id, to.url, args.command)
    try:
        drained = await runner.run()
    except RegistrationRefused as refused:
        log.error("the server does not take this runner: %s", refused)  # noqa: TRY400  no bug
        return EX_REJECTED if refused.status == 400 else EX_REFUSED
    return EX_CANCELLED if drained.cancelled else EX_OK


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError("must be more than 0")
    return seconds


def _address(text: str) -> tuple[str | None, int]:
    host, _, port = text.rpartition(":")
    if not 0 < int(port) < 65_536:
        raise argparse.ArgumentTypeError("must be a port")
    return host or None, int(port)


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


if __name__ == "__main__":
    sys.exit(main())
