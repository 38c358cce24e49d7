"""What the commands for people show, and what they refuse before they ask."""

from __future__ import annotations

import json
import shutil
import subprocess
from argparse import Namespace
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from pullwake import RunnerError, ServerRefused, ServerUnreachable, Timing
from pullwake.__main__ import main
from pullwake.client import Client, entity_path
from pullwake.people import Screen, _liveness, json_or_text, plain, watch
from pullwake.transport import Answer, Transport


def shown(*events: dict[str, Any]) -> str:
    screen = Screen()
    return "".join(screen.shows(event) for event in events) + screen.ends()


def test_a_stream_is_shown_as_a_conversation() -> None:
    child = {"url": "/worker/1", "run_status": "completed", "response": "42"}
    assert shown(
        {"type": "inbox", "value": {"from": "/principal/user%3Aa", "payload": "Hello"}},
        {"type": "run", "key": "r", "value": {"status": "started"}},
        {"type": "text_delta", "value": {"delta": "You said"}},
        {"type": "text_delta", "value": {"delta": ": Hello"}},
        {"type": "run", "key": "r", "value": {"status": "completed"}},
        {"type": "output", "value": {"text": "a line"}},
        {"type": "signal", "value": {"signal": "SIGINT", "sender": "x", "status": "unhandled"}},
        {"type": "wake", "value": {"finished_child": child}},
        {"type": "tags", "key": "k", "value": {"key": "k", "value": "v"}},
        {"type": "error", "value": {"message": "no such model"}},
    ) == (
        "» /principal/user%3Aa: Hello\n"
        "« You said: Hello\n"
        "a line\n"
        "! SIGINT by x: unhandled\n"
        "* /worker/1 completed: 42\n"
        '· tags k {"key": "k", "value": "v"}\n'
        "! no such model\n"
    )


def test_a_text_that_is_cut_off_ends_its_line() -> None:
    assert shown({"type": "text_delta", "value": {"delta": "You"}}, {"type": "x", "key": "k"}) == (
        "« You\n· x k {}\n"
    )


def test_nothing_in_a_stream_commands_the_terminal() -> None:
    assert plain("a\x1b[2Jb\x9bc\u202ed\te\n") == "a�[2Jb�c�d\te\n"
    assert "\x1b" not in shown({"type": "text_delta", "value": {"delta": "\x1b]0;x\x07"}})


@pytest.mark.parametrize(
    ("lease_ends", "said", "admin_status", "liveness"),
    [
        ("2026-01-01T00:00:01.000Z", "streaming", "enabled", "online"),
        ("2026-01-01T00:00:01.000Z", "streaming", "disabled", "offline"),
        ("2025-12-31T23:59:59.000Z", "streaming", "enabled", "expired"),
        ("2025-12-31T23:59:59.000Z", "stopped", "enabled", "stopped"),
        (None, None, "enabled", "offline"),
    ],
)
def test_a_runner_that_was_killed_is_not_shown_as_it_last_said(
    lease_ends: str | None, said: str | None, admin_status: str, liveness: str
) -> None:
    row: dict[str, Any] = {"id": "r", "admin_status": admin_status}
    if lease_ends:
        row |= {"liveness_lease_expires_at": lease_ends, "diagnostics": {"status": said}}
    assert _liveness(row, datetime(2026, 1, 1, tzinfo=UTC)) == liveness


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_watch_of_one_status_shows_that_and_what_leaves_it(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    async def changes() -> AsyncIterator[dict[str, Any]]:
        for key, status in (("/a/1", "idle"), ("/a/1", "running"), ("/a/2", "running")):
            yield {"type": "entity", "key": key, "value": {"url": key, "status": status}}
        yield {"type": "entity", "key": "/a/1", "value": {"url": "/a/1", "status": "idle"}}
        yield {"type": "entity", "key": "/a/1", "headers": {"operation": "delete"}}
        yield {"type": "entity", "key": "/a/2", "headers": {"operation": "delete"}}

    await watch(
        Namespace(json=as_json),
        changes(),
        lambda row: (row["url"], row["status"]),
        lambda row: row["status"] == "running",
    )
    told = capsys.readouterr().out.splitlines()
    if as_json:
        events = [json.loads(line) for line in told]
        seen = [(each["key"], each.get("value", {}).get("status", "gone")) for each in events]
    else:
        seen = [(url, says) for _, url, says in (line.split() for line in told)]
    assert seen == [("/a/1", "running"), ("/a/2", "running"), ("/a/1", "idle"), ("/a/2", "gone")]


class Trouble:
    """A server that answers so, one after the other."""

    def __init__(self, *answers: Answer | RunnerError) -> None:
        self.answers = list(answers)

    def url(self, path: str) -> str:
        return path

    async def call(self, method: str, url: str, **request: Any) -> Answer:
        answer = self.answers.pop(0)
        if isinstance(answer, RunnerError):
            raise answer
        return answer


def page(name: str, **headers: str) -> Answer:
    told = {key.replace("_", "-"): value for key, value in headers.items()}
    return Answer(200, told, json.dumps([{"key": name}]).encode(), 0.0)


FOLLOWED = page("first", stream_next_offset="1", stream_up_to_date="true")
AWAY = ServerUnreachable("gone")


async def test_who_follows_goes_on_when_the_server_is_back() -> None:
    told: list[RunnerError] = []
    server = Trouble(
        FOLLOWED, AWAY, ServerRefused(503, "", ""), page("second", stream_closed="true")
    )
    client = Client(cast(Transport, server), Timing(backoff_min=0.01), told.append)
    assert [each["key"] async for each in client.follow("/a/1")] == ["first", "second"]
    assert told == [AWAY]


@pytest.mark.parametrize(
    "answers",
    [
        [AWAY],  # it was not there from the start
        [FOLLOWED, ServerRefused(401, "UNAUTHORIZED", "revoked")],
        [FOLLOWED, ServerRefused(404, "NOT_FOUND", "deleted")],
    ],
)
async def test_who_follows_what_does_not_come_back_is_told(answers: list[Any]) -> None:
    client = Client(cast(Transport, Trouble(*answers)), Timing())
    with pytest.raises(type(answers[-1])):
        [each async for each in client.follow("/a/1")]


@pytest.mark.parametrize("name", ["agent/hello", "/agent/hello", "agent/hello/"])
def test_an_entity_is_named_with_or_without_slashes(name: str) -> None:
    assert entity_path(name) == "/agent/hello"


def test_a_payload_is_json_or_text() -> None:
    assert (json_or_text('{"a": 1}'), json_or_text("Hello you")) == ({"a": 1}, "Hello you")


@pytest.mark.parametrize(
    "arguments",
    [
        ["send", "agent", "hi"],
        ["send", "agent/a/b", "hi"],
        ["send", "agent/hello"],
        ["signal", "agent/hello", "SIGWRONG"],
        ["spawn", "agent/hello", "--args", "[]"],
        ["spawn", "agent/hello", "--tag", "k"],
        ["ps", "--status", "happy"],
    ],
)
def test_what_makes_no_sense_is_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([arguments[0], "--url", "http://127.0.0.1:1", *arguments[1:]])
    assert ended.value.code == 2


def test_a_server_that_cannot_be_reached_has_its_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["ps", "--url", "http://127.0.0.1:1"]) == 69
    told = capsys.readouterr().err
    assert told.startswith("pullwake: http://127.0.0.1:1 cannot be reached: GET /_electric/entit")


