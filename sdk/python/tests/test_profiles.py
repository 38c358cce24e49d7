"""Where the server is and who asks: options before the environment before a profile."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from pullwake.profiles import Connection, add_options, connection

CONFIG = """
[default]
url = "http://default:1"
token = "of the default"

[work]
url = "https://work:2"
token_file = "~/token"
principal = "user:alice"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    (tmp_path / "token").write_text("of work\n")
    monkeypatch.setenv("PULLWAKE_CONFIG", str(path))
    monkeypatch.setenv("HOME", str(tmp_path))
    return path


def asked(*arguments: str) -> Connection:
    parser = argparse.ArgumentParser()
    add_options(parser.add_argument)
    return connection(parser.parse_args(arguments))


def test_without_anything_it_is_the_default_profile(config: Path) -> None:
    assert asked() == Connection("http://default:1", "of the default")
    assert asked().headers() == {"Authorization": "Bearer of the default"}


def test_a_profile_is_named_by_option_or_environment(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = asked("--profile", "work")
    assert work.headers() == {"Authorization": "Bearer of work", "Electric-Principal": "user:alice"}
    monkeypatch.setenv("PULLWAKE_PROFILE", "work")
    assert asked() == work


def test_the_environment_comes_before_it_and_options_before_both(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULLWAKE_URL", "http://environment:3")
    monkeypatch.setenv("PULLWAKE_TOKEN", "of the environment")
    assert asked() == Connection("http://environment:3", "of the environment")
    assert asked("--url", "http://option:4", "--token", "x") == Connection("http://option:4", "x")
    (config.parent / "other").write_text("other")
    other = asked("--token-file", str(config.parent / "other"))
    assert other.headers() == {"Authorization": "Bearer other"}


def test_a_profiles_token_goes_to_its_own_server_alone(config: Path) -> None:
    assert asked("--url", "http://elsewhere:5").headers() == {}


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        ("", [], "no server is named: give --url, or "),
        ("", ["--profile", "none"], "there is no profile 'none'"),
        ("[default", [], "cannot be read"),
        ("[default]\nurl = 1", [], "may have only"),
        ('[default]\nuri = "http://x"', [], "may have only"),
        ("default = 1", [], "may have only"),
        ('[default]\nurl = "ftp://x"', [], "not an http"),
        (CONFIG, ["--token", "a", "--token-file", "b"], "not allowed with"),
    ],
)
def test_what_makes_no_sense_is_said(
    config: Path, text: str, arguments: list[str], says: str
) -> None:
    config.write_text(text)
    with pytest.raises(ValueError, match=says):
        asked(*arguments)


def test_without_a_file_there_is_no_profile(config: Path) -> None:
    config.unlink()
    assert asked("--url", "http://x") == Connection("http://x")
