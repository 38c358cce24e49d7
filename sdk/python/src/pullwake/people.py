"""The commands for people: send, spawn, observe, ps, signal, runners, types."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from .client import Client, connected, entity_path
from .completion import ENTITIES, ENTITY_URLS, NEW, RUNNERS, TYPES, names
from .errors import RunnerError, ServerRefused, ServerUnreachable
from .profiles import add_options, connection

EX_FAILURE = 1
EX_NOT_FOUND = 66
EX_UNREACHABLE = 69
EX_REFUSED = 77
EX_REJECTED = 78

EXITS = """\
exit status: 0 done; 1 the server refuses it as things stand; 2 wrong usage; 66 there is no such
entity; 69 the server cannot be reached; 77 this caller may not; 78 the request itself is wrong.
"""

SIGNALS = ("SIGINT", "SIGHUP", "SIGUSR", "SIGSTOP", "SIGCONT", "SIGTERM", "SIGKILL")

Act = Callable[[Client, argparse.Namespace], Awaitable[None]]
AddParser = Callable[..., argparse.ArgumentParser]


# --- What they do


async def send(client: Client, args: argparse.Namespace) -> None:
    body = {
        "payload": json_or_text(args.payload),
        "type": args.type,
        "key": args.key,
        "mode": args.mode,
    }
    if args.after is not None:
        body["afterMs"] = round(args.after * 1000)
    path = f"/_electric/entities{entity_path(args.entity)}/send"
    answer = (await client.call("POST", path, given(body))).object()
    tell(args, answer, f"sent, txid {answer.get('txid')}")


async def spawn(client: Client, args: argparse.Namespace) -> None:
    policy = {"targets": [{"type": "runner", "runnerId": args.runner}]}
    body = {
        "args": args.args,
        "tags": dict(args.tag) if args.tag else None,
        "parent": args.parent,
        "initialMessage": None if args.message is None else json_or_text(args.message),
        "dispatch_policy": policy if args.runner else None,
    }
    path = f"/_electric/entities{entity_path(args.entity)}"
    answer = (await client.call("PUT", path, given(body))).object()
    says = f"spawned {answer.get('url')}"
    if not _runner_of(answer):
        says += "\nIt has no runner, so nobody is woken for it: name one with --runner."
    tell(args, answer, says)


async def signal(client: Client, args: argparse.Namespace) -> None:
    body = {"signal": args.signal, "reason": args.reason}
    path = f"/_electric/entities{entity_path(args.entity)}/signal"
    answer = (await client.call("POST", path, given(body))).object()
    now, before = answer.get("new_state"), answer.get("previous_state")
    tell(args, answer, f"{args.signal} sent, {now}" + (f", was {before}" if before != now else ""))


async def observe(client: Client, args: argparse.Namespace) -> None:
    screen = Screen()
    after = "now" if args.new else "-1"
    async for event in client.follow(entity_path(args.entity), after, live=not args.once):
        if args.json:
            write(json.dumps(event, ensure_ascii=False) + "\n")
        else:
            write(screen.shows(event))
    write(screen.ends())


async def ps(client: Client, args: argparse.Namespace) -> None:
    query = given({"type": args.type, "status": args.status})
    if args.watch:
        await watch(
            args,
            client.changes("entities", given({"type": args.type})),
            lambda row: (row["url"], row["status"], _runner_of(row), _work(row)),
            lambda row: args.status in (None, row["status"]),
        )
        return
    rows = client.rows("/_electric/entities", query)
    await tell_rows(
        args,
        rows,
        ("ENTITY", "STATUS", "RUNNER", "UPDATED"),
        lambda row: (row["url"], row["status"], _runner_of(row), _moment(row["updated_at"])),
        lambda row: all(row.get(name) == value for name, value in query.items()),
    )


async def runners(client: Client, args: argparse.Namespace) -> None:
    if args.watch:
        await watch(
            args,
            client.changes("runners", {}),
            lambda row: (row["id"], row["liveness_status"], row["health_status"], row["label"]),
        )
        return
    await tell_rows(
        args,
        client.rows("/_electric/runners", {}),
        ("RUNNER", "STATUS", "LAST SEEN", "LABEL"),
        lambda row: (
            row["id"],
            _liveness(row, datetime.now(UTC)),
            _moment(row["last_seen_at"]) if "last_seen_at" in row else "never",
            row.get("label", ""),
        ),
    )


async def types(client: Client, args: argparse.Namespace) -> None:
    await tell_rows(
        args,
        client.rows("/_electric/entity-types", {}),
        ("TYPE", "RUNNER", "DESCRIPTION"),
        lambda row: (
            row["name"],
            _target(row.get("default_dispatch_policy")),
            row.get("description", ""),
        ),
    )


# --- How they tell


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def tell(args: argparse.Namespace, answer: Mapping[str, Any], says: str) -> None:
    write((json.dumps(answer, ensure_ascii=False) if args.json else plain(says)) + "\n")


async def tell_rows(
    args: argparse.Namespace,
    rows: AsyncIterator[dict[str, Any]],
    titles: Sequence[str],
    columns: Callable[[dict[str, Any]], Sequence[Any]],
    wanted: Callable[[dict[str, Any]], bool] = lambda row: True,
) -> None:
    """As a table, or a JSON object a line."""
    table = [tuple(titles)]
    async for row in rows:
        if not wanted(row):
            continue
        if args.json:
            write(json.dumps(row, ensure_ascii=False) + "\n")
        else:
            table.append(tuple(plain(str(each)) for each in columns(row)))
    if args.json:
        return
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        write("  ".join(cells).rstrip() + "\n")


async def watch(
    args: argparse.Namespace,
    changes: AsyncIterator[dict[str, Any]],
    columns: Callable[[dict[str, Any]], Sequence[Any]],
    wanted: Callable[[dict[str, Any]], bool] = lambda row: True,
) -> None:
    """A line for each row, and one whenever it reads differently; or each event as JSON."""
    shown: dict[str, str] = {}
    async for event in _of_those(wanted, changes):
        if args.json:
            write(json.dumps(event, ensure_ascii=False) + "\n")
            continue
        key, row = str(event.get("key", "")), event.get("value")
        if "type" not in event:  # what was told so far is to be forgotten
            shown.clear()
        elif row is None:
            shown.pop(key, None)
            _tell_change(plain(key), "gone")
        else:
            line = "  ".join(plain(str(each)) for each in columns(row)).rstrip()
            if shown.get(key) != line:
                _tell_change(line)
            shown[key] = line


async def _of_those(
    wanted: Callable[[dict[str, Any]], bool], changes: AsyncIterator[dict[str, Any]]
) -> AsyncIterator[dict[str, Any]]:
    """The changes of rows that are wanted, and the one by which a row is so no more."""
    known = set[str]()
    async for event in changes:
        key, row = str(event.get("key", "")), event.get("value")
        was = key in known
        known.discard(key)
        if "type" not in event:
            known.clear()
        elif row is not None and wanted(row):
            known.add(key)
        elif not was:
            continue
        yield event


def _tell_change(*says: str) -> None:
    write("  ".join((f"{datetime.now().astimezone():%H:%M:%S}", *says)) + "\n")


def plain(text: str) -> str:
    """`text` without what would command a terminal rather than be shown on it."""
    return "".join(
        each if each in "\n\t" or unicodedata.category(each)[0] != "C" else "�" for each in text
    )


class Screen:
    """A stream of events as lines that a person reads; a run's text as it is written."""

    def __init__(self) -> None:
        self._writing = False

    def shows(self, event: Mapping[str, Any]) -> str:
        """What to write for this event; may be nothing."""
        value = event.get("value")
        value = value if isinstance(value, dict) else {}
        kind = event.get("type")
        if kind == "text_delta":
            begin, self._writing = ("" if self._writing else "« "), True
            return plain(begin + str(value.get("delta", "")))
        if kind == "run" and value.get("status") in ("started", "completed"):
            return self.ends()
        return self.ends() + plain(_line(str(kind), str(event.get("key", "")), value)) + "\n"

    def ends(self) -> str:
        """What to write after the last of a run's text."""
        ended, self._writing = ("\n" if self._writing else ""), False
        return ended


