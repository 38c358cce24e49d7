"""What the commands for people show, and what they refuse before they ask."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from pullwake.__main__ import main
from pullwake.client import entity_path
from pullwake.people import Screen, json_or_text, plain


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
    assert capsys.readouterr().err.startswith("pullwake: GET /_electric/entities: ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_their_options(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("observe", "signal", "token-file", "once"):
        assert word in script


def test_bash_takes_what_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    script = capsys.readouterr().out
    script += 'COMP_WORDS=(pullwake obs); COMP_CWORD=1; _pullwake; echo "${COMPREPLY[@]}"\n'
    script += (
        'COMP_WORDS=(pullwake observe --on); COMP_CWORD=2; _pullwake; echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "observe\n--once\n"
