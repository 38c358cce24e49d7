"""The program that `dispatch.schemas` runs beside a server: checks schemas, and values by them.

It reads two lines of JSON, a schema and a value (an empty line: none yet; `KEPT`: none ever), and
writes one: null for no error, a string that says why the schema is none, or a list of one error.
After such a list comes a second one, of up to `MOST_ERRORS`. An error is the steps to its place,
and its message.

A check that takes more CPU time than its budget ends this program, for the engine cannot be
interrupted otherwise; so does one that takes more memory.
"""

import resource
import signal
import socket
import sys
from functools import lru_cache
from itertools import islice
from typing import Any

import jsonschema_rs
import msgspec

KEPT = b"kept"
"""In place of a value: of a schema that is only kept, whose patterns may be of any kind."""

MOST_ERRORS = 100
MAX_MESSAGE = 500
_MEMORY_BYTES = 512 * 1024 * 1024
# Matching is linear in the text, but also in this: a pattern that compiles to more is refused.
_LIMITS = {"size_limit": 256 * 1024, "dfa_size_limit": 1024 * 1024}
_PATTERNS = jsonschema_rs.RegexOptions(**_LIMITS)
_ANY_PATTERNS = jsonschema_rs.FancyRegexOptions(**_LIMITS)


@lru_cache(maxsize=64)
def _validator(schema: bytes, *, kept: bool = False) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(
        msgspec.json.decode(schema),
        validate_formats=False,
        pattern_options=_ANY_PATTERNS if kept else _PATTERNS,
        # Nothing is fetched: a schema must not make the server call its author's addresses.
        offline=True,
    )


def _told(error: jsonschema_rs.ValidationError) -> tuple[list[str | int], str]:
    return error.instance_path, error.message[:MAX_MESSAGE]


def _write(channel: Any, verdict: Any) -> None:
    channel.write(msgspec.json.encode(verdict) + b"\n")
    channel.flush()


def _check(channel: Any, schema: bytes, value: bytes) -> None:
    try:
        validator = _validator(schema, kept=value == KEPT)
    except (ValueError, jsonschema_rs.ReferencingError) as exc:
        _write(channel, str(getattr(exc, "message", exc))[:MAX_MESSAGE])
        return
    if value in (b"", KEPT):
        _write(channel, None)
        return
    decoded = msgspec.json.decode(value)
    try:
        validator.validate(decoded)
    except jsonschema_rs.ValidationError as first:
        # The first error is sent at once: finding all takes far longer, and may be cut short.
        _write(channel, [_told(first)])
        _write(
            channel, [_told(each) for each in islice(validator.iter_errors(decoded), MOST_ERRORS)]
        )
    else:
        _write(channel, None)


def main(budget_s: float) -> None:
    """Check until the server closes the connection, which is standard input."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=0) as connection, connection.makefile("rwb") as channel:
        while schema := channel.readline():
            # Its default action ends the process, even in the middle of a call into the engine.
            signal.setitimer(signal.ITIMER_PROF, budget_s)
            _check(channel, schema.rstrip(b"\n"), channel.readline().rstrip(b"\n"))
            signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main(float(sys.argv[1]))