def _line(kind: str, key: str, value: Mapping[str, Any]) -> str:
    match kind:
        case "inbox" if "payload" in value:
            return f"» {value.get('from', '?')}: {_short(value['payload'])}"
        case "output" if "text" in value:
            return str(value["text"])
        case "signal" if "signal" in value:
            return f"! {value['signal']} by {value.get('sender', '?')}: {value.get('status')}"
        case "signal" if "handled_by" in value:
            return f"! {value.get('status')} by {value['handled_by']}"
        case "error" if "message" in value:
            return f"! {value['message']}"
        case "wake" if isinstance(value.get("finished_child"), dict):
            child = value["finished_child"]
            said = child.get("response") or child.get("error") or ""
            return f"* {child.get('url')} {child.get('run_status')}: {_short(said)}"
    return f"· {kind} {key} {_short(value)}"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 2000 else f"{text[:1999]}…"


def _moment(at: float | str) -> str:
    """In this machine's time zone, to the second; epoch milliseconds, or ISO-8601."""
    if isinstance(at, str):
        when = datetime.fromisoformat(at)
    else:
        when = datetime.fromtimestamp(at / 1000, UTC)
    return when.astimezone().isoformat(" ", "seconds")[:19]


def _liveness(row: Mapping[str, Any], now: datetime) -> str:
    """Whether it lives, whatever it last said of itself; `now` is by this machine's clock."""
    until = row.get("liveness_lease_expires_at")
    if row.get("admin_status") == "disabled" or until is None:
        return "offline"
    if datetime.fromisoformat(until) > now:
        return "online"
    said = row.get("diagnostics") or {}
    return "stopped" if said.get("status") == "stopped" else "expired"