def test_a_token_file_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "token"
    assert main(["ps", "--url", "http://127.0.0.1:1", "--token-file", str(missing)]) == 1
    assert str(missing) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("pullwake obs", ["observe"]),
        ("pullwake completion", ["completion"]),
        ("pullwake nonsense ", []),
        ("pullwake observe --on", ["--once"]),
        ("pullwake observe a/b --once --ne", ["--new"]),
        ("pullwake ps --status stopp", ["stopping", "stopped"]),
        ("pullwake ps --status=stopp", ["--status=stopping", "--status=stopped"]),
        ("pullwake signal a/b SIGS", ["SIGSTOP"]),
        ("pullwake signal --reason why a/b SIGS", ["SIGSTOP"]),
        ("pullwake signal --json a/b SIGS", ["SIGSTOP"]),
        ("pullwake signal 'a/b' SIGS", ["SIGSTOP"]),
        ("pullwake send a/b 'not yet ", []),
        ("pullwake completion f", ["fish"]),
        ("pullwake ps --profile w", ["work"]),
        # Where no server answers there are no names.
        ("pullwake observe --url http://127.0.0.1:1 a", []),
        ("pullwake observe --url nonsense a", []),
        ("pullwake observe --url", ["--url"]),
    ],
)
def test_a_line_is_completed(
    line: str,
    offered: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    profiles = tmp_path / "config.toml"
    profiles.write_text('[home]\nurl = "http://127.0.0.1:1"\n[work]\nurl = "http://127.0.0.1:1"\n')
    monkeypatch.setenv("PULLWAKE_CONFIG", str(profiles))
    assert main(["completion-words", line]) == 0
    assert capsys.readouterr().out.splitlines() == offered


def test_what_the_scripts_call_is_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "completion-words" not in capsys.readouterr().out


FOUND = "pullwake() { printf '%s\\n' \"$2\" >&2; printf '%s\\n' agent/a:b agent/a:c; }\n"
"""A stand-in for the command, that says on standard error of which line it was asked."""


def test_bash_completes_past_a_colon(capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    script = capsys.readouterr().out.replace("2>/dev/null)", ")") + FOUND
    script += 'COMP_LINE="pullwake observe agent/a:b x"; COMP_POINT=25; _pullwake\n'
    script += 'echo "${COMPREPLY[@]}"\n'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert (done.stderr, done.stdout) == ("pullwake observe agent/a:\n", "b c\n")


def test_zsh_takes_its_script(capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not here")
    main(["completion", "zsh"])
    script = "autoload -U compinit && compinit -u -D\n" + capsys.readouterr().out
    script += FOUND + 'compadd() { print -l -- "${(P@)@[-1]}" }\n'
    script += "words=(pullwake observe agent/a); CURRENT=3; _pullwake 2>&1\n"
    done = subprocess.run(["zsh", "-fc", script], capture_output=True, text=True, check=True)
    assert done.stdout == "agent/a:b\nagent/a:c\n"


def test_fish_offers_what_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not here")
    main(["completion", "fish"])
    script = "function pullwake; printf '%s\\n' agent/a agent/b; end\n" + capsys.readouterr().out
    script += "complete -C 'pullwake observe ag'\n"
    done = subprocess.run(["fish", "-c", script], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["agent/a", "agent/b"]


def test_no_command_is_answered_with_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    told = capsys.readouterr().err
    assert "follow what happens to an entity" in told
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "completion-words" not in capsys.readouterr().err
