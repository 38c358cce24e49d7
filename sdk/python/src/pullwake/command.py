"""A handler that runs a command for each wake."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import itertools
import json
import logging
import os
import signal
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import IO, Any, Literal

from .diagnostics import printable
from .errors import RunnerError
from .inbox import WakeEvent
from .wake import Wake

log = logging.getLogger("pullwake.runner")

Output = Literal["text", "json"]

_LARGEST_BATCH = 32 * 1024
"""Characters in one append, each of which may take up to 12 bytes of the body's 1 MiB."""
_LONGEST_LINE: Mapping[Output, int] = {"text": _LARGEST_BATCH, "json": 1024 * 1024}
"""Characters; a longer line is cut into several."""
_READ = 64 * 1024
_STDERR_LINES = 20
_LINGER = 1.0
"""Seconds for which output may still come after the command itself has exited."""

_GUARD = """\
read -r _
kill -s TERM -- "-$1" && kill -s CONT -- "-$1" && sleep "$2" && kill -s KILL -- "-$1"
"""
"""Waits for the end of its standard input, which comes when the runner dies, however it does, and
then ends the group $1. A process of its own, for the kernel's PR_SET_PDEATHSIG reaches only the
command itself, none that it has started, and only on Linux."""

_OWN_SECRETS = ("PULLWAKE_TOKEN",)
"""The runner's, not the command's: it gets the claim's write token instead."""


class CommandFailed(RunnerError):
    """The command did not exit with 0, or its output could not be used."""


class CommandHandler:
    """Runs `command` in a shell, in a process group of its own, for each wake.

    On its standard input it gets one JSON object, {"wake": …, "messages": […], "events": […]}; each
    line of its standard output is appended to the entity's main stream; its standard error goes to
    the log.
    Exit status 0 is done, anything else is failed. When the wake is cancelled, or the runner is
    killed, so is the group: SIGTERM, and `kill_after` seconds later SIGKILL.
    """

    def __init__(
        self, command: str, base_url: str, *, output: Output = "text", kill_after: float = 5.0
    ) -> None:
        self._command = command
        self._base_url = base_url.rstrip("/")
        self._output = output
        self._kill_after = kill_after

    async def __call__(self, wake: Wake) -> None:
        """Raises CommandFailed, and what `Wake.messages` and `Wake.append` raise."""
        items = await wake.items()
        request = {
            "wake": describe(wake),
            "messages": [item.event for item in items if not isinstance(item, WakeEvent)],
            "events": [item.event for item in items if isinstance(item, WakeEvent)],
        }
        errors: deque[str] = deque(maxlen=_STDERR_LINES)
        started: list[asyncio.subprocess.Process] = []
        try:
            async with _Pipe() as out, _Pipe() as err:
                with _spooled(json.dumps(request) + "\n") as stdin:
                    process = await _start(
                        started,
                        *("/bin/sh", "-c", self._command),
                        stdin=stdin,
                        stdout=out.write_end,
                        stderr=err.write_end,
                        env=environment(wake, self._base_url),
                    )
                await self._guard(started, process.pid)
                # Ours must be closed, or the end of the output is never seen.
                out.write_end.close()
                err.write_end.close()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._append_lines(out, wake))
                    group.create_task(_log_lines(err, wake, errors))
                    status = await process.wait()
                    # What it left in the background may hold the pipes open for ever.
                    await asyncio.gather(out.linger(), err.linger())
        except BaseExceptionGroup as failed:
            raise _first(failed) from None
        finally:
            await self._end(started)
        if status != 0:
            raise CommandFailed(_describe_exit(status, errors))

    async def _guard(self, started: list[asyncio.subprocess.Process], group: int) -> None:
        await _start(
            started,
            *("/bin/sh", "-c", _GUARD, "sh", str(group), f"{self._kill_after:g}"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

    async def _end(self, started: Sequence[asyncio.subprocess.Process]) -> None:
        """End the command's group, gently first, and then its guard."""
        try:
            for command in started[:1]:
                if command.returncode is None:
                    _kill(command.pid, signal.SIGTERM)
                    _kill(command.pid, signal.SIGCONT)  # a stopped one would not see it
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._kill_after):
                            await command.wait()
        finally:
            for process in started:
                _kill(process.pid, signal.SIGKILL)
            for process in started:
                await process.wait()

    async def _append_lines(self, pipe: _Pipe, wake: Wake) -> None:
        lines: asyncio.Queue[str | None] = asyncio.Queue(maxsize=1000)

        async def read() -> None:
            async for line in pipe.lines(_LONGEST_LINE[self._output]):
                await lines.put(line)
            await lines.put(None)

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            numbers = itertools.count(1)
            async for batch in _batches(lines):
                events: list[Mapping[str, Any]] = []
                try:
                    for line in batch:
                        events.append(self._event(line, wake, next(numbers)))  # noqa: PERF401
                finally:
                    await wake.append(*events)  # also what came before a line that is no event

    def _event(self, line: str, wake: Wake, number: int) -> Mapping[str, Any]:
        if self._output == "json":
            try:
                event = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CommandFailed(f"output line {number} is not JSON: {line[:100]!r}") from error
            if not isinstance(event, dict):
                raise CommandFailed(f"output line {number} is not a JSON object: {line[:100]!r}")
            return event
        return {
            "type": "output",
            "key": f"{wake.consumer_id}-{wake.epoch}-{number}",
            "value": {"text": line, "runner": wake.runner_id, "epoch": wake.epoch},
            "headers": {"operation": "insert"},
        }


async def _start(
    started: list[asyncio.subprocess.Process], *args: str, **options: Any
) -> asyncio.subprocess.Process:
    """A process in a group of its own, which is among those `started` however this ends.

    Where a start is cancelled, asyncio ends that process, but not its group. Raises OSError where
    it cannot be started.
    """
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(*args, start_new_session=True, **options)
    )
    try:
        await asyncio.shield(starting)
    finally:
        process = await starting
        started.append(process)
    return process