def _work(row: Mapping[str, Any]) -> str:
    return "work" if row.get("pending") else ""


def _runner_of(row: Mapping[str, Any]) -> str:
    return _target(row.get("dispatch_policy"))


def _target(policy: object) -> str:
    match policy:
        case {"targets": [{"runnerId": str(runner_id)}, *_]}:
            return runner_id
        case {"targets": [{"url": str(url)}, *_]}:
            return url
    return ""


def json_or_text(text: str) -> Any:
    """`text` as JSON if it is some, else as it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


# --- Their options


def add_all(add_parser: AddParser) -> None:
    """Add each command's parser."""
    command = _adder(add_parser)
    add = command("send", send, "send a message to an entity", 'pullwake send agent/hello "Hello"')
    names(add("entity", metavar="TYPE/ID"), ENTITIES)
    add("payload", help="JSON, or else it is sent as text")
    add("--type", help="what the message is called")
    add("--key", help="sent twice, it is one message")
    add("--mode", choices=("immediate", "queued", "paused", "steer"))
    add("--after", type=float, metavar="SECONDS", help="deliver it later")

    add = command(
        "spawn",
        spawn,
        "make an entity",
        "pullwake spawn agent/hello --runner my-laptop --message hi",
    )
    names(add("entity", metavar="TYPE/ID"), NEW)
    runner = add(
        "--runner", metavar="ID", help="whom it is dispatched to (default: as its type says)"
    )
    names(runner, RUNNERS)
    add("--args", type=_object, metavar="JSON", help="its arguments, an object")
    add("--tag", type=_tag, action="append", metavar="KEY=VALUE")
    names(add("--parent", metavar="/TYPE/ID"), ENTITY_URLS)
    add("--message", help="its first message; JSON, or else text")

    add = command(
        "observe", observe, "follow what happens to an entity", "pullwake observe agent/hello --new"
    )
    names(add("entity", metavar="TYPE/ID"), ENTITIES)
    add("--new", action="store_true", help="only what happens from now on")
    add("--once", action="store_true", help="end where the stream ends now")

    add = command("ps", ps, "list your entities", "pullwake ps --status running")
    names(add("--type"), TYPES)
    add("--status", choices=("idle", "running", "paused", "stopping", "stopped", "killed"))
    add("--watch", action="store_true", help="and then each change of one, as it happens")

    add = command("signal", signal, "signal an entity", "pullwake signal agent/hello SIGINT")
    names(add("entity", metavar="TYPE/ID"), ENTITIES)
    add("signal", choices=SIGNALS, type=_signal)
    add("--reason")

    add = command("runners", runners, "list your runners", "pullwake runners --json")
    add("--watch", action="store_true", help="and then each change of one, as it happens")
    command("types", types, "list the entity types that you may use", "pullwake types")


def _adder(add_parser: AddParser) -> Callable[[str, Act, str, str], Callable[..., object]]:
    def command(name: str, act: Act, says: str, example: str) -> Callable[..., object]:
        parser = add_parser(
            name,
            help=says,
            description=f"{says[0].upper()}{says[1:]}.",
            epilog=f"example: {example}\n\n{EXITS}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_options(parser.add_argument)
        parser.add_argument(
            "--json", action="store_true", help="answer with JSON, an object a line"
        )
        parser.set_defaults(act=lambda args: _run(parser, act, args))
        return parser.add_argument

    return command


def _run(parser: argparse.ArgumentParser, act: Act, args: argparse.Namespace) -> int:
    async def run() -> None:
        async with connected(connection(args), _interrupted) as client:
            await act(client, args)

    try:
        asyncio.run(run())
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read has seen enough
        sys.stderr.close()
        return 0
    except ServerUnreachable as error:
        where = connection(args).url
        sys.stderr.write(f"pullwake: {plain(where)} cannot be reached: {plain(str(error))}\n")
        return EX_UNREACHABLE
    except RunnerError as error:
        sys.stderr.write(f"pullwake: {plain(str(error))}\n")
        return _status(error)
    return 0


def _interrupted(error: RunnerError) -> None:
    sys.stderr.write(f"pullwake: {plain(str(error))}; trying again, until Ctrl-C\n")


def _status(error: RunnerError) -> int:
    if not isinstance(error, ServerRefused):
        return EX_FAILURE
    named = {400: EX_REJECTED, 401: EX_REFUSED, 403: EX_REFUSED, 404: EX_NOT_FOUND}
    return named.get(error.status, EX_FAILURE)


def _object(text: str) -> dict[str, Any]:
    value = json_or_text(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return value


def _tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError("must be KEY=VALUE")
    return key, value


def _signal(text: str) -> str:
    name = text.upper()
    return name if name.startswith("SIG") else f"SIG{name}"
