"""What is forked is as what is started: its settings, streams, status, and gevent's patches."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests import forks
from tests.support import ROOT, Server

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has forks of another process"),
]


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "env"),
    [
        (("shell", "--no-imports", "-c", "print(1); raise SystemExit(7)"), {}),
        (("shell", "--no-imports", "-c", "raise ValueError"), {}),
        (("check",), {"PULLWAKE_LONG_POLL_MS": "never"}),
    ],
)
def test_a_command_reads_its_environment_says_and_ends_the_same(arguments, env):
    whole = {**os.environ, **env, "DATABASE_URL": "sqlite:///:memory:"}
    command = [sys.executable, "manage.py", *arguments]
    new = subprocess.run(command, cwd=ROOT, env=whole, capture_output=True, text=True)
    forked = forks.manage(arguments, whole)
    assert forked.returncode == new.returncode
    assert forked.stdout == new.stdout
    assert forked.stderr.splitlines()[-1:] == new.stderr.splitlines()[-1:]


@pytest.mark.once
def test_each_of_several_threads_has_its_own():
    env = {**os.environ, "DATABASE_URL": "sqlite:///:memory:"}

    def ends(status: int) -> int:
        exits = f"raise SystemExit({status})"
        return forks.manage(("shell", "--no-imports", "-c", exits), env).returncode

    with ThreadPoolExecutor(3) as threads:
        assert [*threads.map(ends, range(1, 7))] == [*range(1, 7)]


def test_a_server_is_a_process_of_this_one_in_a_session_of_its_own(server: Server):
    assert server.process is not None
    master = psutil.Process(server.process.pid)
    assert master.ppid() == os.getpid()
    assert os.getsid(master.pid) == master.pid
    assert len(master.children()) == 1


@pytest.mark.once
def test_what_is_forked_is_killed_with_the_tests(tmp_path):
    waits = """
import os, sys
from tests import forks
asks = "import time; print(1, flush=True); time.sleep(30)"
arguments = ["manage.py", "shell", "--no-imports", "-c", asks]
said, speaks = os.pipe()
env = {**os.environ, "DATABASE_URL": "sqlite:///:memory:"}
process = forks.COMMANDS.fork({"argv": arguments, "env": env}, 0, speaks, 2)
os.read(said, 1)
print(process.pid, flush=True)
process.wait(30)
"""
    command = [sys.executable, "-c", waits]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as tests:
        assert tests.stdout is not None
        forked = psutil.Process(int(tests.stdout.readline()))
        tests.kill()
    forked.wait(10)