def describe(wake: Wake) -> dict[str, Any]:
    """What a command is told of its wake; nothing in it is secret."""
    return {
        "runner_id": wake.runner_id,
        "entity_url": wake.entity_url,
        "entity": wake.entity,
        "epoch": wake.epoch,
        "consumer_id": wake.consumer_id,
        "trigger_event": wake.trigger_event,
        "stream_path": wake.stream_path,
        "stream_url": wake.stream_url,
        "principal": wake.principal,
    }


def environment(wake: Wake, base_url: str) -> dict[str, str]:
    """The environment a command runs in: the runner's, without its secrets, and the wake's."""
    inherited = {name: value for name, value in os.environ.items() if name not in _OWN_SECRETS}
    # As tools that write spans know it.
    trace = {} if wake.traceparent is None else {"TRACEPARENT": wake.traceparent}
    kind = wake.entity.get("type")
    return (
        inherited
        | trace
        | {
            "PULLWAKE_URL": base_url,
            "PULLWAKE_RUNNER_ID": wake.runner_id,
            "PULLWAKE_ENTITY_URL": wake.entity_url,
            "PULLWAKE_ENTITY_TYPE": kind if isinstance(kind, str) else "",
            "PULLWAKE_EPOCH": str(wake.epoch),
            "PULLWAKE_CONSUMER_ID": wake.consumer_id,
            "PULLWAKE_TRIGGER_EVENT": wake.trigger_event or "",
            "PULLWAKE_STREAM_URL": wake.stream_url,
            "PULLWAKE_SEND_URL": f"{base_url}/_electric/entities{wake.entity_url}/send",
            "PULLWAKE_WRITE_TOKEN": wake.write_token,
        }
    )


def _spooled(text: str) -> IO[bytes]:
    """`text` as a file to read: it cannot block on a command that does not read it."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
    file.write(text.encode())
    file.seek(0)
    return file


class _Pipe:
    """A pipe that a command writes to and this process reads lines from.

    Not asyncio's own subprocess pipes: on some versions of Python its `wait()` waits for their
    end too, and that may never come.
    """

    def __init__(self) -> None:
        read, write = os.pipe()
        self._read_end: IO[bytes] = os.fdopen(read, "rb", 0)
        self.write_end: IO[bytes] = os.fdopen(write, "wb", 0)
        self._reader = asyncio.StreamReader()
        self._transport: asyncio.ReadTransport | None = None
        self._ended = asyncio.Event()
        self._waiting_since: float | None = None
        """Since when there has been nothing to read; None while what was read is being used."""

    async def __aenter__(self) -> _Pipe:
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(self._reader), self._read_end
            )
        except BaseException:  # cancelled: asyncio closes its end, and nobody else ours
            self.write_end.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.write_end.close()
        if self._transport is not None:
            self._transport.close()

    async def lines(self, longest: int) -> AsyncIterator[str]:
        """Each without its line end, printable, and cut into pieces of `longest` characters."""
        loop = asyncio.get_running_loop()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        rest = ""
        while True:
            self._waiting_since = loop.time()
            chunk = await self._reader.read(_READ)
            self._waiting_since = None
            *whole, rest = (rest + decoder.decode(chunk, final=not chunk)).split("\n")
            for line in whole:
                for piece in _pieces(line.removesuffix("\r"), longest):
                    yield piece
            if len(rest) > longest or (rest and not chunk):
                *pieces, rest = _pieces(rest, longest)
                if not chunk:
                    pieces.append(rest)
                for piece in pieces:
                    yield piece
            if not chunk:
                self._ended.set()
                return

    async def linger(self) -> None:
        """Return once all was read, or nothing more has come for a while."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        while not self._ended.is_set():
            waiting = self._waiting_since
            if waiting is not None and loop.time() - max(waiting, since) >= _LINGER:
                if self._transport is not None:
                    self._transport.close()
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER / 2):
                    await self._ended.wait()


async def _batches(lines: asyncio.Queue[str | None]) -> AsyncIterator[list[str]]:
    """The lines until None, those together that are there together.

    While one batch is being appended, the next gathers.
    """
    line = await lines.get()
    while line is not None:
        batch, size = [line], len(line)
        while not lines.empty():
            line = lines.get_nowait()
            if line is None or size + len(line) > _LARGEST_BATCH:
                break
            batch.append(line)
            size += len(line)
        else:
            yield batch
            line = await lines.get()
            continue
        yield batch


def _pieces(line: str, longest: int) -> list[str]:
    text = printable(line, len(line))
    return [text[at : at + longest] for at in range(0, len(text), longest)] or [""]


async def _log_lines(pipe: _Pipe, wake: Wake, last: deque[str]) -> None:
    async for line in pipe.lines(_LARGEST_BATCH):
        last.append(line)
        log.info("%s epoch %d | %s", wake.entity_url, wake.epoch, line)


def _first(group: BaseExceptionGroup) -> BaseException:
    """What went wrong first; the rest followed from it."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _kill(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _describe_exit(status: int, errors: deque[str]) -> str:
    if status < 0:
        try:
            how = f"killed by {signal.Signals(-status).name}"
        except ValueError:
            how = f"killed by signal {-status}"
    else:
        how = f"exit status {status}"
    said = "\n".join(errors).strip()
    return f"{how}: {said}" if said else how
