"""The command for people, with the real server."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support import HttpApi, Server


def pullwake(server: Server, *arguments: str, expect: int = 0) -> str:
    """What the command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "pullwake", arguments[0], "--url", server.url, *arguments[1:]],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == expect, done
    return done.stdout if expect == 0 else done.stderr


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def api(server: Server) -> HttpApi:
    found: HttpApi = server.client(None)
    found.register("people")
    return found


def test_from_a_spawn_to_a_signal(server: Server, api: HttpApi) -> None:
    named = ("--runner", "people", "--tag", "a=b", "--args", '{"n": 1}', "--message", "first")
    assert pullwake(server, "spawn", "chat/p1", *named) == "spawned /chat/p1\n"
    assert api.get("/_electric/entities/chat/p1").body["spawn_args"] == {"n": 1}
    assert pullwake(server, "send", "chat/p1", "Hällo").startswith("sent, txid ")
    said = pullwake(server, "observe", "chat/p1", "--once")
    assert "» /principal/system%3Adev-local: first\n" in said
    assert "» /principal/system%3Adev-local: Hällo\n" in said
    events = lines(pullwake(server, "observe", "chat/p1", "--once", "--json"))
    assert [each["type"] for each in events] == ["entity_created", "inbox", "inbox"]
    listed = pullwake(server, "ps", "--type", "chat").splitlines()
    assert listed[0].split() == ["ENTITY", "STATUS", "RUNNER", "UPDATED"]
    assert listed[1].split()[:3] == ["/chat/p1", "idle", "people"]
    (row,) = lines(pullwake(server, "ps", "--type", "chat", "--json"))
    assert row["tags"] == {"a": "b"}
    assert pullwake(server, "signal", "chat/p1", "term") == "SIGTERM sent, stopped, was idle\n"
    assert pullwake(server, "ps", "--type", "chat", "--status", "idle").count("\n") == 1
    assert "NOT_RUNNING" in pullwake(server, "send", "chat/p1", "hi", expect=1)


def test_runners_and_types(server: Server, api: HttpApi) -> None:
    api.post("/_electric/entity-types", {"name": "reporter", "description": "Reports."})
    assert "people" in pullwake(server, "runners")
    assert "people" in [each["id"] for each in lines(pullwake(server, "runners", "--json"))]
    assert "reporter" in pullwake(server, "types")


def test_every_page_of_a_list_is_shown(
    server: Server, api: HttpApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        api.make_entity(f"/paged/{n}", runner_id="people")
    code = (
        "import sys; from pullwake import client, __main__; client.PAGE = 2;"
        " sys.exit(__main__.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "ps", "--url", server.url, "--type", "paged", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert len(lines(done.stdout)) == 5


def test_its_status_says_why(server: Server) -> None:
    assert "NOT_FOUND" in pullwake(server, "send", "chat/none", "hi", expect=66)
    assert "UNAUTHORIZED" in pullwake(server, "ps", "--token", "wrong", expect=77)
    assert "INVALID_REQUEST" in pullwake(server, "spawn", "chat/p 2", expect=78)


def test_it_follows_a_stream(server: Server, api: HttpApi) -> None:
    api.make_entity("/chat/followed", runner_id="people")
    follower = subprocess.Popen(
        [sys.executable, "-m", "pullwake", "observe", "--url", server.url, "chat/followed"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert follower.stdout is not None
    try:
        assert "entity_created" in follower.stdout.readline()
        api.send("/chat/followed", payload="now")
        assert follower.stdout.readline() == "» /principal/system%3Adev-local: now\n"
        # It ends with the entity.
        api.signal("/chat/followed", "SIGKILL")
        assert "SIGKILL" in follower.stdout.readline()
        assert follower.wait(30) == 0
    finally:
        follower.kill()
        follower.wait()
        follower.stdout.close()


def test_changes_are_told_as_they_happen(server: Server, api: HttpApi) -> None:
    api.make_entity("/watched/w1", runner_id="people")
    command = [sys.executable, "-m", "pullwake", "ps", "--url", server.url, "--watch"]
    runners = [*command[:3], "runners", *command[4:]]
    with (
        subprocess.Popen([*command, "--type", "watched"], stdout=subprocess.PIPE, text=True) as ps,
        subprocess.Popen([*runners, "--json"], stdout=subprocess.PIPE, text=True) as watching,
    ):
        try:
            assert ps.stdout is not None
            assert ps.stdout.readline().split()[1:] == ["/watched/w1", "idle", "people"]
            api.send("/watched/w1")
            assert ps.stdout.readline().split()[1:] == ["/watched/w1", "idle", "people", "work"]
            api("DELETE", "/_electric/entities/watched/w1")
            assert ps.stdout.readline().split()[1:] == ["/watched/w1", "gone"]
            assert watching.stdout is not None
            assert json.loads(watching.stdout.readline())["value"]["id"] == "people"
            api.post("/_electric/runners/people/disable")
            row = json.loads(watching.stdout.readline())["value"]
            assert row["admin_status"] == "disabled"
        finally:
            ps.kill()
            watching.kill()


def test_a_shell_is_offered_what_the_server_has(server: Server, api: HttpApi) -> None:
    api.post("/_electric/entity-types", {"name": "reporter", "description": "Reports."})
    for url in ("/chat/p1", "/chat/p2", "/job/p1"):
        api.make_entity(url, "people")

    def offered(line: str) -> list[str]:
        command, rest = line.split(" ", 1)
        typed = f"pullwake {command} --url {server.url} {rest}"
        done = subprocess.run(
            [sys.executable, "-m", "pullwake", "completion-words", typed],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return sorted(done.stdout.split())

    assert offered("observe cha") == ["chat/p1", "chat/p2"]
    assert offered("send chat/p1") == ["chat/p1"]
    assert offered("signal ") == ["chat/p1", "chat/p2", "job/p1"]
    assert offered("spawn --parent /job") == ["/job/p1"]
    assert offered("spawn rep") == ["reporter/"]
    assert offered("spawn reporter/r --runner p") == ["people"]
    assert offered("run --id p") == ["people"]
    assert offered("ps --type=r") == ["--type=reporter"]
